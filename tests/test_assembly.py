"""The machine code of the kernels' hot loops is what the design counts on (compiled, not run)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import pytest
from assembly import Loop, hottest_loop, innermost_loops
from conv_cases import Layer, conv_configs, kinds, layer, make_conv_case, weight_of
from kernel_cases import (
    AVX2,
    AVX512,
    bitmask_gemv,
    blocks_of_rows,
    bsr_spmm,
    csr_spmm,
    dense_gemm,
    dense_gemv,
    groups_of_inputs,
    hybrid_spmm,
    lookup_gemv,
    nm_spmm,
    uneven,
    unstructured,
)

from sparsec.sparsity.pattern import infer
from sparsec.targets import x86
from sparsec.targets.build import module_of
from sparsec.targets.kernels import bsr_conv, csr_conv, dense_conv
from sparsec.targets.target import Problem, Target

TARGETS = [AVX2, replace(AVX512, mattr=x86.AVX512.mattr), replace(AVX512, name="zen5", mcpu="znver5")]
targets = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
WEIGHTS = {
    csr_spmm: unstructured(128, 256, 0.1),
    bsr_spmm: blocks_of_rows(128, 256, 0.2, 4),
    nm_spmm: groups_of_inputs(128, 256, 2, 4),
    hybrid_spmm: uneven(128, 512),
    dense_gemm: unstructured(128, 256, 1.0),
    dense_gemv: unstructured(128, 256, 1.0),
    lookup_gemv: unstructured(128, 256, 0.2),
    bitmask_gemv: unstructured(128, 256, 0.5),
}


@cache
def _texts(kernel: ModuleType, target: Target, columns: int, panel: int) -> list[tuple[dict[str, int], str]]:
    """(configuration, assembly) of everything the kernel offers."""
    weight: Any = WEIGHTS[kernel]
    problem = Problem(*weight.shape, columns, panel)
    found = []
    for config in kernel.space(problem, infer(weight), target):
        packing = kernel.pack(weight, problem, config, target)
        function = kernel.emit(problem, packing, target, "kernel")
        found.append((config, module_of(function, target).mod.inspect_source("s")))
    return found


def _panel(target: Target) -> int:
    """Four vectors: what the layout pass gives linear layers."""
    return 4 * target.lanes


def _hot(kernel: ModuleType, target: Target) -> list[tuple[dict[str, int], Loop]]:
    texts = _texts(kernel, target, 128, _panel(target))
    return [(config, hottest_loop(text)) for config, text in texts]


@targets
@pytest.mark.parametrize("kernel", [csr_spmm, bsr_spmm, nm_spmm, dense_gemm], ids=lambda k: k.name)
def test_hot_loop_uses_whole_registers_and_never_the_stack(kernel: ModuleType, target: Target) -> None:
    for config, loop in _hot(kernel, target):
        assert loop.registers() == {"ymm" if target.lanes == 8 else "zmm"}, config
        assert not loop.spills, (config, loop.spills)


@targets
@pytest.mark.parametrize("kernel", [csr_spmm, nm_spmm], ids=lambda k: k.name)
def test_multiply_adds_read_x_from_memory(kernel: ModuleType, target: Target) -> None:
    """One broadcast a nonzero, one multiply-add with a memory operand a vector, nothing else."""
    for config, loop in _hot(kernel, target):
        step = config["group"] * config["vectors"] * config.get("n", 1)
        assert loop.multiply_adds >= step and loop.multiply_adds % step == 0, config
        assert loop.from_memory == loop.multiply_adds
        assert loop.count("vbroadcastss") * config["vectors"] == loop.multiply_adds
        assert not loop.count("vmulps|vaddps|vgatherdps|vinsertf128|vinsertps")


@targets
def test_rows_of_a_block_share_the_loads_of_x(target: Target) -> None:
    for config, loop in _hot(bsr_spmm, target):
        step = config["group"] * config["vectors"]
        assert loop.multiply_adds % step == 0
        loads = loop.count("vmovup?s") + loop.from_memory
        # per step: the vectors of X once, and a broadcast (or an embedded one) for each row
        broadcasts = loop.count("vbroadcastss")
        assert loads + broadcasts <= loop.multiply_adds // step * (config["vectors"] + 2 * config["group"])


@targets
def test_every_part_of_hybrid_keeps_its_accumulators_in_registers(target: Target) -> None:
    ((config, text),) = _texts(hybrid_spmm, target, 128, _panel(target))
    loops = [loop for loop in innermost_loops(text) if loop.multiply_adds]
    for loop in loops:
        assert loop.registers() == {"ymm" if target.lanes == 8 else "zmm"}
        assert not loop.spills, loop.spills
    sharing = [loop for loop in loops if loop.from_memory < loop.multiply_adds]
    assert sharing and len(sharing) < len(loops)
    for loop in sharing:
        steps = loop.multiply_adds // (4 * config["shared"])
        assert loop.count("vmovup?s") + loop.count("vbroadcastss") <= steps * (config["shared"] + 4)


@targets
def test_dense_tile_fills_the_registers(target: Target) -> None:
    ((config, loop),) = _hot(dense_gemm, target)
    step = config["height"] * config["vectors"]
    assert loop.multiply_adds % step == 0
    assert step >= (12 if target.registers == 16 else 24)
    assert loop.count("vmovup?s") <= loop.multiply_adds // step * config["vectors"]


@targets
@pytest.mark.parametrize("columns", [1, 4])
def test_lookup_permutes_registers(columns: int, target: Target) -> None:
    texts = _texts(lookup_gemv, target, columns, 0)
    assert len(texts) == (1 if target.lanes == 8 else 2)
    for config, text in texts:
        wanted = "vperm(ps|d)" if config["registers"] == 1 else "vperm[it]2(ps|d)"
        loops = [loop for loop in innermost_loops(text) if loop.count(wanted) and loop.multiply_adds]
        # straight-line visits of one to eight slots, and the loop of longer ones (LLVM unrolls some)
        assert len(loops) >= 8 and max(loop.count(wanted) for loop in loops) >= 8 * columns, config
        for loop in loops:
            assert loop.count(wanted) == loop.multiply_adds
            assert not loop.spills and not loop.count("vgatherdps")


@targets
def test_dense_gemv_streams_its_weights(target: Target) -> None:
    for config, text in _texts(dense_gemv, target, 1, 0):
        loop = hottest_loop(text)
        assert not loop.spills
        assert loop.from_memory >= loop.multiply_adds - config["vectors"], config


@targets
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_bitmask_spreads_values_in_registers(columns: int, target: Target) -> None:
    """A step of a row: one load of its values, one move to their lanes, a multiply-add a column."""
    ((config, text),) = _texts(bitmask_gemv, target, columns, 0)
    loop = hottest_loop(text)
    assert loop.registers() == {"ymm" if target.lanes == 8 else "zmm"}
    assert not loop.spills, loop.spills
    spreads = [
        line for line in loop.lines if "\tvpermps" in line or "\tvpermd" in line or "vexpandps" in line
    ]
    assert loop.multiply_adds == columns * len(spreads)
    steps, part = divmod(len(spreads), config["rows"])
    assert steps and not part
    # with a memory operand a permutation takes twice its time; x is loaded once for all rows
    assert not any("(" in line for line in spreads)
    loads = loop.count("vmov(up|ap|dq)\\w+") + loop.from_memory
    assert loads <= steps * (config["rows"] * (2 if target.lanes == 8 else 1) + columns)
    assert loop.count("prefetcht0") == len(spreads) * target.lanes // 32


TAPS = layer(64, 48, (28, 28), (3, 3), padding=(1, 1, 1, 1))
POINTS = layer(64, 48, (14, 14))
convolutions = pytest.mark.parametrize("a", [TAPS, POINTS], ids=["taps", "points"])


@cache
def _loops(kernel: ModuleType, a: Layer, target: Target) -> list[tuple[dict[str, int], list[Loop]]]:
    """(configuration, innermost loops that multiply) of one configuration of each kind."""
    weight = weight_of(kernel, a)
    found = []
    for config in kinds(a, conv_configs(kernel, a, weight, target))[:4]:
        function = make_conv_case(kernel, a, weight, target, config).emit("kernel")
        text = module_of(function, target).mod.inspect_source("s")
        found.append((dict(config), [loop for loop in innermost_loops(text) if loop.multiply_adds]))
    return found


def _densest(loops: list[Loop], step: int) -> Loop:
    """Of the loops that take whole steps, the one that does least besides."""
    found = [loop for loop in loops if loop.multiply_adds % step == 0]
    return max(found, key=lambda loop: loop.multiply_adds / len(loop.lines))


@targets
@convolutions
@pytest.mark.parametrize("kernel", [csr_conv, bsr_conv, dense_conv], ids=lambda k: k.name)
def test_convolutions_keep_accumulators_in_registers(kernel: ModuleType, a: Layer, target: Target) -> None:
    for config, loops in _loops(kernel, a, target):
        assert loops
        for loop in loops:
            assert loop.registers() == {"ymm" if target.lanes == 8 else "zmm"}, config
            assert not loop.spills, (config, loop.spills)
            assert not loop.count("vmulps|vaddps|vgatherdps|vinsertf128|vinsertps"), config


@targets
@convolutions
def test_csr_conv_reads_windows_as_operands(a: Layer, target: Target) -> None:
    """One broadcast a nonzero, one multiply-add with a memory operand a vector, nothing else."""
    for config, loops in _loops(csr_conv, a, target):
        loop = _densest(loops, config["group"] * config["vectors"])
        assert loop.from_memory == loop.multiply_adds, config
        assert loop.multiply_adds == loop.count("vbroadcastss") * config["vectors"], config
        assert not loop.count("vmovup?s|vperm\\w+|vshuf\\w+"), config


@targets
@convolutions
def test_dense_conv_fills_the_registers(a: Layer, target: Target) -> None:
    for config, loops in _loops(dense_conv, a, target):
        rows = config["height"] // target.lanes if config["across"] else config["height"]
        step = rows * config["vectors"]
        assert step >= (10 if target.registers == 16 else 20), config
        loop = _densest(loops, step)
        # a step loads one side, vectors, and broadcasts the other, one element at a time
        vectors, elements = (rows, config["vectors"]) if config["across"] else (config["vectors"], rows)
        steps = loop.multiply_adds // step
        assert loop.count("vmovup?s") <= steps * vectors, config
        assert loop.count("vbroadcastss") <= steps * elements, config
        assert not loop.count("vperm\\w+|vshuf\\w+"), config


def test_parser_finds_the_inner_loop_and_its_spill() -> None:
    text = """
