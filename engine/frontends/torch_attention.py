"""``scaled_dot_product_attention`` in Relax's basic operators.

TVM's own converter drops ``scale`` and takes neither 3-D inputs nor boolean masks; torch's
decomposition guards against rows that are masked out entirely, which hides the attention.  Here
it is plain ``softmax(q k^T * scale + mask) v`` (Vaswani et al. 2017); a row that is masked out
entirely gives NaN where torch gives 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

#: the operator's parameters in order, after query, key and value
_PARAMETERS = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def convert_attention(importer: Any, node: Any) -> Any:
    """The Relax variable of an fx node that calls ``scaled_dot_product_attention``.

    Raises:
        ValueError: dropout or grouped heads.
    """
    emit = importer.block_builder.emit
    query, key, value = (importer.env[a] for a in node.args[:3])
    given = {**dict(zip(_PARAMETERS, node.args[3:], strict=False)), **node.kwargs}
    if given.get("dropout_p") or given.get("enable_gqa"):
        raise ValueError("attention with dropout or grouped heads")
    rank = len(key.ty.shape.values)
    swapped = emit(relax.op.permute_dims(key, [*range(rank - 2), rank - 1, rank - 2]))
    scale = given.get("scale")
    factor = float(scale) if scale is not None else int(query.ty.shape.values[-1]) ** -0.5
    scores = emit(relax.op.multiply(emit(relax.op.matmul(query, swapped)), relax.const(factor, "float32")))
    mask = _mask(importer, given, scores)
    if mask is not None:
        scores = emit(relax.op.add(scores, mask))
    return emit(relax.op.matmul(emit(relax.op.nn.softmax(scores, axis=-1)), value))


def _mask(importer: Any, given: dict[str, Any], scores: Any) -> Any:
    minus_infinity = relax.const(-np.inf, "float32")
    if given.get("is_causal"):
        sizes = list(scores.ty.shape.values[-2:])
        if all(hasattr(s, "value") for s in sizes):
            rows, columns = (int(s.value) for s in sizes)
            return relax.const(np.triu(np.full((rows, columns), -np.inf, np.float32), 1))
        emit = importer.block_builder.emit
        return emit(relax.op.triu(emit(relax.op.broadcast_to(minus_infinity, relax.ShapeExpr(sizes))), 1))
    if given.get("attn_mask") is None:
        return None
    mask = importer.env[given["attn_mask"]]
    if str(mask.ty.dtype.dtype) != "bool":
        return mask
    return importer.block_builder.emit(relax.op.where(mask, relax.const(0.0, "float32"), minus_infinity))
