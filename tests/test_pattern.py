"""What infer says of matrices whose structure is known, by construction or from real networks."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from sparsec.sparsity.pattern import (
    BLOCK_SIZES,
    GROUP_SIZES,
    BlockFit,
    Lines,
    NmFit,
    Pattern,
    Uneven,
    dead_columns,
    dead_rows,
    infer,
    padded_slots,
)

KINDS = ("dense", "dead", "blocks", "nm", "fan_in", "hubs", "unstructured", "empty")


def values(rng: np.random.Generator, mask: Any) -> Any:
    """Random signs and sizes where ``mask`` is true; never zero there."""
    sizes = rng.uniform(0.5, 1.5, mask.shape) * rng.choice([-1, 1], mask.shape)
    return np.where(mask, sizes, 0).astype(np.float32)


def random_matrix(seed: int, shape: tuple[int, int], density: float) -> Any:
    rng = np.random.default_rng(seed)
    return values(rng, rng.random(shape) < density)


def block_matrix(seed: int, shape: tuple[int, int], block: tuple[int, int], density: float) -> Any:
    rng = np.random.default_rng(seed)
    grid = rng.random((-(-shape[0] // block[0]), -(-shape[1] // block[1]))) < density
    return values(rng, np.kron(grid, np.ones(block, bool))[: shape[0], : shape[1]])


def group_matrix(seed: int, shape: tuple[int, int], n: int, m: int, axis: int = 1) -> Any:
    """N random positions of every group; a last group cut short keeps what falls inside."""
    rng = np.random.default_rng(seed)
    lines, length = shape if axis else shape[::-1]
    order = rng.random((lines, -(-length // m), m)).argsort(axis=2)
    mask = (order < n).reshape(lines, -1)[:, :length]
    return values(rng, mask if axis else mask.T)


# ---- measured facts, against loops and scipy


def slow_blocks(mask: Any, r: int, c: int) -> tuple[int, int]:
    """(stored blocks, their elements inside the matrix) by a plain loop."""
    stored = inside = 0
    for i in range(0, mask.shape[0], r):
        for j in range(0, mask.shape[1], c):
            tile = mask[i : i + r, j : j + c]
            if tile.any():
                stored, inside = stored + 1, inside + tile.size
    return stored, inside


@pytest.mark.parametrize("seed", range(12))
def test_measured_facts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 90, 2))
    matrix = random_matrix(seed, (shape[0], shape[1]), float(rng.choice([0.01, 0.1, 0.5, 0.9])))
    mask, p = matrix != 0, infer(matrix)
    assert p.nonzeros == mask.sum() and p.density == pytest.approx(mask.mean())
    assert p.sparsity == pytest.approx(1 - mask.mean()) and p.dtype == "float32"
    for spread, counts in ((p.rows, mask.sum(1)), (p.columns, mask.sum(0))):
        assert (spread.minimum, spread.maximum) == (counts.min(), counts.max())
        assert spread.mean == pytest.approx(counts.mean())
        assert spread.deviation == pytest.approx(counts.std())
    assert p.dead_rows == len(dead_rows(matrix)) == (~mask.any(1)).sum()
    assert p.dead_columns == len(dead_columns(matrix)) == (~mask.any(0)).sum()
    assert [(b.rows, b.columns) for b in p.blocks] == [(r, c) for r in BLOCK_SIZES for c in BLOCK_SIZES][1:]
    for b in p.blocks:
        stored, inside = slow_blocks(mask, b.rows, b.columns)
        assert b.stored == stored and b.padded_elements == stored * b.rows * b.columns - mask.sum()
        assert b.fill == pytest.approx(mask.sum() / inside if inside else 0)
    assert [(f.m, f.axis) for f in p.nm] == [(m, axis) for axis in (1, 0) for m in GROUP_SIZES]
    for f in p.nm:
        lines = mask if f.axis else mask.T
        assert f.n == max(int(lines[:, j : j + f.m].sum(1).max()) for j in range(0, lines.shape[1], f.m))
    assert hash(p) == hash(infer(matrix)) and p == infer(matrix)


@pytest.mark.parametrize("seed", range(8))
def test_padded_slots(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 70, 2))
    matrix = random_matrix(seed, (shape[0], shape[1]), 0.2)
    rows, columns = (int(n) for n in rng.integers(1, 40, 2))
    expected = 0
    for i in range(0, shape[0], rows):
        for j in range(0, shape[1], columns):
            expected += rows * int((matrix[i : i + rows, j : j + columns] != 0).sum(1).max())
    assert padded_slots(matrix, rows, columns) == expected
    assert padded_slots(np.zeros((0, 4), np.float32), rows, columns) == 0


def test_convolution_weight_is_flattened() -> None:
    weight = random_matrix(1, (16, 72), 0.3).reshape(16, 8, 3, 3)
    p = infer(weight)
    assert p.shape == (16, 72) and p.array_shape == (16, 8, 3, 3)
    assert replace(p, array_shape=(16, 72)) == infer(weight.reshape(16, 72))
    assert infer(weight[0, 0, 0]).shape == (1, 3)


def test_scipy_and_other_dtypes() -> None:
    matrix = random_matrix(2, (40, 50), 0.1)
    assert infer(scipy.sparse.csr_array(matrix)) == infer(matrix)
    p = infer((matrix * 100).astype(np.int8))
    assert p.dtype == "int8" and replace(p, dtype="float32") == infer(matrix)
    assert infer(np.array([[np.nan, -0.0]], np.float32)).nonzeros == 1


# ---- blocks


@pytest.mark.parametrize("r", BLOCK_SIZES)
@pytest.mark.parametrize("c", BLOCK_SIZES)
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_blocks_of_each_size(r: int, c: int, density: float) -> None:
    if r * c == 1:
        return
    p = infer(block_matrix(r * 33 + c, (256, 320), (r, c), density))
    assert p.kind == "blocks" and p.block is not None
    assert (p.block.rows, p.block.columns, p.block.fill) == (r, c, 1.0)
    assert p.block == p.block_fit(r, c)
    assert f"blocks {r}x{c} (fill 100 %)" in p.describe()


@pytest.mark.parametrize("block", [(4, 4), (16, 1), (1, 8), (32, 2)], ids=str)
@pytest.mark.parametrize("shape", [(97, 131), (250, 66), (65, 257)], ids=str)
def test_blocks_with_ragged_ends(block: tuple[int, int], shape: tuple[int, int]) -> None:
    p = infer(block_matrix(7, shape, block, 0.3))
    assert p.block and (p.block.rows, p.block.columns, p.block.fill) == (*block, 1.0)


@pytest.mark.parametrize("block", [(4, 4), (16, 1), (1, 8)], ids=str)
def test_blocks_with_accidental_zeros(block: tuple[int, int]) -> None:
    matrix = block_matrix(3, (256, 256), block, 0.25)
    matrix[np.random.default_rng(4).random(matrix.shape) < 0.01] = 0
    p = infer(matrix)
    assert p.block and (p.block.rows, p.block.columns) == block and 0.98 < p.block.fill < 1


def test_blocks_in_few_rows() -> None:
    p = infer(block_matrix(5, (7, 640), (4, 8), 0.5))
    assert p.block and (p.block.rows, p.block.columns) == (4, 8)
    assert infer(block_matrix(5, (3, 640), (4, 8), 0.5)).kind == "dead"  # one block row: dead columns


def test_hub_rows_are_no_blocks() -> None:
    rng = np.random.default_rng(6)
    mask = rng.random((512, 512)) < 0.001
    mask[rng.choice(512, 80, replace=False)] = True
    p = infer(values(rng, mask))
    assert p.block is None and p.kind == "hubs" and p.hub_rows == 80


# ---- N:M


@pytest.mark.parametrize(
    ("n", "m"), [(1, 4), (2, 4), (3, 4), (3, 8), (5, 8), (1, 8), (7, 16), (3, 32), (20, 32)]
)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(128, 256), (99, 131)], ids=str)
def test_nm(n: int, m: int, axis: int, shape: tuple[int, int]) -> None:
    p = infer(group_matrix(n * m, shape, n, m, axis))
    assert p.kind == "nm" and p.nm_best == NmFit(n, m, axis)
    assert f"{n}:{m} along {'inputs' if axis else 'outputs'}" in p.describe()


def test_repeated_rows_are_not_nm() -> None:
    matrix = np.repeat(random_matrix(1, (6, 128), 0.2), 25, axis=0)[np.random.default_rng(2).permutation(150)]
    assert infer(matrix).nm_best is None and infer(matrix).block is None
    assert infer(matrix.T).nm_best is None


@pytest.mark.parametrize("kept", [0.9, 0.6])
def test_nm_with_more_zeros(kept: float) -> None:
    matrix = group_matrix(1, (256, 256), 2, 4) * (np.random.default_rng(2).random((256, 256)) < kept)
    assert infer(matrix).nm_best == NmFit(2, 4, 1)


def test_small_nm_is_still_certain() -> None:
    assert infer(group_matrix(1, (8, 16), 2, 4)).nm_best == NmFit(2, 4, 1)


def test_regular_dead_columns_are_not_nm() -> None:
    matrix = random_matrix(1, (128, 256), 0.9)
    matrix[:, ::2] = 0
    p = infer(matrix)
    assert p.nm_best is None and p.dead_columns == 128 and p.kind == "unstructured"
    matrix[matrix == 0] = 1
    matrix[:, ::2] = 0
    assert infer(matrix).kind == "dead"


# ---- unstructured, fan-in, hubs, dead


@pytest.mark.parametrize("density", [0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001])
@pytest.mark.parametrize("shape", [(64, 64), (97, 131), (512, 512), (2000, 40), (768, 3072)], ids=str)
def test_random_zeros_are_unstructured(density: float, shape: tuple[int, int]) -> None:
    p = infer(random_matrix(int(density * 1000) + shape[0], shape, density))
    assert p.kind == "unstructured" and p.block is None and p.nm_best is None and p.live is None
    assert "unstructured" in p.describe() and "nonzeros a row (sd" in p.describe()


@pytest.mark.parametrize("seed", range(150))
def test_small_random_matrices_are_never_structured(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 48, 2))
    p = infer(random_matrix(seed, (shape[0], shape[1]), float(rng.random())))
    assert p.block is None and p.nm_best is None and p.kind in ("empty", "dense", "dead", "unstructured")


def even_rows(seed: int, shape: tuple[int, int], each: int) -> Any:
    rng = np.random.default_rng(seed)
    return values(rng, rng.random(shape).argsort(axis=1) < each)


@pytest.mark.parametrize("each", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("shape", [(128, 64), (256, 300)], ids=str)
def test_constant_fan_in(each: int, shape: tuple[int, int]) -> None:
    p = infer(even_rows(each, shape, each))
    assert p.kind == "fan_in" and p.fan_in == each and f"fan-in {each}" in p.describe()


def test_constant_fan_in_beside_dead_rows() -> None:
    matrix = even_rows(1, (128, 100), 12)
    matrix[[3, 50, 51]] = 0
    p = infer(matrix)
    assert p.kind == "fan_in" and p.fan_in == 12 and p.describe().endswith("fan-in 12, 3 dead rows")


def test_hubs() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((400, 500)) < 0.03
    mask[[5, 77]] |= rng.random((2, 500)) < 0.9
    mask[:, [9, 10, 300]] |= rng.random((400, 3)) < 0.8
    p = infer(values(rng, mask))
    assert (p.kind, p.hub_rows, p.hub_columns) == ("hubs", 2, 3)
    inside = mask[[5, 77]].sum() + mask[:, [9, 10, 300]].sum() - mask[np.ix_([5, 77], [9, 10, 300])].sum()
    assert p.hub_share == pytest.approx(inside / mask.sum())
    assert "2 hub rows and 3 hub columns with" in p.describe()


@pytest.mark.parametrize("seed", range(8))
def test_lines_worth_running_apart(seed: int) -> None:
    """Full rows, rows of few nonzeros, and columns full in the rows that are neither, by loops."""
    rng = np.random.default_rng(seed)
    rows, inner = (int(n) for n in rng.integers(120, 200, 2))
    share = rng.choice([0.01, 0.4, 0.95], (rows, 1), p=[0.2, 0.6, 0.2]) + np.zeros((rows, inner))
    share[rows // 10 :, rng.choice(inner, 40, replace=False)] = 0.97
    mask = rng.random((rows, inner)) < share
    full = [row for row in mask if row.sum() > 0.7 * inner]
    few = [row for row in mask if row.sum() < 16 + inner // 40]
    others = np.array([row for row in mask if 16 + inner // 40 <= row.sum() <= 0.7 * inner])
    columns = [int(column.sum()) for column in others.T if column.sum() > 0.7 * len(others)]
    found = infer(values(rng, mask)).uneven
    assert found.dense == Lines(len(full), sum(int(row.sum()) for row in full))
    assert found.short == Lines(len(few), sum(int(row.sum()) for row in few))
    assert found.columns == Lines(len(columns), sum(columns)) and columns


def test_uneven_in_words() -> None:
    assert Uneven().describe() == ""
    assert Uneven(dense=Lines(1, 9)).describe() == "1 dense row"
    assert Uneven(columns=Lines(2, 9), short=Lines(1, 3)).describe() == "2 dense columns and 1 short row"
    both = Uneven(Lines(64, 99), Lines(128, 9), Lines(2, 9)).describe()
    assert both == "64 dense rows, 2 dense columns and 128 short rows"


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0])
def test_lognormal_fan_in(sigma: float) -> None:
    rng = np.random.default_rng(3)
    share = np.minimum(0.05 * np.exp(sigma * rng.normal(size=(512, 1))), 1)
    p = infer(values(rng, rng.random((512, 768)) < share))
    assert p.kind in (("unstructured",) if sigma < 1 else ("unstructured", "hubs"))
    assert p.row_variation > 0.8 * sigma and p.column_variation < 0.3


def test_dead_lines() -> None:
    matrix = random_matrix(1, (100, 120), 0.2)
    matrix[[0, 7, 99]], matrix[:, 40:60] = 0, 0
    p = infer(matrix)
    assert (p.kind, p.dead_rows, p.dead_columns) == ("unstructured", 3, 20)
    assert dead_rows(matrix).tolist() == [0, 7, 99]
    assert dead_columns(matrix).tolist() == list(range(40, 60))
    assert p.describe().endswith("3 dead rows, 20 dead columns")
    full = values(np.random.default_rng(2), np.ones((100, 120), bool))
    full[::3], full[:, 5] = 0, 0
    assert infer(full).kind == "dead" and infer(full).block is None and infer(full).nm_best is None
    assert infer(full).describe().endswith("dense but for dead lines, 34 dead rows, 1 dead column")


def test_structure_behind_dead_rows() -> None:
    blocks = block_matrix(1, (128, 128), (16, 1), 0.5)
    spread = np.insert(blocks, np.arange(0, 128, 5), 0, axis=0)
    p = infer(spread)
    assert p.block is None and p.live and p.live.kind == "blocks" and p.live.block
    assert (p.live.block.rows, p.live.block.columns) == (16, 1)
    assert p.describe().endswith("26 dead rows, without them blocks 16x1 (fill 100 %)")
    columns = np.insert(group_matrix(1, (128, 128), 2, 4), np.arange(0, 128, 7), 0, axis=1)
    live = infer(columns).live
    assert live and live.nm_best == NmFit(2, 4, 1)
    aligned = group_matrix(1, (128, 128), 2, 4)
    aligned[:, ::7] = 0
    assert infer(aligned).nm_best == NmFit(2, 4, 1) and infer(aligned).live is None


# ---- ends of the range


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (64, 64), (33, 1000)], ids=str)
def test_all_zero_and_all_dense(shape: tuple[int, int]) -> None:
    empty, dense = infer(np.zeros(shape)), infer(np.ones(shape))
    assert (empty.kind, empty.nonzeros, empty.sparsity) == ("empty", 0, 1.0)
    assert (empty.dead_rows, empty.dead_columns) == shape and empty.fan_in is None
    assert (dense.kind, dense.density, dense.block, dense.nm_best) == ("dense", 1.0, None, None)
    assert empty.describe() == "100.0 % zero, empty" and dense.describe() == "0.0 % zero, dense"


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (0,), (), (4, 0, 3)], ids=str)
def test_no_elements(shape: tuple[int, ...]) -> None:
    p = infer(np.zeros(shape, np.float32))
    assert p.kind == "empty" and p.array_shape == shape and p.density == 0.0 and p.describe()


def test_almost_dense_is_dense() -> None:
    assert infer(random_matrix(1, (200, 200), 0.99)).kind == "dense"
    assert infer(random_matrix(1, (200, 200), 0.9)).kind == "unstructured"


def test_describe_never_rounds_to_all_or_none() -> None:
    matrix = np.zeros((1000, 1000), np.float32)
    matrix[5, 5] = 1
    assert infer(matrix).describe().startswith("99.9999 % zero")
    matrix[:] = 1
    matrix[5, 5] = 0
    assert infer(matrix).describe() == "0.0001 % zero, dense"


def test_describe_fits_the_report() -> None:
    assert infer(random_matrix(0, (768, 3072), 0.1)).describe() == (
        "90.0 % zero, unstructured, 307 nonzeros a row (sd 17)"
    )
    assert infer(group_matrix(0, (64, 64), 2, 4)).describe() == "50.0 % zero, 2:4 along inputs"
    assert isinstance(Pattern((1, 1), (1, 1), "float32", 0).blocks, tuple)
    assert BlockFit(4, 4, 1.0, 2, 0) == BlockFit(4, 4, 1.0, 2, 0)


def test_large_matrix_is_measured_in_under_a_second() -> None:
    matrix = random_matrix(1, (4096, 4096), 0.1)
    begin = time.perf_counter()
    infer(matrix)
    assert time.perf_counter() - begin < 1.0


# ---- real matrices


def read_smtx(path: Path) -> tuple[Any, int]:
    """A DLMC pattern as a matrix of ones, and the nonzeros its header states."""
    header, offsets, columns = [*path.read_text().split("\n"), "", ""][:3]
    rows, inner, nonzeros = (int(n) for n in header.split(","))
    indptr, indices = (np.array(line.split(), np.int64) for line in (offsets, columns))
    return scipy.sparse.csr_array(
        (np.ones(len(indices), np.float32), indices, indptr), (rows, inner)
    ), nonzeros


def test_dlmc(shared_data: Path) -> None:
    files = sorted((shared_data / "dlmc").rglob("*.smtx"))
    assert files
    for path in files:
        matrix, nonzeros = read_smtx(path)
        p = infer(matrix)
        assert p.nonzeros == nonzeros and p.shape == matrix.shape, path
        assert p.sparsity == pytest.approx(1 - nonzeros / (p.shape[0] * p.shape[1])), path
        assert p.kind in KINDS and p.block is None and p.nm_best is None and p.live is None, (
            path,
            p.describe(),
        )
        if "random_pruning" in path.parts:
            assert p.kind == "unstructured", (path, p.describe())
        if "magnitude_pruning" in path.parts:
            assert p.kind in ("unstructured", "hubs"), (path, p.describe())


def test_skimcaffe(shared_data: Path) -> None:
    files = sorted((shared_data / "skimcaffe").rglob("*.weight"))
    assert files
    for path in files:
        lines = [line.split() for line in path.read_text().splitlines() if line and line[0] != "%"]
        rows, columns, stored = (int(n) for n in lines[0])
        coordinates = np.array(lines[1:], np.float64)
        matrix = np.zeros((rows, columns), np.float32)
        matrix[coordinates[:, 0].astype(int) - 1, coordinates[:, 1].astype(int) - 1] = coordinates[:, 2]
        p = infer(matrix)
        assert len(coordinates) == stored and p.nonzeros == np.count_nonzero(matrix), path
        assert p.kind in ("unstructured", "hubs", "dense", "dead"), (path, p.describe())
