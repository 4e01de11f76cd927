"""recurrent: all steps of one LSTM, GRU or RNN layer for a few sequences of the batch a tile.

What the input adds to the gates comes ready from one product over all steps; a step is then the
product of the state with the recurrent weight, whose bytes are the work, and the gates.  Lanes are
hidden units; the gates of a unit stay in registers until its new state is known.  The weight is
stored as it is read, [vectors of units][H][gates][lanes], and dense whatever its zeros: at the usual
sizes it stays in L2 from step to step.  Sequences of a tile share its loads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.ir.attributes import RecurrentAttrs
from sparsec.ir.expr import Arg, Expr, Scalar, call
from sparsec.targets.cost import stream_cycles
from sparsec.targets.kernels import math
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.target import Target

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel is generated for.

    ``sequences`` a tile; ``shared`` tells of each initial state whether the whole batch starts
    from one line.
    """

    attrs: RecurrentAttrs
    hidden: int
    sequences: int
    shared: tuple[bool, ...]

    @property
    def phases(self) -> tuple[int, ...]:
        """Gates a pass over the units computes: a gru needs all resets before its last gate."""
        two = self.attrs.kind == "gru" and not self.attrs.reset_after
        return (2, 1) if two else (GATES[self.attrs.kind],)


def sequences_a_tile(batch: int | None, target: Target) -> int:
    """As many as leave registers for the weights."""
    most = 4 if target.registers >= 32 else 2
    return most if batch is None else max(1, min(most, batch))


