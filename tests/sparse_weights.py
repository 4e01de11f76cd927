"""Random weights with zeros, and facts about big ones that need not exist, for tests of CUDA kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern, Spread
from sparsec.targets.target import Problem


def unstructured(rows: int, inner: int, density: float, seed: int = 0) -> Any:
    """Random numbers at random places; where there are several rows, one is empty and one is full."""
    rng = np.random.default_rng([seed, rows, inner])
    weight = rng.standard_normal((rows, inner)) * (rng.random((rows, inner)) < density)
    if rows > 3:
        weight[rows // 2] = 0
        weight[rows - 2] = rng.standard_normal(inner)
    return weight


def facts(rows: int, inner: int, density: float, dtype: str = "float16") -> Pattern:
    """The pattern of a big unstructured weight."""
    each = inner * density
    spread = Spread(int(each * 0.8), each, int(each * 1.2))
    return Pattern((rows, inner), (rows, inner), dtype, int(rows * each), spread)


def layer_of(rows: int, inner: int, columns: int | None, dtype: str = "float16") -> Problem:
    """A layer without an epilogue."""
    return Problem(rows, inner, columns, 0, dtype=dtype)
