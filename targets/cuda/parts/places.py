"""places: numbers known or not, and where in a tensor an element lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from sparsec.ir.dims import Dim, Size
from sparsec.targets.cuda.builder import Kernel, int64, integer


def divided(size: Size, by: int) -> Size | None:
    """``size / by``, None where a remainder may be left."""
    if isinstance(size, int):
        return size // by if size % by == 0 else None
    if any(factor % by for _, factor in size.terms):
        return None
    return Dim(tuple((names, factor // by) for names, factor in size.terms))


def number(value: Any) -> Any:
    """A number or expression as an int64 expression."""
    return integer(value) if isinstance(value, int) else value


def coordinates(k: Kernel, at: Any, extents: Sequence[Any]) -> list[Any]:
    """Where along each axis the element number ``at`` is, int64; sizes known to be small divide faster."""
    count = np.prod([e if isinstance(e, int) else 1 << 31 for e in extents], dtype=float)
    dtype = "int32" if count < 1 << 31 else "int64"
    # the mask changes nothing but what TVM believes of an int64's range
    rest = k.bind(at if dtype == "int64" else T.cast(T.bitwise_and(at, integer((1 << 31) - 1)), dtype))
    found = []
    for extent in reversed(extents[1:]):
        size = integer(extent, dtype)
        found.append(int64(k.bind(T.truncmod(rest, size))))
        rest = k.bind(T.truncdiv(rest, size))
    return [int64(rest), *reversed(found)]
