"""bound: the fewest bytes that weights with zeros take, and which layers take clearly more for speed."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import Any

#: how many times the bound a layer may take before explain names it
LIMITS: Mapping[str, float] = {"linear": 1.15, "convolution": 1.35}


def bound_bytes(elements: int, nonzeros: int, item: int = 4) -> int:
    """Bytes of nonzeros, ``item`` each, and of a mask that says where they are, if each place is as likely.

    The mask takes H(p) bits an element, p the density: the entropy of a Bernoulli source (Shannon, A
    Mathematical Theory of Communication, 1948, section 6).  A weight in blocks can take less.
    """
    share = nonzeros / elements if elements else 0.0
    bits = sum(-p * log2(p) for p in (share, 1 - share) if p > 0)
    return item * nonzeros + round(elements * bits / 8)


def times_bound(layer: Mapping[str, Any]) -> float | None:
    """What a layer of a report takes, in units of its bound; None where no bound is known."""
    bound = layer.get("bound_bytes")
    return int(layer["bytes"]) / int(bound) if bound else None


def traded(layer: Mapping[str, Any]) -> float | None:
    """The same where it is more than :data:`LIMITS` allow: size was traded for speed."""
    ratio = times_bound(layer)
    limit = LIMITS.get(str(layer.get("kind")))
    return ratio if ratio is not None and limit is not None and ratio > limit else None
