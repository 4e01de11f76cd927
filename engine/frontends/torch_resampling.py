"""``interpolate`` and ``Upsample`` of torch, whatever the mode.

Every resize is a product with one matrix an axis.  torch itself computes the matrices, so that
its rules (which scale it uses, how it rounds, what antialiasing does) need not be repeated here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from sparsec.errors import Unsupported
from sparsec.frontends.relax_resampling import resampled
from sparsec.frontends.torch_arguments import arguments

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]

_ATEN = torch.ops.aten
#: how long the axes are that a probe leaves alone; torch's antialiasing goes wrong at 1
_WIDTH = 2
#: kept from being decomposed
RESAMPLING: tuple[Any, ...] = tuple(
    op.vec
    for op in (
        _ATEN.upsample_nearest1d, _ATEN.upsample_nearest2d, _ATEN.upsample_nearest3d,
        _ATEN._upsample_nearest_exact1d, _ATEN._upsample_nearest_exact2d, _ATEN._upsample_nearest_exact3d,
        _ATEN.upsample_linear1d, _ATEN.upsample_bilinear2d, _ATEN.upsample_trilinear3d,
        _ATEN.upsample_bicubic2d, _ATEN._upsample_bilinear2d_aa, _ATEN._upsample_bicubic2d_aa,
    )
)  # fmt: skip


def convert_resampling(importer: Any, node: Any) -> Any:
    """The Relax variable of an fx node that resizes.

    Raises:
        Unsupported: an axis of open size.
    """
    given = arguments(importer, node)
    x = given["input"]
    sizes = x.ty.shape.values[2:]
    if not all(hasattr(s, "value") for s in sizes):
        raise Unsupported("resizing axes of open size is not supported")
    matrices = {2 + a: _matrix(node.target, given, a, int(s.value)) for a, s in enumerate(sizes)}
    return resampled(importer.block_builder.emit, x, matrices)


def _matrix(operator: Any, given: dict[str, Any], axis: int, size: int) -> Array:
    """What the operator does to one axis, (new size, size), by resizing the identity."""
    asked = {k: v for k, v in given.items() if k != "input"}
    for name, same in (("output_size", _WIDTH), ("scale_factors", 1.0)):
        if asked.get(name) is not None:
            asked[name] = [v if a == axis else same for a, v in enumerate(asked[name])]
    count = len(given["input"].ty.shape.values) - 2
    column = torch.eye(size).reshape(1, size, *(size if a == axis else 1 for a in range(count)))
    images = column.expand(1, size, *(size if a == axis else _WIDTH for a in range(count))).contiguous()
    resized = operator(images, **asked).movedim(2 + axis, 2).reshape(size, -1, _WIDTH ** (count - 1))
    found: Array = resized[:, :, 0].T.contiguous().numpy()
    return found
