"""positions: which element of which axis a thread of a grid works on.

Counts of elements are 64-bit; what lies inside a block is 32-bit, since a GPU divides 64-bit numbers slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsec.targets.cuda.builder import Kernel, int64, integer
from sparsec.targets.cuda.tir import T


def divided(k: Kernel, number: Any, size: int, dtype: str = "int32") -> tuple[Any, Any]:
    """Quotient and remainder of a number of that dtype that is not negative."""
    if size == 1:
        return number, integer(0, dtype)
    by = integer(size, dtype)
    return k.bind(T.truncdiv(number, by)), k.bind(T.truncmod(number, by))


def unravel(k: Kernel, first: Any, local: Any, sizes: Sequence[int]) -> list[Any]:
    """The coordinates of element ``first + local`` of axes, of which the outermost has any length.

    Args:
        k: the kernel.
        first: int64, the same for all threads of a block.
        local: int32, not negative.
        sizes: lengths of the inner axes, the outermost of them first.

    Returns:
        the outermost coordinate, int64, then one a size, int32.
    """
    places: list[Any] = []
    for size in reversed(sizes):
        first, begin = divided(k, first, size, "int64")
        local, place = divided(k, k.bind(T.cast(begin, "int32") + local), size)
        places.append(place)
    return [k.bind(first + int64(local)), *reversed(places)]


def inside(place: Any, size: int) -> Any:
    """Whether 0 <= place < size, of an int32."""
    return T.And(place >= 0, place < size)
