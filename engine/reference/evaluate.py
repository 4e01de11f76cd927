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

from sparsec.errors import InputError, IRError
from sparsec.ir import dims
from sparsec.ir.attributes import ItemAttrs, TirAttrs
from sparsec.ir.graph import Graph, Node, Op
from sparsec.ir.types import Type
from sparsec.reference.operators import MEANINGS, shape_of
from sparsec.reference.recurrent import recurrent

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
    meaning = MEANINGS.get(node.op)
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
    if array.shape != shape_of(node, sizes):
        raise IRError(f"{node.name} ({node.op}): its value has shape {array.shape}, its type {node.type}")


def _is_float(name: str) -> bool:
    return name.startswith(("float", "bfloat"))


def _cast(array: Array, declared: str, dtype: DTypeLike | None) -> Array:
    wanted = declared if dtype is None or not _is_float(declared) else dtype
    with np.errstate(all="ignore"):
        return np.asarray(array).astype(wanted, copy=False)
