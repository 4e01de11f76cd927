"""Kernels that need one resource each, and how fast they run: what a machine's figures come from.

Every probe is a kernel in TIR run by sparsec's own executor, so that a figure holds for code made
here.  A probe counts by its shortest call, since nothing makes a machine faster than it is, and
probes take turns, so that a neighbour who takes the core for a second disturbs all a little and
none throughout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from sparsec.progress import Progress
from sparsec.runtime import Program
from sparsec.runtime.artifact import to_bytes
from sparsec.runtime.plan import Argument, ArgumentKind, Buffer, BufferKind, Plan, Port, Step
from sparsec.targets.build import kernel_object, link
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Target

#: accumulators: enough for two multiply-adds of five cycles at once, and no more than AVX2 has
CHAINS = 12
#: multiply-adds of every accumulator in a tile
STEPS = 20_000
#: floats a tile of a sum reads, where the array has as many
CHUNK = 16 << 10
#: floats an element read at random is one of, and how many are read a tile
_TABLE, _PICKS = 1 << 10, 1 << 12
#: how many elements are put into one vector, as csr_gemv does
_WIDE = 8
#: loops of unequal length in a tile, and the longest; Zen 3 learns the order of 8192 by heart
_LOOPS, _LONGEST = 1 << 16, 8
#: seconds of one turn of one probe
_TURN = 0.01

Body = Callable[[Kernel], None]


@dataclass(frozen=True)
class Probe:
    """A program, inputs for calls in turn, and the units of work (flops, bytes, elements ...) in a call."""

    program: Program
    inputs: tuple[Any, ...] = field(repr=False)
    work: float


def multiply_adds(target: Target, tiles: int = 8, threads: int = 1) -> Probe:
    """Multiply-adds of nothing but registers; the work is floating-point operations."""

    def body(k: Kernel) -> None:
        with k.tiles() as tile:
            chains = k.registers(CHAINS)
            for i in range(CHAINS):
                k.assign(chains, i, k.vector(k["x"], i * k.lanes))
            factor = k.bind(k.vector(k["x"], CHAINS * k.lanes))
            term = k.bind(k.vector(k["x"], (CHAINS + 1) * k.lanes))
            with k.loop(STEPS):
                for i in range(CHAINS):
                    k.assign(chains, i, chains[i] * factor + term)
            _store_sum(k, [chains[i] for i in range(CHAINS)], tile)

    x = np.full((CHAINS + 2) * target.lanes, 0.5, np.float32)
    work = 2.0 * tiles * STEPS * CHAINS * target.lanes
    return Probe(_program("multiply_adds", body, target, x, tiles, threads), (x,), work)


def reads(target: Target, nbytes: int, passes: int = 1, threads: int = 1) -> Probe:
    """Sums over an array of so many bytes, ``passes`` times a call; the work is bytes."""
    width = 8 * target.lanes
    chunk = min(CHUNK, nbytes // 4 // width * width)
    chunks = nbytes // 4 // chunk

    def body(k: Kernel) -> None:
        with k.tiles() as tile:
            chains = k.registers(8)
            for i in range(8):
                k.assign(chains, i, k.splat(0.0))
            first = k.bind(tile % k.constant(chunks) * chunk)
            with k.loop(chunk // width) as step:
                at = k.bind(first + step * width)
                for i in range(8):
                    k.assign(chains, i, chains[i] + k.vector(k["x"], at + i * k.lanes))
            _store_sum(k, [chains[i] for i in range(8)], tile)

    x, tiles = _aligned(chunk * chunks), chunks * passes
    name = f"reads_{chunk}_{chunks}"
    return Probe(_program(name, body, target, x, tiles, threads), (x,), 4.0 * chunk * tiles)


def reads_in_parts(target: Target, nbytes: int, part: int = 4 << 20) -> Probe:
    """Sums over one part after the other of an array no cache holds; the work is bytes.

    Short calls find the moments in which neighbours leave memory alone.
    """
    one = reads(target, part)
    floats = one.inputs[0].size
    whole = _aligned(max(1, nbytes // 4 // floats) * floats)
    return Probe(one.program, tuple(whole[i : i + floats] for i in range(0, whole.size, floats)), one.work)


def clock(target: Target, tiles: int = 8) -> Probe:
    """A chain of integer operations of known length; the work is cycles.

    On x86 multiplications and additions, three cycles and one: a 64-bit multiplication takes three
    on every Intel core since 2008 and every AMD core since Zen (instruction tables of both vendors
    and of Agner Fog).  ARM's cores differ in that, so there the chain is of additions and exclusive
    ors, a cycle each.
    """
    steps, unroll = 2000, 16
    cycles = 2.0 if target.architecture == "aarch64" else 4.0

    def next_value(value: Any, factor: Any, term: Any) -> Any:
        from tvm.script.ir_builder import tirx as T

        return T.bitwise_xor(value + term, factor) if cycles == 2.0 else value * factor + term

    def body(k: Kernel) -> None:
        value = _integers(k)
        with k.tiles() as tile:
            factor, term = (k.bind(k.cast64(k["x"][i])) for i in range(2))
            k.assign(value, 0, k.cast64(k["x"][2]))
            with k.loop(steps):
                for _ in range(unroll):
                    k.assign(value, 0, next_value(value[0], factor, term))
            _store_integer(k, value[0], tile)

    x = np.full(4 * target.lanes, 3.0, np.float32)
    return Probe(_program("clock", body, target, x, tiles, 1), (x,), cycles * steps * unroll * tiles)


def gathers(target: Target, tiles: int = 8) -> Probe:
    """Elements read at random places of L1 and put into vectors, as csr_gemv does; the work is elements."""
    from tvm.script.ir_builder import tirx as T

    def body(k: Kernel) -> None:
        acc = k.registers(4, _WIDE)
        with k.tiles() as tile:
            for i in range(4):
                k.assign(acc, i, k.splat(0.0, _WIDE))
            with k.loop(_PICKS // (4 * _WIDE)) as step:
                for i in range(4):
                    at = k.bind((step * 4 + i) * _WIDE)
                    index = [k.bind(k.cast64(k["places"][at + j])) for j in range(_WIDE)]
                    picked = T.Shuffle([k["x"][_PICKS // 2 + j] for j in index], list(range(_WIDE)))
                    k.assign(acc, i, acc[i] + picked)
            k.put(k["y"], tile * k.lanes, acc[0] + acc[1] + acc[2] + acc[3], _WIDE)

    places = np.random.default_rng(0).integers(0, _TABLE, _PICKS, np.uint16)
    x = np.concatenate([places.view(np.float32), np.ones(_TABLE, np.float32)])
    program = _program("gathers", body, target, x, tiles, 1, ("places", "uint16"))
    return Probe(program, (x,), float(_PICKS * tiles))


def loop_ends(target: Target, shuffled: bool) -> Probe:
    """Short loops of unequal length, in random order or sorted; the work is loops.

    The body is one multiplication and one store, so that little is left to do behind a wrong
    guess; the time that random order adds is what wrong guesses cost.
    """
    table = _LOOPS // 4

    def body(k: Kernel) -> None:
        with k.tiles() as tile:
            factor = k.bind(k.vector(k["x"], table))
            with k.loop(_LOOPS) as i, k.loop(k.cast64(k["lengths"][i])) as j:
                at = k.bind((tile * _LONGEST + j) * k.lanes)
                k.put(k["y"], at, k.vector(k["x"], table + j * k.lanes) * factor)

    lengths = (np.arange(_LOOPS) * _LONGEST // _LOOPS + 1).astype(np.uint8)
    if shuffled:
        lengths = np.random.default_rng(0).permutation(lengths)
    x = np.concatenate([lengths.view(np.float32), np.ones(_LONGEST * target.lanes, np.float32)])
    program = _program("loop_ends", body, target, x, 1, 1, ("lengths", "uint8"), stored=_LONGEST)
    return Probe(program, (x,), float(_LOOPS))


def best_rates(
    probes: Mapping[str, Probe], seconds: float, progress: Progress | None = None
) -> dict[str, float]:
    """Units of work a second in each probe's shortest call; the median of its inputs, if it has several.

    (A cache may hold on to one of them.)

    Args:
        probes: by name; they take turns until the time is over, and each gets one turn at least.
        seconds: for all of them together.
        progress: called with tenths of a second, those over and all of them.
    """
    turns = {name: _Turns(probe) for name, probe in probes.items()}
    begin = time.perf_counter()
    while True:
        for one in turns.values():
            one.take()
        over = time.perf_counter() - begin
        if progress:
            progress("measuring", round(10 * min(over, seconds)), round(10 * seconds))
        if over >= seconds:
            return {name: probe.work / median(turns[name].best) for name, probe in probes.items()}


class _Turns:
    """A probe's calls, and the shortest on each input."""

    def __init__(self, probe: Probe) -> None:
        self._calls = [probe.program.prepare({"x": x}) for x in probe.inputs]
        self._next = 0
        self.best = [float("inf")] * len(self._calls)

    def take(self) -> None:
        """One turn, after a call on the last input that was used, to bring caches into place.

        Every input has been used when the first turn ends.
        """
        self._calls[self._next - 1]()
        end = time.perf_counter() + _TURN
        while True:
            start = time.perf_counter()
            self._calls[self._next]()
            stop = time.perf_counter()
            self.best[self._next] = min(self.best[self._next], stop - start)
            self._next = (self._next + 1) % len(self._calls)
            if stop >= end and max(self.best) < float("inf"):
                return


