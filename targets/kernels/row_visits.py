"""row_visits: the loop nest of sparse rows times a tile of X.

``Y (+)= W X`` for a tile of columns of X: K is cut into blocks whose tile of X stays in L1;
inside a block the rows are visited in groups of R, sorted by length so that the inner loop's
trip count repeats and its end predicts; a visit holds R x V vector accumulators, which rest in Y
between blocks.  Rows are also cut into chunks (one unit of work each) whose part of Y stays in L2.
Groups either read R different columns a step (csr) or share one column (blocks of R rows).

The arrays are those of row_packing.  Ideas from SkimCaffe (Park et al. 2017), Fast Sparse
ConvNets (Elsen et al. 2020) and Sputnik's row sorting (Gale et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sparsec.targets.kernels.builder import Kernel


class Rest(Protocol):
    """Where the accumulators of a row rest between blocks, and what becomes of them at last."""

    def at(self, k: Kernel, row: Any, member: int) -> Any:
        """Element offset of the row's accumulators; ``member`` numbers the rows of a visit."""

    def load(self, k: Kernel, offset: Any) -> Any:
        """A resting vector."""

    def keep(self, k: Kernel, offset: Any, value: Any) -> None:
        """Lay a vector to rest."""

    def finish(self, k: Kernel, row: Any, place: Any, lane: int, value: Any) -> None:
        """Do the last with the vector ``lane`` elements into the row at ``place``."""

    def leave(self, k: Kernel, rows: Sequence[Any], places: Sequence[Any]) -> None:
        """After all vectors of the rows of a last visit."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of X (``buffer`` from element ``base`` on), and its accumulators' place."""

    buffer: Any
    base: Any
    rest: Rest


@dataclass(frozen=True, slots=True)
class RowVisits:
    """The settings of one kernel.

    ``parts`` are the vectors held at a time, one pass each; ``steps`` where each vector begins in
    the tile of X, in elements (empty: one after the other); ``scale``: see row_packing.
    """

    rows: int
    group: int
    shared: bool
    chunks: int
    blocks: int
    parts: tuple[int, ...]
    steps: tuple[int, ...] = ()
    scale: int = 1

    @property
    def accumulators(self) -> int:
        """Registers a visit holds."""
        return self.group * max(self.parts)

    def block_loop(self, k: Kernel) -> Iterator[tuple[Any, bool, bool]]:
        """Loops over the blocks as (block, first, last): code for the first and last is apart."""
        for low, high in ((0, 1), (1, self.blocks - 1), (max(self.blocks - 1, 1), self.blocks)):
            if low < high:
                with k.loop(low, high) as block:
                    yield block, low == 0, high == self.blocks

    def cell(
        self, k: Kernel, registers: Any, tile: Tile, chunk: Any, block: Any, ends: tuple[bool, bool]
    ) -> None:
        """All visits of one (chunk, block); ``ends``: whether it is the first, the last block."""
        number = k.bind(chunk * self.blocks + block)
        with k.loop(k.cast64(k["cells"][number]), k.cast64(k["cells"][number + 1])) as run:
            steps, visits, step0, group0 = (k.bind(k.cast64(k["runs"][run * 4 + i])) for i in range(4))
            with k.loop(visits) as visit:
                group = (group0 + visit) * self.group
                rows = [k.bind(k.cast64(k["rows"][group + r])) for r in range(self.group)]
                self._visit(k, registers, tile, rows, k.bind(step0 + visit * steps), steps, ends)
        left = self.rows % self.group
        if left:
            with k.when(chunk == self.chunks - 1):
                rows = [k.constant(self.rows - left + r) for r in range(left)]
                step0 = k.bind(k.cast64(k["tails"][block * 2]))
                steps = k.bind(k.cast64(k["tails"][block * 2 + 1]))
                self._visit(k, registers, tile, rows, step0, steps, ends)

    def _visit(
        self, k: Kernel, registers: Any, tile: Tile, rows: list[Any], step0: Any, steps: Any,
        ends: tuple[bool, bool],
    ) -> None:  # fmt: skip
        (first, last), rest = ends, tile.rest
        places = [rest.at(k, row, r) for r, row in enumerate(rows)]
        done = 0
        for wide in self.parts:
            at = [(r, v, (done + v) * k.lanes) for r in range(len(rows)) for v in range(wide)]
            lanes = [self.steps[v] if self.steps else v * k.lanes for v in range(done, done + wide)]
            for r, v, here in at:
                start = k.splat(0.0) if first else rest.load(k, places[r] + here)
                k.assign(registers, r * wide + v, start)
            with k.loop(steps) as j:
                self._step(k, registers, tile, step0 + j, len(rows), lanes)
            for r, v, here in at:
                if last:
                    rest.finish(k, rows[r], places[r], here, registers[r * wide + v])
                else:
                    rest.keep(k, places[r] + here, registers[r * wide + v])
            done += wide
        if last:
            rest.leave(k, rows, places)

    def _step(self, k: Kernel, registers: Any, tile: Tile, step: Any, rows: int, lanes: list[int]) -> None:
        wide = len(lanes)
        if self.shared:
            offset = k.bind(self._offset(k, step))
            shared = [k.bind(k.vector(tile.buffer, tile.base + offset + at)) for at in lanes]
        for r in range(rows):
            value = k.bind(k.splat(k["values"][step * self.group + r]))
            if not self.shared:
                offset = k.bind(self._offset(k, step * self.group + r))
            for v in range(wide):
                operand = shared[v] if self.shared else k.vector(tile.buffer, tile.base + offset + lanes[v])
                k.assign(registers, r * wide + v, registers[r * wide + v] + value * operand)

    def _offset(self, k: Kernel, at: Any) -> Any:
        stored = k.cast64(k["offsets"][at])
        return stored * self.scale if self.scale > 1 else stored
