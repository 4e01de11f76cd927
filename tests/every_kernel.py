"""Cases of every kernel for machines that are not at hand, and how kernels.c is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
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
from kernel_cases import (
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
    nm_spmm,
    skewed,
    small_caches,
    uneven,
    unstructured,
)
from kernel_harness import GUARD_WORDS, Case, guards_hold, in_three_calls, make_case
from stencil_cases import depthwise_cases, pool_cases
from tensor_cases import TENSOR_CASES

from sparsec.sparsity.pattern import infer
from sparsec.targets.kernels import conv_plans, csr_conv, dense_conv
from sparsec.targets.target import Problem, Target

#: what convolves and pools, besides the kernels that read a packed weight, and what wants zeros in x
STENCIL_CASES = {"depthwise": depthwise_cases, "pool": pool_cases, "active_gemv": active_cases}
#: every kernel's name
NAMES = (*(k.name for k in (*PANEL_KERNELS, *VECTOR_KERNELS, *WEIGHTS)), *STENCIL_CASES, *TENSOR_CASES)


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


def panel_cases(kernel: ModuleType, target: Target) -> list[Case]:
    """Panels of one, two and four vectors, cut into blocks and chunks, and every epilogue."""
    small, lanes, cases = small_caches(target), target.lanes, []
    wide = 4 * lanes
    for vectors, rows, inner, tokens, machine in (
        (1, 33, 70, 37, small), (2, 37, 53, 33, small), (4, 41, 61, 70, small), (4, 24, 64, 64, target),
    ):  # fmt: skip
        cases += _cases(kernel, _weight(kernel, rows, inner), tokens, vectors * lanes, machine)
    if kernel is csr_spmm:
        cases += _cases(kernel, skewed(30, 90), 20, 2 * lanes, small)
        cases += _cases(kernel, unstructured(9, 20, 0.0), 20, lanes, target)
    if kernel in (csr_spmm, dense_gemm):
        cases += _cases(kernel, unstructured(1, 1, 1.0), 1, lanes, target)
    if kernel is hybrid_spmm:
        for lines in (("rows",), ("columns",), ("short",), ("columns", "short")):
            cases += _cases(kernel, uneven(61, 90, lines), 70, wide, small, "bias")
    for epilogue in EPILOGUES:
        cases += _cases(kernel, _weight(kernel, 13, 21), 35, 2 * lanes, target, epilogue)[:1]
    weight = _weight(kernel, 13, 50)
    config = kernel.space(Problem(13, 50, None, wide), infer(weight), small)[0]
    counts = (1, wide, 5 * lanes, 5 * lanes + 1)
    return cases + [make_case(kernel, weight, n, wide, small, config, columns=None) for n in counts]


def vector_cases(kernel: ModuleType, target: Target) -> list[Case]:
    """One to four columns, with one and two registers of x, and every epilogue."""
    cases = []
    for columns, rows, inner in ((1, 70, 101), (2, 33, 64), (3, 129, 33), (4, 16, 130)):
        cases += _cases(kernel, _weight(kernel, rows, inner), columns, 0, target)
    cases += _cases(kernel, skewed(50, 80), 1, 0, target)
    cases += _cases(kernel, unstructured(1, 1, 1.0), 1, 0, target)
    cases += _cases(kernel, unstructured(20, 40, 0.0), 1, 0, target)
    for epilogue in EPILOGUES:
        cases += _cases(kernel, _weight(kernel, 37, 40), 1, 0, target, epilogue)[:1]
    return cases


def window_cases(kernel: ModuleType, target: Target) -> list[Case]:
    """Every kind of tile, strides, dilation, borders, blocks of channels, open images, epilogues."""
    few = replace(target, l1=2048, l2=1 << 16)
    rows = layer(18, 8, (7, 37), (1, 3), padding=(0, 1, 0, 1), images=2)
    points, images = layer(33, 40, (5, 9), images=2), layer(9, 4, (4, 6), (2, 2), images=18)
    if kernel is dense_conv:
        pairs = [(one, a) for one in (target, few) for a in (rows, points)]
        cases = [c for one, a in pairs for c in _every_tile(a, one)]
    else:
        cases = [c for a in (rows, points) for c in _window_cases(kernel, a, target, "bias")[:6]]
        cases += [c for c in _window_cases(kernel, images, target, "bias") if c.config["images"]][:2]
        cases += [c for a in (rows, points) for c in _window_cases(kernel, a, few)[:2]]
    for name in ("strided", "column", "kernel_beyond_map", "dilated_strided_three", "grouped"):
        cases += _window_cases(kernel, LAYERS[name], target)[:1]
    for epilogue in EPILOGUES if kernel in (dense_conv, csr_conv) else ("clip", "all"):
        cases += _window_cases(kernel, layer(7, 4, (3, 21)), target, epilogue)[:1]
    return cases + _window_cases(kernel, points, target, known=False)[:1]


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


def cases_of(name: str, target: Target) -> list[Case]:
    """All cases of the kernel called ``name``, one of :data:`NAMES`."""
    groups = ((panel_cases, PANEL_KERNELS), (vector_cases, VECTOR_KERNELS), (window_cases, WEIGHTS))
    for make, kernels in groups:
        for kernel in kernels:
            if kernel.name == name:
                return make(kernel, target)
    return {**STENCIL_CASES, **TENSOR_CASES}[name](target)


def sources(cases: Sequence[Case], folder: Path) -> tuple[Any, list[int]]:
    """Write table.c for kernels.c; return all kernels in one module, and which of them each case uses."""
    import tvm

    numbers: dict[Any, int] = {}
    functions = {}
    for case in cases:
        if case.key not in numbers:
            numbers[case.key] = len(numbers)
            name = f"k{numbers[case.key]}"
            functions[name] = case.emit(name)
    symbols = [f"__tvm_ffi_{name}" for name in functions]
    lines = ['#include "abi.h"']
    lines += [f"int32_t {s}(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);" for s in symbols]
    lines += [f"const kernel_function kernels[] = {{{', '.join(symbols)}}};"]
    lines += [f"const int64_t kernel_count = {len(symbols)};"]
    (folder / "table.c").write_text("\n".join(lines))
    return tvm.IRModule(functions), [numbers[case.key] for case in cases]


def record(case: Case, kernel: int, calls: Sequence[tuple[int, int]] = ()) -> bytes:
    """A case as kernels.c reads it; ``calls`` are first and last tiles, all of them in three if none."""
    floats = int(np.prod(case.shape)) + 2 * GUARD_WORDS
    calls = calls or in_three_calls(case)
    header = [kernel, max(16, case.scratch_floats), len(case.inputs), len(case.numbers), len(calls)]
    sizes = [floats, GUARD_WORDS, *case.numbers, *np.ravel(calls), *(a.nbytes for a in case.inputs)]
    return np.array(header + sizes, np.int64).tobytes() + b"".join(a.tobytes() for a in case.inputs)


def outputs_of(cases: Sequence[Case], raw: bytes) -> list[Any]:
    """What kernels.c wrote, guard words included, case by case."""
    output = np.frombuffer(raw, np.float32)
    ends = np.cumsum([int(np.prod(c.shape)) + 2 * GUARD_WORDS for c in cases])
    assert ends[-1] == output.size
    return np.split(output, ends[:-1])


def check_output(case: Case, whole: Any) -> None:
    """Assert that an output of :func:`outputs_of` is right, and nothing was written beside it."""
    assert guards_hold(whole), f"{case.label}: wrote beside y"
    case.check(whole[GUARD_WORDS:-GUARD_WORDS].reshape(case.shape))
