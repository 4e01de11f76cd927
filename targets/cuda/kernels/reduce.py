"""reduce: sum, mean, max and min over any axes of a row-major tensor.

Neighbouring axes that are all kept or all reduced are one.  Where the last axis is reduced, a team of threads
has a row of x: part of a warp, a warp or a block; where it is kept, a thread has neighbouring columns, and
several threads share what is reduced.  Either way memory is read up to 128 bits at a time, in order.
Too few results to keep the GPU busy are made in two kernels: the first reduces shares of the elements, in
float32, the second the shares.  The order of additions depends on nothing but the shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from sparsec.ir.attributes import ReduceAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Node
from sparsec.ir.types import Type
from sparsec.targets.calls import Call, Context, known
from sparsec.targets.cuda import expressions, leftover
from sparsec.targets.cuda.builder import WARP, Array, Kernel, device_function, int64, integer
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.cost import MEMORY_SHARE, gpu_of
from sparsec.targets.cuda.kernels.elementwise import FLOATS
from sparsec.targets.cuda.parts import teams
from sparsec.targets.cuda.tir import T
from sparsec.targets.kernels.reduce import merged
from sparsec.targets.kernels.tiles import Numbers

#: threads of a block, and elements of a row from which on it takes a whole one
THREADS, LONG = 256, 4096
#: threads that share what is reduced into a column
SHARES = 8
#: blocks that keep a GPU busy, and elements that each thread of a first kernel should have at least
ENOUGH, WORTH = 256, 16

#: (size, distance between neighbours), outermost first
Axes = tuple[tuple[Size, Size], ...]

_START = {"sum": 0.0, "mean": 0.0, "max": float("-inf"), "min": float("inf")}
_JOIN = {"sum": teams.add, "mean": teams.add, "max": teams.larger, "min": teams.smaller}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel is generated for: x's axes, dtypes of x and y.

    ``splits``: y gets results for as many shares of the elements, one after the other.  ``divisor`` is what
    sums are divided by at last.
    """

    kind: str
    kept: Axes
    reduced: Axes
    dtypes: tuple[str, str]
    splits: int = 1
    divisor: Size = 1

    @property
    def rows(self) -> bool:
        """Whether x is contiguous along a reduced axis."""
        return self.reduced[-1][1] == 1

    @property
    def vector(self) -> int:
        """Neighbours read at once."""
        along = (self.reduced if self.rows else self.kept)[-1][0]
        if not isinstance(along, int) or along == 0:
            return 1
        most = 8 if self.dtypes[0] != "float32" else 4
        return next(v for v in (most, 4, 2, 1) if along % v == 0)

    @property
    def results(self) -> Size:
        """Elements of y, of one share."""
        return product(size for size, _ in self.kept)

    @property
    def steps(self) -> Size:
        """Reads, one after the other, that make a result: vectors of a row, or elements of a column."""
        *outer, (last, _) = self.reduced
        if isinstance(last, int) and self.rows:
            last //= self.vector
        return product(size for size, _ in outer) * last

    @property
    def team(self) -> int:
        """Threads that share a result."""
        steps = self.steps
        if not self.rows:
            return SHARES if not isinstance(steps, int) or steps > 2 * SHARES else 1
        if not isinstance(steps, int) or steps * self.vector >= LONG:
            return THREADS
        return min(WARP, 1 << max(0, steps - 1).bit_length())

    @property
    def block(self) -> int:
        """Results of a block."""
        return THREADS // self.team * (1 if self.rows else self.vector)


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The calls for a reduce node: one, or two with partial results between."""
    x, attrs = context.type(n.args[0]), cast(ReduceAttrs, n.attrs)
    if x.dtype not in FLOATS or n.type.dtype not in FLOATS:
        return leftover.calls(n, context)
    found = merged(x.shape, attrs.axes, attrs.kind)
    reduced = found.reduced or ((1, 1 if not found.kept else found.kept[0][0] * found.kept[0][1]),)
    divisor = product(x.shape[a] for a in attrs.axes) if attrs.kind == "mean" else 1
    shape = Shape(attrs.kind, found.kept, reduced, (x.dtype, n.type.dtype), 1, divisor)
    moved = known(x.elements, 4096) * 4
    splits = _splits(shape)
    if splits == 1:
        return (_call(context, shape, (n.args[0], n.name), moved),)
    results = shape.results
    first = replace(shape, splits=splits, divisor=1, dtypes=(x.dtype, "float32"))
    last = replace(
        shape, kept=((results, 1),), reduced=((splits, results),), dtypes=("float32", n.type.dtype)
    )
    parts = f"{n.name}#parts"
    makes = ((parts, Type((splits, results))),)
    return (
        _call(context, first, (n.args[0], parts), moved, makes),
        _call(context, last, (parts, n.name), known(results) * 4 * splits),
    )


def _splits(shape: Shape) -> int:
    """Shares to divide the elements into, so that there are blocks for all multiprocessors.

    Their number is the same for all GPUs: they may share a plan, and the partial results are values of it.
    """
    results, steps = shape.results, shape.steps
    if not isinstance(results, int) or not isinstance(steps, int):
        return 1
    blocks = -(-results // shape.block)
    return max(1, min(ENOUGH // max(1, blocks), steps // (shape.team * WORTH)))


def _call(
    context: Context, shape: Shape, reads: tuple[str, ...], moved: float,
    makes: tuple[tuple[str, Type], ...] = (),
) -> Call:  # fmt: skip
    sizes, gpu = context.sizes, gpu_of(context.target)
    blocks = sizes.ceil_divide(sizes.of(shape.results), shape.block)
    return device_call(
        context, "reduce", shape, lambda name: emit(shape, name), reads,
        tuple(sizes.of(d) for d in numbers(shape).dims), sizes.multiply(blocks, sizes.of(shape.splits)),
        gpu.launch + moved / (gpu.dram_bytes * MEMORY_SHARE), makes,
    )  # fmt: skip


def numbers(shape: Shape) -> Numbers:
    """The run-time sizes the kernel reads."""
    pairs = [n for axis in (*shape.kept, *shape.reduced) for n in axis]
    return Numbers([*pairs, shape.divisor, shape.results, shape.steps])


def emit(shape: Shape, name: str) -> Any:
    """The TIR function; blocks: results over :attr:`Shape.block`, rounded up, times the splits."""
    needed = numbers(shape)
    pointers = [("x", shape.dtypes[0]), ("y", shape.dtypes[1])]
    return device_function(name, THREADS, pointers, needed.labels, lambda k: _Writer(k, shape, needed).body())


@dataclass(frozen=True, slots=True)
class _Writer:
    """Emits the kernel."""

    k: Kernel
    shape: Shape
    needed: Numbers

    def number(self, size: Size) -> Any:
        """A size as an int64 expression."""
        # it asks the kernel for its sizes alone, which both kinds of kernel have
        return integer(self.needed.value(cast(Any, self.k), size))

    def body(self) -> None:
        k, s = self.k, self.shape
        results = self.number(s.results)
        split, block = integer(0), k.block
        if s.splits > 1:
            split = k.bind(T.truncmod(k.block, integer(s.splits)))
            block = k.bind(T.truncdiv(k.block, integer(s.splits)))
        inside, result, member = self._place(block, results)
        # who has no result reads nothing, but comes along: shuffles need whole warps
        totals = self._total(self._offset(result, s.kept), member, split, inside)
        values = self._joined(totals)
        with k.when(T.And(inside, member == 0)):
            to = k.bind(split * results + result)
            expressions.store(k, k["y"], to, [self._finished(v) for v in values])

    @property
    def _width(self) -> int:
        """Neighbouring results of a thread."""
        return 1 if self.shape.rows else self.shape.vector

    def _place(self, block: Any, results: Any) -> tuple[Any, Any, Any]:
        """Whether the thread has a result, its number, and which of the team's members the thread is."""
        k, s = self.k, self.shape
        teams_of_block = THREADS // s.team
        if s.rows:
            own, member = k.thread // s.team, k.thread % s.team
        else:
            own, member = k.thread % teams_of_block, k.thread // teams_of_block
        result = k.bind((block * teams_of_block + int64(own)) * self._width)
        return result < results, result, k.bind(member)

    def _offset(self, flat: Any, axes: Axes) -> Any:
        """Where an element is, of axes counted through as one."""
        offset: Any = integer(0)
        for size, distance in reversed(axes[1:]):
            inner = self.number(size)
            offset = offset + T.truncmod(flat, inner) * self.number(distance)
            flat = self.k.bind(T.truncdiv(flat, inner))
        if axes:
            offset = offset + flat * self.number(axes[0][1])
        return self.k.bind(offset)

    def _total(self, read: Any, member: Any, split: Any, inside: Any) -> Array:
        """What the thread joins of its share: a register for each element of a vector."""
        k, s = self.k, self.shape
        totals = k.registers(s.vector)
        for i in range(s.vector):
            totals.put(i, expressions.constant(_START[s.kind]))
        each = -(-cast(int, s.steps) // s.splits) if s.splits > 1 else None
        first = split * each if each else integer(0)
        last = T.min(first + each, self.number(s.steps)) if each else self.number(s.steps)
        count = T.truncdiv(last - first - int64(member) + (s.team - 1), integer(s.team))
        wide = s.vector if s.rows else 1
        begin = k.bind(first + int64(member))
        with k.loop(k.bind(T.Select(inside, count, integer(0))), dtype="int64") as i:
            at = self._offset(k.bind((begin + i * s.team) * wide), s.reduced)
            for slot, value in enumerate(expressions.load(k, k["x"], read + at, s.vector)):
                totals.put(slot, _JOIN[s.kind](k, totals[slot], value))
        return totals

    def _joined(self, totals: Array) -> Sequence[Any]:
        """The results, joined over the team."""
        k, s, join = self.k, self.shape, _JOIN[self.shape.kind]
        if s.rows:
            one = teams.joined(k, [totals[i] for i in range(s.vector)], join)
            return [teams.across(k, one, join, s.team)]
        teams.across_parts(k, totals, s.vector, join, s.team)
        return [totals[i] for i in range(s.vector)]

    def _finished(self, value: Any) -> Any:
        divisor = self.shape.divisor
        if divisor == 1:
            return value
        return value / T.cast(self.number(divisor), "float32")
