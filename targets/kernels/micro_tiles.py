"""micro_tiles: the innermost loops of a dense convolution, for each kind that conv_plans knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.conv_plans import Plan
from sparsec.targets.kernels.epilogue import finish
from sparsec.targets.kernels.shuffles import QUARTER, Registers, transpose_strip
from sparsec.targets.kernels.spans import spans
from sparsec.targets.kernels.window_moves import WindowMoves

#: steps ahead of which weights are asked for that come from beyond L2
_AHEAD = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where the row tiles of one (tile of positions, block) read, rest and write."""

    buffer: Any
    #: the tile's first element of the block's first channel, and from one channel to the next
    x: Any
    stride: int
    channels: Any
    weights: Any
    #: first output channel of the group, first row tile of this unit of work
    feature: Any
    first_tile: Any
    #: the element offset in y of the group's first channel, and the tile's corner in it
    y: Any
    corner: tuple[Any, Any]
    block: Any


@dataclass(frozen=True, slots=True)
class _Tile:
    """A row tile of ``rows`` output channels: its weights, accumulators' rest, first channel."""

    at: Place
    weights: Any
    rest: Any
    feature: Any
    rows: int


class Along:
    """Output channels by vectors of positions, which follow rows or run over their ends."""

    def __init__(self, k: Kernel, plan: Plan) -> None:
        self.k, self.plan = k, plan
        self._registers = k.registers(plan.accumulators)

    def row_tile(self, at: Place, number: Any, rows: int) -> None:
        """Micro-tiles of ``rows`` output channels, side by side."""
        k, plan = self.k, self.plan
        tile = _Tile(
            at,
            k.bind(at.weights + number * (at.channels * (plan.geometry.taps * plan.height))),
            k.bind(plan.windows + (number - at.first_tile if plan.blocks > 1 else 0) * plan.resting_tile),
            k.bind(number * plan.height),
            rows,
        )
        for first, count, width in plan.parts:
            with k.loop(count) as part:
                vector = k.bind(first + part * width)
                self._start(tile, vector, width)
                self._multiply(tile, vector, width)
                self._end(tile, vector, width)
        if self.rests_to_the_end:
            with k.when(at.block == plan.blocks - 1):
                self.leave(tile)

    @property
    def rests_to_the_end(self) -> bool:
        """Whether accumulators go to y from where they rest."""
        return self.plan.flow

    def rests(self, tile: _Tile, vector: Any, width: int) -> Iterator[Any]:
        """Where the accumulators of a micro-tile rest."""
        here = self.k.bind(tile.rest + vector * self.k.lanes)
        for r in range(tile.rows):
            for v in range(width):
                yield here + (r * self.plan.line + v * self.k.lanes)

    def inputs(self, tile: _Tile, vector: Any, width: int) -> list[Any]:
        """Offsets in the buffer of what tap (0, 0) of the block's first channel reads."""
        k, at = self.k, tile.at
        if self.plan.flow:
            here = k.bind(at.x + vector * k.lanes)
            return [here + v * k.lanes for v in range(width)]
        pitch = self.plan.window.pitch
        return [k.bind(at.x + row * pitch + column) for row, column in self._corners(vector, width)]

    def step(self, tile: _Tile, inputs: list[Any], panel: Any) -> None:
        """Add the products of one weight of every row."""
        k, registers = self.k, self._registers
        xs = [k.bind(k.vector(tile.at.buffer, x)) for x in inputs]
        for r in range(tile.rows):
            value = k.bind(k.splat(k["values"][panel + r]))
            for v, x in enumerate(xs):
                j = r * len(xs) + v
                k.assign(registers, j, registers[j] + value * x)

    def finish(self, tile: _Tile, vector: Any, width: int) -> None:
        """Finished accumulators to y."""
        places = self._outputs(tile.at, vector, width)
        for r in range(tile.rows):
            put = self.put_row(tile, r)
            for v, place in enumerate(places):
                put(self._registers[r * width + v], place, self.k.lanes)

    def put_row(self, tile: _Tile, r: Any) -> Callable[[Any, Any, int], None]:
        """``put(value, offset in a plane of y, lanes)`` for output channel ``r`` of the tile."""
        k, plan = self.k, self.plan
        row = k.bind(tile.at.feature + tile.feature + r)
        plane = k.bind(tile.at.y + (tile.feature + r) * plan.geometry.positions)

        def put(value: Any, place: Any, lanes: int) -> None:
            where = k.bind(plane + place)
            k.put(k["y"], where, finish(k, plan.problem, value, row, where, lanes), lanes)

        return put

    def leave(self, tile: _Tile) -> None:
        """Finished lines of positions, taken apart into rows of y."""
        k, moves = self.k, WindowMoves(self.plan.window)
        with k.loop(tile.rows) as r:
            line = k.bind(tile.rest + r * self.plan.line)
            moves.store(k, k.scratch, line, k.constant(0), tile.at.corner, self.put_row(tile, r))

    def _start(self, tile: _Tile, vector: Any, width: int) -> None:
        """Accumulators from zero, or from where they rest."""
        from tvm.script.ir_builder import tirx as T

        k = self.k

        def zero() -> None:
            for i in range(self.plan.held(tile.rows, width)):
                k.assign(self._registers, i, k.splat(0.0))

        if self.plan.blocks == 1:
            zero()
            return
        with T.If(tile.at.block == 0):
            with T.Then():
                zero()
            with T.Else():
                for i, where in enumerate(self.rests(tile, vector, width)):
                    k.assign(self._registers, i, k.vector(k.scratch, where))

    def _multiply(self, tile: _Tile, vector: Any, width: int) -> None:
        """All channels and taps of one micro-tile."""
        k, plan = self.k, self.plan
        inputs = self.inputs(tile, vector, width)
        with k.loop(tile.at.channels * plan.geometry.taps) as step:
            offset = k.bind(k.cast64(k["offsets"][step]) if plan.listed else step * tile.at.stride)
            self.step(tile, [x + offset for x in inputs], k.bind(tile.weights + step * plan.height))

    def _end(self, tile: _Tile, vector: Any, width: int) -> None:
        """Accumulators to rest, or finished to y."""
        from tvm.script.ir_builder import tirx as T

        k, plan = self.k, self.plan

        def keep() -> None:
            for i, where in enumerate(self.rests(tile, vector, width)):
                k.put(k.scratch, where, self._registers[i])

        if self.rests_to_the_end:
            keep()
        elif plan.blocks == 1:
            self.finish(tile, vector, width)
        else:
            with T.If(tile.at.block == plan.blocks - 1):
                with T.Then():
                    self.finish(tile, vector, width)
                with T.Else():
                    keep()

    def _corners(self, vector: Any, width: int) -> list[tuple[Any, Any]]:
        """(row, column) in the tile of each vector of a micro-tile, where vectors follow rows."""
        from tvm.script.ir_builder import tirx as T

        k, window, per_row = self.k, self.plan.window, self.plan.per_row
        found = []
        for v in range(width):
            number = k.bind(vector + v)
            row = k.constant(0) if window.rows == 1 else k.bind(T.truncdiv(number, k.constant(per_row)))
            column = (number - row * per_row) * k.lanes
            if window.columns % k.lanes:
                column = T.min(column, k.constant(window.columns - k.lanes))
            found.append((row, k.bind(column)))
        return found

    def _outputs(self, at: Place, vector: Any, width: int) -> list[Any]:
        """Offsets of a micro-tile's vectors in a plane of y."""
        k, wide = self.k, self.plan.geometry.out_width
        base = k.bind(at.corner[0] * wide + at.corner[1])
        return [k.bind(base + row * wide + column) for row, column in self._corners(vector, width)]


