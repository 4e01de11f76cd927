"""What a graph means, in plain NumPy: the oracle of every test.

Nothing here is fast.  With ``dtype=np.float64`` every floating value is computed in double
precision whatever the graph declares, which is what compiled code is judged against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsec import dims, reference_windows
from sparsec.errors import InputError, IRError
from sparsec.expr import Arg, Expr, Scalar, walk
from sparsec.ir import (
    AttentionAttrs,
    ConcatAttrs,
    ConvAttrs,
    ElementwiseAttrs,
    Graph,
    ItemAttrs,
    LayerNormAttrs,
    MatmulAttrs,
    Node,
    Op,
    PadAttrs,
    PoolAttrs,
    ReduceAttrs,
    ResizeAttrs,
    SliceAttrs,
    SoftmaxAttrs,
    TirAttrs,
    TransposeAttrs,
    Type,
)
from sparsec.reference_recurrent import recurrent

Array: TypeAlias = NDArray[Any]

#: Runs an Op.TIR node: (attrs, arguments, output types) -> the outputs in order.
TirRunner: TypeAlias = Callable[[TirAttrs, list[Array], tuple[Type, ...]], list[Array]]


def evaluate(
    graph: Graph,
    inputs: Mapping[str, Array],
    tir: TirRunner | None = None,
    dtype: DTypeLike | None = None,
) -> dict[str, Array]:
    """Run a graph on arrays named like its inputs.

    Args:
        graph: any verified graph.
        inputs: an array per input node, of the declared dtype and a shape that binds the symbols.
        tir: runs the ``tir`` nodes, see :data:`TirRunner`; a graph without them needs none.
        dtype: the type that replaces every floating type (``np.float64`` for an oracle).

    Returns:
        The outputs by ``graph.output_names``.

    Raises:
        InputError: a name, shape or dtype does not fit the graph's inputs.
        IRError: a node's value does not have its declared shape, or a ``tir`` node has no runner.
    """
    sizes = bind(graph, inputs)
    types = {n.name: n.type for n in graph.nodes}
    values: dict[str, Array] = {}
    several: dict[str, list[Array]] = {}
    for n in graph.nodes:
        if n.op is Op.INPUT:
            values[n.name] = _cast(_checked_input(n, inputs[n.name], dtype), n.type.dtype, dtype)
        elif n.op is Op.CONST:
            values[n.name] = _cast(graph.consts[n.name], n.type.dtype, dtype)
        elif n.op is Op.TIR:
            declared = [values[a].astype(types[a].dtype, copy=False) for a in n.args]
            several[n.name] = run_tir(n, declared, tir, sizes)
            values[n.name] = _cast(several[n.name][0], n.type.dtype, dtype)
        elif n.op is Op.RECURRENT:
            several[n.name] = recurrent(n, [values[a] for a in n.args])
            values[n.name] = several[n.name][0]
        elif n.op is Op.ITEM:
            number = cast(ItemAttrs, n.attrs).index
            values[n.name] = _cast(several[n.args[0]][number], n.type.dtype, dtype)
        else:
            values[n.name] = evaluate_node(n, [values[a] for a in n.args], sizes, dtype)
        _check_shape(n, values[n.name], sizes)
    return {name: values[v] for name, v in zip(graph.output_names, graph.outputs, strict=True)}


def evaluate_node(
    node: Node, arrays: Sequence[Array], sizes: Mapping[str, int], dtype: DTypeLike | None = None
) -> Array:
    """The value of one node (not an input, const, tir, recurrent or item) from its arguments' values.

    Args:
        node: the node; its declared dtype is the result's unless ``dtype`` replaces it.
        arrays: one array per argument.
        sizes: a number for every symbol in ``node.type``.
        dtype: as in :func:`evaluate`.

    Raises:
        IRError: the operator is not one that computes from arrays alone.
    """
    meaning = _MEANINGS.get(node.op)
    if meaning is None:
        raise IRError(f"{node.name} ({node.op}): has no value of its own; evaluate the whole graph")
    with np.errstate(all="ignore"):
        return _cast(meaning(node, list(arrays), sizes), node.type.dtype, dtype)


def run_tir(node: Node, arrays: list[Array], tir: TirRunner | None, sizes: Mapping[str, int]) -> list[Array]:
    """All outputs of a ``tir`` node, through the caller's runner.

    Raises:
        IRError: there is no runner.
    """
    attrs = cast(TirAttrs, node.attrs)
    if tir is None:
        raise IRError(f"{node.name} ({attrs.source}): a tir node needs a runner; pass tir= to evaluate")
    fixed = tuple(replace(t, shape=tuple(dims.value(s, sizes) for s in t.shape)) for t in attrs.outputs)
    return list(tir(attrs, arrays, fixed))


def bind(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, int]:
    """The size of every symbol, from the shapes of the inputs.

    Raises:
        InputError: an input is missing, unknown, or its shape contradicts the graph.
    """
    wanted = [n.name for n in graph.inputs]
    if set(wanted) != set(inputs):
        raise InputError(f"inputs must be named {', '.join(wanted)}; got {', '.join(inputs) or 'none'}")
    sizes: dict[str, int] = {}
    for n in graph.inputs:
        shape = np.shape(inputs[n.name])
        if len(shape) != len(n.type.shape):
            raise InputError(f"input {n.name}: expected {n.type}, got shape {shape}")
        for size, found in zip(n.type.shape, shape, strict=True):
            if isinstance(size, dims.Dim) and size.is_symbol:
                _bind_symbol(sizes, size.symbols[0], found, n)
    for n in graph.inputs:
        _check_bound(n, np.shape(inputs[n.name]), sizes)
    return sizes


def evaluate_expr(expr: Expr, operands: Sequence[Array], result: DTypeLike) -> Array:
    """The value of an elementwise expression; ``operands[i]`` is Arg(i).

    Floating operands (or, without any, a floating ``result``) fix the type computed in;
    otherwise it is int64.  Comparisons give 1 or 0 of that type.
    """
    working = _working_dtype(operands, np.dtype(result))
    memo: dict[Expr, Array] = {}
    for e in walk(expr):
        if isinstance(e, Arg):
            memo[e] = np.asarray(operands[e.index]).astype(working, copy=False)
        elif isinstance(e, Scalar):
            memo[e] = np.asarray(e.value).astype(working)
        else:
            found = _FUNCTIONS[e.function](*(memo[o] for o in e.operands))
            memo[e] = np.asarray(found).astype(working, copy=False)
    return memo[expr]


def _bind_symbol(sizes: dict[str, int], name: str, found: int, node: Node) -> None:
    if sizes.setdefault(name, found) != found:
        raise InputError(f"input {node.name}: {name} is {found} here but {sizes[name]} before")


def _check_bound(node: Node, shape: tuple[int, ...], sizes: Mapping[str, int]) -> None:
    try:
        wanted = tuple(dims.value(s, sizes) for s in node.type.shape)
    except KeyError as error:
        raise InputError(f"input {node.name}: no input has an axis of size {error.args[0]}") from error
    if wanted != shape:
        raise InputError(f"input {node.name}: expected {node.type}, got shape {shape}")


def _checked_input(node: Node, array: Array, dtype: DTypeLike | None) -> Array:
    found = np.asarray(array)
    both_float = np.issubdtype(found.dtype, np.floating) and _is_float(node.type.dtype)
    if str(found.dtype) != node.type.dtype and not (dtype is not None and both_float):
        raise InputError(f"input {node.name}: expected {node.type.dtype}, got {found.dtype}")
    return found


def _check_shape(node: Node, array: Array, sizes: Mapping[str, int]) -> None:
    if array.shape != _shape(node, sizes):
        raise IRError(f"{node.name} ({node.op}): its value has shape {array.shape}, its type {node.type}")


def _shape(node: Node, sizes: Mapping[str, int]) -> tuple[int, ...]:
    try:
        return tuple(dims.value(s, sizes) for s in node.type.shape)
    except KeyError as error:
        raise IRError(f"{node.name} ({node.op}): no input binds {error.args[0]} of {node.type}") from error


def _is_float(name: str) -> bool:
    return name.startswith(("float", "bfloat"))


def _cast(array: Array, declared: str, dtype: DTypeLike | None) -> Array:
    wanted = declared if dtype is None or not _is_float(declared) else dtype
    with np.errstate(all="ignore"):
        return np.asarray(array).astype(wanted, copy=False)


def _working_dtype(operands: Sequence[Array], result: np.dtype[Any]) -> np.dtype[Any]:
    floats = [o.dtype for o in operands if np.issubdtype(o.dtype, np.floating)]
    if np.issubdtype(result, np.floating):
        floats.append(result)
    return np.result_type(*floats) if floats else np.dtype(np.int64)


def _erf(x: Array) -> Array:
    from scipy.special import erf  # a light import of sparsec must not pay for scipy

    found: Array = erf(x)
    return found


def _divide(x: Array, y: Array) -> Array:
    """Integers divide as in C and ONNX: towards zero."""
    if not np.issubdtype(x.dtype, np.integer):
        return np.divide(x, y)
    return np.where(y == 0, 0, np.sign(x) * np.sign(y) * (abs(x) // np.maximum(abs(y), 1)))


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _divide,
    "max": np.maximum, "min": np.minimum, "pow": np.power, "neg": np.negative, "abs": np.abs,
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "erf": _erf,
    "floor": np.floor, "ceil": np.ceil, "round": np.round, "sign": np.sign,
    "sin": np.sin, "cos": np.cos, "less": np.less, "less_equal": np.less_equal,
    "equal": np.equal, "where": lambda c, x, y: np.where(c != 0, x, y),
}  # fmt: skip


def _matmul(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    x, w, *extras = arrays
    return _with_epilogue(cast(MatmulAttrs, node.attrs).epilogue, np.matmul(x, w), extras)


def _conv2d(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    x, w, *extras = arrays
    attrs = cast(ConvAttrs, node.attrs)
    return _with_epilogue(attrs.epilogue, reference_windows.conv2d(attrs, x, w), extras)


def _with_epilogue(epilogue: Expr | None, product: Array, extras: list[Array]) -> Array:
    return product if epilogue is None else evaluate_expr(epilogue, [product, *extras], product.dtype)


def _attention(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    attrs = cast(AttentionAttrs, node.attrs)
    q, k, v = (_split_heads(a, attrs.heads) for a in arrays[:3])
    scores = np.matmul(q, np.swapaxes(k, -1, -2)) * np.asarray(attrs.scale, q.dtype)
    if len(arrays) > 3:
        scores = scores + arrays[3]
    heads = np.matmul(_softmax_along(scores, -1), v)
    batch, _, length, width = heads.shape
    merged: Array = heads.transpose(0, 2, 1, 3).reshape(batch, length, attrs.heads * width)
    return merged


def _split_heads(x: Array, heads: int) -> Array:
    batch, length, features = x.shape
    return x.reshape(batch, length, heads, features // heads).transpose(0, 2, 1, 3)


def _softmax_along(x: Array, axis: int, log: bool = False) -> Array:
    if not x.size:
        return x
    shifted = x - x.max(axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    found: Array = shifted - np.log(total) if log else np.exp(shifted) / total
    return found


def _elementwise(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    found = evaluate_expr(cast(ElementwiseAttrs, node.attrs).expr, arrays, node.type.dtype)
    # The declared shape may be larger than the arguments': that is how a graph says broadcast_to.
    try:
        return np.broadcast_to(found, _shape(node, sizes))
    except ValueError as error:
        raise IRError(f"{node.name} ({node.op}): shape {found.shape} does not fit {node.type}") from error


def _layer_norm(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    x, gamma, beta = arrays
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    epsilon = np.asarray(cast(LayerNormAttrs, node.attrs).epsilon, x.dtype)
    found: Array = centred / np.sqrt(variance + epsilon) * gamma + beta
    return found


def _softmax(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    attrs = cast(SoftmaxAttrs, node.attrs)
    return _softmax_along(arrays[0], attrs.axis, attrs.log)


_REDUCTIONS: Mapping[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}


def _reduce(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    attrs = cast(ReduceAttrs, node.attrs)
    found: Array = _REDUCTIONS[attrs.kind](arrays[0], axis=attrs.axes, keepdims=attrs.keepdims)
    return found


def _reshape(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    try:
        return arrays[0].reshape(_shape(node, sizes))
    except ValueError as error:
        raise IRError(f"{node.name} (reshape): {arrays[0].shape} does not fit {node.type}") from error


def _transpose(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return np.transpose(arrays[0], cast(TransposeAttrs, node.attrs).axes)


def _pool(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return reference_windows.pool(cast(PoolAttrs, node.attrs), arrays[0], _shape(node, sizes)[2:])


def _resize(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return reference_windows.resize(cast(ResizeAttrs, node.attrs), arrays[0], _shape(node, sizes)[2:])


def _concat(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return np.concatenate(arrays, cast(ConcatAttrs, node.attrs).axis)


def _slice(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return reference_windows.cut(cast(SliceAttrs, node.attrs), arrays[0], _shape(node, sizes))


def _pad(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return reference_windows.pad(cast(PadAttrs, node.attrs), arrays[0], _shape(node, sizes))


def _relayout(node: Node, arrays: list[Array], sizes: Mapping[str, int]) -> Array:
    return arrays[0]


_MEANINGS: Mapping[Op, Callable[[Node, list[Array], Mapping[str, int]], Array]] = {
    Op.MATMUL: _matmul, Op.ATTENTION: _attention, Op.ELEMENTWISE: _elementwise,
    Op.LAYER_NORM: _layer_norm, Op.SOFTMAX: _softmax, Op.REDUCE: _reduce, Op.RESHAPE: _reshape,
    Op.TRANSPOSE: _transpose, Op.CONV2D: _conv2d, Op.POOL: _pool, Op.RESIZE: _resize,
    Op.CONCAT: _concat, Op.SLICE: _slice, Op.PAD: _pad, Op.RELAYOUT: _relayout,
}  # fmt: skip
