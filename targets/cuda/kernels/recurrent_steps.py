"""recurrent_steps: the code of a recurrent layer's steps.

A step multiplies the state with the weight, then makes every unit's next state.  In the product a thread
has a unit, and of its inputs every so-manieth read; afterwards it has the unit of one sequence, or of
several one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import Array, Kernel, device_function, int64, integer
from sparsec.targets.cuda.parts.recurrent_shape import THREADS, Areas, Shape
from sparsec.targets.cuda.tir import T


def emit(shape: Shape, name: str) -> Any:
    """The TIR function; sizes: steps, batch; blocks: batch / sequences, rounded up."""
    pointers = list(zip(shape.names, shape.dtypes, strict=True))
    return device_function(name, THREADS, pointers, ("steps", "batch"), lambda k: _Writer(k, shape).body())


def _sigmoid(x: Any) -> Any:
    one = expressions.constant(1)
    return one / (one + T.exp(expressions.constant(0) - x))


class _Writer:
    """Emits the kernel."""

    def __init__(self, k: Kernel, shape: Shape) -> None:
        self.k, self.shape, self.areas = k, shape, Areas(shape)
        self.memory = k.shared(self.areas.floats, "float32")
        self.first = k.bind(k.block * shape.sequences)
        self.weights = k["r"]
        self.passes = -(-shape.hidden // shape.units)
        self.turns = -(-shape.sequences * shape.units // THREADS)

    def body(self) -> None:
        k, s = self.k, self.shape
        steps = k.bind(T.cast(k.sizes["steps"], "int32"))
        if s.resident:
            self.weights = self._copied()
        self._begin()
        k.sync()
        with k.loop(steps, dtype="int32") as step:
            now = k.bind(step % 2 * self.areas.lines)
            line = k.bind(steps - 1 - step) if s.attrs.reverse else step
            self._step(int64(line) * k.sizes["batch"] + self.first, now, k.bind(self.areas.lines - now))
        for name, start in (("h", steps % 2 * self.areas.lines), ("c", 2 * self.areas.lines)):
            if f"last_{name}" in s.names:
                self._end(f"last_{name}", k.bind(integer(0, "int32") + start))

    def _copied(self) -> Array:
        """The weight in shared memory."""
        k, s = self.k, self.shape
        held = k.shared(s.weights, s.dtypes[1])
        source, target = k.words(k["r"]), k.words(held)
        vectors = s.weights // s.inputs
        with k.loop(-(-vectors // THREADS)) as turn:
            at = k.bind(turn * THREADS + k.thread)
            with k.when(at < vectors):
                target.put(at * 4, source.vector(at * 4, 4), 4)
        return held

    def _lines(self, work: Callable[[Any, Any, Any], None]) -> None:
        """``work(sequence of the block, unit, place in a state)`` for all of a state, missing inputs too."""
        k, s = self.k, self.shape
        total = s.sequences * s.wide
        with k.loop(-(-total // THREADS)) as turn:
            at = k.bind(turn * THREADS + k.thread)
            with k.when(at < total):
                work(k.bind(at // s.wide), k.bind(at % s.wide), at)

    def _begin(self) -> None:
        """Initial states; zeros where there is none."""
        k, s, zero = self.k, self.shape, expressions.constant(0)

        def start(sequence: Any, unit: Any, at: Any) -> None:
            there = T.And(unit < s.hidden, self.first + int64(sequence) < k.sizes["batch"])
            for area in range(4):
                self.memory.put(area * self.areas.lines + at, zero)
            with k.when(there):
                for area, name, shared in zip((0, 2), ("h0", "c0"), s.shared, strict=False):
                    row = integer(0) if shared else self.first + int64(sequence)
                    (value,) = expressions.load(k, k[name], k.bind(row * s.hidden + int64(unit)))
                    self.memory.put(area * self.areas.lines + at, value)

        self._lines(start)

    def _end(self, name: str, start: Any) -> None:
        """Store a state."""
        k, s = self.k, self.shape

        def store(sequence: Any, unit: Any, at: Any) -> None:
            row = self.first + int64(sequence)
            with k.when(T.And(unit < s.hidden, row < k.sizes["batch"])):
                expressions.store(k, k[name], k.bind(row * s.hidden + int64(unit)), [self.memory[start + at]])

        self._lines(store)

    def _step(self, line: Any, now: Any, then: Any) -> None:
        """One step: states at ``now`` make those at ``then``; ``line`` is the first sequence's of x and y."""
        s = self.shape
        rest = 3 * self.areas.lines
        base = 0
        for number, gates in enumerate(s.phases):
            done = partial(self._done(number), now=now, then=then)
            for one in range(self.passes):
                self._units(line, one * s.units, 2 * number, gates, base, rest if number else now, done)
            base += s.wide * gates * s.hidden

    def _done(self, phase: int) -> Callable[..., None]:
        """What makes the state of a phase's gates."""
        kind = self.shape.attrs.kind
        if kind == "gru":
            return self._reset_after if len(self.shape.phases) == 1 else (self._resets, self._update)[phase]
        return {"lstm": self._lstm, "rnn": self._rnn}[kind]

    def _units(
        self, line: Any, first: int, gate: int, gates: int, base: int, state: Any,
        done: Callable[..., None],
    ) -> None:  # fmt: skip
        """The products of some units' gates with the state at ``state``, then ``done`` for every unit."""
        k, s = self.k, self.shape
        xs = k.registers(self.turns * gates)
        places = [self._place(turn, first) for turn in range(self.turns)]
        # what the input adds is on its way while the product is made
        for turn, (sequence, unit, there) in enumerate(places):
            for g in range(gates):
                xs.put(turn * gates + g, expressions.constant(0))
            with k.when(there):
                row = line + int64(sequence)
                for g in range(gates):
                    at = k.bind((row * s.gates + (gate + g)) * s.hidden + int64(unit))
                    xs.put(turn * gates + g, expressions.load(k, k["x"], at)[0])
        self._product(first, gates, base, state)
        k.sync()
        for turn, (sequence, unit, there) in enumerate(places):
            own = [xs[turn * gates + g] for g in range(gates)]
            with k.when(there):
                sums = [self._sum(g, gates, sequence, k.bind(unit - first)) for g in range(gates)]
                done(sums, own, (line, sequence, unit))
        k.sync()

    def _place(self, turn: int, first: int) -> tuple[Any, Any, Any]:
        """Sequence and unit of a thread at a turn, and whether there are such."""
        k, s = self.k, self.shape
        at = k.bind(k.thread + turn * THREADS)
        sequence, unit = k.bind(at // s.units), k.bind(at % s.units + first)
        there = T.And(sequence < s.sequences, unit < s.hidden)
        return sequence, unit, k.bind(T.And(there, self.first + int64(sequence) < k.sizes["batch"]))

    def _product(self, first: int, gates: int, base: int, state: Any) -> None:
        """A thread's share of its unit's gates, to the sums in shared memory."""
        k, s = self.k, self.shape
        unit, share = k.bind(k.thread % s.units), k.bind(k.thread // s.units)
        # whoever has no unit computes the last one's: its sums are not read
        column = k.bind(T.min(unit + first, s.hidden - 1))
        sums = k.registers(gates * s.sequences)
        for i in range(gates * s.sequences):
            sums.put(i, expressions.constant(0))
        states = k.registers(s.sequences * s.inputs)
        reads = s.wide // s.inputs
        with k.loop(k.bind(T.truncdiv(reads - share + (s.shares - 1), s.shares))) as i:
            read = k.bind(share + i * s.shares)
            for sequence in range(s.sequences):
                for part in range(0, s.inputs, 4):
                    at = k.bind(state + sequence * s.wide + read * s.inputs + part)
                    states.put(sequence * s.inputs + part, self.memory.vector(at, 4), 4)
            for g in range(gates):
                at = k.bind(base + ((read * gates + g) * s.hidden + column) * s.inputs)
                for j, weight in enumerate(expressions.load(k, self.weights, at, s.inputs)):
                    for sequence in range(s.sequences):
                        slot = g * s.sequences + sequence
                        sums.put(slot, sums[slot] + weight * states[sequence * s.inputs + j])
        for g in range(gates):
            for sequence in range(s.sequences):
                self.memory.put(
                    self._sums_at(share, g, gates, sequence, unit), sums[g * s.sequences + sequence]
                )

    def _sums_at(self, share: Any, gate: int, gates: int, sequence: Any, unit: Any) -> Any:
        line = (share * gates + gate) * self.shape.sequences + sequence
        return self.areas.sums + line * self.shape.units + unit

    def _sum(self, gate: int, gates: int, sequence: Any, unit: Any) -> Any:
        """A gate's product."""
        total = self.memory[self._sums_at(0, gate, gates, sequence, unit)]
        for share in range(1, self.shape.shares):
            total = total + self.memory[self._sums_at(share, gate, gates, sequence, unit)]
        return self.k.bind(total)

    def _state(self, place: tuple[Any, Any, Any], start: Any) -> Any:
        """Where a state of a unit is, of those that begin at ``start``."""
        return self.k.bind(start + place[1] * self.shape.wide + place[2])

    def _made(self, place: tuple[Any, Any, Any], then: Any, value: Any) -> None:
        """The next h."""
        k, (line, sequence, unit) = self.k, place
        value = k.bind(value)
        self.memory.put(self._state(place, then), value)
        at = k.bind((line + int64(sequence)) * self.shape.hidden + int64(unit))
        expressions.store(k, k["y"], at, [value])

    def _lstm(self, sums: Any, xs: Any, place: tuple[Any, Any, Any], now: Any, then: Any) -> None:
        i, o, f, g = (a + b for a, b in zip(sums, xs, strict=True))
        cell = self._state(place, 2 * self.areas.lines)
        value = self.k.bind(_sigmoid(f) * self.memory[cell] + _sigmoid(i) * T.tanh(g))
        self.memory.put(cell, value)
        self._made(place, then, _sigmoid(o) * T.tanh(value))

    def _rnn(self, sums: Any, xs: Any, place: tuple[Any, Any, Any], now: Any, then: Any) -> None:
        self._made(place, then, T.tanh(sums[0] + xs[0]))

    def _reset_after(self, sums: Any, xs: Any, place: tuple[Any, Any, Any], now: Any, then: Any) -> None:
        k = self.k
        z, r = (k.bind(_sigmoid(sums[g] + xs[g])) for g in range(2))
        (bias,) = expressions.load(k, k["b"], place[2])
        self._blend(place, then, z, xs[2] + r * (sums[2] + bias), self.memory[self._state(place, now)])

    def _resets(self, sums: Any, xs: Any, place: tuple[Any, Any, Any], now: Any, then: Any) -> None:
        """A gru's first two gates: z, and r times h."""
        z, r = (_sigmoid(a + b) for a, b in zip(sums, xs, strict=True))
        self.memory.put(self._state(place, 2 * self.areas.lines), z)
        self.memory.put(self._state(place, 3 * self.areas.lines), r * self.memory[self._state(place, now)])

    def _update(self, sums: Any, xs: Any, place: tuple[Any, Any, Any], now: Any, then: Any) -> None:
        """A gru's last gate."""
        z = self.memory[self._state(place, 2 * self.areas.lines)]
        self._blend(place, then, z, sums[0] + xs[0], self.memory[self._state(place, now)])

    def _blend(self, place: tuple[Any, Any, Any], then: Any, z: Any, new: Any, old: Any) -> None:
        z = self.k.bind(z)
        self._made(place, then, (expressions.constant(1) - z) * T.tanh(new) + z * old)
