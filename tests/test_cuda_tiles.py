"""The parts of tiled products on tensor cores: copies, fragments, ways out, Hopper's instructions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.targets.cuda import warpgroup
from sparsec.targets.cuda.builder import Kernel, device_function, int64, integer
from sparsec.targets.cuda.interpreter.run import InterpreterError, run
from sparsec.targets.cuda.parts.mma_epilogue import column_order, deliver, row_order, tile_of_block
from sparsec.targets.cuda.parts.mma_tiles import (
    Place,
    Staged,
    Tiling,
    copier,
    matrix,
    multiplier,
    pipeline,
    warp_place,
    zeros,
)  # fmt: skip
from sparsec.targets.cuda.tir import T

SMALL = Tiling(32, 32, 32, 2, 1, 3)


def product(across: tuple[bool, bool], inner: int, vector: int, tiling: Tiling = SMALL) -> Any:
    """y[rows, columns] of a[rows, inner] and b[inner, columns], each stored as it is or turned."""

    def body(k: Kernel) -> None:
        tiles, copies = [], []
        for name, turned, size in (("a", across[0], tiling.rows), ("b", across[1], tiling.columns)):
            lines, width = (tiling.depth, size) if turned else (size, tiling.depth)
            tile = Staged(k, lines, width, tiling.stages, "float16")
            if turned:
                source = _down(k, name, size, inner, tiling.depth)
                copies.append(copier(k, tile, source, 8))
            else:
                rows = matrix(k, k[name], inner, integer(0), tiling.depth, integer(size), inner)
                copies.append(copier(k, tile, rows, vector))
            tiles.append((tile, turned))
        accumulators = zeros(k, tiling)

        def fetch(stage: Any, step: Any) -> None:
            for copy in copies:
                copy(stage, step)

        multiply = multiplier(k, tiling, tiles[0], tiles[1], accumulators)
        pipeline(k, tiling.stages, -(-inner // tiling.depth), fetch, multiply)
        deliver(
            k,
            tiling,
            accumulators,
            lambda line, first, values: _store(k, line, first, values, tiling.columns),
        )

    pointers = [("a", "float16"), ("b", "float16"), ("y", "float32")]
    return device_function("product", tiling.threads, pointers, [], body)


def _down(k: Kernel, name: str, pitch: int, inner: int, depth: int) -> Any:
    """A tile whose lines are K."""

    def source(line: Any, element: Any) -> Any:
        return lambda step: Place(
            k[name], int64((line + step * depth) * pitch + element), line + step * depth < inner
        )

    return source


def _store(k: Kernel, line: Any, first: Any, values: list[Any], pitch: int) -> None:
    for i, value in enumerate(values):
        k["y"].put(line * pitch + first + i, value)


@pytest.mark.parametrize("across", [(False, False), (False, True), (True, False), (True, True)])
def test_operands_along_and_across(across: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((32, 72)).astype(np.float16) for _ in range(2))
    y = np.full((32, 32), np.nan, np.float32)
    given = [
        np.ascontiguousarray(m.T if turned else m).reshape(-1)
        for m, turned in zip((a, b), across, strict=True)
    ]
    run(product(across, 72, 8), 1, [*given, y.reshape(-1)])
    np.testing.assert_allclose(y, a.astype(float) @ b.astype(float).T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("inner", "vector"), [(72, 8), (68, 4), (70, 2), (67, 1)])
def test_rows_of_any_length(inner: int, vector: int) -> None:
    rng = np.random.default_rng(inner)
    a, b = (rng.standard_normal((32, inner)).astype(np.float16) for _ in range(2))
    y = np.full(1024, np.nan, np.float32)
    run(product((False, False), inner, vector), 1, [a.reshape(-1), b.reshape(-1), y])
    np.testing.assert_allclose(y.reshape(32, 32), a.astype(float) @ b.astype(float).T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "tiling",
    [Tiling(64, 96, 32, 2, 3, 2), Tiling(128, 32, 32, 4, 1, 2, True), Tiling(256, 64, 32, 8, 1, 2, True)],
    ids=["warps", "group", "groups"],
)
def test_every_accumulator_is_handed_out_where_it_belongs(tiling: Tiling, lanes: int, turned: bool) -> None:
    lines, width = (tiling.columns, tiling.rows) if turned else (tiling.rows, tiling.columns)

    def body(k: Kernel) -> None:
        # less than the tile needs: several passes
        k.shared(lines * width // 3, "float32")
        accumulators = k.registers(tiling.accumulators)
        row, column = warp_place(k, tiling)
        halves = tiling.warp_columns // 8
        for i in range(tiling.warp_rows // 16):
            for j in range(halves):
                for e in range(4):
                    at_row = row + i * tiling.slab_step + k.lane // 4 + e // 2 * 8
                    at_column = column + j * 8 + k.lane % 4 * 2 + e % 2
                    accumulators.put((i * halves + j) * 4 + e, T.cast(at_row * 1000 + at_column, "float32"))
        deliver(
            k,
            tiling,
            accumulators,
            lambda line, first, values: _store(k, line, first, values, width),
            lanes,
            turned,
        )

    y = np.full(lines * width, np.nan, np.float32)
    run(device_function("hand_out", tiling.threads, [("y", "float32")], [], body), 1, [y])
    expected = np.arange(tiling.rows)[:, None] * 1000 + np.arange(tiling.columns)
    np.testing.assert_array_equal(y.reshape(lines, width), expected.T if turned else expected)


def test_blocks_make_every_tile_once() -> None:
    fast, slow = 3, 19

    def body(k: Kernel) -> None:
        first, second = tile_of_block(k, fast, T.cast(k.sizes["slow"], "int32"))
        with k.when(k.thread == 0):
            k["y"].put(second * fast + first, T.cast(k["y"][second * fast + first] + 1, "int32"))

    made = np.zeros(fast * slow, np.int32)
    run(device_function("order", 32, [("y", "int32")], ["slow"], body), fast * slow, [made, slow])
    np.testing.assert_array_equal(made, 1)


def test_orders_are_permutations() -> None:
    for order in (row_order(), column_order(16), column_order(32)):
        assert sorted(order) == list(range(len(order)))


def grouped(between: Any = None, before_wait: bool = False, offset: int = 0, threads: int = 128) -> Any:
    """y[64, 64] = a[64, 16] b[64, 16]^T by one instruction; ``between`` is emitted while it runs."""

    def body(k: Kernel) -> None:
        tile = Staged(k, 128, 64, 1, "float16")
        with k.loop(64) as i:
            at = i * 128 + k.thread
            line, element = at // 64, at % 64
            tile.array.put(tile.place(line, element // 8) + element % 8, k["x"][at])
        k.call(warpgroup.fence_shared)
        k.sync()
        d = k.registers(32)
        for i in range(32):
            d.put(i, 0.0)
        k.call(warpgroup.fence)

        def multiply() -> None:
            left, right = tile.array.pointer(offset), tile.array.pointer(64 * 64)
            k.call(warpgroup.multiply("float16", 64), d.pointer(), left, right)

        multiply()
        k.call(warpgroup.commit)
        if between:
            between(k, tile)
        if not before_wait:
            k.call(warpgroup.wait(0))
        line = k.warp * 16 + k.lane // 4
        for i in range(32):
            k["y"].put((line + i // 2 % 2 * 8) * 64 + i // 4 * 8 + k.lane % 4 * 2 + i % 2, d[i])

    return device_function("grouped", threads, [("x", "float16"), ("y", "float32")], [], body)


def _operands() -> tuple[Any, Any]:
    x = np.random.default_rng(9).standard_normal((128, 64)).astype(np.float16)
    return x, np.full((64, 64), np.nan, np.float32)


def test_wgmma_multiplies_swizzled_tiles() -> None:
    x, y = _operands()
    run(grouped(), 1, [x.reshape(-1), y.reshape(-1)])
    left, right = x[:64, :16].astype(float), x[64:, :16].astype(float)
    np.testing.assert_allclose(y, left @ right.T, rtol=1e-5, atol=1e-4)


def test_wgmma_reads_from_where_in_a_line_it_is_told() -> None:
    x, y = _operands()
    run(grouped(offset=32), 1, [x.reshape(-1), y.reshape(-1)])
    left, right = x[:64, 32:48].astype(float), x[64:, :16].astype(float)
    np.testing.assert_allclose(y, left @ right.T, rtol=1e-5, atol=1e-4)


def test_accumulators_are_poison_until_waited_for() -> None:
    x, y = _operands()
    run(grouped(before_wait=True), 1, [x.reshape(-1), y.reshape(-1)])
    assert np.isnan(y).all()


def test_what_wgmma_reads_must_stay() -> None:
    def overwrite(k: Kernel, tile: Staged) -> None:
        k.sync()
        tile.array.put(k.thread * 8, T.cast(k.thread, "float16"))
        k.sync()

    x, y = _operands()
    with pytest.raises(InterpreterError, match="written before the instruction was waited for"):
        run(grouped(overwrite), 1, [x.reshape(-1), y.reshape(-1)])


def test_wgmma_refuses_tiles_that_straddle_lines() -> None:
    x, y = _operands()
    with pytest.raises(InterpreterError, match="wgmma reads a tile at"):
        run(grouped(offset=56), 1, [x.reshape(-1), y.reshape(-1)])


def test_wgmma_needs_whole_groups() -> None:
    x, y = _operands()
    with pytest.raises(InterpreterError, match="whole groups of 128"):
        run(grouped(threads=96), 1, [x.reshape(-1), y.reshape(-1)])
