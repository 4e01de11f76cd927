"""shared_inputs: what the pattern of a weight says about inputs that neighbouring outputs share.

A pattern knows how many columns of 16 or 32 outputs hold a nonzero, and N:M of single outputs.  Where the
columns are N' of every M on average, N' whole, they are taken to be N' of every M everywhere; packing makes
room for groups that are fuller.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log

from sparsec.sparsity.pattern import Pattern

#: outputs that share their inputs, more first
GROUPS = (32, 16)
#: inputs of a slab
SLABS = (64, 128)
#: share of the dense products that may be left, how near to N of M groups must keep on average, and how full
#: columns of V outputs must be where they follow no N:M
_MOST_WORK, _INEXACT, _FULL = 0.5, 1.05, 0.75


@dataclass(frozen=True, slots=True)
class Kept:
    """Of every ``m`` inputs ``rows`` neighbouring outputs keep ``n``; with ``pairs`` each of them 2 of four.

    With ``m`` 1 they keep a share ``n`` of all, at random.  ``slabs``: how many slabs of one input there are.
    """

    rows: int
    n: float
    m: int
    pairs: int
    slabs: int

    @property
    def span(self) -> int:
        """Inputs of a tile."""
        return 32 if self.pairs else 16

    def tiles(self, inputs: int) -> int:
        """Tiles that hold what is kept of any ``inputs`` neighbours."""
        most = -(-inputs // self.m) * self.n
        if self.m == 1:
            # the largest of so many binomial numbers
            most += (2 * log(1 + self.slabs / inputs) * most * (1 - self.n)) ** 0.5
        return min(ceil(most / self.span), inputs // self.span)

    @property
    def work(self) -> float:
        """Products over those of the dense weight."""
        return min(self.tiles(inputs) / inputs for inputs in SLABS) * 16


def kept(pattern: Pattern) -> list[Kept]:
    """What the weight fulfils, least work first."""
    found = []
    for rows in GROUPS:
        fit = pattern.block_fit(rows, 1)
        stored, groups = fit.stored if fit else 0, -(-pattern.shape[0] // rows)
        slabs = groups * pattern.shape[1]
        for n, m in ((f.n, f.m) for f in pattern.nm if f.axis == 1 and stored):
            periods = groups * -(-pattern.shape[1] // m)
            shared = max(n, round(stored / periods))
            if periods * shared <= _INEXACT * stored and stored <= _INEXACT * periods * shared:
                found.append(Kept(rows, shared, m, 0, slabs))
            if n == 2 < shared and m >= 8 and stored <= _INEXACT * periods * 4:
                found.append(Kept(rows, 4, m, 1, slabs))
        if stored * rows * _FULL <= pattern.nonzeros and stored:
            found.append(Kept(rows, stored / slabs, 1, 0, slabs))
    worth = [one for one in found if one.work <= _MOST_WORK]
    return sorted(worth, key=lambda one: (one.work, one.pairs, -one.rows, one.m == 1, one.m))
