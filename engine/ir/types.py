"""What a value is: its shape, its dtype and how it is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from sparsec.ir.dims import Dim, Size, product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor is stored.

    ``panel == 0``: plain row-major.  ``panel == P``: *token panels*: the last axis is the
    features, all others together are T tokens, stored as ``[ceil(T/P)][features][P]``; lanes
    beyond T hold arbitrary finite or non-finite garbage that no reader may let escape.
    """

    panel: int = 0

    def __str__(self) -> str:
        return f"panels({self.panel})" if self.panel else "plain"


PLAIN = Layout()


@dataclass(frozen=True, slots=True)
class Type:
    """Shape, NumPy dtype name and storage layout of a value."""

    shape: tuple[Size, ...]
    dtype: str = "float32"
    layout: Layout = PLAIN

    @property
    def elements(self) -> Size:
        """Number of elements, without padding."""
        return product(self.shape)

    @property
    def tokens(self) -> Size:
        """Product of all axes but the last."""
        return product(self.shape[:-1])

    def __str__(self) -> str:
        short = self.dtype.replace("float", "f").replace("uint", "u").replace("int", "i")
        where = "" if self.layout == PLAIN else f" {self.layout}"
        return f"{short}[{', '.join(map(str, self.shape))}]{where}"


def panels(size: Size, width: int) -> Size | None:
    """``ceil(size / width)`` when it is a known number, else None."""
    return -(-size // width) if isinstance(size, int) else None


def is_dynamic(sizes: Iterable[Size]) -> bool:
    """Whether any of the sizes is symbolic."""
    return any(isinstance(s, Dim) for s in sizes)
