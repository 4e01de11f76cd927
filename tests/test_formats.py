"""Every format gives back what it packed, bit for bit, whatever the shape, dtype and zeros."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from sparsec.errors import ConfigError, InputError
from sparsec.formats import FORMATS, bitmask, bsr, by_name, coo, csc, csr, dense, ell, hybrid, nm

NAMES = [name for name, _ in FORMATS]
SPARSE = [name for name in NAMES if name != "dense"]
SHAPES = [(1, 1), (1, 37), (41, 1), (7, 13), (31, 97), (64, 64), (33, 130), (0, 5), (5, 0), (0, 0)]


def random_matrix(seed: int, shape: tuple[int, int], density: float, dtype: str = "float32") -> Any:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) * 50
    return np.where(rng.random(shape) < density, values, 0).astype(dtype)


def same_bits(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_round_trip(name: str, shape: tuple[int, int], density: float) -> None:
    matrix = random_matrix(len(name) + sum(shape), shape, density)
    kind = by_name(name)
    packed = kind.pack(matrix)
    assert packed.shape == shape
    assert same_bits(kind.unpack(packed), matrix)
    assert kind.nbytes(packed) >= matrix[matrix != 0].nbytes
    assert kind.fits(matrix).reason


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32"])
def test_round_trip_keeps_dtype(name: str, dtype: str) -> None:
    matrix = random_matrix(3, (19, 45), 0.3, dtype)
    assert same_bits(by_name(name).unpack(by_name(name).pack(matrix)), matrix)


@pytest.mark.parametrize("name", SPARSE)
def test_negative_zero_becomes_zero_and_specials_stay(name: str) -> None:
    matrix = random_matrix(5, (6, 10), 0.4)
    matrix[0, :4] = [np.nan, np.inf, -np.inf, -0.0]
    matrix.view(np.uint32)[1, 1] = 0x7FC01234  # a NaN with a payload
    expected = np.where(matrix != 0, matrix, np.float32(0))
    assert same_bits(by_name(name).unpack(by_name(name).pack(matrix)), expected)


def test_dense_keeps_negative_zero() -> None:
    matrix = np.array([[-0.0, 1.0]], np.float32)
    assert same_bits(dense.unpack(dense.pack(matrix)), matrix)


@pytest.mark.parametrize("name", NAMES)
def test_strided_input(name: str) -> None:
    matrix = random_matrix(8, (40, 60), 0.3)[::2, ::3].T
    assert np.array_equal(by_name(name).unpack(by_name(name).pack(matrix)), matrix)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("made", ["csr_matrix", "csc_array", "coo_array", "lil_matrix"])
def test_scipy_input(name: str, made: str) -> None:
    matrix = random_matrix(11, (23, 34), 0.2)
    given = getattr(scipy.sparse, made)(matrix)
    assert same_bits(by_name(name).unpack(by_name(name).pack(given)), matrix)


@pytest.mark.parametrize("name", NAMES)
def test_scipy_duplicates_and_stored_zeros(name: str) -> None:
    rows, columns = [0, 2, 2, 1, 1], [3, 1, 1, 0, 2]
    values = np.array([1, 2, 3, 0, 5], np.float32)
    given = scipy.sparse.coo_array((values, (rows, columns)), shape=(3, 5))
    expected = np.array([[0, 0, 0, 1, 0], [0, 0, 5, 0, 0], [0, 5, 0, 0, 0]], np.float32)
    assert same_bits(by_name(name).unpack(by_name(name).pack(given)), expected)
    assert given.nnz == 5  # the caller's matrix is left alone


@pytest.mark.parametrize("seed", range(20))
def test_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 80, 2))
    matrix = random_matrix(seed, (shape[0], shape[1]), rng.random())
    oracle = scipy.sparse.csr_array(matrix)
    rows, columns = csr.pack(matrix), csc.pack(matrix)
    assert np.array_equal(rows.offsets, oracle.indptr) and np.array_equal(rows.columns, oracle.indices)
    assert np.array_equal(rows.values, oracle.data)
    oracle = oracle.tocsc()
    assert np.array_equal(columns.offsets, oracle.indptr) and np.array_equal(columns.rows, oracle.indices)
    found = coo.pack(matrix)
    assert np.array_equal(np.stack([found.rows, found.columns]), np.stack(np.nonzero(matrix)))


def test_index_types() -> None:
    wide = np.zeros((1, 65537), np.float32)
    wide[0, -1] = 1
    assert csr.pack(wide).columns.dtype == np.int32
    assert csr.pack(wide[:, 1:]).columns.dtype == np.uint16
    assert csr.pack(wide[:, 1:]).columns[0] == 65535
    assert csc.pack(wide).rows.dtype == np.uint16
    assert ell.pack(wide[:, 1:]).columns.dtype == np.int32  # the spare index is 65536
    assert ell.pack(wide[:, 2:]).columns.dtype == np.uint16
    assert csr.pack(wide).offsets.dtype == np.int32
    for kind in (coo, csr, csc, ell):
        assert np.array_equal(kind.unpack(kind.pack(wide[:, 1:])), wide[:, 1:])


@pytest.mark.parametrize("block", [(1, 2), (4, 1), (16, 1), (3, 5), (32, 32), (64, 64)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bsr_blocks(block: tuple[int, int], shape: tuple[int, int]) -> None:
    matrix = random_matrix(sum(block), shape, 0.05)
    packed = bsr.pack(matrix, block)
    assert packed.values.shape[1:] == block and same_bits(bsr.unpack(packed), matrix)
    assert all((packed.values != 0).any(axis=(1, 2)))


def test_bsr_against_scipy() -> None:
    matrix = random_matrix(2, (24, 40), 0.1)
    oracle = scipy.sparse.csr_array(matrix).tobsr((4, 8))
    oracle.sort_indices()
    packed = bsr.pack(matrix, (4, 8))
    assert np.array_equal(packed.offsets, oracle.indptr)
    assert np.array_equal(packed.columns, oracle.indices)
    assert np.array_equal(packed.values, oracle.data)


def test_bsr_fits() -> None:
    matrix = np.kron(random_matrix(1, (6, 6), 0.4) != 0, np.ones((4, 4))).astype(np.float32)
    assert bsr.fits(matrix) and not bsr.fits(random_matrix(1, (64, 64), 0.05))
    assert "blocks of 4x4 are 100 % full" in bsr.fits(matrix).reason


def keep_largest(matrix: Any, n: int, m: int) -> Any:
    """The N:M pruning of whole groups along the rows, by an independent loop."""
    out = np.zeros_like(matrix)
    for row in range(matrix.shape[0]):
        for start in range(0, matrix.shape[1], m):
            group = matrix[row, start : start + m]
            keep = np.argsort(-np.abs(group))[:n]
            out[row, start + keep] = group[keep]
    return out


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8), (3, 16), (8, 32), (2, 5)])
@pytest.mark.parametrize("shape", [(5, 64), (1, 3), (9, 37)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_nm(n: int, m: int, shape: tuple[int, int], axis: int) -> None:
    matrix = keep_largest(random_matrix(n * m, shape, 1.0), n, m)
    matrix = matrix if axis else np.ascontiguousarray(matrix.T)
    assert nm.fits(matrix, n, m, axis)
    packed = nm.pack(matrix, n, m, axis)
    assert packed.values.shape == (shape[0], -(-shape[1] // m), n)
    assert packed.positions.dtype == np.uint8 and packed.positions.max() < m
    assert (np.diff(packed.positions.astype(int), axis=2) > 0).all()
    assert same_bits(nm.unpack(packed), matrix)


def test_nm_refuses_what_does_not_fit() -> None:
    matrix = np.zeros((3, 10), np.float32)
    matrix[1, 4:7] = 1
    assert not nm.fits(matrix) and nm.fits(matrix, 3)
    with pytest.raises(InputError, match=r"group of 4 along the inputs has 3 nonzeros.*n=3"):
        nm.pack(matrix, 2, 4)
    assert nm.pack(matrix).n == 3  # the smallest that holds it
    assert nm.pack(matrix, axis=0).n == 1


def test_ell_layout() -> None:
    packed = ell.pack(np.array([[0, 2, 0, 3], [0, 0, 0, 0], [5, 0, 0, 0]], np.float32))
    assert packed.width == 2
    assert packed.columns.tolist() == [[1, 3], [4, 4], [0, 4]]
    assert packed.values.tolist() == [[2, 3], [0, 0], [5, 0]]
    uneven = np.eye(64, dtype=np.float32)
    assert ell.fits(uneven)
    uneven[0] = 1
    assert not ell.fits(uneven)


def test_bitmask_layout() -> None:
    matrix = np.zeros((2, 9), np.float32)
    matrix[0, 0], matrix[0, 8], matrix[1, 3] = 1, 2, 3
    packed = bitmask.pack(matrix)
    assert packed.bits.tolist() == [[1, 1], [8, 0]]
    assert packed.offsets.tolist() == [0, 2, 3] and packed.values.tolist() == [1, 2, 3]
    assert bitmask.nbytes(packed) == 4 + 12 + 12


def mostly_full(shape: tuple[int, int], rows: Any, columns: Any, few: Any) -> Any:
    """A third of all elements, four in five of some lines, two in a few rows."""
    random = np.random.default_rng(4)
    share = np.full(shape, 0.33)
    share[:, columns] = 0.85
    share[rows] = 0.85
    matrix = (random.random(shape) < share).astype(np.float32)
    matrix[few] = 0
    matrix[few, :2] = 1
    return matrix * random.normal(1, 0.1, shape).astype(np.float32)


def test_hybrid_layout() -> None:
    full, columns, few = np.arange(3, 40, 5), np.arange(0, 300, 4), [0, 17, 90]
    matrix = mostly_full((120, 300), full, columns, few)
    packed = hybrid.pack(matrix)
    long = np.setdiff1d(np.arange(120), [*full, *few])
    assert packed.rows.tolist() == full.tolist() and packed.long.tolist() == long.tolist()
    assert packed.columns.tolist() == columns.tolist()
    assert same_bits(packed.dense, matrix[full]) and same_bits(packed.strip, matrix[np.ix_(long, columns)])
    assert np.diff(packed.rest.offsets)[few].tolist() == [2, 2, 2]
    assert same_bits(hybrid.unpack(packed), matrix)
    stored = packed.dense.size + packed.strip.size
    lines = full.size + columns.size + long.size
    assert hybrid.nbytes(packed) == 4 * stored + 2 * lines + csr.nbytes(packed.rest)
    fit = hybrid.fits(matrix)
    assert fit and fit.reason == f"{full.size} rows and {columns.size} columns are more than 70 % full"
    assert not hybrid.fits(random_matrix(1, (64, 64), 0.3))


def test_hybrid_needs_enough_to_share() -> None:
    """A column of few long rows, or few columns, cost more than they save."""
    one = mostly_full((120, 300), [], [7], [])
    assert hybrid.pack(one).columns.size == 0
    low = mostly_full((12, 300), [], np.arange(0, 300, 4), [])
    assert hybrid.pack(low).columns.size == 0


def test_nbytes_counts_every_array() -> None:
    matrix = random_matrix(9, (100, 300), 0.1)
    count = int(np.count_nonzero(matrix))
    assert csr.nbytes(csr.pack(matrix)) == 4 * 101 + 6 * count
    assert csc.nbytes(csc.pack(matrix)) == 4 * 301 + 6 * count
    assert coo.nbytes(coo.pack(matrix)) == 8 * count
    assert dense.nbytes(dense.pack(matrix)) == 4 * 100 * 300


@pytest.mark.parametrize("name", NAMES)
def test_only_matrices(name: str) -> None:
    with pytest.raises(InputError, match=r"matrix \[rows, columns\], not shape \(2, 3, 4\); flatten"):
        by_name(name).pack(np.ones((2, 3, 4), np.float32))


def test_bad_options() -> None:
    matrix = np.ones((4, 4), np.float32)
    with pytest.raises(ConfigError, match="block rows must be a positive integer, not 0"):
        bsr.pack(matrix, (0, 4))
    with pytest.raises(ConfigError, match="m must be an integer from 1 to 256"):
        nm.pack(matrix, 2, 300)
    with pytest.raises(ConfigError, match="n must be an integer from 1 to 4, not 5"):
        nm.pack(matrix, 5, 4)
    with pytest.raises(ConfigError, match="axis must be"):
        nm.pack(matrix, 2, 4, axis=2)
    with pytest.raises(ConfigError, match="no format is called 'csx'; use one of dense, coo"):
        by_name("csx")


def test_import_is_light() -> None:
    heavy = "[m for m in ('scipy', 'tvm', 'torch') if m in sys.modules]"
    code = f"import sys, sparsec.formats, sparsec.sparsity.pattern; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
