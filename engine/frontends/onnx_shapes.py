"""Shape arithmetic with named sizes: what of it is known, and reshapes that keep an open size.

A shape is an array of numbers and names.  Exporters spell ``x.view(n, -1, h, w)`` of an open
batch as some ten nodes over such arrays; what they come to is a plain constant here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

#: of a tensor: numbers and names; None where nothing is known
Sizes: TypeAlias = tuple[int | str | None, ...]


def sizes_of(value: onnx.ValueInfoProto) -> Sizes:
    """What an annotation says."""
    return tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or None
        for d in value.type.tensor_type.shape.dim
    )


def shape_value(
    node: onnx.NodeProto, sizes: Mapping[str, Sizes], values: Mapping[str, Array]
) -> Array | None:
    """What a node makes of shapes.

    Args:
        node: any node.
        sizes: what is known of tensors.
        values: constants, and shapes known so far.

    Returns:
        An array of numbers and names; None for what is no shape, or not known.
    """
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Shape":
        known = sizes.get(node.input[0])
        if known is None or None in known:
            return None
        return np.array(known[attrs.get("start", 0) : attrs.get("end")], object)
    rule = _RULES.get(node.op_type)
    names = [name for name in node.input if name]
    given = [values[name] for name in names if name in values]
    if rule is None or len(given) < len(names) or all(v.dtype != object for v in given):
        return None
    try:
        found: Array = np.asarray(rule(given, attrs), object)
    except (ValueError, IndexError, TypeError):
        # operands no exporter writes; the node stays
        return None
    return found


def numbers(value: Array) -> Array | None:
    """The shape as whole numbers, if all of it is known."""
    known = all(isinstance(size, (int, np.integer)) for size in value.flat)
    return value.astype(np.int64) if known else None


def kept_sizes(data: Sizes, wanted: Array) -> Array | None:
    """A reshape's target with 0 (as before) for names; None where a name moves or is not the data's."""
    target: list[int] = []
    for place, size in enumerate(wanted.tolist()):
        if isinstance(size, str) and (place >= len(data) or data[place] != size):
            return None
        target.append(0 if isinstance(size, str) else int(size))
    names = sorted(str(s) for s in data if not isinstance(s, int))
    if names == sorted(s for s in wanted.tolist() if isinstance(s, str)) and target.count(-1) == 1:
        rest = prod(t for t in target if t > 0)
        target[target.index(-1)] = prod(s for s in data if isinstance(s, int)) // rest
    return np.array(target, np.int64)


def _gather(given: Sequence[Array], _attrs: Mapping[str, Any]) -> Array:
    return np.asarray(given[0][given[1].astype(np.int64)], object)


def _slice(given: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    if attrs:
        raise ValueError("an old Slice")
    begin, end, *rest = (int(v.reshape(-1)[0]) for v in given[1:])
    return given[0][begin : end : rest[1] if len(rest) > 1 else 1]


def _concat(given: Sequence[Array], _attrs: Mapping[str, Any]) -> Array:
    return np.concatenate([v.astype(object) for v in given])


def _unsqueeze(given: Sequence[Array], _attrs: Mapping[str, Any]) -> Array:
    return given[0].reshape(1) if given[0].ndim == 0 else given[0][None]


def _squeeze(given: Sequence[Array], _attrs: Mapping[str, Any]) -> Array:
    return given[0].reshape(())


def _same(given: Sequence[Array], _attrs: Mapping[str, Any]) -> Array:
    return given[0]


_RULES: Mapping[str, Callable[[Sequence[Array], Mapping[str, Any]], Array]] = {
    "Cast": _same, "Concat": _concat, "Gather": _gather, "Identity": _same, "Slice": _slice,
    "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
}  # fmt: skip
