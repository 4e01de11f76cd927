"""One module per storage format, all with the same four functions.

========  =================================================================================
format    layout
========  =================================================================================
dense     every element, row by row
coo       row, column and value of each nonzero
csr       nonzeros by row: row offsets, column indices, values
csc       nonzeros by column: column offsets, row indices, values
bsr       dense r x c blocks by block row; blocks of zeros are dropped
nm        N values and positions for each group of M neighbours
ell       the same number of slots for every row
bitmask   one bit per element, and the nonzeros
hybrid    dense rows, columns dense among the long rows, and csr for all else
========  =================================================================================

Every ``unpack(pack(a))`` equals ``a`` bit for bit; only -0.0 comes back as +0.0 (not from
dense).  All take NumPy arrays of any dtype and scipy.sparse matrices, always 2-D.
"""

from __future__ import annotations

from typing import Any, Protocol

from sparsec.errors import ConfigError
from sparsec.formats import bitmask, bsr, coo, csc, csr, dense, ell, hybrid, nm
from sparsec.formats.matrix import Array, Fit, MatrixLike

__all__ = ["FORMATS", "Fit", "Format", "by_name"]


class Format(Protocol):
    """What each module of this package provides; some ``pack`` and ``fits`` take options."""

    def pack(self, array: MatrixLike, /) -> Any:
        """The packed form, a frozen dataclass of arrays."""

    def unpack(self, packed: Any, /) -> Array:
        """The matrix again, as a new array."""

    def nbytes(self, packed: Any, /) -> int:
        """Bytes of the packed arrays."""

    def fits(self, array: MatrixLike, /) -> Fit:
        """Whether the format suits the matrix, with the reason."""


FORMATS: tuple[tuple[str, Format], ...] = (
    ("dense", dense),
    ("coo", coo),
    ("csr", csr),
    ("csc", csc),
    ("bsr", bsr),
    ("nm", nm),
    ("ell", ell),
    ("bitmask", bitmask),
    ("hybrid", hybrid),
)


def by_name(name: str) -> Format:
    """The module of a format.

    Raises:
        ConfigError: no format has this name; lists those there are.
    """
    for known, module in FORMATS:
        if known == name:
            return module
    raise ConfigError(f"no format is called {name!r}; use one of {', '.join(n for n, _ in FORMATS)}")
