"""AVX-512 machine code of the kernels, executed: in the emulator, so on any machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from emulator import emulator
from every_kernel import NAMES, cases_of, check_output, outputs_of, record, sources
from kernel_cases import AVX512, lookup_gemv
from kernel_harness import Case

from sparsec.targets import x86
from sparsec.targets.build import module_of

FOLDER = Path(__file__).parent
RUNTIME = FOLDER.parent / "runtime" / "csrc"
# The emulated processor has AVX-512 F, CD, BW, DQ and VL, as the first server that had them.  Bochs
# 2.7 calls a gather illegal when its index is in registers 16 to 31, so LLVM must not invent gathers.
TARGET = replace(AVX512, mcpu="skylake-avx512", mattr=x86.AVX512.mattr)

# Bochs 2.7 shifts 16-bit masks by 15 to nothing
_SHIFT = re.compile(r"(kshift[lr]w)\s+\$15, (%k\d), (%k\d)")
_TWO_SHIFTS = r"\1 $14, \2, \3\n\t\1 $1, \3, \3"

# older assemblers do not know all that LLVM says about source files
_LINE_OF_DEBUG = re.compile(r"^\t\.(?:file|loc)\b.*\n", re.MULTILINE)

REASON = emulator.available()
pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(REASON is not None, reason=f"emulated AVX-512 not run: {REASON}"),
]


def run_emulated(cases: Sequence[Case], folder: Path) -> list[Any]:
    """The outputs of all cases, from one boot."""
    module, kernels = sources(cases, folder)
    text = module_of(module, TARGET).mod.inspect_source("s")
    (folder / "kernels.s").write_text(_SHIFT.sub(_TWO_SHIFTS, _LINE_OF_DEBUG.sub("", text)))
    harness = FOLDER / "emulator" / "kernels.c"
    parts = (harness, folder / "table.c", RUNTIME / "shim.c", folder / "kernels.s")
    command = ("gcc", "-O2", "-static", f"-I{RUNTIME}", "-o", str(folder / "program"))
    subprocess.run((*command, *map(str, parts), "-lm"), check=True)
    records = b"".join(record(c, k) for c, k in zip(cases, kernels, strict=True))
    return outputs_of(cases, emulator.run(folder / "program", {"cases.bin": records}))


@lru_cache(maxsize=1)
def _all_cases() -> dict[str, list[Case]]:
    return {name: cases_of(name, TARGET) for name in NAMES}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Case, Any]]]:
    """Case and output, guard words included, of every kernel: all run in one boot."""
    groups = _all_cases()
    flat = [case for cases in groups.values() for case in cases]
    results = iter(run_emulated(flat, tmp_path_factory.mktemp("emulated")))
    return {name: [(case, next(results)) for case in cases] for name, cases in groups.items()}


@pytest.mark.parametrize("name", NAMES)
def test_avx512_code_gives_the_right_numbers(name: str, outputs: dict[str, list[tuple[Case, Any]]]) -> None:
    for case, whole in outputs[name]:
        check_output(case, whole)


def test_cases_cover_both_lookups_and_all_columns() -> None:
    cases = _all_cases()[lookup_gemv.name]
    assert {case.config["registers"] for case in cases} == {1, 2}
    assert {case.shape[0] for case in cases} == {1, 2, 3, 4}
