"""CUDA kernels that transpose, join, cut, pad and resample: bit for bit, elements of every size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from cuda_models import driver, loaded
from cuda_programs import check, names_of
from fake_cuda.driver import FakeDriver
from graph_build import BATCH, LENGTH, Build
from sass import TARGETS, needs_sass, sass

from sparsec.ir.attributes import Attrs, ResizeAttrs
from sparsec.ir.dims import Size, value
from sparsec.ir.graph import Graph, Op
from sparsec.ir.resampling import COORDINATES, ROUNDINGS
from sparsec.targets.calls import Call, Context
from sparsec.targets.cuda.kernels.moves import in_units
from sparsec.targets.cuda.kernels.transpose import Tiles
from sparsec.targets.cuda.lowering import lower
from sparsec.targets.kernels.boxes import transposed
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Target

__all__ = ["driver", "loaded"]

DTYPES = ("int8", "float16", "float32", "int64")
dtypes = pytest.mark.parametrize("dtype", DTYPES)


class Moves(Build):
    """Moves of tensors of one dtype."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype

    def add(
        self, op: Op, args: Sequence[str], shape: Sequence[Size], attrs: Attrs = None, dtype: str = "",
    ) -> str:  # fmt: skip
        return super().add(op, args, shape, attrs, self.dtype)


def moved(driver: FakeDriver, graph: Graph, sizes: Sequence[dict[str, int]] = ({},)) -> list[Call]:
    """Check a graph of moves on bytes drawn at random."""
    rng = np.random.default_rng(61)
    feeds = []
    for bound in sizes:
        drawn: dict[str, Any] = {}
        for n in graph.inputs:
            shape = tuple(value(s, bound) for s in n.type.shape)
            drawn[n.name] = rng.integers(-128, 128, shape).astype(n.type.dtype)
        feeds.append(drawn)
    return check(driver, graph, feeds, allowed=0.0)


@dtypes
def test_every_permutation(driver: FakeDriver, dtype: str) -> None:
    b = Moves(dtype)
    outputs = []
    for shape in ((2, 3, 5), (9, 2, 33), (70, 130), (34, 66), (3, 40, 96)):
        x = b.input(*shape)
        orders = [p for p in permutations(range(len(shape))) if p != tuple(range(len(shape)))]
        outputs += [b.transpose(x, *order) for order in orders]
    heads = b.input(2, 9, 4, 16)
    outputs += [b.transpose(heads, 0, 2, 1, 3), b.transpose(heads, 0, 2, 3, 1)]
    moved(driver, b.graph(*outputs))


@dtypes
def test_permutations_of_open_sizes(driver: FakeDriver, dtype: str) -> None:
    b = Moves(dtype)
    x, y = b.input(BATCH, LENGTH, 6), b.input(LENGTH, BATCH)
    orders = [p for p in permutations(range(3)) if p != (0, 1, 2)]
    graph = b.graph(*(b.transpose(x, *order) for order in orders), b.transpose(y, 1, 0))
    moved(driver, graph, [{"batch": n, "length": m} for n, m in ((1, 1), (5, 70), (33, 64))])


def test_tiles_are_for_rows_that_become_columns() -> None:
    def tiles(shape: Sequence[Size], order: Sequence[int], item: int) -> Tiles | None:
        (move,) = transposed(shape, order)
        return Tiles.of(move, item)

    wide = tiles((4, 64, 96), (0, 2, 1), 2)
    assert wide is not None and wide.paired and wide.side == 64
    odd = tiles((4, 63, 96), (0, 2, 1), 2)
    assert odd is not None and not odd.paired and odd.side == 32
    assert tiles((4, 3, 96), (0, 2, 1), 4) is None, "three lines fill no tile"
    assert tiles((2, 9, 4, 16), (0, 2, 1, 3), 4) is None, "rows stay rows"
    (heads,) = transposed((BATCH, LENGTH, 12, 64), (0, 2, 1, 3))
    assert in_units(heads, 2)[1] == 16, "heads are copied 16 bytes at a time"
    assert in_units(transposed((3, 5, 7), (1, 0, 2))[0], 4)[1] == 4


@dtypes
def test_joins_and_cuts(driver: FakeDriver, dtype: str) -> None:
    b = Moves(dtype)
    x, y, z = b.input(2, 3, 8), b.input(2, 5, 8), b.input(2, 3, 1)
    outputs = [
        b.concat(1, x, y, x), b.concat(2, x, z), b.concat(0, x, x),
        b.cut(x, (0, 1, 0), (1, 1, 1), (2, 2, 8)), b.cut(x, (1, 0, 3), (1, 2, 2), (1, 2, 3)),
        b.cut(y, (0, 0, 4), (1, 1, 1), (2, 5, 4)),
    ]  # fmt: skip
    moved(driver, b.graph(*outputs))


