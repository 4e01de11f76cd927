"""conv_tiles: what convolutions by tiles share: which tile a block makes, where it reads x, its stores.

A tile is output channels of one group by positions.  All images' positions are one row of them, so that small
maps fill tiles too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import Array, Kernel, int64, integer
from sparsec.targets.cuda.parts.conv_plans import geometry_of, per_image, row_tiles
from sparsec.targets.cuda.parts.mma_epilogue import Store
from sparsec.targets.cuda.parts.mma_tiles import Place, Reader, Source, matrix
from sparsec.targets.cuda.parts.positions import divided, inside, unravel
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Problem


@dataclass(frozen=True, slots=True)
class Tile:
    """What a block makes.

    ``rows`` are those of a tile; ``group``, ``row`` (its first, of those of the group) and ``line``
    (first line of the packed weight) are int32, ``position`` (the first) and ``images`` int64.
    """

    rows: int
    group: Any
    row: Any
    line: Any
    position: Any
    images: Any


def images_of(k: Kernel, problem: Problem) -> Any:
    """The number of images, int64."""
    return k.sizes["images"] if problem.columns is None else integer(geometry_of(problem).images)


def run_time_sizes(problem: Problem) -> list[str]:
    """The kernel's sizes."""
    return [] if problem.columns is not None else ["images"]


def tile_of(k: Kernel, problem: Problem, rows: int, columns: int) -> Tile:
    """The block's tile: blocks side by side share positions, which come from memory, before weights."""
    per_group = row_tiles(problem, rows)
    number, part = divided(k, k.block, per_group * geometry_of(problem).groups, "int64")
    line = k.bind(T.cast(part, "int32"))
    group, tile = divided(k, line, per_group)
    return Tile(
        rows, group, k.bind(tile * rows), k.bind(line * rows), k.bind(number * columns),
        images_of(k, problem),
    )  # fmt: skip


def grid(problem: Problem, config: Mapping[str, int], sizes: Sizes, images: int) -> int:
    """A block for each tile."""
    tiles = row_tiles(problem, config["rows"]) * geometry_of(problem).groups
    columns = sizes.multiply(images, sizes.of(per_image(problem, config)))
    return sizes.multiply(sizes.ceil_divide(columns, config["positions"]), sizes.of(tiles))


def weights(k: Kernel, tile: Tile, inner: int, depth: int) -> Source:
    """The lines of a tile of the packed weight [groups][row tiles][rows][inner], padded to whole steps."""
    return matrix(k, k["values"], inner, int64(tile.line), depth)


def pixels(k: Kernel, problem: Problem, tile: Tile, depth: int) -> Source:
    """A tile of x whose lines are K, taps before channels, and whose elements are positions."""
    g = geometry_of(problem)
    plane, inner = g.height * g.width, g.taps * g.channels

    def source(line: Any, element: Any) -> Reader:
        image, row, column = unravel(k, tile.position, element, [g.out_height, g.out_width])
        there = k.bind(image < tile.images)
        y = k.bind(row * g.strides[0] - g.padding[0])
        x = k.bind(column * g.strides[1] - g.padding[1])
        start = k.bind((image * g.groups + int64(tile.group)) * (g.channels * plane))

        def read(step: Any) -> Place:
            k_index = k.bind(step * depth + line)
            tap, channel = divided(k, k_index, g.channels) if g.taps > 1 else (integer(0, "int32"), k_index)
            r, s = divided(k, tap, g.kernel[1])
            down, right = k.bind(y + r * g.dilation[0]), k.bind(x + s * g.dilation[1])
            valid = tirx.all(there, k_index < inner, inside(down, g.height), inside(right, g.width))
            at = int64(channel) * plane + int64(down * g.width + right)
            return Place(k["x"], start + at, valid)

        return read

    return source


def store_positions(k: Kernel, problem: Problem, tile: Tile) -> Store:
    """Store lines of a tile (see ``mma_epilogue.deliver``) whose columns are positions, with the epilogue."""
    g = geometry_of(problem)

    def store(line: Any, first: Any, values: list[Any]) -> None:
        image, position = unravel(k, tile.position, first, [g.positions])
        there = T.min(image, tile.images - 1)
        place = k.bind(there * (problem.rows * g.positions) + int64(position))
        _put(k, problem, tile, line, place, values, image < tile.images)

    return store


def store_table(k: Kernel, problem: Problem, tile: Tile, image: Any, table: Array) -> Store:
    """The same where ``table`` has each column's place in y, counted from image ``image``, below 0 for none.

    For a tile whose columns are numbers of a line, some of which are no positions.
    """
    per_image = problem.rows * geometry_of(problem).positions

    def store(line: Any, first: Any, values: list[Any]) -> None:
        place = k.bind(table[first])
        at = k.bind(image * per_image + int64(T.max(place, 0)))
        _put(k, problem, tile, line, at, values, place >= 0)

    return store


def _put(
    k: Kernel, problem: Problem, tile: Tile, line: Any, place: Any, values: list[Any], valid: Any
) -> None:  # fmt: skip
    """Epilogue and store of neighbouring positions; ``place`` is that of the first, in output channel 0.

    What is not valid is computed too, in some valid place: the compiler runs reads of several lines at a
    time only if no branch is between.
    """
    g = geometry_of(problem)
    rows = problem.rows // g.groups
    row = k.bind(tile.row + line)
    if rows % tile.rows:
        valid = tirx.all(valid, row < rows)
        row = k.bind(T.min(row, rows - 1))
    channel = k.bind(tile.group * rows + row)
    at = k.bind(place + int64(channel) * g.positions)
    finished = expressions.finish(k, problem, values, channel, at)
    with k.when(valid):
        expressions.store(k, k["y"], at, finished)
