"""Bare matrices -> our graph: one linear layer, or a stack of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from scipy import sparse

from sparsec.errors import ModelError
from sparsec.frontends.relax_values import Building
from sparsec.ir.attributes import ElementwiseAttrs, MatmulAttrs
from sparsec.ir.dims import symbol
from sparsec.ir.expr import Arg, Expr, call, gelu, relu, silu
from sparsec.ir.graph import Graph, Op
from sparsec.ir.types import Type
from sparsec.ir.verify import verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

#: a layer: weight [outputs, inputs], bias [outputs] or None, activation name or None
Layer: TypeAlias = tuple[Any, Union["Array", None], str | None]

#: the activations a layer may name
ACTIVATIONS: Mapping[str, Callable[[Expr], Expr]] = {
    "relu": relu,
    "gelu": gelu,
    "silu": silu,
    "tanh": lambda x: call("tanh", x),
    "sigmoid": lambda x: call("sigmoid", x),
}


def from_scipy(weights: Any | Sequence[Layer]) -> Graph:
    """The graph of ``y = x @ W.T``, or of a stack of layers ``activation(x @ W.T + bias)``.

    Args:
        weights: a scipy sparse matrix or 2-D array [outputs, inputs], or a list of
            (weight, bias or None, activation or None); activations are :data:`ACTIVATIONS`.

    Returns:
        A graph with input ``x`` float32 (tokens, inputs), ``tokens`` symbolic, and output ``y``.

    Raises:
        ModelError: a weight is no real matrix, or sizes or activations do not fit.
    """
    layers = list(weights) if isinstance(weights, list | tuple) else [(weights, None, None)]
    if not layers:
        raise ModelError("the list of layers is empty; give at least one (weight, bias, activation)")
    matrices = [_matrix(_parts(layer, i)[0], i) for i, layer in enumerate(layers)]
    building, tokens = Building(), symbol("tokens")
    value = building.add("x", Op.INPUT, (), Type((tokens, matrices[0].shape[1])))
    for i, (layer, matrix) in enumerate(zip(layers, matrices, strict=True)):
        if i and matrices[i - 1].shape[0] != matrix.shape[1]:
            raise ModelError(
                f"layer {i} takes {matrix.shape[1]} features, "
                f"but layer {i - 1} makes {matrices[i - 1].shape[0]}"
            )
        _, bias, activation = _parts(layer, i)
        type_ = Type((tokens, matrix.shape[0]))
        weight = building.add_const(f"weight_{i}", np.ascontiguousarray(matrix.T))
        value = building.add(f"linear_{i}", Op.MATMUL, (value, weight), type_, MatmulAttrs(), f"layer {i}")
        value = _epilogue(building, value, bias, activation, type_, i)
    return verify(Graph(tuple(building.nodes), (value,), ("y",), building.consts))


def _parts(layer: Any, number: int) -> Layer:
    if not isinstance(layer, tuple | list) or len(layer) != 3:
        raise ModelError(f"layer {number} must be (weight, bias or None, activation or None)")
    return layer[0], layer[1], layer[2]


def _matrix(weight: Any, number: int) -> Array:
    is_sparse: bool = sparse.issparse(weight)
    dense: Array = np.asarray(weight.toarray() if is_sparse else weight)
    if dense.ndim != 2 or 0 in dense.shape:
        raise ModelError(
            f"layer {number}: a weight must be a matrix [outputs, inputs], not of shape {dense.shape}"
        )
    if dense.dtype.kind not in "fiub":
        raise ModelError(f"layer {number}: a weight must hold real numbers, not {dense.dtype}")
    return dense.astype(np.float32, copy=False)


def _epilogue(
    building: Building, value: str, bias: Any, activation: str | None, type_: Type, number: int
) -> str:
    expr: Expr = Arg(0)
    names = [value]
    if bias is not None:
        vector = np.asarray(bias, np.float32).reshape(-1)
        if vector.shape[0] != type_.shape[1]:
            raise ModelError(f"layer {number}: the bias has {vector.shape[0]} numbers, not {type_.shape[1]}")
        names.append(building.add_const(f"bias_{number}", vector))
        expr = call("add", expr, Arg(1))
    if activation is not None:
        if activation not in ACTIVATIONS:
            raise ModelError(f"layer {number}: activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
        expr = ACTIVATIONS[activation](expr)
    if expr == Arg(0):
        return value
    return building.add(
        f"layer_{number}", Op.ELEMENTWISE, names, type_, ElementwiseAttrs(expr), f"layer {number}"
    )
