"""prune: which weights stay when the smallest go: one by one, in blocks, N of every M, or whole channels.

Magnitude pruning of one matrix at a time (Han et al. 2015, Learning both weights and connections);
what it says about accuracy is nothing: a network wants training afterwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import ConfigError

Array: TypeAlias = NDArray[Any]

PATTERNS = "unstructured, blocks as 16x1 (outputs x inputs), N:M as 2:4 (of the inputs), or channels"


@dataclass(frozen=True, slots=True)
class Pruning:
    """``share`` of zeros from 0 to 1, in blocks of outputs x inputs.

    ``kept`` = (N, M): N of every M neighbouring inputs stay, whatever ``share`` says.
    ``channels``: whole outputs go.
    """

    share: float = 0.0
    block: tuple[int, int] = (1, 1)
    kept: tuple[int, int] | None = None
    channels: bool = False

    def __str__(self) -> str:
        if self.kept:
            return f"{self.kept[0]}:{self.kept[1]} along inputs"
        zeros = f"{100 * self.share:.4g} % zeros"
        if self.channels:
            return f"{zeros} in whole channels"
        return f"{zeros}, unstructured" if self.block == (1, 1) else f"{zeros} in blocks of {self.blocks}"

    @property
    def blocks(self) -> str:
        """``16x1``."""
        return f"{self.block[0]}x{self.block[1]}"

    def mask(self, weight: Array) -> Array:
        """What stays of ``weight[outputs, inputs]``, bool of the same shape; nothing comes back to life."""
        alive: Array = weight != 0
        if not weight.size:
            return alive
        if self.kept:
            alive &= largest_of_groups(weight, *self.kept)
        else:
            block = (1, weight.shape[1]) if self.channels else self.block
            alive &= largest_blocks(weight, self.share, block)
        return alive


def largest_blocks(weight: Array, share: float, block: tuple[int, int]) -> Array:
    """True for the blocks of the largest mean magnitude: all but the ``share`` that goes.

    ``weight[outputs, inputs]``; blocks that reach over an end count with what lies inside.
    """
    (rows, columns), (high, wide) = weight.shape, block
    padded = np.pad(np.abs(weight), ((0, -rows % high), (0, -columns % wide)))
    down, across = padded.shape[0] // high, padded.shape[1] // wide
    sums = padded.reshape(down, high, across, wide).sum(axis=(1, 3))
    sums /= np.outer(_inside(rows, high), _inside(columns, wide)).astype(sums.dtype)
    removed = round(share * sums.size)
    stays = np.ones(sums.size, bool)
    if removed:
        stays[np.argpartition(sums.ravel(), removed - 1)[:removed]] = False
    grown = stays.reshape(down, across).repeat(high, axis=0).repeat(wide, axis=1)
    return np.ascontiguousarray(grown[:rows, :columns])


def _inside(size: int, step: int) -> Array:
    """The share of every block of ``step`` lines that lies within ``size``."""
    return np.minimum(step, size - np.arange(0, size, step)) / step


def largest_of_groups(weight: Array, kept: int, of: int) -> Array:
    """True for the ``kept`` largest of every ``of`` neighbouring inputs of ``weight[outputs, inputs]``."""
    rows, columns = weight.shape
    groups = np.pad(np.abs(weight), ((0, 0), (0, -columns % of))).reshape(-1, of)
    stays = np.zeros(groups.shape, bool)
    np.put_along_axis(stays, np.argsort(groups, axis=1)[:, of - kept :], True, axis=1)
    return np.ascontiguousarray(stays.reshape(rows, -1)[:, :columns])


def pruning_of(share: str | None, pattern: str | None) -> Pruning:
    """What ``--prune 90% --pattern 16x1`` ask for; N:M says itself how much goes.

    Raises:
        ConfigError: either text means nothing, or they contradict each other.
    """
    name = (pattern or "unstructured").strip().lower()
    groups = re.fullmatch(r"(\d+):(\d+)", name)
    if groups:
        return _of_groups(int(groups[1]), int(groups[2]), share)
    block = re.fullmatch(r"(\d+)x(\d+)", name)
    if not block and name not in ("unstructured", "channels"):
        raise ConfigError(f"--pattern {pattern}: expected {PATTERNS}")
    if share is None:
        raise ConfigError(f"--pattern {pattern}: say how much goes, as in --prune 90%")
    sizes = (int(block[1]), int(block[2])) if block else (1, 1)
    if min(sizes) < 1:
        raise ConfigError(f"--pattern {pattern}: a block has at least one row and one column")
    return Pruning(_share(share), sizes, channels=name == "channels")


def _of_groups(kept: int, of: int, share: str | None) -> Pruning:
    if not 0 < kept <= of:
        raise ConfigError(f"--pattern {kept}:{of}: expected N:M with 0 < N <= M, as in 2:4")
    implied = 1 - kept / of
    if share is not None and abs(_share(share) - implied) > 0.005:
        zeros = f"{100 * implied:.4g} % zeros"
        raise ConfigError(f"--prune {share}: {kept}:{of} leaves {zeros}; leave --prune out")
    return Pruning(implied, kept=(kept, of))


def _share(text: str) -> float:
    """``90%`` or ``0.9``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value < 1:
        raise ConfigError(f"--prune {text}: expected a share of zeros below 100%, as 90% or 0.9")
    return value
