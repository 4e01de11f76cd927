"""Which processor this is, as Linux tells: who made it, its family and model, flags and caches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True, slots=True)
class Processor:
    """What /proc/cpuinfo says of the first core.

    ``name`` is for people: hypervisors shorten it, so that whole families share one ("AMD EPYC").
    ``vendor`` is empty, ``family`` and ``model`` are -1, where nothing is said of them.
    """

    vendor: str = ""
    family: int = -1
    model: int = -1
    name: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """A file name's part: vendor, family, model, and a hash of the flags."""
        flags = hashlib.sha256(" ".join(sorted(self.flags)).encode()).hexdigest()[:12]
        vendor = "".join(c for c in self.vendor if c.isalnum()) or "unknown"
        return f"{vendor}-{self.family}-{self.model}-{flags}"


def this_processor() -> Processor:
    """The processor we run on; an empty one where Linux does not tell."""
    try:
        return parsed(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return Processor()


def parsed(cpuinfo: str) -> Processor:
    """The first core of a text in the form of /proc/cpuinfo."""
    core = cpuinfo.strip().split("\n\n")[0]
    pairs = (line.partition(":")[::2] for line in core.splitlines())
    facts = {key.strip(): value.strip() for key, value in pairs}
    return Processor(
        facts.get("vendor_id", ""),
        _number(facts.get("cpu family", "")),
        _number(facts.get("model", "")),
        facts.get("model name", ""),
        frozenset(facts.get("flags", "").split()),
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def cpu_features() -> frozenset[str]:
    """The flags of /proc/cpuinfo (empty where there is none)."""
    return this_processor().flags


def cache_sizes() -> dict[int, int]:
    """Bytes of the first core's data caches by level, as Linux reports them."""
    found: dict[int, int] = {}
    for index in _CACHES.glob("index*"):
        try:
            kind, level = (index / "type").read_text().strip(), int((index / "level").read_text())
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind in ("Data", "Unified") and size.endswith("K") and size[:-1].isdecimal():
            found[level] = int(size[:-1]) << 10
    return found
