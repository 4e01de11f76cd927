"""layers: which nodes multiply by a constant weight, and that weight as a matrix."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.attributes import ConvAttrs
from sparsec.ir.graph import Node, Op

Array: TypeAlias = NDArray[Any]


#: what every target's layers compute in
FLOAT32 = ("float32",)


def is_layer(nodes: Mapping[str, Node], n: Node, dtypes: Collection[str] = FLOAT32) -> bool:
    """Whether a kernel of the target may be chosen for the node: a linear layer or a convolution.

    ``dtypes``: what the target's layers compute in (:attr:`sparsec.targets.target.Target.dtypes`).
    """
    return is_linear(nodes, n, dtypes) or (is_convolution(nodes, n, dtypes) and not is_depthwise(nodes, n))


def is_linear(nodes: Mapping[str, Node], n: Node, dtypes: Collection[str] = FLOAT32) -> bool:
    """Whether a node multiplies values of such a dtype by a constant matrix, and there are any."""
    if n.op is not Op.MATMUL or n.type.dtype not in dtypes or len(n.type.shape) < 1:
        return False
    w = nodes[n.args[1]].type
    constant = nodes[n.args[1]].op is Op.CONST and len(w.shape) == 2 and w.dtype == n.type.dtype
    return constant and w.elements != 0 and n.type.elements != 0


def is_convolution(nodes: Mapping[str, Node], n: Node, dtypes: Collection[str] = FLOAT32) -> bool:
    """Whether a node convolves images of such a dtype and of known size with a constant weight."""
    if n.op is not Op.CONV2D or n.type.dtype not in dtypes:
        return False
    x, w = nodes[n.args[0]].type, nodes[n.args[1]]
    known = all(isinstance(s, int) for s in (*x.shape[1:], *n.type.shape[1:]))
    return known and w.op is Op.CONST and w.type.elements != 0 and n.type.elements != 0


def is_depthwise(nodes: Mapping[str, Node], n: Node) -> bool:
    """Whether every channel of a convolution is filtered by itself."""
    if n.op is not Op.CONV2D:
        return False
    groups = cast(ConvAttrs, n.attrs).groups
    return groups > 1 and nodes[n.args[1]].type.shape[:2] == (groups, 1)


def weight_matrix(n: Node, weight: Array) -> Array:
    """A layer's weight as [outputs, inputs]; the inputs of a convolution count taps before channels."""
    if n.op is Op.MATMUL:
        return np.ascontiguousarray(weight.T)
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1).reshape(len(weight), -1))
