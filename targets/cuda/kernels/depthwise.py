"""depthwise: each channel filtered by its own taps, straight from x (see strips)."""

from __future__ import annotations

from functools import partial
from typing import Any

from sparsec.errors import Unsupported
from sparsec.ir.graph import Node, replace
from sparsec.targets.calls import Call, Context, known
from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import Kernel, device_function, int64
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.cost import gpu_of, item_bytes, kernel_cycles
from sparsec.targets.cuda.parts import strips
from sparsec.targets.cuda.parts.strips import Place, Strips
from sparsec.targets.layers import is_convolution, is_depthwise
from sparsec.targets.problem import problem_of
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Problem, Target


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The call of a conv2d node with as many groups as input channels.

    Raises:
        Unsupported: it is none, and its weight no constant of which a kernel was chosen.
    """
    if not (is_depthwise(context.nodes, n) and is_convolution(context.nodes, n, context.target.dtypes)):
        raise Unsupported(f"{n.name} (conv2d): a weight that is computed at run time has no kernel")
    problem = problem_of(context.nodes, n)
    assert problem.conv is not None
    cut, sizes = strips.choose(problem.conv, problem.rows), context.sizes
    problem = replace(problem, columns=None, conv=replace(problem.conv, images=None))
    images = n.type.shape[0]
    return (
        device_call(
            context, "depthwise", (problem, cut.down), lambda name: emit(problem, cut.down, name),
            (*n.args, n.name), (sizes.of(images),), grid(cut, sizes, sizes.of(images)),
            predict(problem, cut, known(images, 1), context.target),
        ),
    )  # fmt: skip


def grid(cut: Strips, sizes: Sizes, images: int) -> int:
    """The number of blocks, an expression of that of images."""
    threads = sizes.multiply(images, sizes.of(cut.threads_per_image))
    return sizes.ceil_divide(threads, strips.THREADS)


def predict(problem: Problem, cut: Strips, images: int, target: Target) -> float:
    """Cycles of one run: of memory, of L1 or of arithmetic, whichever takes longest."""
    g = cut.geometry
    outputs = images * problem.rows * g.positions
    rows = (cut.down - 1) * g.strides[0] + (g.kernel[0] - 1) * g.dilation[0] + 1
    loads = outputs * g.kernel[1] * min(rows / cut.down, g.kernel[0])
    # a load takes the time of four multiply-adds
    work = 2.0 * outputs * g.taps + 8.0 * loads
    moved = images * (problem.rows * g.positions + g.groups * g.height * g.width) * item_bytes(problem)
    return kernel_cycles(
        target, operations=work, rate=0.7 * gpu_of(target).flops,
        blocks=max(1.0, images * cut.threads_per_image / strips.THREADS), resident=8, memory_bytes=moved,
    )  # fmt: skip


def emit(problem: Problem, down: int, name: str) -> Any:
    """The TIR function: x, w [M, 1, R, S], extras, y; the number of images. ``down`` rows a strip."""
    assert problem.conv is not None
    cut = Strips(problem.conv, problem.rows, down)
    dtype = problem.dtype
    pointers = [("x", dtype), ("w", dtype), *expressions.extra_pointers(problem), ("y", dtype)]
    body = partial(_body, problem=problem, cut=cut)
    return device_function(name, strips.THREADS, pointers, ["images"], body)


def _body(k: Kernel, problem: Problem, cut: Strips) -> None:
    strips.run(k, cut, partial(_strip, k, problem, cut))


def _strip(k: Kernel, problem: Problem, cut: Strips, place: Place) -> None:
    g, total = cut.geometry, k.registers(cut.down)
    for i in range(cut.down):
        total.put(i, expressions.constant(0))
    weights = k.bind(place.plane * g.taps)
    # written out, taps are numbers, and their weights stay in registers
    held = [expressions.load(k, k["w"], weights + t)[0] for t in range(g.taps)] if cut.straight else []

    def visit(i: int, tap: Any, value: Any) -> None:
        weight = held[tap] if held else expressions.load(k, k["w"], weights + tap)[0]
        total.put(i, total[i] + weight * value)

    strips.taps(k, cut, place, 0.0, visit)
    for i in range(cut.down):
        with k.when(place.row + i < g.out_height):
            at = k.bind(place.result + int64((place.row + i) * g.out_width + place.column))
            (value,) = expressions.finish(k, problem, [total[i]], place.plane, at)
            expressions.store(k, k["y"], at, [value])
