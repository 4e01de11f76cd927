"""Dimensions: whole numbers and polynomials over named sizes.

A dimension is either an ``int`` or a :class:`Dim`, a sum of products of named sizes with
integer coefficients (``2*batch*seq + 3``).  Polynomials are kept in one normal form, so two
dimensions are equal exactly when they compare equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

Monomial: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dim:
    """A polynomial: ``terms`` maps sorted names of a product to its coefficient, in order."""

    terms: tuple[tuple[Monomial, int], ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names it depends on, sorted."""
        return tuple(sorted({name for names, _ in self.terms for name in names}))

    @property
    def is_symbol(self) -> bool:
        """Whether it is one bare name."""
        return len(self.terms) == 1 and len(self.terms[0][0]) == 1 and self.terms[0][1] == 1

    def __add__(self, other: Size) -> Size:
        return _normal(list(self.terms) + list(_terms(other)))

    def __mul__(self, other: Size) -> Size:
        pairs = ((a + b, x * y) for a, x in self.terms for b, y in _terms(other))
        return _normal(pairs)

    def __sub__(self, other: Size) -> Size:
        return self + (other * -1)

    __radd__ = __add__
    __rmul__ = __mul__

    def __str__(self) -> str:
        return " + ".join(_monomial_text(names, factor) for names, factor in self.terms)


Size: TypeAlias = int | Dim


def symbol(name: str) -> Dim:
    """The dimension called ``name``."""
    return Dim((((name,), 1),))


def product(sizes: Iterable[Size]) -> Size:
    """The product of dimensions (1 for none)."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def value(size: Size, bindings: Mapping[str, int]) -> int:
    """The number a dimension stands for once its names are bound.

    Raises:
        KeyError: a name has no binding.
    """
    if isinstance(size, int):
        return size
    return sum(factor * prod(bindings[name] for name in names) for names, factor in size.terms)


def _terms(size: Size) -> tuple[tuple[Monomial, int], ...]:
    return (((), size),) if isinstance(size, int) else size.terms


def _normal(pairs: Iterable[tuple[Monomial, int]]) -> Size:
    sums: dict[Monomial, int] = {}
    for names, factor in pairs:
        key = tuple(sorted(names))
        sums[key] = sums.get(key, 0) + factor
    terms = tuple(sorted(((k, v) for k, v in sums.items() if v), key=lambda t: (-len(t[0]), t)))
    if not terms:
        return 0
    if len(terms) == 1 and not terms[0][0]:
        return terms[0][1]
    return Dim(terms)


def _monomial_text(names: Monomial, factor: int) -> str:
    parts = ([] if factor == 1 and names else [str(factor)]) + list(names)
    return "*".join(parts)