class Across(Along):
    """Single positions by vectors of output channels; a tile is as wide as the output."""

    def __init__(self, k: Kernel, plan: Plan) -> None:
        super().__init__(k, plan)
        self._shuffled = Registers(k, 4 * QUARTER)

    @property
    def rests_to_the_end(self) -> bool:
        return True

    def rests(self, tile: _Tile, vector: Any, width: int) -> Iterator[Any]:
        here = self.k.bind(tile.rest + vector * self.plan.height)
        for p in range(width):
            for v in range(0, tile.rows, self.k.lanes):
                yield here + (p * self.plan.height + v)

    def inputs(self, tile: _Tile, vector: Any, width: int) -> list[Any]:
        from tvm.script.ir_builder import tirx as T

        k, window = self.k, self.plan.window
        if window.rows == 1:
            here = k.bind(tile.at.x + vector)
            return [here + p for p in range(width)]
        found = []
        for p in range(width):
            row = k.bind(T.truncdiv(vector + p, k.constant(window.columns)))
            found.append(k.bind(tile.at.x + vector + p + row * (window.pitch - window.columns)))
        return found

    def step(self, tile: _Tile, inputs: list[Any], panel: Any) -> None:
        k, registers = self.k, self._registers
        if self.plan.streamed:
            _prefetch(k["values"], panel + _AHEAD * self.plan.height)
        weights = [k.bind(k.vector(k["values"], panel + v)) for v in range(0, tile.rows, k.lanes)]
        for p, place in enumerate(inputs):
            x = k.bind(k.splat(tile.at.buffer[place]))
            for v, weight in enumerate(weights):
                j = p * len(weights) + v
                k.assign(registers, j, registers[j] + weight * x)

    def leave(self, tile: _Tile) -> None:
        whole, left = divmod(tile.rows, QUARTER)
        with self.k.loop(whole) as strip:
            self._leave_strip(tile, self.k.bind(strip * QUARTER), QUARTER)
        if left:
            self._leave_strip(tile, self.k.constant(whole * QUARTER), left)

    def _leave_strip(self, tile: _Tile, first: Any, rows: int) -> None:
        """A few channels of every position, transposed."""
        k, height = self.k, self.plan.height
        base = k.bind(tile.at.corner[0] * self.plan.geometry.out_width)
        puts = [self.put_row(tile, first + r) for r in range(rows)]
        start = k.bind(tile.rest + first)
        for position, width in spans(k, self.plan.count, k.lanes):
            here, place = k.bind(start + position * height), k.bind(base + position)
            if width < QUARTER:
                for r, put in enumerate(puts):
                    for p in range(width):
                        put(k.scratch[here + (p * height + r)], k.bind(place + p), 1)
                continue

            def load(p: int, here: Any = here) -> Any:
                return k.vector(k.scratch, here + p * height, QUARTER)

            for put, value in zip(puts, transpose_strip(k, self._shuffled, load, width), strict=False):
                put(value, place, width)
            self._shuffled.forget()


def _prefetch(buffer: Any, offset: Any) -> None:
    """Ask for the cache line of an element, which need not exist."""
    from tvm.script.ir_builder import tirx as T

    address = T.address_of(buffer[offset])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))
