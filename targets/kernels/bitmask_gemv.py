"""bitmask_gemv: one bit an element and the nonzeros, times one to four columns.

For weights that come from L3 or memory, where bytes are what costs: half zeros take 2.125 bytes an
element against 4.  A step is one vector of inputs of one row: its mask says where the next packed
values go (a permutation looked up by the mask on AVX2 and ARM, an expanding move on AVX-512), and the
number of bits how many there were.  Several rows share the loads of x.  Values are one stream,
in the order they are read, so that one pointer walks it.

Arrays: ``values`` and a vector of padding; ``masks`` [groups][passes][steps][rows], one bit a
lane; ``starts`` int32: first value of each group of as many rows as a vector has lanes; for AVX2 ``places``
int32 [256, 8]: for each mask which value every lane takes, the sign set where it takes one.  ARM's lookups
answer 0 beyond a table, and counting bits is slow there, so its ``places`` hold positions and then the
numbers of bits of all masks: int32 for SVE; uint8 for NEON, whose vectors are taken two at a time.

The format is common; expanding moves for it on AVX-512 are those of SparAMX (AbouElhamayed et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cost import epilogue_cycles, overlapped, stream_cycles
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish_across
from sparsec.targets.kernels.lookups import NOWHERE, in_bytes, is_neon, is_sve, look_up
from sparsec.targets.kernels.shuffles import Registers, combine_rows, pick
from sparsec.targets.kernels.streaming import AHEAD, prefetch
from sparsec.targets.target import Packing, Problem, Target

name = "bitmask_gemv"
format = "bitmask"

_EXPAND = "llvm.x86.avx512.mask.expand.v16f32"
#: bits of a mask that NEON spreads at once
_HALF = 4
_FENCE = "llvm.arithmetic.fence"


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """One to four columns in plain layout; values numbered in 31 bits."""
    fits = problem.columns is not None and 1 <= problem.columns <= 4
    return problem.conv is None and problem.panel == 0 and fits and pattern.nonzeros < 1 << 31


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """As many rows together as make four accumulators or more, with registers left for the rest."""
    return ({"rows": width(target) // (2 if (problem.columns or 1) <= 2 else 4)},)


def width(target: Target) -> int:
    """Elements of a step: a vector, or two of NEON's."""
    return max(8, target.lanes)


