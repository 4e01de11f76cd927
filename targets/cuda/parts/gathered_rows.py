"""gathered_rows: weights whose rows share inputs V at a time, stored as the dense tiles that are left.

A *group* is V neighbouring output features.  Of each *slab* of inputs it keeps those that any of its features
has a weight for, as many tiles of 16 or 32 of them as the fullest group and slab need; ``columns`` says
which, and the weights of these inputs are stored in the order of multiply instructions' registers (see
operand_order).

With ``pairs`` the kept inputs come in fours of which each feature uses two at most, what sparse tensor cores
multiply: V:2:M of Castro et al., "VENOM: A Vectorized N:M Format for Unleashing the Power of Sparse Tensor
Cores" (2023).  Any four inputs of one M will do for features that have no more than two of every M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda.interpreter.fragments import sparse_metadata
from sparsec.targets.cuda.parts.mma_tiles import Tiling
from sparsec.targets.cuda.parts.operand_order import SIDE, as_first

#: dynamic shared memory that every GPU has which the kernel is made for
MOST_SHARED = 163 << 10
#: lines of shared memory whose numbers differ modulo this lie in different banks
BANKS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """A configuration.

    ``rows``: V; ``inputs`` of a slab, of which a group keeps ``tiles`` times ``span``; ``pairs``: whether by
    sparse instructions, fours being of one ``period`` (M); the rest is the thread block's tile and its warps.
    """

    rows: int
    inputs: int
    span: int
    tiles: int
    pairs: int
    period: int
    features: int
    tokens: int
    high: int
    wide: int
    stages: int

    @classmethod
    def of(cls, config: Mapping[str, int]) -> Shape:
        """From a configuration's dictionary."""
        return cls(**config)

    @property
    def groups(self) -> int:
        """Groups of the tile."""
        return self.features // self.rows

    @property
    def kept(self) -> int:
        """Inputs that a group keeps of a slab."""
        return self.tiles * self.span

    @property
    def elements(self) -> int:
        """Weights of a step."""
        return self.groups * self.tiles * self.rows * SIDE

    @property
    def words(self) -> int:
        """Words of a step that say which two of four: two tiles of 16 features share 32."""
        return self.groups * self.tiles * -(-self.rows // 32) * 32 if self.pairs else 0

    @property
    def shared_bytes(self) -> int:
        """Shared memory of all stages and of two slabs that are turned."""
        stage = 2 * self.tokens * self.inputs + 2 * self.elements + 4 * self.words + self.groups * self.kept
        return self.stages * stage + 4 * self.tokens * self.inputs

    @property
    def tiling(self) -> Tiling:
        """As the parts that tensor core kernels share see it."""
        return Tiling(self.features, self.tokens, self.inputs, self.high, self.wide, self.stages)


def packed(weight: NDArray[Any], wanted: Shape) -> tuple[Shape, dict[str, NDArray[Any]]]:
    """A weight [features, inputs] as nm_gather reads it, and the shape with the tiles it needs.

    Arrays, of which a thread block's step reads one line each: ``values`` [feature tiles, slabs, tiles of 16
    features, 32, 8]; ``columns`` uint8 [feature tiles, slabs, groups, kept]: inputs within the slab; with
    ``pairs`` ``positions`` uint32 [feature tiles, slabs, pairs of tiles of 16 features, 32] (see fragments):
    the even tile's in the lanes that selector 0 reads, the odd one's in those of selector 1.

    Raises:
        ValueError: a feature has more than two weights in one period of a shape with pairs.
    """
    narrow = replace(wanted, inputs=64, stages=3)
    small = replace(narrow, features=128, tokens=64, high=4, wide=2)
    # a weight that keeps more than it promised takes narrower slabs, or a tile that has room for all of them
    for shape in (wanted, narrow, small):
        slabs = _slabs(weight, shape)
        columns, real = (_fours if shape.pairs else _spread)(slabs, shape)
        shape = replace(shape, tiles=columns.shape[2] // shape.span)
        if shape.shared_bytes <= MOST_SHARED:
            break
    taken = np.take_along_axis(slabs, columns[:, :, None, :], axis=3) * real[:, :, None, :]
    arrays = {"values": taken, "columns": columns}
    if shape.pairs:
        arrays["values"], indices = _two_of_four(taken)
        arrays["positions"] = _positions(_tiles(indices, shape), shape)
    tiles = _tiles(arrays["values"].astype(weight.dtype), shape)
    arrays["values"] = as_first(tiles.reshape(-1, SIDE, SIDE)).reshape(*tiles.shape[:2], -1, 32, 8)
    split = columns.astype(np.uint8).reshape(len(tiles), shape.groups, -1, shape.kept)
    arrays["columns"] = np.ascontiguousarray(split.transpose(0, 2, 1, 3))
    return shape, arrays


def _slabs(weight: NDArray[Any], s: Shape) -> NDArray[Any]:
    """The weight as [groups, slabs, V, inputs], padded with zeros to whole tiles."""
    tall, wide = (-(-n // by) * by for n, by in zip(weight.shape, (s.features, s.inputs), strict=True))
    padded = np.zeros((tall, wide), weight.dtype)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded.reshape(tall // s.rows, s.rows, -1, s.inputs).transpose(0, 2, 1, 3)


def _spread(slabs: NDArray[Any], s: Shape) -> tuple[NDArray[Any], NDArray[Any]]:
    """Which inputs are kept [groups, slabs, kept], and whether each has weights.

    An instruction reads the lines of eight at a time: inputs of one bank are dealt out over all eights.
    """
    used = (slabs != 0).any(axis=2)
    kept = -(-int(used.sum(axis=2).max(initial=1)) // s.span) * s.span
    bank = np.where(used, np.arange(s.inputs) % BANKS, BANKS)
    order = np.argsort(bank, axis=2, kind="stable")[:, :, :kept]
    columns = order.reshape(*order.shape[:2], 8, kept // 8).swapaxes(2, 3).reshape(order.shape)
    return columns, np.take_along_axis(used, columns, axis=2)


def _fours(slabs: NDArray[Any], s: Shape) -> tuple[NDArray[Any], NDArray[Any]]:
    """As :func:`_spread`, in fours of which no feature has more than two."""
    if (np.count_nonzero(slabs.reshape(*slabs.shape[:3], -1, s.period), axis=4) > 2).any():
        raise ValueError(f"a feature has more than 2 weights in {s.period} inputs")
    used = (slabs != 0).any(axis=2).reshape(*slabs.shape[:2], -1, s.period)
    # of each period what is used first; then the fours of all periods that have anything
    first = np.argsort(~used, axis=3, kind="stable")
    real = np.take_along_axis(used, first, axis=3).reshape(*used.shape[:2], -1, 4)
    places = (first + np.arange(used.shape[2])[:, None] * s.period).reshape(real.shape)
    filled = real.any(axis=3)
    per = s.span // 4
    most = -(-int(filled.sum(axis=2).max(initial=1)) // per) * per
    order = np.argsort(~filled, axis=2, kind="stable")[:, :, :most, None]
    columns, there = (
        np.take_along_axis(a, order, axis=2).reshape(*used.shape[:2], -1) for a in (places, real)
    )
    return columns, there


def _two_of_four(taken: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of each four the two that are stored, and which they are."""
    fours = taken.reshape(*taken.shape[:3], -1, 4)
    which = np.sort(np.argsort(fours == 0, axis=4, kind="stable")[..., :2], axis=4)
    shape = (*taken.shape[:3], taken.shape[3] // 2)
    return np.take_along_axis(fours, which, axis=4).reshape(shape), which.reshape(shape)


def _tiles(stored: NDArray[Any], s: Shape) -> NDArray[Any]:
    """[groups, slabs, V, stored] as [feature tiles, slabs, groups, tiles, V / 16, 16, 16]."""
    cut = stored.reshape(-1, s.groups, stored.shape[1], s.rows // SIDE, SIDE, s.tiles, SIDE)
    return np.asarray(cut.transpose(0, 2, 1, 5, 3, 4, 6))


def _positions(indices: NDArray[Any], s: Shape) -> NDArray[Any]:
    """The words of tiles' indices, two tiles of 16 features to 32 lanes."""
    words = sparse_metadata(indices)
    even, odd = words[..., 0::2, :], words[..., (1 if s.rows > SIDE else 0) :: 2, :]
    both = np.where(np.arange(32) % 4 < 2, even, odd)
    return np.ascontiguousarray(both.reshape(*both.shape[:2], -1, 32))


def stored_bytes(s: Shape, features: int, inputs: int) -> int:
    """Bytes of all arrays."""
    steps = -(-features // s.features) * -(-inputs // s.inputs)
    return steps * (2 * s.elements + 4 * s.words + s.groups * s.kept)
