"""lowering: each node of a graph for a GPU becomes one kernel call, or a few one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from sparsec.ir.dims import Size
from sparsec.ir.graph import Choice, Node, Op, replace
from sparsec.targets.calls import Call, Context
from sparsec.targets.cuda import leftover
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.kernels import (  # fmt: skip
    KERNELS,
    attention,
    depthwise,
    elementwise,
    matmul,
    moves,
    normalize,
    pad,
    pool,
    recurrent,
    reduce,
    resize,
)
from sparsec.targets.problem import problem_of
from sparsec.targets.target import Packing, Problem

Rule = Callable[[Node, Context], tuple[Call, ...]]


def lower(n: Node, context: Context) -> tuple[Call, ...]:
    """The calls that compute a node.

    Raises:
        Unsupported: no kernel computes it.
    """
    if n.choice and n.op in (Op.MATMUL, Op.CONV2D):
        return _layer(n, context, n.choice[0])
    return _RULES.get(n.op, leftover.calls)(n, context)


def _layer(n: Node, context: Context, choice: Choice) -> tuple[Call, ...]:
    kernel = next(k for k in KERNELS if k.name == choice.kernel)
    problem = problem_of(context.nodes, n)
    packing = Packing({}, 0, choice.config)
    sizes = context.sizes
    columns = sizes.of(_columns(n, problem))
    cycles = choice.candidates[0].microseconds * context.target.gigahertz * 1e3 if choice.candidates else 0.0
    call = device_call(
        context, kernel.name, (_shared_code(problem), choice.config),
        lambda name: kernel.emit(problem, packing, context.target, name),
        (n.args[0], *choice.packed, *n.args[2:], n.name), () if problem.columns is not None else (columns,),
        # every kernel of a GPU has one
        cast(Any, kernel).grid(problem, packing, sizes, columns), cycles,
    )  # fmt: skip
    return (call,)


def _columns(n: Node, problem: Problem) -> Size:
    """Tokens of a linear layer, images of a convolution."""
    return n.type.shape[0] if problem.conv else n.type.tokens


def _shared_code(problem: Problem) -> tuple[object, ...]:
    """What the code of a layer depends on, beside its configuration."""
    conv = replace(problem.conv, images=None) if problem.conv and problem.columns is None else problem.conv
    return (
        problem.rows, problem.inner, problem.columns, problem.epilogue, problem.extras, problem.dtype, conv,
    )  # fmt: skip


#: what has a kernel; the rest is left over
_RULES: Mapping[Op, Rule] = {
    Op.ELEMENTWISE: elementwise.calls, Op.TRANSPOSE: moves.transpose, Op.CONCAT: moves.concat,
    Op.SLICE: moves.slice_, Op.PAD: pad.calls, Op.RESIZE: resize.calls, Op.MATMUL: matmul.calls,
    Op.ATTENTION: attention.calls, Op.LAYER_NORM: normalize.layer_norm, Op.SOFTMAX: normalize.softmax,
    Op.REDUCE: reduce.calls, Op.RECURRENT: recurrent.calls, Op.POOL: pool.calls, Op.CONV2D: depthwise.calls,
}  # fmt: skip
