"""lowering: each node of the finished graph becomes one kernel call.

A call says which kernel, which values it reads, which numbers it needs and how many tiles it has;
``sparsec.planning.planner`` turns calls into the plan's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from sparsec.errors import IRError, Unsupported
from sparsec.ir.attributes import (
    AttentionAttrs,
    ElementwiseAttrs,
    LayerNormAttrs,
    MatmulAttrs,
    SoftmaxAttrs,
    TirAttrs,
)
from sparsec.ir.dims import Size, product, symbol
from sparsec.ir.expr import Expr
from sparsec.ir.graph import Choice, Node, Op, replace
from sparsec.ir.types import Type
from sparsec.targets import lowering_moves, lowering_windows
from sparsec.targets.calls import Call, Context, cycles_of, kernel_call, known, operator_call, panel_count
from sparsec.targets.layers import is_convolution, is_depthwise
from sparsec.targets.lowering_recurrent import recurrent
from sparsec.targets.problem import problem_of
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Kernel, Packing, Problem


def lower(n: Node, context: Context) -> tuple[Call, ...]:
    """The calls that compute a node; on a processor always one.

    Raises:
        Unsupported: no kernel computes it.
    """
    if context.target.gpu:
        from sparsec.targets.cuda.lowering import lower as lower_for_gpu

        return lower_for_gpu(n, context)
    rule = _RULES.get(n.op)
    if rule is None:
        raise IRError(f"{n.name} ({n.op}): nothing to run")
    return (rule(n, context),)


def _layer(n: Node, context: Context, choice: Choice) -> Call:
    kernel: Kernel = next(k for k in context.target.kernels if k.name == choice.kernel)
    problem = problem_of(context.nodes, n)
    packing = Packing({}, dict(choice.config)["chunks"], choice.config)
    sizes = context.sizes
    floats = getattr(kernel, "scratch_floats", lambda *_: 16)(problem, packing, context.target)
    reads = (n.args[0], *choice.packed, *n.args[2:], n.name)
    cycles = choice.candidates[0].microseconds * context.target.gigahertz * 1e3 if choice.candidates else 0.0
    key = (*_shared_code(problem), choice.config)
    return kernel_call(
        context, kernel.name, key, lambda name: kernel.emit(problem, packing, context.target, name),
        reads, _run_time_columns(n, problem, sizes), _layer_tiles(n, packing, sizes), sizes.of(4 * floats),
        cycles,
    )  # fmt: skip


def _shared_code(problem: Problem) -> tuple[object, ...]:
    """What the code of a layer depends on, beside its configuration."""
    # on panels and for images the columns are a run-time matter: one kernel serves all numbers
    columns: object = problem.columns is None if problem.panel or problem.conv else problem.columns
    conv = replace(problem.conv, images=None) if problem.conv else None
    return problem.rows, problem.inner, columns, problem.panel, problem.epilogue, problem.extras, conv


def _run_time_columns(n: Node, problem: Problem, sizes: Sizes) -> tuple[int, ...]:
    """Tokens or images, where they are only known at run time."""
    if problem.columns is not None:
        return ()
    return (sizes.of(n.type.shape[0] if problem.conv else n.type.tokens),)


def _layer_tiles(n: Node, packing: Packing, sizes: Sizes) -> int:
    tiles = sizes.of(packing.tiles)
    if dict(packing.config).get("images"):
        # lanes hold images, whose number is known: the kernel counted their groups
        return tiles
    if n.op is Op.CONV2D:
        return sizes.multiply(sizes.of(n.type.shape[0]), tiles)
    return sizes.multiply(panel_count(n.type, sizes), tiles) if n.type.layout.panel else tiles


def _conv2d(n: Node, context: Context) -> Call:
    if n.choice:
        return _layer(n, context, n.choice[0])
    if is_depthwise(context.nodes, n) and is_convolution(context.nodes, n):
        from sparsec.targets.lowering_windows import depthwise_call

        return depthwise_call(n, context)
    raise Unsupported(f"{n.name} (conv2d): a weight that is computed at run time has no kernel")


def _matmul(n: Node, context: Context) -> Call:
    if n.choice:
        return _layer(n, context, n.choice[0])
    from sparsec.targets.kernels import matmul

    a, b, y = as_matrices(*(context.type(v) for v in (*n.args[:2], n.name)))
    if cast(MatmulAttrs, n.attrs).epilogue is not None:
        raise Unsupported(f"{n.name} (matmul {a} x {b}): a fused run-time product has no kernel")
    batch = y.shape[:-2]
    repeat = tuple(product(t.shape[:-2]) == 1 for t in (a, b))
    partly = any(not r and t.shape[:-2] != batch for r, t in zip(repeat, (a, b), strict=True))
    if partly or {a.dtype, b.dtype, y.dtype} != {"float32"}:
        return _carried_matmul(n, context)
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    sizes = context.sizes
    tiles = sizes.multiply(sizes.of(product(batch)), sizes.ceil_divide(sizes.of(rows), matmul.ROWS))
    key = (inner, columns, repeat)
    work = known(product(batch), 1) * known(rows) * known(inner) * known(columns)
    return kernel_call(
        context, "matmul", key,
        lambda name: matmul.emit(inner, columns, (repeat[0], repeat[1]), context.target, name),
        (*n.args[:2], n.name), tuple(sizes.of(s) for s in (rows, inner, columns)), tiles, sizes.of(64),
        work / context.target.lanes,
    )  # fmt: skip


def as_matrices(a: Type, b: Type, y: Type) -> tuple[Type, Type, Type]:
    """A vector on the left is a row, on the right a column, as NumPy has it."""
    if len(a.shape) == 1:
        y = replace(y, shape=(*y.shape[:-1], 1, *y.shape[-1:]) if len(b.shape) > 1 else (1,))
        a = replace(a, shape=(1, *a.shape))
    if len(b.shape) == 1:
        y, b = replace(y, shape=(*y.shape, 1)), replace(b, shape=(*b.shape, 1))
    return a, b, y


def _carried_matmul(n: Node, context: Context) -> Call:
    from sparsec.targets.operators import matmul

    a, b = context.type(n.args[0]), context.type(n.args[1])
    if min(len(a.shape), len(b.shape)) < 2:
        raise Unsupported(f"{n.name} (matmul {a} x {b}): a vector times {b.dtype} has no kernel")
    return operator_call(n, context, matmul(a, b, n.type), (*n.args[:2], n.name))


def _attention(n: Node, context: Context) -> Call:
    from sparsec.targets.kernels import attention

    attrs = cast(AttentionAttrs, n.attrs)
    q, k, v = (context.type(a) for a in n.args[:3])
    batch: Size = product(q.shape[:-2])
    queries, keys = q.shape[-2], k.shape[-2]
    depth, value_depth = (cast(int, t.shape[-1]) // attrs.heads for t in (k, v))
    panels = (q.layout.panel, k.layout.panel, v.layout.panel, n.type.layout.panel)
    mask = _mask_axes(n, context, (batch, attrs.heads, queries), keys) if len(n.args) > 3 else None
    shape = attention.Shape(attrs.heads, depth, value_depth, attrs.scale, queries, keys, panels, mask)
    block = attention.block_of_queries(shape, context.target)
    sizes = context.sizes
    blocks = sizes.ceil_divide(sizes.of(queries), block)
    tiles = sizes.multiply(sizes.multiply(sizes.of(batch), sizes.of(attrs.heads)), blocks)
    floats = sizes.add(sizes.of(keys * block), sizes.of(max(depth, 1) * block + 64))
    # a float32 is four bytes
    scratch = sizes.multiply(floats, sizes.of(4))
    work = known(batch, 1) * known(queries) * known(keys) * (attrs.heads * (depth + value_depth) + 30)
    return kernel_call(
        context, "attention", shape, lambda name: attention.emit(shape, context.target, name),
        (*n.args, n.name), (sizes.of(queries), sizes.of(keys), blocks), tiles, scratch,
        work / context.target.lanes,
    )  # fmt: skip


def _mask_axes(
    n: Node, context: Context, whole: tuple[Size, Size, Size], keys: Size
) -> tuple[bool, bool, bool]:
    """Whether the mask has entries of its own for every batch, head and query."""
    shape = context.type(n.args[3]).shape
    *given, along = (1,) * (4 - len(shape)) + tuple(shape[-4:])
    if along != keys or any(have not in (1, want) for have, want in zip(given, whole, strict=True)):
        raise Unsupported(f"{n.name} (attention): a mask of shape {shape} has no kernel")
    batch, heads, queries = (have != 1 or want == 1 for have, want in zip(given, whole, strict=True))
    return batch, heads, queries


def _elementwise(n: Node, context: Context) -> Call:
    from sparsec.targets.kernels import elementwise

    expr = cast(ElementwiseAttrs, n.attrs).expr
    if n.type.dtype != "float32" or any(context.type(a).dtype != "float32" for a in n.args):
        return _carried_elementwise(n, context, expr)
    sizes = context.sizes
    if n.type.layout.panel:
        panel = n.type.layout.panel
        merged = _merged_panels(n, context, panel)
        count = panel_count(n.type, sizes)
        numbers: tuple[int, ...]
        if len(merged.axes) == 1:
            total = sizes.multiply(count, sizes.of(cast(int, n.type.shape[-1]) * panel))
            numbers, tiles = (total,), sizes.ceil_divide(total, elementwise.BLOCK)
        else:
            numbers = tuple(count if a == _PANELS else sizes.of(a) for a in merged.axes)
            tiles = count if len(merged.axes) == 2 else sizes.multiply(count, sizes.of(merged.axes[1]))
    else:
        merged = elementwise.merge(n.type.shape, [context.type(a).shape for a in n.args])
        numbers = tuple(sizes.of(a) for a in merged.axes)
        total_tiles, divisor = elementwise.tile_count(merged)
        tiles = sizes.ceil_divide(sizes.of(total_tiles), divisor)
    return kernel_call(
        context, "elementwise", (expr, merged),
        lambda name: elementwise.emit(expr, merged, context.target, name),
        (*n.args, n.name), numbers, tiles, sizes.of(64), cycles_of(n.type, context, 4),
    )  # fmt: skip


def _carried_elementwise(n: Node, context: Context, expr: Expr) -> Call:
    from sparsec.targets.operators import elementwise

    carried = elementwise(expr, [context.type(a) for a in n.args], n.type)
    return operator_call(n, context, carried, (*n.args, n.name))


#: stands for the number of panels while axes are merged
_PANELS: Size = symbol(" panels")


def _merged_panels(n: Node, context: Context, panel: int) -> Any:
    """The merged axes of [panels][features][panel]; small arguments broadcast over panels and lanes."""
    from sparsec.targets.kernels import elementwise

    features = n.type.shape[-1]
    stored: tuple[Size, ...] = (_PANELS, features, panel)
    arguments: list[tuple[Size, ...]] = []
    for a in n.args:
        t = context.type(a)
        if t.layout.panel:
            arguments.append(stored)
        else:
            arguments.append((1, 1, 1) if t.elements == 1 else (1, features, 1))
    merged = elementwise.merge(stored, arguments)
    if len(merged.axes) == 1:
        return elementwise.Merged((_PANELS * features * panel,), merged.reads)
    return merged


def _layer_norm(n: Node, context: Context) -> Call:
    from sparsec.targets.kernels import normalize

    attrs = cast(LayerNormAttrs, n.attrs)
    kind, make = ("layer_norm", normalize.layer_norm) if attrs.centred else ("rms_norm", normalize.rms_norm)
    features, panel = n.type.shape[-1], n.type.layout.panel
    inner: Size = panel or 1
    sizes = context.sizes
    tiles = panel_count(n.type, sizes) if panel else sizes.of(n.type.tokens)
    return kernel_call(
        context, kind, (features, inner, attrs.epsilon),
        lambda name: make(features, inner, attrs.epsilon, context.target, name),
        (*n.args, n.name), (sizes.of(features), sizes.of(inner)), tiles, sizes.of(64),
        cycles_of(n.type, context, 12),
    )  # fmt: skip


def _softmax(n: Node, context: Context) -> Call:
    from sparsec.targets.kernels import normalize

    attrs = cast(SoftmaxAttrs, n.attrs)
    sizes = context.sizes
    length: Size = n.type.shape[attrs.axis]
    if n.type.layout.panel:
        outer, inner = panel_count(n.type, sizes), n.type.layout.panel
        width: Size = inner
    else:
        outer = sizes.of(product(n.type.shape[: attrs.axis]))
        width = product(n.type.shape[attrs.axis + 1 :])
    return kernel_call(
        context, "softmax", (length, width, attrs.log),
        lambda name: normalize.softmax(length, width, attrs.log, context.target, name),
        (*n.args, n.name), (sizes.of(length), sizes.of(width)), outer, sizes.of(64),
        cycles_of(n.type, context, 30),
    )  # fmt: skip


def _relayout(n: Node, context: Context) -> Call:
    from sparsec.targets.kernels import relayout

    before = context.type(n.args[0])
    to_panels = bool(n.type.layout.panel)
    panel = n.type.layout.panel or before.layout.panel
    if not isinstance(n.type.shape[-1], int):
        raise Unsupported(f"{n.name} (relayout): the number of features must be known, not {n.type}")
    features, tokens = n.type.shape[-1], n.type.tokens
    sizes = context.sizes
    return kernel_call(
        context, "relayout", (features, tokens if isinstance(tokens, int) else None, panel, to_panels),
        lambda name: relayout.emit(features, tokens, panel, to_panels, context.target, name),
        (*n.args, n.name), (sizes.of(tokens),), sizes.ceil_divide(sizes.of(tokens), panel), sizes.of(64),
        cycles_of(n.type, context, 8),
    )  # fmt: skip


def _tir(n: Node, context: Context) -> Call:
    return operator_call(n, context, cast(TirAttrs, n.attrs), (*n.args, n.name))


_RULES: Mapping[Op, Callable[[Node, Context], Call]] = {
    Op.MATMUL: _matmul, Op.CONV2D: _conv2d, Op.ATTENTION: _attention, Op.ELEMENTWISE: _elementwise,
    Op.LAYER_NORM: _layer_norm, Op.SOFTMAX: _softmax, Op.RELAYOUT: _relayout, Op.TIR: _tir,
    Op.RECURRENT: recurrent, Op.TRANSPOSE: lowering_moves.transpose, Op.REDUCE: lowering_moves.reduce,
    Op.CONCAT: lowering_moves.concat, Op.SLICE: lowering_moves.slice_, Op.PAD: lowering_moves.pad,
    Op.RESIZE: lowering_moves.resize, Op.POOL: lowering_windows.pool,
}  # fmt: skip
