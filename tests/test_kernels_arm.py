"""ARM machine code of the kernels, executed: by qemu, so on any machine that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path

import pytest

pytest.importorskip("tvm")

import qemu_arm
from conv_cases import WEIGHTS
from every_kernel import NAMES, cases_of, check_output, outputs_of, record, sources
from kernel_cases import PANEL_KERNELS, VECTOR_KERNELS
from kernel_harness import Case
from tensor_cases import TENSOR_CASES

from sparsec.targets import arm
from sparsec.targets.build import module_of
from sparsec.targets.target import Target

FOLDER = Path(__file__).parent
RUNTIME = FOLDER.parent / "runtime" / "csrc"
#: NEON and SVE: the other targets' code is NEON's, scheduled anew
TARGETS = (arm.NEON, arm.NEOVERSE_V1)
#: kernels with instructions of ARM's own, all of whose cases without an epilogue are run on both
ITS_OWN = ("lookup_gemv", "bitmask_gemv", "csr_gemv")
#: of the other cases, whose TIR x86 runs too, one in so many, other ones on each target
SHARE = 6

#: kernels that share a program
FAMILIES: Mapping[str, Sequence[str]] = {
    "panels": [k.name for k in PANEL_KERNELS],
    "vectors": [*(k.name for k in VECTOR_KERNELS), "active_gemv"],
    "convolutions": [k.name for k in WEIGHTS],
    "windows": ["depthwise", "pool"],
    "tensors": list(TENSOR_CASES),
}

REASON = qemu_arm.missing()
emulated = pytest.mark.skipif(REASON is not None, reason=f"ARM not run: {REASON}")


def some(name: str, target: Target) -> list[Case]:
    """The cases of a kernel that are run on a target."""
    found = cases_of(name, target)
    own = [name in ITS_OWN and " none {" in case.label for case in found]
    others = [case for case, is_own in zip(found, own, strict=True) if not is_own]
    return [*compress(found, own), *others[TARGETS.index(target) :: SHARE]]


@emulated
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_arm_code_gives_the_right_numbers(family: str, target: Target, tmp_path: Path) -> None:
    """Outputs poisoned beforehand, every array against a page that cannot be read, in three calls."""
    groups = [some(name, target) for name in FAMILIES[family]]
    assert all(groups)
    cases = [case for group in groups for case in group]
    module, kernels = sources(cases, tmp_path)
    module_of(module, target).mod.write_to_file(str(tmp_path / "kernels.o"), "o")
    harness = FOLDER / "emulator" / "kernels.c"
    parts = (harness, tmp_path / "table.c", RUNTIME / "shim.c", tmp_path / "kernels.o")
    program = qemu_arm.build(tmp_path / "program", parts, f"-I{RUNTIME}", "-static")
    (tmp_path / "cases.bin").write_bytes(b"".join(map(record, cases, kernels)))
    raw = qemu_arm.run(program, qemu_arm.processor_of(target), tmp_path)
    for case, whole in zip(cases, outputs_of(cases, raw), strict=True):
        check_output(case, whole)


def test_every_kernel_belongs_to_a_family() -> None:
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(NAMES)
    ours = {k.name for target in TARGETS for k in target.kernels}
    assert ours <= set(NAMES)
