"""What a result must say about the machine it came from; no names of hosts or users."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

#: the instruction sets that decide which kernels run
FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512vl",
    "avx512bw",
    "avx512dq",
    "avx512_vnni",
    "avx512_bf16",
    "avx512vbmi",
    "asimd",
    "asimddp",
    "sve",
)

#: ARM's cores by part number: Linux tells no name
PARTS = {
    0xD03: "Cortex-A53", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76", 0xD0C: "Neoverse N1", 0xD0D: "Cortex-A77", 0xD40: "Neoverse V1", 0xD41: "Cortex-A78",
    0xD49: "Neoverse N2", 0xD4F: "Neoverse V2",
}  # fmt: skip


def described() -> dict[str, Any]:
    """Model, family, instruction sets, cores this process may use, and Python's version."""
    facts = _cpu_facts()
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "cpu": facts.get("model name") or _arm_core(facts) or platform.processor() or platform.machine(),
        "family": facts.get("cpu family", ""),
        "model": facts.get("model", ""),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def slug(machine: dict[str, Any]) -> str:
    """A file name: virtual machines call many processors alike, so family and model are in it."""
    parts = (
        machine["cpu"],
        f"family {machine['family']} model {machine['model']}" if machine["family"] else "",
    )
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def _arm_core(facts: dict[str, str]) -> str:
    """What ARM calls the core, or its numbers; empty on other machines."""
    maker, part = facts.get("CPU implementer", ""), facts.get("CPU part", "")
    if not part:
        return ""
    known = PARTS.get(int(part, 16)) if maker == "0x41" else None
    return known or f"ARM {maker} {part}"


def _cpu_facts() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