def _steps(problem: Problem, target: Target) -> int:
    """Vectors of the weight, whole groups of rows."""
    lanes = width(target)
    return -(-problem.rows // lanes) * lanes * -(-problem.inner // lanes)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run: steps at the rate of the permutation, or the bytes of the stream."""
    columns, lanes = problem.columns or 1, width(target)
    rate = _step_cycles(columns, target)
    groups = -(-problem.rows // lanes)
    out = groups * columns * (4.0 * lanes + epilogue_cycles(problem))
    stream = stream_cycles(nbytes(problem, pattern, config, target), target)
    compute = _steps(problem, target) * rate
    return overlapped(compute, stream) + out + 100


def _step_cycles(columns: int, target: Target) -> float:
    """Cycles of a step, weights at hand."""
    if is_neon(target):
        # loads: the mask, and for either half values, positions and a number of bits
        return 3.5 + columns * 2 / target.fmas
    # fitted on Zen 3; a guess for others, where weights from memory wait for their bytes
    return 1.9 + 0.5 * columns


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """A bit for every element, the nonzeros, and the table."""
    lanes = width(target)
    table = 256 * lanes * 4 if lanes == 8 else 0
    groups = -(-problem.rows // lanes)
    return _steps(problem, target) * lanes // 8 + 4 * (pattern.nonzeros + lanes + groups) + table


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, K]``."""
    lanes, rows = width(target), config["rows"]
    groups, steps = -(-problem.rows // lanes), -(-problem.inner // lanes)
    padded = np.zeros((groups * lanes, steps * lanes), np.float32)
    padded[: problem.rows, : problem.inner] = weight
    # [group][pass][step][row][lane]: as they are read
    cut = padded.reshape(groups, lanes // rows, rows, steps, lanes).transpose(0, 1, 3, 2, 4)
    used = cut != 0
    masks = np.packbits(used, axis=-1, bitorder="little").reshape(-1).view(f"<u{lanes // 8}")
    starts = np.cumsum(used.reshape(groups, -1).sum(axis=1)) - used.reshape(groups, -1).sum(axis=1)
    values = np.concatenate((cut[used], np.zeros(lanes, np.float32)))
    arrays = {"values": values, "masks": masks, "starts": starts.astype(np.int32)}
    if lanes == 8:
        arrays["places"] = _places(target)
    return Packing(arrays, groups, tuple(sorted({**config, "chunks": groups}.items())))


def _places(target: Target) -> NDArray[Any]:
    """For each mask the rank of every bit among those set, and whether it is."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    ranks, counts = np.cumsum(bits, axis=1) - 1, bits.sum(axis=1)
    if is_neon(target):
        nibbles = np.where(bits, ranks, -1)[: 1 << _HALF, :_HALF, None]
        spread = np.where(nibbles < 0, NOWHERE, 4 * nibbles + np.arange(4))
        return np.concatenate((spread.reshape(-1), counts)).astype(np.uint8)
    if is_sve(target):
        return np.concatenate((np.where(bits, ranks, NOWHERE).reshape(-1), counts)).astype(np.int32)
    return np.where(bits, ranks - (1 << 31), 0).astype(np.int32).reshape(-1)


def scratch_floats(problem: Problem, packing: Packing, target: Target) -> int:
    """Room for the last inputs, padded to a vector, and for the results of one group."""
    return 2 * (problem.columns or 1) * width(target)


@dataclass(frozen=True, slots=True)
class _Emitter:
    """What every part of the function reads."""

    k: Kernel
    problem: Problem
    target: Target
    rows: int
    #: ``rows`` accumulators for each column
    sums: Any
    #: one number: the next value to read
    next: Any
    held: Registers

    @property
    def columns(self) -> int:
        return self.problem.columns or 1

    @property
    def resting(self) -> int:
        """Where in scratch the results of a group rest, after the last inputs."""
        return self.columns * self.k.lanes

    def spread(self, mask: Any, first: Any) -> Any:
        """The vector of the weight whose mask this is, from the packed values at ``first``."""
        from tvm import tirx
        from tvm.script.ir_builder import tirx as T

        k = self.k
        if is_neon(self.target):
            both = k.cast64(mask)
            low, high = k.bind(T.bitwise_and(both, 15)), k.bind(T.shift_right(both, _HALF))
            return pick([self.half(low, first), self.half(high, first + self.count(low))], range(k.lanes))
        # loads folded into a permutation take twice its time, into an expanding move its dependence
        kind, values = f"float32x{k.lanes}", k.vector(k["values"], first)
        values = k.bind(T.call_llvm_pure_intrin(kind, _FENCE, values))
        if k.lanes == 16:
            taken = T.reinterpret("uint1x16", mask)
            return T.call_llvm_pure_intrin(kind, _EXPAND, values, k.splat(0.0), taken)
        places = k.bind(k.vector(k["places"], k.cast64(mask) * 8))
        taken = look_up([values], places, self.target)
        if is_sve(self.target):
            return taken
        return tirx.Select(places < T.Broadcast(T.int32(0), 8), taken, k.splat(0.0))

    def half(self, nibble: Any, first: Any) -> Any:
        """A NEON vector of the weight."""
        k = self.k
        places = k.bind(k.vector(k["places"], nibble * 16, 16))
        return k.bind(in_bytes([k.vector(k["values"], first, _HALF)], places))

    def count(self, mask: Any) -> Any:
        """How many bits of a mask are set."""
        from tvm.script.ir_builder import tirx as T

        k = self.k
        if self.target.architecture == "x86_64":
            return k.cast64(T.popcount(T.cast(mask, "int32")))
        counts = 16 << _HALF if is_neon(self.target) else 256 * 8
        return k.cast64(k["places"][counts + k.cast64(mask)])

    def step(self, xs: Sequence[Any], line: Any) -> None:
        """The next vector of every row of the pass."""
        k = self.k
        first = k.bind(self.next[0])
        prefetch(k["values"], first + AHEAD, lines=self.rows * k.lanes // 32)
        for r in range(self.rows):
            mask = k.bind(k["masks"][line + r])
            value = k.bind(self.spread(mask, first))
            for n, x in enumerate(xs):
                k.assign(self.sums, n * self.rows + r, self.sums[n * self.rows + r] + value * x)
            first = k.bind(first + self.count(mask))
        k.assign(self.next, 0, first)

    def one_pass(self, line: Any) -> None:
        """All inputs of ``rows`` rows."""
        k, inner = self.k, self.problem.inner
        whole = inner // k.lanes
        for i in range(self.columns * self.rows):
            k.assign(self.sums, i, k.splat(0.0))
        with k.loop(whole) as j:
            xs = [k.bind(k.vector(k["x"], n * inner + j * k.lanes)) for n in range(self.columns)]
            self.step(xs, k.bind((line + j) * self.rows))
        if inner % k.lanes:
            xs = [k.bind(k.vector(k.scratch, n * k.lanes)) for n in range(self.columns)]
            self.step(xs, k.bind((line + whole) * self.rows))

    def pad_inputs(self) -> None:
        """The inputs beyond the last whole vector, and zeros."""
        k, inner = self.k, self.problem.inner
        left = inner % k.lanes
        for n in range(self.columns if left else 0):
            k.put(k.scratch, n * k.lanes, k.splat(0.0))
            with k.loop(left) as i:
                k.assign(k.scratch, n * k.lanes + i, k["x"][(n + 1) * inner - left + i])

    def group(self, number: Any) -> None:
        """As many rows as a vector has lanes, a few at a time."""
        k = self.k
        passes, steps = k.lanes // self.rows, -(-self.problem.inner // k.lanes)
        k.assign(self.next, 0, k.cast64(k["starts"][number]))
        with k.loop(passes) as visit:
            self.one_pass(k.bind((number * passes + visit) * steps))
            self.rest(visit)
        for n in range(self.columns):
            self.write(n, k.bind(number * k.lanes))

    def rest(self, visit: Any) -> None:
        """The sums of a pass, each of one vector's lanes, to scratch: [columns][rows of the group]."""
        k, rows = self.k, self.rows
        self.held.forget()
        sums = [self.sums[i] for i in range(self.columns * rows)]
        padding = [k.splat(0.0)] * (k.lanes - len(sums))
        totals = combine_rows(self.held, [*sums, *padding], lambda a, b: a + b)
        for n in range(self.columns):
            part = pick([totals], range(n * rows, (n + 1) * rows))
            k.put(k.scratch, self.resting + n * k.lanes + visit * rows, part, rows)

    def write(self, n: int, row: Any) -> None:
        """One column of a group: rows that exist."""
        k, problem = self.k, self.problem
        where, rest = k.bind(n * problem.rows + row), self.resting + n * k.lanes

        def put(first: Any, lanes: int) -> None:
            value = k.bind(k.vector(k.scratch, rest + first, lanes))
            at = k.bind(where + first)
            k.put(k["y"], at, finish_across(k, problem, value, row + first, at, lanes), lanes)

        if problem.rows >= k.lanes:
            with k.when(row + k.lanes <= problem.rows):
                put(0, k.lanes)
        if problem.rows % k.lanes:
            with k.when(row + k.lanes > problem.rows), k.loop(problem.rows % k.lanes) as i:
                put(i, 1)


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    from tvm.script.ir_builder import tirx as T

    lanes, rows = width(target), dict(packing.config)["rows"]

    def body(k: Kernel) -> None:
        sums = k.registers((problem.columns or 1) * rows)
        position = T.alloc_buffer((1,), "int64", scope="local")
        emitter = _Emitter(k, problem, target, rows, sums, position, Registers(k, lanes))
        emitter.pad_inputs()
        with k.tiles() as number:
            emitter.group(number)

    pointers = [("x", "float32"), ("values", "float32"), ("masks", f"uint{lanes}"), ("starts", "int32")]
    table = [("places", "uint8" if is_neon(target) else "int32")] if lanes == 8 else []
    return prim_func(name, lanes, [*pointers, *table, *extra_pointers(problem), ("y", "float32")], (), body)
