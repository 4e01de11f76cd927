"""Whether regularity is structure or chance.

Evidence is the natural logarithm of the probability that zeros thrown at random would look as
regular as what was counted: 0 says nothing, -14 is one in a million.
"""

from __future__ import annotations

from math import comb, lgamma, log
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

#: evidence below which regularity is structure
CERTAIN = -14.0


def log_choose(n: float, k: float) -> float:
    """ln of the number of ways to choose k of n."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def block_evidence(stored: int, blocks: int, inside: int, elements: int, nonzeros: int) -> float:
    """Evidence that nonzeros cluster in blocks.

    The number of placements of ``nonzeros`` within some ``stored`` of ``blocks`` blocks
    (``inside`` elements together) over the number of placements anywhere in ``elements``.
    """
    if stored >= blocks or nonzeros > inside or inside >= elements:
        return 0.0
    free = log_choose(elements, nonzeros)
    return log_choose(blocks, stored) + log_choose(inside, nonzeros) - free


def group_evidence(n: int, m: int, counts: Array, crossing: Array) -> float:
    """Evidence that at most ``n`` nonzeros in each group of ``m`` is no accident.

    ``counts`` int64 [lines]: nonzeros of each line the groups run along; ``crossing`` int64
    [length]: nonzeros at each position of the lines.  Two explanations by chance are tried,
    lines of these counts filled evenly (hypergeometric) and positions of these densities
    (Poisson binomial), and the better one counts.
    """
    length = len(crossing)
    groups = length // m
    alive = counts[counts > 0]
    if groups == 0 or n >= m or n >= alive.max(initial=0):
        return 0.0
    exact = int(crossing[: groups * m].sum()) == len(alive) * groups * n
    by_line = _even_lines(n, m, np.bincount(alive), length, exact)
    if by_line >= CERTAIN:
        return by_line
    density = (crossing[: groups * m] / len(alive)).reshape(groups, m)
    return max(by_line, len(alive) * _uneven_positions(n, density, exact))


def _even_lines(n: int, m: int, histogram: Array, length: int, exact: bool) -> float:
    nonzeros = np.flatnonzero(histogram)
    lines, groups = histogram[nonzeros], length // m
    ways = _log_factorials(length)
    whole = _log_choose_table(ways, length, nonzeros)
    if exact:
        rest = _log_choose_table(ways, length % m, nonzeros - groups * n)
        return float(lines @ (groups * log(comb(m, n)) + rest - whole))
    k = np.arange(n + 1)[:, None]
    elsewhere = _log_choose_table(ways, length - m, nonzeros - k)
    probability = np.exp(_log_choose_table(ways, m, k) + elsewhere - whole).sum(axis=0)
    with np.errstate(divide="ignore"):
        return float(groups * (lines @ np.log(np.minimum(probability, 1.0))))


def _log_factorials(largest: int) -> Array:
    table = np.zeros(largest + 1)
    np.cumsum(np.log(np.arange(1, largest + 1)), out=table[1:])
    return table


def _log_choose_table(ways: Array, n: int, k: Array) -> Array:
    """ln of the binomial coefficients, minus infinity where k is not within 0..n."""
    within = np.minimum(np.maximum(k, 0), n)
    chosen = ways[n] - ways[within] - ways[n - within]
    return np.where(k == within, chosen, -np.inf)


def _uneven_positions(n: int, density: Array, exact: bool) -> float:
    """ln of the chance that one line has at most (or exactly) n nonzeros in every group."""
    groups, m = density.shape
    chance = np.zeros((groups, m + 1))
    chance[:, 0] = 1.0
    for p in density.T[:, :, None]:
        stay = chance * (1 - p)
        stay[:, 1:] += chance[:, :-1] * p
        chance = stay
    good = chance[:, n] if exact else chance[:, : n + 1].sum(axis=1)
    with np.errstate(divide="ignore"):
        return float(np.log(np.minimum(good, 1.0)).sum())


def even_rows_evidence(each: int, alive: int, rows: int, columns: int) -> float:
    """Evidence that ``alive`` of ``rows`` rows having exactly ``each`` nonzeros is no accident."""
    if each >= columns:
        return 0.0
    densities = (each / columns, each * alive / (rows * columns))
    return max(alive * _same_count(each, columns, p) for p in densities)


def _same_count(each: int, columns: int, p: float) -> float:
    """ln of the chance of ``each`` nonzeros in a row that has at least one."""
    exactly = log_choose(columns, each) + each * log(p) + (columns - each) * np.log1p(-p)
    return float(exactly - np.log(-np.expm1(columns * np.log1p(-p))))
