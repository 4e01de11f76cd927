"""depthwise: each channel filtered by its own taps, straight from x (see stencil)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from sparsec.targets.cost import epilogue_cycles
from sparsec.targets.geometry import Geometry
from sparsec.targets.kernels import rolled, stencil, stencil_planes
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish
from sparsec.targets.kernels.math import lanes_of
from sparsec.targets.kernels.shuffles import Registers
from sparsec.targets.kernels.stencil import Stencil
from sparsec.targets.kernels.stencil_block import Block
from sparsec.targets.kernels.stencil_planes import Division
from sparsec.targets.target import Problem, Target

name = "depthwise"

#: emits one plane: image, channel, part of the plane
Visit: TypeAlias = Callable[[Any, Any, Any], None]

#: multiply-adds of straight code that are worth compiling
MOST_STEPS = 4000


def _geometry(problem: Problem) -> Geometry:
    assert problem.conv is not None and problem.rows % problem.conv.groups == 0
    return problem.conv


def shape_of(problem: Problem, target: Target) -> Stencil | None:
    """How a plane is cut; None where the taps are looped over."""
    return stencil.choose(_geometry(problem), target.lanes, MOST_STEPS)


def plane_cycles(problem: Problem, target: Target) -> float:
    """Cycles a plane takes."""
    g, shape = _geometry(problem), shape_of(problem, target)
    vectors = g.out_height * (len(shape.starts) if shape else g.out_width / target.lanes)
    each = g.taps * (0.7 if shape and g.strides[1] == 1 else 1.3 if shape else 3)
    return vectors * (each + 2 + epilogue_cycles(problem)) + 20


def division_of(problem: Problem, target: Target) -> Division:
    """How the planes of an image become tiles."""
    return stencil_planes.divide(shape_of(problem, target), problem.rows, plane_cycles(problem, target))


def emit(problem: Problem, target: Target, name: str) -> Any:
    """The TIR function: x, w [M, taps], extras, y."""
    shape, division = shape_of(problem, target), division_of(problem, target)

    def body(k: Kernel) -> None:
        visit = _straight(k, problem, shape, division) if shape else _rolled(k, problem)
        with stencil_planes.planes_of(k, division, problem.rows) as (image, channel, part):
            visit(image, channel, part)

    pointers = [("x", "float32"), ("w", "float32"), *extra_pointers(problem), ("y", "float32")]
    return prim_func(name, target.lanes, pointers, (), body)


def _planes(k: Kernel, problem: Problem, image: Any, channel: Any) -> tuple[Any, Any]:
    """Where a channel's planes start in x and in y."""
    g = _geometry(problem)
    multiplier = problem.rows // g.groups
    source = channel if multiplier == 1 else channel // multiplier
    x = k.bind((image * g.groups + source) * (g.height * g.width))
    return x, k.bind((image * problem.rows + channel) * g.positions)


def _put(k: Kernel, problem: Problem, channel: Any, value: Any, where: Any, lanes: int) -> None:
    k.put(k["y"], where, finish(k, problem, value, channel, where, lanes), lanes)


def _straight(k: Kernel, problem: Problem, shape: Stencil, division: Division) -> Visit:
    g, held = _geometry(problem), Registers(k, 64)
    weights, acc = k.registers(g.taps, shape.width), k.registers(shape.accumulators, shape.width)

    def visit(image: Any, channel: Any, part: Any) -> None:
        for i in range(g.taps):
            k.assign(weights, i, k.splat(k["w"][channel * g.taps + i], shape.width))

        def block(b: Block) -> None:
            _accumulate(k, held, b, weights, acc)
            b.store(
                lambda i, v: b.in_order(acc[i * shape.vectors + v]), partial(_put, k, problem, channel)
            )  # fmt: skip

        planes = _planes(k, problem, image, channel)
        stencil_planes.sweep(k, held, shape, planes, part, division.parts, 0.0, block)

    return visit


def _rolled(k: Kernel, problem: Problem) -> Visit:
    g, registers = _geometry(problem), rolled.registers_of(k)

    def visit(image: Any, channel: Any, part: Any) -> None:
        def step(total: Any, x: Any, tap: Any) -> Any:
            return total + x * k.splat(k["w"][channel * g.taps + tap], lanes_of(x))

        def put(value: Any, where: Any, lanes: int, *place: Any) -> None:
            _put(k, problem, channel, value, where, lanes)

        rolled.roll(k, g, _planes(k, problem, image, channel), registers, 0.0, step, put)

    return visit


def _accumulate(k: Kernel, held: Registers, b: Block, weights: Any, acc: Any) -> None:
    """The multiply-adds of a block."""
    g, vectors = b.stencil.geometry, b.stencil.vectors
    begun: set[int] = set()
    steps = [(row, s) for row in b.reads for s in range(g.kernel[1])]
    if g.strides[1] == 1:
        # columns of taps outside, so that few weights are live at a time; with stride 2 they share loads
        steps.sort(key=lambda step: step[1])
    for row, s in steps:
        for v in range(b.across.size):
            x = b.vector(row, s, v)
            if x is None:
                continue
            for i, r in b.reads[row]:
                product = x * weights[r * g.kernel[1] + s]
                slot = i * vectors + v
                k.assign(acc, slot, acc[slot] + product if slot in begun else product)
                begun.add(slot)
            held.forget()
    for slot in {i * vectors + v for i in range(b.down.size) for v in range(b.across.size)} - begun:
        k.assign(acc, slot, k.splat(0.0, b.stencil.width))