def _store_sum(k: Kernel, chains: Sequence[Any], tile: Any) -> None:
    total = chains[0]
    for chain in chains[1:]:
        total = total + chain
    k.put(k["y"], tile * k.lanes, total)


def _integers(k: Kernel) -> Any:
    """One 64-bit integer that LLVM keeps in a register."""
    from tvm.script.ir_builder import tirx as T

    return T.alloc_buffer((1,), "int64", scope="local")


def _store_integer(k: Kernel, value: Any, tile: Any) -> None:
    from tvm.script.ir_builder import tirx as T

    k.assign(k["y"], tile * k.lanes, T.cast(value, "float32"))


def _program(
    name: str, body: Body, target: Target, x: Any, tiles: int, threads: int,
    view: tuple[str, str] | None = None, stored: int = 1,
) -> Program:  # fmt: skip
    """A program of one kernel from x to y[tiles * stored * lanes].

    ``view`` is a second name and dtype of x, for numbers that are no floats.
    """
    sizes = Sizes()
    floats = tiles * stored * target.lanes
    buffers = (
        Buffer(BufferKind.INPUT, 0, sizes.of(x.nbytes)),
        Buffer(BufferKind.OUTPUT, 0, sizes.of(4 * floats)),
    )
    pointers = [("x", "float32"), *([view] if view else []), ("y", "float32")]
    values = [0, *([0] if view else []), 1]
    ends = (Argument(ArgumentKind.TILE_BEGIN), Argument(ArgumentKind.TILE_END))
    given = (Argument(ArgumentKind.POINTER, value) for value in values)
    # a predicted time long enough for all threads to be called
    step = Step(
        name, (Argument(ArgumentKind.SCRATCH), *given, *ends), sizes.of(tiles), sizes.of(64),
        nanoseconds=10**6, node=name,
    )  # fmt: skip
    ports = Port("x", "float32", (sizes.of(x.size),), 0), Port("y", "float32", (sizes.of(floats),), 1)
    plan = Plan((), tuple(sizes.expressions), buffers, (), (step,), ports[:1], ports[1:])
    emitted = prim_func(name, target.lanes, pointers, (), body)
    code = link([kernel_object(f"probe|{emitted.script()}", lambda: emitted, target)], target)
    return Program.from_bytes(to_bytes(plan, code, (), {"features": list(target.features)}), threads)


def _aligned(floats: int) -> Any:
    """Ones the executor reads where they lie."""
    raw = np.empty(floats + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    raw[start : start + floats] = 1
    return raw[start : start + floats]
