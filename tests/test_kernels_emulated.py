"""AVX-512 machine code of the kernels, executed: in the emulator, so on any machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tvm
from active_cases import active_cases
from conv_cases import (
    LAYERS,
    WEIGHTS,
    Layer,
    conv_configs,
    kinds,
    layer,
    make_conv_case,
    problem_of,
    suited,
    weight_of,
)
from emulator import emulator
from kernel_cases import (
    AVX512,
    EPILOGUES,
    PANEL_KERNELS,
    VECTOR_KERNELS,
    blocks_of_rows,
    bsr_spmm,
    csr_spmm,
    dense_gemm,
    dense_gemv,
    groups_of_inputs,
    hybrid_spmm,
    lookup_gemv,
    nm_spmm,
    skewed,
    small_caches,
    uneven,
    unstructured,
)
from kernel_harness import GUARD_WORDS, Case, guards_hold, in_three_calls, make_case
from stencil_cases import depthwise_cases, pool_cases
from tensor_cases import TENSOR_CASES

from sparsec.pattern import infer
from sparsec.targets import x86
from sparsec.targets.build import module_of
from sparsec.targets.kernels import conv_plans, csr_conv, dense_conv
from sparsec.targets.target import Problem, Target

FOLDER = Path(__file__).parent
RUNTIME = FOLDER.parent / "runtime" / "csrc"
# The emulated processor has AVX-512 F, CD, BW, DQ and VL, as the first server that had them.  Bochs
# 2.7 calls a gather illegal when its index is in registers 16 to 31, so LLVM must not invent gathers.
TARGET = replace(AVX512, mcpu="skylake-avx512", mattr=x86.AVX512.mattr)
SMALL = small_caches(TARGET)
#: caches that hold the windows of a few channels only
FEW = replace(TARGET, l1=2048, l2=1 << 16)
#: what convolves and pools, besides the kernels that read a packed weight, and what wants zeros in x
STENCIL_CASES = {"depthwise": depthwise_cases, "pool": pool_cases, "active_gemv": active_cases}

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


def _cases(
    kernel: ModuleType, weight: Any, tokens: int, panel: int, target: Target, epilogue: str = "none"
) -> list[Case]:
    """One case per configuration that the kernel suggests for the weight."""
    problem = Problem(*weight.shape, tokens, panel)
    configs = kernel.space(problem, infer(weight), target)
    return [make_case(kernel, weight, tokens, panel, target, c, epilogue) for c in configs]


def _weight(kernel: ModuleType, rows: int, inner: int) -> Any:
    if kernel is bsr_spmm:
        return blocks_of_rows(rows, inner, 0.3, 4)
    if kernel is nm_spmm:
        return groups_of_inputs(rows, inner, 2, 8)
    if kernel is hybrid_spmm:
        return uneven(rows, inner)
    return unstructured(rows, inner, 0.9 if kernel in (dense_gemm, dense_gemv) else 0.25)


def panel_cases(kernel: ModuleType) -> list[Case]:
    """Panels of one, two and four vectors, cut into blocks and chunks, and every epilogue."""
    cases = []
    for panel, rows, inner, tokens, target in (
        (16, 33, 70, 37, SMALL), (32, 37, 53, 33, SMALL), (64, 41, 61, 70, SMALL), (64, 24, 64, 64, TARGET),
    ):  # fmt: skip
        cases += _cases(kernel, _weight(kernel, rows, inner), tokens, panel, target)
    if kernel is csr_spmm:
        cases += _cases(kernel, skewed(30, 90), 20, 32, SMALL)
        cases += _cases(kernel, unstructured(9, 20, 0.0), 20, 16, TARGET)
    if kernel in (csr_spmm, dense_gemm):
        cases += _cases(kernel, unstructured(1, 1, 1.0), 1, 16, TARGET)
    if kernel is hybrid_spmm:
        for lines in (("rows",), ("columns",), ("short",), ("columns", "short")):
            cases += _cases(kernel, uneven(61, 90, lines), 70, 64, SMALL, "bias")
    for epilogue in EPILOGUES:
        cases += _cases(kernel, _weight(kernel, 13, 21), 35, 32, TARGET, epilogue)[:1]
    weight = _weight(kernel, 13, 50)
    config = kernel.space(Problem(13, 50, None, 64), infer(weight), SMALL)[0]
    return cases + [make_case(kernel, weight, n, 64, SMALL, config, columns=None) for n in (1, 64, 80, 81)]


def vector_cases(kernel: ModuleType) -> list[Case]:
    """One to four columns, with one and two registers of x, and every epilogue."""
    cases = []
    for columns, rows, inner in ((1, 70, 101), (2, 33, 64), (3, 129, 33), (4, 16, 130)):
        cases += _cases(kernel, _weight(kernel, rows, inner), columns, 0, TARGET)
    cases += _cases(kernel, skewed(50, 80), 1, 0, TARGET)
    cases += _cases(kernel, unstructured(1, 1, 1.0), 1, 0, TARGET)
    cases += _cases(kernel, unstructured(20, 40, 0.0), 1, 0, TARGET)
    for epilogue in EPILOGUES:
        cases += _cases(kernel, _weight(kernel, 37, 40), 1, 0, TARGET, epilogue)[:1]
    return cases


def window_cases(kernel: ModuleType) -> list[Case]:
    """Every kind of tile, strides, dilation, borders, blocks of channels, open images, epilogues."""
    rows = layer(18, 8, (7, 37), (1, 3), padding=(0, 1, 0, 1), images=2)
    points, images = layer(33, 40, (5, 9), images=2), layer(9, 4, (4, 6), (2, 2), images=18)
    if kernel is dense_conv:
        pairs = [(one, a) for one in (TARGET, FEW) for a in (rows, points)]
        cases = [c for one, a in pairs for c in _every_tile(a, one)]
    else:
        cases = [c for a in (rows, points) for c in _window_cases(kernel, a, TARGET, "bias")[:6]]
        cases += [c for c in _window_cases(kernel, images, TARGET, "bias") if c.config["images"]][:2]
        cases += [c for a in (rows, points) for c in _window_cases(kernel, a, FEW)[:2]]
    for name in ("strided", "column", "kernel_beyond_map", "dilated_strided_three", "grouped"):
        cases += _window_cases(kernel, LAYERS[name], TARGET)[:1]
    for epilogue in EPILOGUES if kernel in (dense_conv, csr_conv) else ("clip", "all"):
        cases += _window_cases(kernel, layer(7, 4, (3, 21)), TARGET, epilogue)[:1]
    return cases + _window_cases(kernel, points, TARGET, known=False)[:1]


def _window_cases(
    kernel: ModuleType, a: Layer, target: Target, epilogue: str = "none", known: bool = True
) -> list[Case]:
    """One case per kind of configuration that the kernel suggests for the layer."""
    a = suited(kernel, a)
    weight = weight_of(kernel, a)
    found = kinds(a, conv_configs(kernel, a, weight, target))
    return [make_conv_case(kernel, a, weight, target, c, epilogue, known) for c in found]


def _every_tile(a: Layer, target: Target) -> list[Case]:
    """All kinds of tile of dense_conv, also those it would not suggest."""
    found = kinds(a, conv_plans.candidates(problem_of(a), target))
    return [make_conv_case(dense_conv, a, weight_of(dense_conv, a), target, c, "bias") for c in found]


def _compile_kernels(cases: Sequence[Case], folder: Path) -> list[int]:
    """Write kernels.s and table.c; return which kernel each case uses."""
    numbers: dict[Any, int] = {}
    functions = {}
    for case in cases:
        if case.key not in numbers:
            numbers[case.key] = len(numbers)
            name = f"k{numbers[case.key]}"
            functions[name] = case.emit(name)
    text = module_of(tvm.IRModule(functions), TARGET).mod.inspect_source("s")
    (folder / "kernels.s").write_text(_SHIFT.sub(_TWO_SHIFTS, _LINE_OF_DEBUG.sub("", text)))
    symbols = [f"__tvm_ffi_{name}" for name in functions]
    lines = ['#include "abi.h"']
    lines += [f"int32_t {s}(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);" for s in symbols]
    lines += [f"const kernel_function kernels[] = {{{', '.join(symbols)}}};"]
    lines += [f"const int64_t kernel_count = {len(symbols)};"]
    (folder / "table.c").write_text("\n".join(lines))
    return [numbers[case.key] for case in cases]


def _record(case: Case, kernel: int) -> bytes:
    """A case as kernels.c reads it."""
    floats = int(np.prod(case.shape)) + 2 * GUARD_WORDS
    calls = in_three_calls(case)
    header = [kernel, max(16, case.scratch_floats), len(case.inputs), len(case.numbers), len(calls)]
    sizes = [floats, GUARD_WORDS, *case.numbers, *np.ravel(calls), *(a.nbytes for a in case.inputs)]
    return np.array(header + sizes, np.int64).tobytes() + b"".join(a.tobytes() for a in case.inputs)


def run_emulated(cases: Sequence[Case], folder: Path) -> list[Any]:
    """The outputs of all cases, from one boot."""
    kernels = _compile_kernels(cases, folder)
    harness = FOLDER / "emulator" / "kernels.c"
    sources = (harness, folder / "table.c", RUNTIME / "shim.c", folder / "kernels.s")
    command = ("gcc", "-O2", "-static", f"-I{RUNTIME}", "-o", str(folder / "program"))
    subprocess.run((*command, *map(str, sources), "-lm"), check=True)
    records = b"".join(_record(c, k) for c, k in zip(cases, kernels, strict=True))
    output = np.frombuffer(emulator.run(folder / "program", {"cases.bin": records}), np.float32)
    ends = np.cumsum([int(np.prod(c.shape)) + 2 * GUARD_WORDS for c in cases])
    assert ends[-1] == output.size
    return np.split(output, ends[:-1])


@lru_cache(maxsize=1)
def _all_cases() -> dict[str, list[Case]]:
    cases = {k.name: panel_cases(k) for k in PANEL_KERNELS}
    cases |= {k.name: vector_cases(k) for k in VECTOR_KERNELS}
    cases |= {k.name: window_cases(k) for k in WEIGHTS}
    return cases | {name: make(TARGET) for name, make in {**STENCIL_CASES, **TENSOR_CASES}.items()}


NAMES = [*(k.name for k in (*PANEL_KERNELS, *VECTOR_KERNELS, *WEIGHTS)), *STENCIL_CASES, *TENSOR_CASES]


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
        assert guards_hold(whole), f"{case.label}: wrote beside y"
        case.check(whole[GUARD_WORDS:-GUARD_WORDS].reshape(case.shape))


def test_cases_cover_both_lookups_and_all_columns() -> None:
    cases = _all_cases()[lookup_gemv.name]
    assert {case.config["registers"] for case in cases} == {1, 2}
    assert {case.shape[0] for case in cases} == {1, 2, 3, 4}