@dtypes
def test_joins_and_cuts_of_open_sizes(driver: FakeDriver, dtype: str) -> None:
    b = Moves(dtype)
    x, y = b.input(BATCH, LENGTH, 8), b.input(BATCH, 3, 8)
    outputs = [
        b.concat(1, x, y), b.concat(1, y, x, y), b.cut(x, (0, 0, 1), (1, 1, 3), (BATCH, LENGTH, 2)),
        b.concat(2, x, b.cut(x, (0, 0, 4), (1, 1, 1), (BATCH, LENGTH, 4))),
    ]  # fmt: skip
    graph = b.graph(*outputs)
    moved(driver, graph, [{"batch": n, "length": m} for n, m in ((1, 1), (3, 7), (2, 300))])


@dtypes
def test_pads(driver: FakeDriver, dtype: str) -> None:
    b = Moves(dtype)
    x, y, fill = b.input(2, 3, 5, 6), b.input(BATCH, 4, 8), 0.0 if dtype == "int64" else 3.0
    outputs = [
        b.pad(x, (0, 0, 1, 1), (0, 0, 1, 2), fill), b.pad(x, (0, 2, 0, 0), (0, 1, 0, 0)),
        b.pad(x, (1, 0, 0, 3), (0, 0, 0, 0), fill), b.pad(y, (0, 0, 8), (0, 0, 8), fill),
        b.pad(y, (0, 3, 0), (0, 0, 0), fill),
    ]  # fmt: skip
    moved(driver, b.graph(*outputs), [{"batch": n} for n in (1, 3, 200)])


def test_pads_whose_words_differ_are_carried(driver: FakeDriver) -> None:
    b = Moves("int64")
    graph = b.graph(b.pad(b.input(BATCH, 5), (1, 0), (0, 2), 7.0))
    assert names_of(moved(driver, graph, [{"batch": 3}])) == ["pad"]


def test_parts_are_written_where_they_belong(driver: FakeDriver) -> None:
    """Of a join along the outermost axis only what no step makes is copied."""
    b = Build()
    x, y = b.input(4, 32), b.input(2, 32)
    made = [b.apply("abs", x), b.apply("neg", y)]
    assert names_of(moved(driver, b.graph(b.concat(0, *made)))) == ["elementwise", "elementwise"]
    b = Build()
    x, y = b.input(4, 32), b.input(2, 32)
    mixed = b.graph(b.apply("neg", b.concat(0, b.apply("abs", x), y)))
    assert sorted(names_of(moved(driver, mixed))) == ["concat", "elementwise", "elementwise"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_resizes(driver: FakeDriver, coordinates: str, dtype: str) -> None:
    b = Build()
    outputs = []
    for shape, out in (((1, 2, 9, 11), (20, 33)), ((BATCH, 1, 12, 7), (5, 3)), ((1, 1, 1, 4), (3, 1))):
        x = b.input(*shape)
        outputs += [b.resize(x, *out, "nearest", coordinates, rounding) for rounding in ROUNDINGS]
        outputs.append(b.resize(x, *out, "linear", coordinates))
    graph = b.graph(*outputs)
    rng = np.random.default_rng(62)
    for batch in (1, 3):
        feeds = {
            n.name: rng.integers(-8, 8, [value(s, {"batch": batch}) for s in n.type.shape]).astype("float32")
            for n in graph.inputs
        }
        check(driver, graph, [feeds], dtype)


def test_resizes_of_other_dtypes_are_carried(driver: FakeDriver) -> None:
    b = Moves("float64")
    graph = b.graph(b.add(Op.RESIZE, (b.input(1, 2, 5, 6),), (1, 2, 9, 9), ResizeAttrs("linear")))
    rng = np.random.default_rng(63)
    check(driver, graph, [{graph.inputs[0].name: rng.standard_normal((1, 2, 5, 6))}], allowed=1e-14)


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_memory_is_read_in_whole_words(target: Target) -> None:
    b = Moves("float16")
    heads = b.transpose(b.input(2, 9, 4, 64), 0, 2, 1, 3)
    crossed = b.transpose(b.input(3, 64, 96), 0, 2, 1)
    padded = b.pad(b.input(BATCH, 4, 64), (0, 1, 0), (0, 1, 0))
    graph = b.graph(heads, crossed, padded)
    nodes = graph.node_map()
    for name, width in ((heads, r"E\.128"), (crossed, r"E(?!\.U)"), (padded, r"E\.128")):
        (call,) = lower(nodes[name], Context(nodes, Sizes(), target))
        code = sass(call.function, target)
        assert code.count(r"LDG") == code.count(rf"LDG\.{width}") > 0, name
        assert code.count(r"STG") == code.count(rf"STG\.{width}") > 0, name
        assert code.local_accesses == 0