.LBB0_1:
\tvmovups\t(%rax), %ymm0
.LBB0_2:
\tvfmadd231ps\t(%rax,%rcx), %ymm0, %ymm1
\tvfmadd213ps\t%ymm2, %ymm0, %ymm1
\tvmovups\t%ymm1, 32(%rsp)
\tjne\t.LBB0_2
\tjmp\t.LBB0_1
"""
    (loop,) = innermost_loops(text)
    assert (loop.multiply_adds, loop.from_memory, loop.registers()) == (2, 1, {"ymm"})
    assert loop.spills == ["vmovups\t%ymm1, 32(%rsp)"]


@pytest.mark.parametrize("mcpu", ["x86-64-v4", "skylake-avx512", "icelake-server", "znver4"])
@pytest.mark.parametrize("kernel", [csr_spmm, lookup_gemv], ids=lambda k: k.name)
def test_accumulators_are_stored_whole(kernel: ModuleType, mcpu: str) -> None:
    """A store in halves cannot be forwarded to the next visit's load."""
    target = replace(x86.AVX512, mcpu=mcpu)
    columns, panel = (1, 0) if kernel is lookup_gemv else (128, _panel(target))
    for config, text in _texts(kernel, target, columns, panel):
        halves = [line for line in text.splitlines() if "vextract" in line and "(" in line]
        assert not halves, (config, halves[:3])
