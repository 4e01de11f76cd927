"""Which processor this is, as Linux tells: who made it, its family and model, flags and caches."""

from __future__ import annotations

import ctypes
import hashlib
import platform
from dataclasses import dataclass, replace
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
#: from linux/prctl.h: ask for the length of scalable vectors; the bits of the answer that hold it, in bytes
_PR_SVE_GET_VL, _VL_BYTES = 51, 0xFFFF


@dataclass(frozen=True, slots=True)
class Processor:
    """What /proc/cpuinfo says of the first core.

    ``name`` is for people: hypervisors shorten it, so that whole families share one ("AMD EPYC").
    ``vendor`` is empty, ``family`` and ``model`` are -1, where nothing is said of them.  ARM's
    cores have the implementer's number for a vendor ("0x41"), the architecture's for a family, the
    part's for a model; ``sve256`` among their flags says that vectors are 256 bits long.
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
        found = parsed(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return Processor()
    return replace(found, flags=found.flags | _vector_length()) if "sve" in found.flags else found


def _vector_length() -> frozenset[str]:
    """``sve`` and the bits of a scalable vector here, as a flag; empty where Linux does not tell."""
    if platform.machine() != "aarch64":
        return frozenset()
    found = int(ctypes.CDLL(None).prctl(_PR_SVE_GET_VL, 0, 0, 0, 0))
    return frozenset({f"sve{8 * (found & _VL_BYTES)}"}) if found > 0 else frozenset()


def parsed(cpuinfo: str) -> Processor:
    """The first core of a text in the form of /proc/cpuinfo."""
    core = cpuinfo.strip().split("\n\n")[0]
    pairs = (line.partition(":")[::2] for line in core.splitlines())
    facts = {key.strip(): value.strip() for key, value in pairs}
    return Processor(
        facts.get("vendor_id", facts.get("CPU implementer", "")),
        _number(facts.get("cpu family", facts.get("CPU architecture", ""))),
        _number(facts.get("model", facts.get("CPU part", ""))),
        facts.get("model name", ""),
        frozenset(facts.get("flags", facts.get("Features", "")).split()),
    )


def _number(text: str) -> int:
    """Decimal as x86 writes it, or hexadecimal as ARM does."""
    try:
        return int(text, 16 if text.startswith("0x") else 10)
    except ValueError:
        return -1


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
