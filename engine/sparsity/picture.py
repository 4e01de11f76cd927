"""Where a weight's zeros are, as a small raster: made from the array, stored in reports, drawn as text.

A raster is a list of strings, one a row of cells, one character a cell: its density in 64 levels
(base64's alphabet), on a square-root scale, since pruned weights live between 0 and 20 %.  ``A``
is a cell of zeros only, ``/`` a full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.text import Text

    Array: TypeAlias = NDArray[Any]

#: cells a raster has at most
ROWS, COLUMNS = 24, 64
_LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_VALUES = {letter: value for value, letter in enumerate(_LEVELS)}

#: a cell without nonzeros, then cells up to each of the shares of full density, then fuller ones
_SHADES, _ASCII = "·░▒▓█", ".-+*#"
_SHARES = (0.0, 0.1, 0.35, 0.7)
#: red, green and blue along the scale: zeros, few nonzeros, full
_NONE = (27, 29, 40)
_RAMP = ((46, 62, 122), (44, 128, 145), (126, 196, 120), (253, 231, 130))


def raster(matrix: Array) -> list[str]:
    """The densities of a matrix [outputs, inputs], in at most 24 x 64 cells."""
    if not matrix.size:
        return []
    density = _means(matrix != 0, ROWS, COLUMNS)
    # no nonzero is rounded away, and no zero is called full
    level = np.ceil((len(_LEVELS) - 1) * np.sqrt(density)).astype(int)
    level[(level == len(_LEVELS) - 1) & (density < 1)] -= 1
    return ["".join(_LEVELS[value] for value in row) for row in level]


def densities(rows: Sequence[str]) -> Array:
    """A raster's cells as densities from 0 to 1, float64 [rows, columns]."""
    level = np.array([[_VALUES[letter] for letter in row] for row in rows], float)
    return (level.reshape(len(rows), -1) / (len(_LEVELS) - 1)) ** 2


def shaded(rows: Sequence[str], height: int, width: int, *, ascii_only: bool = False) -> list[str]:
    """A raster as at most ``height`` lines of ``width`` characters, darker where nonzeros are."""
    if not rows:
        return []
    # a character is twice as tall as wide: two rows of cells share one
    cells = _means(densities(rows), min(height, -(-len(rows) // 2)), width)
    return in_shades(cells, ascii_only=ascii_only)


def coloured(rows: Sequence[str], height: int, width: int) -> Text:
    """The same in colours, two rows of cells a line."""
    return in_colours(_means(densities(rows), 2 * height, width) if rows else np.zeros((0, 0)))


def in_shades(cells: Array, *, ascii_only: bool = False) -> list[str]:
    """Numbers from 0 to 1 [rows, columns] as a line of characters a row."""
    shades = _ASCII if ascii_only else _SHADES
    return ["".join(shades[i] for i in row) for row in np.searchsorted(_SHARES, cells)]


def in_colours(cells: Array) -> Text:
    """Numbers from 0 to 1 [rows, columns] as half blocks with a background, a line for two rows."""
    from rich.text import Text

    text = Text(no_wrap=True)
    for upper in range(0, len(cells), 2):
        lower = cells[upper + 1] if upper + 1 < len(cells) else [None] * len(cells[upper])
        for above, below in zip(cells[upper], lower, strict=True):
            text.append("▀", _colour(above) + (f" on {_colour(below)}" if below is not None else ""))
        text.append("\n" if upper + 2 < len(cells) else "")
    return text


def pixels(rows: Sequence[str]) -> Array:
    """A raster as an image: uint8 [rows, columns, 3], a pixel a cell, in the colours of a terminal."""
    colours = {letter: _rgb((value / (len(_LEVELS) - 1)) ** 2) for letter, value in _VALUES.items()}
    return np.array([[colours[letter] for letter in row] for row in rows], np.uint8)


def _means(cells: Array, rows: int, columns: int) -> Array:
    """Means of at most ``rows`` x ``columns`` areas of near equal size."""
    down, across = (_starts(size, count) for size, count in zip(cells.shape, (rows, columns), strict=True))
    kind = np.int64 if cells.dtype == bool else float
    sums = np.add.reduceat(np.add.reduceat(cells, down, axis=0, dtype=kind), across, axis=1)
    heights, widths = (np.diff([*s, n]) for s, n in zip((down, across), cells.shape, strict=True))
    means: Array = sums / (heights[:, None] * widths)
    return means


def _starts(size: int, count: int) -> Array:
    """Where each of at most ``count`` equal parts of ``size`` begins."""
    count = min(size, count)
    starts: Array = np.arange(count) * size // count
    return starts


def _rgb(density: float) -> tuple[int, ...]:
    """Red, green and blue of a density."""
    if not density:
        return _NONE
    place = density**0.5 * (len(_RAMP) - 1)
    at = min(int(place), len(_RAMP) - 2)
    low, high = _RAMP[at], _RAMP[at + 1]
    return tuple(round(a + (b - a) * (place - at)) for a, b in zip(low, high, strict=True))


def _colour(density: float) -> str:
    """A density as ``#rrggbb``."""
    return "#" + "".join(f"{part:02x}" for part in _rgb(density))
