"""The x86 kernels that run a weight, on this machine, against float64 NumPy on fresh inputs."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import combinations, pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from kernel_cases import (
    AVX2,
    AVX512,
    EPILOGUES,
    LINES,
    PANEL_KERNELS,
    SPLIT,
    VECTOR_KERNELS,
    blocks_of_rows,
    bsr_spmm,
    csr_gemv,
    csr_spmm,
    dense_gemm,
    dense_gemv,
    groups_of_inputs,
    has_features,
    hybrid_spmm,
    lookup_gemv,
    nm_spmm,
    skewed,
    small_caches,
    uneven,
    unstructured,
)
from kernel_harness import Case, check_case, make_case, run_case
from tensor_cases import TENSOR_CASES

from sparsec.sparsity.pattern import infer
from sparsec.targets import x86
from sparsec.targets.cost import stream_cycles
from sparsec.targets.target import Problem, Target


def _tier(target: Target) -> Any:
    missing = not has_features(target)
    reason = f"{target.name} not run: this machine lacks {' or '.join(target.features)}"
    return pytest.param(target, id=target.name, marks=pytest.mark.skipif(missing, reason=reason))


TIERS = [_tier(AVX2), _tier(SPLIT), _tier(AVX512)]
#: lookups are written for the processor's own vector length
VECTOR_TIERS = [_tier(AVX2), _tier(AVX512)]
named = pytest.mark.parametrize("kernel", [*PANEL_KERNELS, *VECTOR_KERNELS], ids=lambda k: k.name)
panel_kernels = pytest.mark.parametrize("kernel", PANEL_KERNELS, ids=lambda k: k.name)
vector_kernels = pytest.mark.parametrize("kernel", VECTOR_KERNELS, ids=lambda k: k.name)
tiers = pytest.mark.parametrize("target", TIERS)
vector_tiers = pytest.mark.parametrize("target", VECTOR_TIERS)

#: (rows, inner, tokens, density): one, primes, empty, full, tails of every kind
SHAPES = [
    (1, 1, 1, 1.0), (7, 13, 5, 0.5), (33, 257, 40, 0.1), (64, 64, 64, 1.0), (10, 30, 3, 0.0),
    (3, 211, 70, 0.2), (101, 5, 17, 0.4),
]  # fmt: skip


def suits(kernel: ModuleType, rows: int, inner: int, density: float) -> list[Any]:
    """Weights of the kernel's own structure."""
    if kernel is bsr_spmm:
        return [blocks_of_rows(rows, inner, density, height) for height in (2, 4, 16)]
    if kernel is nm_spmm:
        return [groups_of_inputs(rows, inner, n, m) for n, m in ((1, 4), (2, 4), (3, 16))]
    if kernel is hybrid_spmm:
        return [uneven(rows, inner, lines) for lines in (LINES[:1], LINES[1:2], LINES[2:], LINES)]
    if kernel is dense_gemm or kernel is dense_gemv:
        return [unstructured(rows, inner, 1.0)]
    return [unstructured(rows, inner, density)]


def configurations(kernel: ModuleType, weight: Any, tokens: int, panel: int, target: Target) -> Any:
    """What the kernel offers for a weight, nothing if it does not accept it."""
    problem, pattern = Problem(*weight.shape, tokens, panel), infer(weight)
    return kernel.space(problem, pattern, target) if kernel.accepts(problem, pattern, target) else ()


def cases(
    kernel: ModuleType, weight: Any, tokens: int, panel: int, target: Target, epilogue: str = "none"
) -> list[Case]:
    """One case per configuration."""
    found = configurations(kernel, weight, tokens, panel, target)
    return [make_case(kernel, weight, tokens, panel, target, c, epilogue) for c in found]


def check_all(found: list[Case]) -> None:
    """Every case is right, and there is one."""
    assert found
    for case in found:
        check_case(case)


