"""normalize: layer_norm, rms_norm and softmax.

Along the last axis a team of threads has a row (see ``lines_of_rows``): it is read once, everything is
done in registers, and it is written once.  These kernels are as fast as memory is.

A softmax along another axis gives each thread neighbouring columns, and where the axis is long, a
share of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sparsec.ir.attributes import LayerNormAttrs, SoftmaxAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Node
from sparsec.targets.calls import Call, Context, known
from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import Array, Kernel, device_function, int64, integer
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.cost import MEMORY_SHARE, gpu_of
from sparsec.targets.cuda.parts import teams
from sparsec.targets.cuda.parts.lines_of_rows import COLUMN_THREADS, Line, Shape, length_of
from sparsec.targets.cuda.tir import T


def layer_norm(n: Node, context: Context) -> tuple[Call, ...]:
    """The call for a layer_norm node, centred or not."""
    attrs = cast(LayerNormAttrs, n.attrs)
    kind = "layer_norm" if attrs.centred else "rms_norm"
    return (_call(n, context, kind, len(n.type.shape) - 1, attrs.epsilon),)


def softmax(n: Node, context: Context) -> tuple[Call, ...]:
    """The call for a softmax node."""
    attrs = cast(SoftmaxAttrs, n.attrs)
    return (_call(n, context, "log_softmax" if attrs.log else "softmax", attrs.axis),)


def _call(n: Node, context: Context, kind: str, axis: int, epsilon: float = 0.0) -> Call:
    length, inner = n.type.shape[axis], product(n.type.shape[axis + 1 :])
    dtypes = (*(context.type(a).dtype for a in n.args), n.type.dtype)
    shape = Shape(kind, _if_known(length), _if_known(inner), dtypes, epsilon)
    sizes = context.sizes
    rows = sizes.of(product(n.type.shape[:axis]))
    if inner == 1:
        blocks = sizes.ceil_divide(rows, shape.rows)
    else:
        blocks = sizes.ceil_divide(sizes.multiply(rows, sizes.of(inner)), shape.columns)
    gpu = gpu_of(context.target)
    cycles = gpu.launch + 8 * known(n.type.elements, 4096) / (gpu.dram_bytes * MEMORY_SHARE)
    return device_call(
        context, kind, shape, lambda name: emit(shape, name), (*n.args, n.name),
        (rows, sizes.of(length), sizes.of(inner)), blocks, cycles,
    )  # fmt: skip


def _if_known(size: Size) -> int | None:
    return size if isinstance(size, int) else None


def emit(shape: Shape, name: str) -> Any:
    """The TIR function; sizes: rows before the axis, its length, elements after it."""
    names = [
        "x",
        *(["gamma"] if "norm" in shape.kind else []),
        *(["beta"] if shape.kind == "layer_norm" else []),
    ]
    pointers = list(zip([*names, "y"], shape.dtypes, strict=True))
    if shape.inner == 1:
        threads, body = shape.team * shape.rows, _rows
    else:
        threads, body = COLUMN_THREADS, _columns
    return device_function(name, threads, pointers, ["rows", "length", "inner"], lambda k: body(k, shape))


def _rows(k: Kernel, shape: Shape) -> None:
    row = k.bind(k.block * shape.rows + int64(k.thread // shape.team))
    if shape.rows == 1:
        _NORMALISED[shape.kind](k, shape, Line.of(k, shape, row))
        return
    with k.when(row < k.sizes["rows"]):
        _NORMALISED[shape.kind](k, shape, Line.of(k, shape, row))


def _norm(k: Kernel, shape: Shape, line: Line) -> None:
    """Layer normalisation (Ba et al. 2016), or that by the root mean square (Zhang and Sennrich 2019)."""
    count = T.cast(length_of(k, shape), "float32")
    centred = shape.kind == "layer_norm"
    if centred:
        mean = k.bind(line.fold(0.0, teams.add) / count)
        line = line.mapped(lambda x: x - mean)
    square = line.fold(0.0, teams.add, lambda x: x * x) / count
    scale = k.bind(expressions.constant(1) / T.sqrt(square + expressions.constant(shape.epsilon)))

    def made(values: list[Any], at: Any) -> list[Any]:
        gamma = expressions.load(k, k["gamma"], at, shape.vector)
        found = [v * scale * g for v, g in zip(values, gamma, strict=True)]
        if not centred:
            return found
        beta = expressions.load(k, k["beta"], at, shape.vector)
        return [v + b for v, b in zip(found, beta, strict=True)]

    line.store(made)


def _softmax(k: Kernel, shape: Shape, line: Line) -> None:
    top = k.bind(line.fold(float("-inf"), teams.larger))
    if shape.kind == "log_softmax":
        total = line.fold(0.0, teams.add, lambda x: T.exp(x - top))
        below = k.bind(T.log(total))
        line.store(lambda values, _: [v - top - below for v in values])
        return
    line = line.mapped(lambda x: T.exp(x - top))
    scale = k.bind(expressions.constant(1) / line.fold(0.0, teams.add))
    line.store(lambda values, _: [v * scale for v in values])


_NORMALISED = {"layer_norm": _norm, "rms_norm": _norm, "softmax": _softmax, "log_softmax": _softmax}


def _columns(k: Kernel, shape: Shape) -> None:
    """Softmax along an axis that others follow."""
    vector, wide = shape.vector, COLUMN_THREADS // shape.shares
    inner = k.sizes["inner"] if shape.inner is None else integer(shape.inner)
    length = T.cast(length_of(k, shape), "int32")
    column = k.bind((k.block * wide + int64(k.thread % wide)) * vector)
    share = k.bind(k.thread // wide)
    inside = column < k.sizes["rows"] * inner
    start = k.bind(T.truncdiv(column, inner) * (length_of(k, shape) * inner) + T.truncmod(column, inner))
    mine = T.truncdiv(length - share + (shape.shares - 1), shape.shares)
    count = k.bind(T.Select(inside, mine, integer(0, "int32")))

    def each(work: Callable[[list[Any], Any], None]) -> None:
        with k.loop(count) as i:
            at = k.bind(start + int64(share + i * shape.shares) * inner)
            work(expressions.load(k, k["x"], at, vector), at)

    def fold(begin: float, join: teams.Join, of: Callable[[Any, int], Any]) -> Array:
        totals = k.registers(vector)
        for i in range(vector):
            totals.put(i, expressions.constant(begin))

        def more(values: list[Any], _: Any) -> None:
            for i, value in enumerate(values):
                totals.put(i, join(k, totals[i], k.bind(of(value, i))))

        each(more)
        teams.across_parts(k, totals, vector, join, shape.shares)
        return totals

    tops = fold(float("-inf"), teams.larger, lambda x, _: x)
    totals = fold(0.0, teams.add, lambda x, i: T.exp(x - tops[i]))
    log = shape.kind == "log_softmax"
    for i in range(vector):
        totals.put(i, T.log(totals[i]) if log else expressions.constant(1) / totals[i])

    def store(values: list[Any], at: Any) -> None:
        shifted = [v - tops[i] for i, v in enumerate(values)]
        made = [s - totals[i] if log else T.exp(s) * totals[i] for i, s in enumerate(shifted)]
        expressions.store(k, k["y"], at, made)

    each(store)
