"""The shared data folder's matrices of pruned weights; none where it is not beside this clone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from workloads import SHARED_DATA


@dataclass(frozen=True)
class Matrix:
    """A weight [outputs, inputs], float32."""

    group: str
    name: str
    make: Callable[[], Any]


def skimcaffe() -> Iterator[Matrix]:
    """Pruned AlexNet and LeNet: MatrixMarket, indices from 1."""
    for path in sorted((SHARED_DATA / "skimcaffe").rglob("*.weight")):
        name = f"{path.parent.name}/{path.stem.removeprefix('coo_')}"
        yield Matrix("skimcaffe", name, partial(_market, path))


def _market(path: Path) -> Any:
    lines = [line.split() for line in path.read_text().splitlines() if line and line[0] != "%"]
    rows, columns, _ = (int(n) for n in lines[0])
    row, column, value = np.array(lines[1:], np.float64).T
    at = (row.astype(int) - 1, column.astype(int) - 1)
    return scipy.sparse.coo_array((value, at), (rows, columns)).toarray().astype(np.float32)


def dlmc() -> Iterator[Matrix]:
    """Deep learning's matrix collection: patterns of ResNet-50 and of a Transformer, random values."""
    root = SHARED_DATA / "dlmc"
    for path in sorted(root.rglob("*.smtx")):
        yield Matrix("dlmc", str(path.relative_to(root).with_suffix("")), partial(_pattern, path))


def _pattern(path: Path) -> Any:
    header, offsets, columns = [*path.read_text().splitlines(), ""][:3]
    rows, inner, count = (int(n) for n in header.split(","))
    starts, at = (np.array(line.split(), int) for line in (offsets, columns))
    values = np.random.default_rng(0).standard_normal(count)
    return scipy.sparse.csr_array((values, at, starts), (rows, inner)).toarray().astype(np.float32)