@tiers
@panel_kernels
@pytest.mark.parametrize("panel", [8, 16, 32, 64])
def test_panel_kernel_on_all_shapes(kernel: ModuleType, panel: int, target: Target) -> None:
    if panel % target.lanes:
        weight = suits(kernel, 33, 257, 0.1)[0]
        assert not configurations(kernel, weight, 40, panel, target)
        return
    found = []
    # the second AVX2 tier differs in the length of vectors only
    shapes = SHAPES[panel // 16 % 2 :: 2] if target is SPLIT else SHAPES
    for number, (rows, inner, tokens, density) in enumerate(shapes):
        weights = suits(kernel, rows, inner, density)
        found += cases(kernel, weights[number % len(weights)], tokens, panel, target)
    check_all(found)


@tiers
@panel_kernels
@pytest.mark.parametrize("panel", [16, 64])
def test_panel_kernel_cut_into_many_blocks_and_chunks(kernel: ModuleType, panel: int, target: Target) -> None:
    small = small_caches(target)
    weight = suits(kernel, 107, 150, 0.25)[-1 if panel == 16 else 0]
    found = cases(kernel, weight, 2 * panel + 3, panel, small)
    assert any(c.tiles > c.shape[0] for c in found)
    check_all(found)


@tiers
@pytest.mark.parametrize("kernel", [csr_spmm, dense_gemm], ids=lambda k: k.name)
def test_panel_kernel_on_rows_from_empty_to_full(kernel: ModuleType, target: Target) -> None:
    for machine in (target, small_caches(target)):
        check_all(cases(kernel, skewed(53, 140), 40, 16, machine))


@tiers
def test_last_rows_alone_hold_the_nonzeros(target: Target) -> None:
    weight = unstructured(35, 60, 0.3)
    weight[:33] = 0
    check_all(cases(csr_spmm, weight, 20, 16, small_caches(target)))
    weight = unstructured(35, 60, 0.3)
    weight[33:] = 0
    check_all(cases(csr_spmm, weight, 20, 16, small_caches(target)))


@tiers
@pytest.mark.parametrize("lines", [c for n in (1, 2, 3) for c in combinations(LINES, n)], ids="-".join)
def test_hybrid_runs_every_kind_of_line(lines: Collection[str], target: Target) -> None:
    parts = {"rows": "dense", "columns": "strip", "short": "short"}
    for machine, panel in ((target, 32), (small_caches(target), 64))[target is SPLIT :]:
        # 3 rows are left over; where all of K is one block, short rows are as good as others
        weight = uneven(107, 401 if machine is target else 150, lines)
        found = cases(hybrid_spmm, weight, panel + 7, panel, machine, "bias")
        for line, part in parts.items():
            assert bool(found[0].config[f"{part}_blocks"]) == (line in lines), part
        check_all(found)


@tiers
@pytest.mark.parametrize("lines", [LINES, ("columns", "short")], ids="-".join)
def test_hybrid_addresses_more_of_x_than_16_bits_can(lines: Collection[str], target: Target) -> None:
    check_all(cases(hybrid_spmm, uneven(43, 2203, lines), 70, 64, target, "residual"))


@tiers
def test_hybrid_where_all_rows_are_of_one_kind(target: Target) -> None:
    machine = small_caches(target)
    full, few = unstructured(35, 90, 0.95), unstructured(35, 90, 0.03)
    shared = uneven(35, 90, ("columns",))
    shared[:, np.arange(90) % 3 > 0] = 0
    for weight in (full, few, shared, np.where(np.arange(35)[:, None] < 20, full, few), few * 0):
        check_all(cases(hybrid_spmm, weight, 40, 16, machine, "bias_relu"))


@tiers
def test_hybrid_with_unknown_columns(target: Target) -> None:
    weight, machine = uneven(61, 130), small_caches(target)
    config = configurations(hybrid_spmm, weight, 40, 64, machine)[0]
    for tokens in (1, target.lanes, target.lanes + 1, 64, 65, 64 + 3 * target.lanes):
        check_case(make_case(hybrid_spmm, weight, tokens, 64, machine, config, "residual", columns=None))


@tiers
@panel_kernels
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_panel_kernel_epilogue(kernel: ModuleType, epilogue: str, target: Target) -> None:
    weight = suits(kernel, 13, 21, 0.5)[1 if kernel is bsr_spmm else 0]
    check_all(cases(kernel, weight, 35, 32, target, epilogue)[:1])


@tiers
def test_epilogue_runs_once_after_the_last_block(target: Target) -> None:
    for kernel in PANEL_KERNELS:
        weight = suits(kernel, 13, 150, 0.4)[-1]
        check_all(cases(kernel, weight, 37, 32, small_caches(target), "bias_relu")[:1])


@vector_tiers
@vector_kernels
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_vector_kernel_on_all_shapes(kernel: ModuleType, columns: int, target: Target) -> None:
    found = []
    for rows, inner, _, density in [*SHAPES[columns % 2 :: 2], (300, 70, 1, 0.03)]:
        for weight in suits(kernel, rows, inner, density):
            found += cases(kernel, weight, columns, 0, target)
    check_all([*found, *cases(kernel, skewed(50, 83), columns, 0, target)])


@vector_tiers
@vector_kernels
def test_tall_weight_is_cut_into_tiles(kernel: ModuleType, target: Target) -> None:
    found = cases(kernel, unstructured(2100, 40, 0.1), 2, 0, target)
    assert all(case.tiles > 1 for case in found)
    check_all(found)


@vector_tiers
@vector_kernels
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_vector_kernel_epilogue(kernel: ModuleType, epilogue: str, target: Target) -> None:
    check_all(cases(kernel, unstructured(37, 40, 0.4), 2, 0, target, epilogue)[:1])


@tiers
@pytest.mark.parametrize("name", TENSOR_CASES)
def test_kernel_without_a_weight(name: str, target: Target) -> None:
    check_all(TENSOR_CASES[name](target))


@tiers
@panel_kernels
def test_number_of_columns_may_be_unknown(kernel: ModuleType, target: Target) -> None:
    """One kernel for all: a single token, a last panel of one vector or less, and of more."""
    weight = suits(kernel, 21, 70, 0.5)[0]
    machine = small_caches(target)
    config = configurations(kernel, weight, 40, 64, machine)[0]
    for tokens in (1, target.lanes, target.lanes + 1, 64, 65, 64 + 3 * target.lanes):
        check_case(make_case(kernel, weight, tokens, 64, machine, config, "residual", columns=None))


@pytest.mark.skipif(not has_features(AVX2), reason="this machine has no AVX2")
@named
def test_runs_are_identical_to_the_bit(kernel: ModuleType) -> None:
    tokens, panel = (40, 16) if kernel in PANEL_KERNELS else (2, 0)
    case = cases(kernel, suits(kernel, 40, 64, 0.3)[-1], tokens, panel, AVX2)[0]
    first, second = (case.logical(run_case(case)).tobytes() for _ in range(2))
    assert first == second


def _weights_and_patterns(kernel: ModuleType) -> Any:
    for rows, inner, _, density in [*SHAPES, (512, 300, 1, 0.1)]:
        for weight in [*suits(kernel, rows, inner, density), skewed(rows, inner)]:
            yield weight, infer(weight)


@pytest.mark.parametrize("target", [AVX2, AVX512, small_caches(AVX2)], ids=["avx2", "avx512", "small"])
@named
def test_predictions_are_positive_numbers(kernel: ModuleType, target: Target) -> None:
    accepted = 0
    for weight, pattern in _weights_and_patterns(kernel):
        for columns, panel in ((1, 0), (4, 0), (33, 16), (None, 64), (200, 32)):
            problem = Problem(*weight.shape, columns, panel)
            if not kernel.accepts(problem, pattern, target):
                continue
            for config in kernel.space(problem, pattern, target):
                accepted += 1
                cycles = kernel.predict(problem, pattern, config, target)
                assert math.isfinite(cycles) and cycles > 0, (weight.shape, config)
    assert accepted


@named
def test_prediction_grows_with_the_work(kernel: ModuleType) -> None:
    tokens, panel = (64, 32) if kernel in PANEL_KERNELS else (1, 0)

    def cycles(rows: int, columns: int) -> float:
        weight = suits(kernel, rows, 256, 0.2)[-1]
        problem, pattern = Problem(*weight.shape, columns, panel), infer(weight)
        config = kernel.space(problem, pattern, AVX2)[0]
        return float(kernel.predict(problem, pattern, config, AVX2))

    assert cycles(512, tokens) > 1.5 * cycles(128, tokens)
    assert cycles(512, 2 * tokens) > cycles(512, tokens)


@named
def test_packing_is_deterministic_and_copies(kernel: ModuleType) -> None:
    tokens, panel = (40, 16) if kernel in PANEL_KERNELS else (2, 0)
    weight = suits(kernel, 40, 64, 0.3)[-1]
    problem = Problem(*weight.shape, tokens, panel)
    for config in configurations(kernel, weight, tokens, panel, AVX2):
        before = weight.copy()
        one, two = (kernel.pack(weight, problem, config, AVX2) for _ in range(2))
        assert (one.tiles, one.config, one.nbytes) == (two.tiles, two.config, two.nbytes)
        for name, array in one.arrays.items():
            assert array.dtype == two.arrays[name].dtype and array.tobytes() == two.arrays[name].tobytes()
            assert array.flags.c_contiguous and not np.shares_memory(array, weight)
        assert (weight == before).all()


@named
def test_emitted_text_depends_on_the_problem_alone(kernel: ModuleType) -> None:
    tokens, panel = (40, 16) if kernel in PANEL_KERNELS else (2, 0)
    weight = suits(kernel, 40, 64, 0.3)[-1]
    problem = Problem(*weight.shape, tokens, panel)
    config = configurations(kernel, weight, tokens, panel, AVX2)[0]
    packings = [kernel.pack(w, problem, config, AVX2) for w in (weight, np.roll(weight, 4, axis=0) * 2)]
    assert packings[0].config == packings[1].config
    texts = [kernel.emit(problem, p, AVX2, "kernel").script() for p in (*packings, packings[0])]
    assert texts[0] == texts[1] == texts[2]


def test_kernels_refuse_what_they_cannot_run() -> None:
    weight = unstructured(40, 64, 0.2)
    pattern = infer(weight)
    panels, vector = Problem(40, 64, 40, 16), Problem(40, 64, 2, 0)
    for kernel in PANEL_KERNELS:
        assert not kernel.accepts(vector, pattern, AVX2)
        assert not kernel.accepts(replace(panels, panel=12), pattern, AVX2)
    for kernel in VECTOR_KERNELS:
        assert not kernel.accepts(panels, pattern, AVX2)
        assert not kernel.accepts(replace(vector, columns=5), pattern, AVX2)
        assert not kernel.accepts(replace(vector, columns=None), pattern, AVX2)
    assert not csr_gemv.accepts(replace(vector, inner=65537), pattern, AVX2)
    assert not nm_spmm.accepts(panels, infer(unstructured(40, 64, 1.0)), AVX2)
    assert not bsr_spmm.accepts(replace(panels, rows=3), infer(unstructured(3, 64, 0.5)), AVX2)
    assert not hybrid_spmm.accepts(panels, infer(unstructured(40, 64, 0.5)), AVX2)
    assert lookup_gemv.accepts(vector, pattern, AVX512)


@pytest.mark.parametrize(
    ("rows", "threads", "chunk"),
    [(768, 1, 768), (768, 2, 384), (768, 8, 256), (200, 2, 200), (3072, 1, 1024), (3072, 2, 768)],
)
def test_lookups_are_cut_for_threads(rows: int, threads: int, chunk: int) -> None:
    target = replace(AVX2, threads=threads)
    configs = lookup_gemv.space(Problem(rows, 256, 1, 0), infer(unstructured(rows, 256, 0.1)), target)
    assert {config["chunk"] for config in configs} == {chunk}


@pytest.mark.parametrize(
    ("density", "best"), [(0.5, "bitmask_gemv"), (0.3, "bitmask_gemv"), (0.1, "csr_gemv")]
)
def test_weights_beyond_the_caches_are_chosen_by_their_bytes(density: float, best: str) -> None:
    """What is read from memory takes as long as its bytes do, so the smallest that computes in time wins."""
    weight = unstructured(2048, 2048, density)
    problem, pattern = Problem(2048, 2048, 1, 0), infer(weight)
    machine = replace(x86.AVX2, l3=2 << 20)
    cycles = {
        kernel.name: kernel.predict(problem, pattern, config, machine)
        for kernel in VECTOR_KERNELS
        for config in kernel.space(problem, pattern, machine)
    }
    assert min(cycles, key=cycles.__getitem__) == best
    assert cycles[best] < 0.75 * cycles[dense_gemv.name]


def test_a_stream_gets_slower_with_its_level_but_never_shorter_with_its_length() -> None:
    sizes = [1 << n for n in range(10, 28)]
    cycles = [stream_cycles(size, x86.AVX2) for size in sizes]
    assert all(a < b for a, b in pairwise(cycles))
    assert cycles[0] == sizes[0] / x86.AVX2.l2_bytes and cycles[-1] == sizes[-1] / x86.AVX2.dram_bytes
