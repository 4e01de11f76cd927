"""What LLVM makes of the kernels' inner loops for ARM: whole registers, no spills, lookups in registers."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("tvm")

from assembly_arm import Loop, hottest, innermost_loops
from conv_cases import conv_configs, layer, make_conv_case, weight_of
from kernel_cases import unstructured
from kernel_harness import make_case

from sparsec.sparsity.pattern import infer
from sparsec.targets import arm
from sparsec.targets.build import module_of
from sparsec.targets.kernels import (
    bitmask_gemv,
    bsr_spmm,
    csr_conv,
    csr_spmm,
    dense_conv,
    dense_gemm,
    dense_gemv,
    lookup_gemv,
)
from sparsec.targets.kernels.lookups import table_sizes
from sparsec.targets.target import Problem, Target

machines = pytest.mark.parametrize("target", [arm.NEOVERSE_N1, arm.NEOVERSE_V1], ids=lambda t: t.name)


def assembly(case: Any, target: Target) -> str:
    return str(module_of(case.emit("kernel_under_test"), target).mod.inspect_source("s"))


def linear(kernel: ModuleType, target: Target, columns: int = 64, config: int = 0) -> str:
    weight = unstructured(64, 256, 1.0 if kernel in (dense_gemm, bsr_spmm) else 0.2)
    panel = 4 * target.lanes if columns > 4 else 0
    chosen = kernel.space(Problem(64, 256, columns, panel), infer(weight), target)[config]
    return assembly(make_case(kernel, weight, columns, panel, target, chosen), target)


def kind_of(target: Target) -> str:
    return "z" if target.lanes == 8 else "v"


def check(loop: Loop, target: Target, multiply_adds: int) -> None:
    """At least so many multiply-adds, on vectors as long as the target's, and nothing on the stack."""
    assert len(loop.registers) >= multiply_adds and set(loop.registers) == {kind_of(target)}
    assert not loop.spills


@machines
@pytest.mark.parametrize(
    ("kernel", "columns", "multiply_adds"),
    [(csr_spmm, 64, 8), (bsr_spmm, 64, 8), (dense_gemm, 64, 16), (dense_gemv, 1, 8)],
    ids=lambda part: getattr(part, "name", ""),
)
def test_hot_loop_uses_whole_registers_and_never_the_stack(
    kernel: ModuleType, columns: int, multiply_adds: int, target: Target
) -> None:
    check(hottest(linear(kernel, target, columns)), target, multiply_adds)


@machines
@pytest.mark.parametrize("kernel", [csr_conv, dense_conv], ids=lambda k: k.name)
def test_convolutions_keep_accumulators_in_registers(kernel: ModuleType, target: Target) -> None:
    a = layer(64, 64, (14, 14))
    weight = weight_of(kernel, a)
    config = conv_configs(kernel, a, weight, target)[0]
    check(hottest(assembly(make_conv_case(kernel, a, weight, target, config), target)), target, 7)


@machines
def test_lookup_reads_x_from_registers(target: Target) -> None:
    for config, registers in enumerate(table_sizes(target)):
        loops = [loop for loop in innermost_loops(linear(lookup_gemv, target, 1, config)) if loop.registers]
        assert len(loops) >= 8
        for loop in loops:
            check(loop, target, 1)
            # NEON also spreads positions by a lookup
            assert loop.count("tbl") == len(loop.registers) * (2 if target.lanes == 4 else 1), registers


@machines
def test_bitmask_spreads_values_in_registers(target: Target) -> None:
    loop = hottest(linear(bitmask_gemv, target, 1))
    check(loop, target, 4)
    assert loop.count("tbl") == len(loop.registers) and loop.count("prfm") > 0


def test_parser_finds_the_inner_loop_and_its_spill() -> None:
    text = """
kernel:
.LBB0_1:                                // %outer
	mov	x1, xzr
.LBB0_2:
	ldr	q0, [x2, x1]                    // 16-byte Folded Reload
	str	q1, [sp, #16]
	fmla	v1.4s, v0.4s, v2.s[0]
.Ltmp3:
	fmla	z3.s, p0/m, z4.s, z5.s
	cbnz	x1, .LBB0_2
	b.ne	.LBB0_1
	cbz	x3, .LBB0_9
.LBB0_9:
	ret
"""
    [loop] = innermost_loops(text)
    assert loop.registers == ["v", "z"] and loop.spills == ["str\tq1, [sp, #16]"] and loop.count("ldr") == 1
