"""nm_conv: convolution where N of every M neighbouring input channels are kept (2:4, 1:8 ...).

Every row has the same number of stored values at every tap, so there is nothing to sort and no
loop end to mispredict: a step reads a value and an 8-bit channel inside its group of M.  Windows
are staged as in window_visits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.kernels import window_visits
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers
from sparsec.targets.kernels.nm_spmm import fits
from sparsec.targets.kernels.window_visits import (
    AnyWindow,
    WindowRest,
    finished,
    parts_of,
    place,
    window_of,
)
from sparsec.targets.target import Packing, Problem, Target

name = "nm_conv"
format = "nm"

#: taps are unrolled: more would make long code
_MOST_TAPS = 25


def _usable(problem: Problem, pattern: Pattern) -> list[tuple[int, int]]:
    """The N:M of the weight whose groups stay within one tap."""
    assert problem.conv is not None
    channels = problem.conv.channels
    return [(n, m) for n, m in fits(pattern) if channels % m == 0]


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """An ungrouped convolution with at most N nonzeros in every group of M input channels."""
    if problem.conv is None or problem.conv.taps > _MOST_TAPS or not _usable(problem, pattern):
        return False
    return window_visits.accepts(problem, target)


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """One configuration per N:M that fits and tile shape."""
    assert problem.conv is not None
    found = []
    for n, m in _usable(problem, pattern)[:2]:
        for window in window_visits.windows(problem.conv, target):
            config = window_visits.config_of(window, problem, target, 0, False)
            channels = min(problem.conv.channels, max(m, config["channels"] // m * m))
            if window.floats(channels) * 4 <= target.l2 // 2:
                found.append({**config, "channels": channels, "n": n, "m": m})
    return tuple(found)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core: no mispredicted ends of visits, but a loop for every tap."""
    assert problem.conv is not None
    blocks = -(-problem.conv.channels // config["channels"])
    steps = problem.rows * problem.inner // config["m"] * config["n"] / config["group"]
    visits = (0.7 + 0.15 * problem.conv.taps) * blocks * problem.rows / config["group"]
    size = nbytes(problem, pattern, config, target)
    return window_visits.predict(problem, target, config, steps, visits, size)


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A value and an 8-bit channel for N of every M weights."""
    return 5 * problem.rows * problem.inner // config["m"] * config["n"]


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """values [channel blocks][M/R][taps][groups][n][R], and uint8 channels of the same shape."""
    g = problem.conv
    assert g is not None
    n, m, rows = config["n"], config["m"], config["group"]
    tall = -(-problem.rows // rows) * rows
    padded = np.zeros((tall, problem.inner), np.float32)
    padded[: problem.rows] = weight
    cut = padded.reshape(tall, g.taps, g.channels // m, m)
    # nonzeros first, in order of their channel; the rest are zeros at the group's start
    order = np.argsort(cut == 0, axis=3, kind="stable")[..., :n]
    values = np.take_along_axis(cut, order, axis=3)
    places = np.where(values == 0, 0, order).astype(np.uint8)
    per_block = config["channels"] // m

    def interleaved(a: Any) -> Any:
        bands = a.reshape(tall // rows, rows, g.taps, -1, n).transpose(0, 2, 3, 4, 1)
        cuts = range(0, g.channels // m, per_block)
        return np.concatenate([bands[:, :, c : c + per_block].reshape(-1) for c in cuts])

    chunks = -(-problem.rows // config["chunk"])
    arrays = {"values": interleaved(values), "places": interleaved(places)}
    return Packing(arrays, *finished(window_of(problem, config, target), config, chunks))


scratch_floats = window_visits.scratch_floats


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    writer = _Writer(problem, dict(packing.config), window_of(problem, dict(packing.config), target))
    pointers = [
        ("x", "float32"), ("values", "float32"), ("places", "uint8"), *extra_pointers(problem),
        ("y", "float32"),
    ]  # fmt: skip
    sizes = window_visits.run_time_sizes(problem)
    return prim_func(name, target.lanes, pointers, sizes, writer.body)


@dataclass(frozen=True, slots=True)
class _Writer:
    """Emits the loop nest."""

    problem: Problem
    config: Mapping[str, int]
    window: AnyWindow

    def body(self, k: Kernel) -> None:
        window, channels, g = self.window, self.config["channels"], self.window.geometry
        blocks = -(-g.channels // channels)
        registers = k.registers(self.config["group"] * max(parts_of(window, self.config["vectors"])))
        moves = window.moves(k, self.problem.rows)
        moves.clear(k, k.scratch, 0, channels)
        with k.tiles() as tile:
            image, chunk, corner = place(k, window, tile, self.config["row_chunks"])
            x = k.bind(image * (g.channels * g.height * g.width))
            first_row = k.bind(chunk * self.config["chunk"]) if blocks > 1 else None
            y = k.bind(image * (self.problem.rows * g.positions))
            rest = WindowRest(self.problem, window, moves, window.floats(channels), first_row, y, corner)
            # first, middle and last block apart: only they differ, and code must not grow with C
            for low, high in ((0, 1), (1, blocks - 1), (max(blocks - 1, 1), blocks)):
                if low < high:
                    count = g.channels - (blocks - 1) * channels if high == blocks else channels
                    with k.loop(low, high) as block:
                        source = k.bind(x + block * (channels * g.height * g.width))
                        moves.stage(k, k["x"], source, count, k.scratch, 0, corner)
                        base = k.bind(block * self._per_block(channels))
                        self._rows(k, registers, rest, chunk, (base, count), (low == 0, high == blocks))

    def _per_block(self, channels: int) -> int:
        """Stored values of a block of so many channels."""
        c, g = self.config, self.window.geometry
        tall = -(-self.problem.rows // c["group"]) * c["group"]
        return tall * g.taps * (channels // c["m"]) * c["n"]

    def _rows(
        self, k: Kernel, registers: Any, rest: WindowRest, chunk: Any, block: tuple[Any, int],
        ends: tuple[bool, bool],
    ) -> None:  # fmt: skip
        from tvm.script.ir_builder import tirx as T

        group, per_chunk = self.config["group"], self.config["chunk"] // self.config["group"]
        whole, left = divmod(self.problem.rows, group)
        low = k.bind(chunk * per_chunk)
        with k.loop(low, T.min(low + per_chunk, k.constant(whole))) as band:
            self._visit(k, registers, rest, band, group, block, ends)
        if left:
            with k.when(chunk == self.config["row_chunks"] - 1):
                self._visit(k, registers, rest, k.constant(whole), left, block, ends)

    def _visit(
        self, k: Kernel, registers: Any, rest: WindowRest, band: Any, height: int,
        block: tuple[Any, int], ends: tuple[bool, bool],
    ) -> None:  # fmt: skip
        c, taps = self.config, self.window.geometry.taps
        base, channels = block
        groups = channels // c["m"]
        rows = [k.bind(band * c["group"] + r) for r in range(height)]
        places = [rest.at(k, row, r) for r, row in enumerate(rows)]
        start = k.bind(base + band * (taps * groups * c["n"] * c["group"]))
        done = 0
        for wide in parts_of(self.window, c["vectors"]):
            at = [(r, v, (done + v) * k.lanes) for r in range(height) for v in range(wide)]
            lanes = self.window.steps[done : done + wide]
            for r, v, here in at:
                first = k.splat(0.0) if ends[0] else rest.load(k, places[r] + here)
                k.assign(registers, r * wide + v, first)
            for tap in range(taps):
                with k.loop(groups) as g:
                    values = k.bind(start + (g + tap * groups) * (c["n"] * c["group"]))
                    self._group(k, registers, values, g, tap, height, lanes)
            for r, v, here in at:
                value = registers[r * wide + v]
                if ends[1]:
                    rest.finish(k, rows[r], places[r], here, value)
                else:
                    rest.keep(k, places[r] + here, value)
            done += wide
        if ends[1]:
            rest.leave(k, rows, places)

    def _group(
        self, k: Kernel, registers: Any, values: Any, g: Any, tap: int, height: int, lanes: Sequence[int]
    ) -> None:
        c, window, wide = self.config, self.window, len(lanes)
        offset = window.offset(*divmod(tap, window.geometry.kernel[1]))
        here = k.bind(g * (c["m"] * window.size) + offset)
        for i in range(c["n"]):
            for r in range(height):
                number = values + (i * c["group"] + r)
                value = k.bind(k.splat(k["values"][number]))
                x = k.bind(here + k.cast64(k["places"][number]) * window.size)
                for v, lane in enumerate(lanes):
                    total = registers[r * wide + v] + value * k.vector(k.scratch, x + lane)
                    k.assign(registers, r * wide + v, total)