def padded(hidden: int, target: Target) -> int:
    """Units in whole vectors."""
    return -(-hidden // target.lanes) * target.lanes


def pack(weight: Any, shape: Shape, target: Target) -> Any:
    """``weight[H, G * H]`` for each phase as [vectors][H][gates][lanes], missing units zero."""
    hidden, lanes = shape.hidden, target.lanes
    wide = padded(hidden, target)
    gates = np.zeros((hidden, GATES[shape.attrs.kind], wide), np.float32)
    gates[:, :, :hidden] = weight.reshape(hidden, -1, hidden)
    parts, first = [], 0
    for count in shape.phases:
        part = gates[:, first : first + count].reshape(hidden, count, wide // lanes, lanes)
        parts.append(part.transpose(2, 0, 1, 3).reshape(-1))
        first += count
    return np.concatenate(parts)


def scratch_floats(shape: Shape, target: Target) -> int:
    """The areas of :class:`_Writer`."""
    areas = 3 + GATES[shape.attrs.kind]
    return shape.sequences * areas * padded(shape.hidden, target)


def predict(shape: Shape, steps: int, batch: int, target: Target) -> float:
    """Cycles: every tile streams the weight once a step, or multiplies, whichever takes longer."""
    elements = shape.hidden * padded(shape.hidden, target) * GATES[shape.attrs.kind]
    stream = stream_cycles(4 * elements, target)
    compute = shape.sequences * elements / target.lanes * 0.6
    gates = shape.sequences * padded(shape.hidden, target) / target.lanes * 100
    return steps * -(-batch // shape.sequences) * (max(stream, compute) + gates)


def emit(shape: Shape, target: Target, name: str) -> Any:
    """The TIR function; sizes: steps, batch; tiles: batch / sequences, rounded up."""
    states = ["h", "c"] if shape.attrs.kind == "lstm" else ["h"]
    inputs = ["x", "r", *(f"{s}0" for s in states), *(["b"] if shape.attrs.reset_after else [])]
    outputs = [*(f"last_{s}" for s in states), "y"]
    writer = _Writer(shape, target, padded(shape.hidden, target))
    pointers = [(n, "float32") for n in (*inputs, *outputs)]
    return prim_func(name, target.lanes, pointers, ("steps", "batch"), writer.body)


def _sigmoid(e: Expr) -> Expr:
    return call("sigmoid", e)


def _tanh(e: Expr) -> Expr:
    return call("tanh", e)


def _blend(z: Expr, new: Expr, old: Expr) -> Expr:
    return call("add", call("mul", call("sub", Scalar(1.0), z), new), call("mul", z, old))


_A = tuple(Arg(i) for i in range(5))
#: c' of an lstm from i, f, g and c; h' from o and c'
_CELL = call("add", call("mul", _sigmoid(_A[1]), _A[3]), call("mul", _sigmoid(_A[0]), _tanh(_A[2])))
_EXPOSED = call("mul", _sigmoid(_A[0]), _tanh(_A[1]))
#: h' of a gru from z, r, x's and h's shares of the last gate, and h
_RESET_AFTER = _blend(_sigmoid(_A[0]), _tanh(call("add", _A[2], call("mul", _sigmoid(_A[1]), _A[3]))), _A[4])
#: r * h from r and h; h' from the gates z (already a sigmoid) and n, and h
_RESET_BEFORE = call("mul", _sigmoid(_A[0]), _A[1])
_UPDATED = _blend(_A[0], _tanh(_A[1]), _A[2])


@dataclass(slots=True)
class _Writer:
    """Emits tiles.

    Scratch holds for each sequence of a tile, ``wide`` numbers each: h, the next h (or a gru's
    r * h), c (or a gru's z), then the input's share of every gate where it needs padding.
    """

    shape: Shape
    target: Target
    wide: int

    def body(self, k: Kernel) -> None:
        from tvm.script.ir_builder import tirx as T

        most = self.shape.sequences
        acc = k.registers(32)
        with k.tiles() as tile:
            first = k.bind(tile * most)
            if most == 1:
                self.run(k, acc, first, 1)
                return
            with T.If(first + most <= k.sizes["batch"]):
                with T.Then():
                    self.run(k, acc, first, most)
                with T.Else(), k.loop(first, k.sizes["batch"]) as one:
                    self.run(k, acc, one, 1)

    def run(self, k: Kernel, acc: Any, first: Any, rows: int) -> None:
        """All steps of ``rows`` sequences from ``first`` on."""
        attrs, hidden = self.shape.attrs, self.shape.hidden
        states = [("h", 0), ("c", 2)][: len(self.shape.shared)]
        for (state, area), shared in zip(states, self.shape.shared, strict=True):
            for row in range(rows):
                start = k.constant(0) if shared else k.bind((first + row) * hidden)
                self.copy(k, k[f"{state}0"], start, k.scratch, self.at(area, row))
        with k.loop(k.sizes["steps"]) as step:
            t = k.bind(k.sizes["steps"] - 1 - step) if attrs.reverse else step
            lines = [k.bind(t * k.sizes["batch"] + first + row) for row in range(rows)]
            self.step(k, acc, lines)
            for row, line in enumerate(lines):
                self.copy(k, k.scratch, self.at(0, row), k["y"], k.bind(line * hidden))
        for state, area in states:
            for row in range(rows):
                target = k.bind((first + row) * hidden)
                self.copy(k, k.scratch, self.at(area, row), k[f"last_{state}"], target)

    def at(self, area: int, row: int) -> int:
        """Where an area of a sequence starts in scratch."""
        return (area * self.shape.sequences + row) * self.wide

    def copy(self, k: Kernel, source: Any, start: Any, target: Any, to: Any) -> None:
        """H numbers."""
        whole = self.shape.hidden // k.lanes * k.lanes
        if whole:
            with k.loop(whole // k.lanes) as i:
                k.put(target, to + i * k.lanes, k.vector(source, start + i * k.lanes))
        if whole < self.shape.hidden:
            with k.loop(whole, self.shape.hidden) as i:
                k.assign(target, to + i, source[start + i])

    def step(self, k: Kernel, acc: Any, lines: list[Any]) -> None:
        kind, hidden = self.shape.attrs.kind, self.shape.hidden
        gates = GATES[kind]
        if hidden % k.lanes:
            for row, line in enumerate(lines):
                for g in range(gates):
                    start = k.bind((line * gates + g) * hidden)
                    self.copy(k, k["x"], start, k.scratch, self.at(3 + g, row))
        if len(self.shape.phases) == 2:
            self.units(k, acc, lines, 0, 2, self.at_reset)
            self.units(k, acc, lines, 2, 1, self.at_update)
            return
        done = {"lstm": self.at_cell, "gru": self.at_reset_after, "rnn": self.at_plain}[kind]
        self.units(k, acc, lines, 0, gates, done)
        for row in range(len(lines)):
            with k.loop(self.wide // k.lanes) as i:
                k.put(k.scratch, self.at(0, row) + i * k.lanes,
                      k.vector(k.scratch, self.at(1, row) + i * k.lanes))  # fmt: skip

    def units(
        self, k: Kernel, acc: Any, lines: list[Any], first: int, gates: int,
        done: Callable[[Kernel, int, Any, Any, list[Any]], None],
    ) -> None:  # fmt: skip
        """One phase: the product of every unit's gates with the state, then ``done``.

        The second phase of a gru multiplies with r * h.
        """
        rows, vectors = len(lines), self.wide // k.lanes
        room = 20 if self.target.registers >= 32 else 10
        together = max(1, min(room // (rows * gates), vectors, 8))
        state = 1 if first else 0
        base = first * self.wide * self.shape.hidden

        def some(vector: Any, count: int) -> None:
            def slot(row: int, u: int, g: int) -> int:
                return (row * count + u) * gates + g

            for i in range(rows * count * gates):
                k.assign(acc, i, k.splat(0.0))
            stride = self.shape.hidden * gates * k.lanes
            starts = [k.bind(base + (vector + u) * stride) for u in range(count)]
            with k.loop(self.shape.hidden) as j:
                hs = [k.bind(k.splat(k.scratch[self.at(state, row) + j])) for row in range(rows)]
                for u in range(count):
                    for g in range(gates):
                        w = k.bind(k.vector(k["r"], starts[u] + (j * gates + g) * k.lanes))
                        for row in range(rows):
                            k.assign(acc, slot(row, u, g), acc[slot(row, u, g)] + hs[row] * w)
            for row in range(rows):
                for u in range(count):
                    unit = k.bind((vector + u) * k.lanes)
                    done(k, row, lines[row], unit, [acc[slot(row, u, g)] for g in range(gates)])

        whole = vectors // together
        with k.loop(whole) as block:
            some(k.bind(block * together), together)
        if vectors % together:
            some(k.constant(whole * together), vectors % together)

    def share(self, k: Kernel, row: int, line: Any, unit: Any, gate: int) -> Any:
        """What the input adds to a gate."""
        if self.shape.hidden % k.lanes:
            return k.vector(k.scratch, self.at(3 + gate, row) + unit)
        start = (line * GATES[self.shape.attrs.kind] + gate) * self.shape.hidden
        return k.vector(k["x"], start + unit)

    def put(self, k: Kernel, area: int, row: int, unit: Any, expr: Expr, operands: list[Any]) -> None:
        value = math.emit(k, expr, operands.__getitem__, k.splat(0.0))
        k.put(k.scratch, self.at(area, row) + unit, value)

    def held(self, k: Kernel, area: int, row: int, unit: Any) -> Any:
        return k.vector(k.scratch, self.at(area, row) + unit)

    def at_cell(self, k: Kernel, row: int, line: Any, unit: Any, sums: list[Any]) -> None:
        i, o, f, g = (s + self.share(k, row, line, unit, n) for n, s in enumerate(sums))
        self.put(k, 2, row, unit, _CELL, [i, f, g, self.held(k, 2, row, unit)])
        self.put(k, 1, row, unit, _EXPOSED, [o, self.held(k, 2, row, unit)])

    def at_plain(self, k: Kernel, row: int, line: Any, unit: Any, sums: list[Any]) -> None:
        self.put(k, 1, row, unit, _tanh(_A[0]), [sums[0] + self.share(k, row, line, unit, 0)])

    def at_reset_after(self, k: Kernel, row: int, line: Any, unit: Any, sums: list[Any]) -> None:
        z, r = (sums[n] + self.share(k, row, line, unit, n) for n in range(2))
        n, old = self.share(k, row, line, unit, 2), self.held(k, 0, row, unit)
        bias = k.vector(k["b"], unit)
        self.put(k, 1, row, unit, _RESET_AFTER, [z, r, n, sums[2] + bias, old])

    def at_reset(self, k: Kernel, row: int, line: Any, unit: Any, sums: list[Any]) -> None:
        z, r = (s + self.share(k, row, line, unit, n) for n, s in enumerate(sums))
        self.put(k, 2, row, unit, _sigmoid(_A[0]), [z])
        self.put(k, 1, row, unit, _RESET_BEFORE, [r, self.held(k, 0, row, unit)])

    def at_update(self, k: Kernel, row: int, line: Any, unit: Any, sums: list[Any]) -> None:
        n = sums[0] + self.share(k, row, line, unit, 2)
        z, old = self.held(k, 2, row, unit), self.held(k, 0, row, unit)
        self.put(k, 0, row, unit, _UPDATED, [z, n, old])
