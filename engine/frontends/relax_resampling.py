"""Resizing by matrices: as Relax's resize where that says the same, else axis by axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tvm import relax

from sparsec.ir.attributes import ResizeAttrs
from sparsec.ir.resampling import COORDINATES, ROUNDINGS, taps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

#: weights that differ by no more than this are the same
_SAME = 2e-5

#: what an image's resize is called, most usual first
_WORDS = (
    ResizeAttrs("nearest", "asymmetric", "floor"),
    *(ResizeAttrs("linear", place) for place in ("half_pixel", "align_corners", "asymmetric")),
    *(ResizeAttrs("nearest", place, rounding) for place in COORDINATES for rounding in ROUNDINGS),
)


def resampled(emit: Callable[[Any], Any], x: Any, matrices: Mapping[int, Array]) -> Any:
    """x with each axis of ``matrices`` replaced by its product with a matrix (new size, old size).

    Args:
        emit: names a Relax expression.
        x: a float32 tensor of known rank.
        matrices: one per axis that changes.
    """
    rank = len(x.ty.shape.values)
    spatial = range(2, rank)
    changed = {axis: m for axis, m in matrices.items() if not _is_identity(m)}
    known = next((w for w in _WORDS if all(_says(w, m) for m in changed.values())), None)
    if not changed:
        return x
    if known is None or rank not in (3, 4) or not set(changed) <= set(spatial):
        for axis, matrix in changed.items():
            x = _product(emit, x, axis, matrix)
        return x
    sizes = [len(changed[a]) if a in changed else x.ty.shape.values[a] for a in spatial]
    image = x if rank == 4 else emit(relax.op.expand_dims(x, [2]))
    found = emit(_resize(image, sizes if rank == 4 else [1, *sizes], known))
    return found if rank == 4 else emit(relax.op.squeeze(found, [2]))


def from_taps(low: Array, high: Array, weight: Array, in_size: int) -> Array:
    """The matrix (places, in_size) of ``(1 - weight) * x[low] + weight * x[high]``."""
    rows, found = np.arange(len(low)), np.zeros((len(low), in_size), np.float32)
    np.add.at(found, (rows, low), 1 - weight)
    np.add.at(found, (rows, high), weight)
    return found


def _is_identity(matrix: Array) -> bool:
    return matrix.shape[0] == matrix.shape[1] and bool((matrix == np.eye(len(matrix))).all())


def _says(word: ResizeAttrs, matrix: Array) -> bool:
    """Whether the word's resize of one axis is this matrix."""
    out_size, in_size = matrix.shape
    usual = from_taps(*taps(word, in_size, out_size), in_size)
    return bool(np.abs(usual - matrix).max(initial=0) <= _SAME)


def _resize(image: Any, sizes: Sequence[Any], word: ResizeAttrs) -> Any:
    method = "nearest_neighbor" if word.method == "nearest" else word.method
    return relax.op.image.resize2d(
        image, relax.ShapeExpr(sizes), layout="NCHW", method=method,
        coordinate_transformation_mode=word.coordinates,
        rounding_method=word.rounding if word.method == "nearest" else "",
    )  # fmt: skip


def _product(emit: Callable[[Any], Any], x: Any, axis: int, matrix: Array) -> Any:
    """One axis; a matrix that only picks elements is a take."""
    if ((matrix == 0) | (matrix == 1)).all() and (matrix.sum(axis=1) == 1).all():
        return emit(relax.op.take(x, relax.const(matrix.argmax(axis=1), "int64"), axis, mode="clip"))
    last = len(x.ty.shape.values) - 1
    order = list(range(last + 1))
    order[axis], order[last] = last, axis
    turned = x if axis == last else emit(relax.op.permute_dims(x, order))
    product = emit(relax.op.matmul(turned, relax.const(np.ascontiguousarray(matrix.T, np.float32))))
    return product if axis == last else emit(relax.op.permute_dims(product, order))
