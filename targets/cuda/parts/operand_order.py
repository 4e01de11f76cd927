"""operand_order: weights stored in the order in which threads hold them for multiply instructions.

Tiles of 16 output features x 16 inputs are stored as 32 lanes' eight elements, one lane after the other, so
that one 128-bit load gives a thread its part of a tile: whole 512-byte reads, no bank conflicts, no ldmatrix,
no swizzle.  Which elements a lane holds: see fragments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Array, Kernel
from sparsec.targets.cuda.tir import T, tirx

#: output features and inputs of a tile, its elements, and its 32-bit words
SIDE = 16
ELEMENTS = SIDE * SIDE
WORDS = ELEMENTS // 2
#: words of a tile that one lane holds
LANE_WORDS = 4


def as_first(tiles: NDArray[Any]) -> NDArray[Any]:
    """Tiles [n, 16 features, 16 inputs] as first operands (features are rows): [n, 32 lanes, 8].

    Lane 4 g + t holds rows g and g + 8 at inputs 2 t, 2 t + 1, then the same at inputs 8 further.
    """
    split = tiles.reshape(-1, 2, 8, 2, 4, 2)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 3, 1, 5)).reshape(-1, 32, 8)


def as_second(tiles: NDArray[Any]) -> NDArray[Any]:
    """Tiles [n, 16 features, 16 inputs] as second operands (features are columns): [n, 32 lanes, 8].

    Lane 4 g + t holds feature g at inputs 2 t, 2 t + 1, 2 t + 8, 2 t + 9, then feature g + 8 at the same.
    """
    split = tiles.reshape(-1, 2, 8, 2, 4, 2)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 1, 3, 5)).reshape(-1, 32, 8)


def load_tile(k: Kernel, to: Array, index: int, words: Array, at: Any) -> None:
    """Read a lane's part of the tile at word ``at`` of shared memory to registers ``index`` ... of ``to``."""
    to.put(index, words.vector(at + k.lane * LANE_WORDS, LANE_WORDS), LANE_WORDS)


def streamer(k: Kernel, to: Array, source: Array, most: int, per: int = 8) -> Callable[[Any, Any, Any], None]:
    """Prepare plain copies of runs of ``per`` elements (16 bytes); the result is ``copy(to, from, runs)``.

    ``to`` and ``from`` are elements' indices (``from`` int64), multiples of ``per``; ``runs`` the number of
    runs, at most ``most``: an int32 expression, or None for exactly ``most``.
    """

    def copy(first: Any, start: Any, runs: Any = None) -> None:
        always = tirx.IntImm("int32", 1)
        for turn in range(-(-most // k.threads)):
            run = k.thread + turn * k.threads

            def one(run: Any = run) -> None:
                place = source.pointer(start + T.cast(run * per, "int64"))
                k.call(instructions.cp_async_16, to.pointer(first + run * per), place, always)

            if runs is None and (turn + 1) * k.threads <= most:
                one()
                continue
            with k.when(run < (most if runs is None else runs)):
                one()

    return copy
