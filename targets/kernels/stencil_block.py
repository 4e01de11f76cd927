"""stencil_block: one block of a stencil: where it lies, and the vectors of x that its taps read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.shuffles import Registers, pick, pick_spread
from sparsec.targets.kernels.stencil import Run, Stencil

#: a lane that is padding, and one that nobody reads
FILL, ANY = None, "any"


class Block:
    """A block under construction: where it lies in x and y, and the vectors it reads."""

    def __init__(
        self, k: Kernel, held: Registers, stencil: Stencil, down: Run, across: Run,
        place: tuple[Any, Any], planes: tuple[Any, Any], fill: float,
    ) -> None:  # fmt: skip
        g = stencil.geometry
        self._k, self._held, self._fill = k, held, fill
        self.stencil, self.down, self.across = stencil, down, across
        start = stencil.starts[across.start]
        self.starts = tuple(s - start for s in stencil.starts[across.start : across.start + across.size])
        row, column = place
        x_row, x_column = (row * g.strides[0] - g.padding[0]), (column * g.strides[1] - g.padding[1])
        self._x = k.bind(planes[0] + (x_row * g.width + x_column))
        self.y = k.bind(planes[1] + (row * g.out_width + column))
        first, last = ((at * g.strides[0] - g.padding[0]) * g.width for at in (down.start, down.last))
        left, right = (stencil.starts[at] * g.strides[1] - g.padding[1] for at in (across.start, across.last))
        #: offsets from the corner that lie inside the plane, wherever the block is
        self._range = -(first + left), g.height * g.width - (last + right)

    def row_inside(self, row: int) -> bool:
        """Whether input row ``row`` of the block lies inside x."""
        g = self.stencil.geometry
        return self.down.count > 1 or 0 <= self.down.start * g.strides[0] - g.padding[0] + row < g.height

    def rows_inside(self, i: int, low: int = 0, high: int | None = None) -> int:
        """How many tap rows of output row ``i`` lie at [low, high) (default: inside x)."""
        g = self.stencil.geometry
        if self.down.count > 1:
            return g.kernel[0]
        top = (self.down.start + i) * g.strides[0] - g.padding[0]
        end = g.height if high is None else high
        return sum(low <= top + r * g.dilation[0] < end for r in range(g.kernel[0]))

    def columns_inside(self, v: int, low: int = 0, high: int | None = None) -> tuple[int, ...]:
        """The same for the columns of vector ``v``: one number for each output, in order."""
        g, width = self.stencil.geometry, self.stencil.width
        if self.across.count > 1:
            return (g.kernel[1],) * width
        end = g.width if high is None else high
        start = self.stencil.starts[self.across.start + v]
        lefts = [(start + j) * g.strides[1] - g.padding[1] for j in range(width)]
        return tuple(sum(low <= x + s * g.dilation[1] < end for s in range(g.kernel[1])) for x in lefts)

    @property
    def reads(self) -> dict[int, list[tuple[int, int]]]:
        """For each input row that lies inside x: which output rows read it, with which row of taps."""
        g = self.stencil.geometry
        found: dict[int, list[tuple[int, int]]] = {}
        for i in range(self.down.size):
            for r in range(g.kernel[0]):
                found.setdefault(i * g.strides[0] + r * g.dilation[0], []).append((i, r))
        return {row: uses for row, uses in sorted(found.items()) if self.row_inside(row)}

    def vector(self, row: int, s: int, v: int) -> Any | None:
        """What column ``s`` of the taps reads of input row ``row``, for vector ``v``.

        Lanes are in the stencil's order; None where all of them are padding.
        """
        g, stencil = self.stencil.geometry, self.stencil
        start = stencil.starts[self.across.start] * g.strides[1] - g.padding[1]
        wanted: list[Any] = []
        for at in stencil.order:
            column = (self.starts[v] + at) * g.strides[1] + s * g.dilation[1]
            inside = self.across.count > 1 or 0 <= start + column < g.width
            beyond = stencil.ragged and at >= g.out_width
            wanted.append(ANY if beyond else row * g.width + column if inside else FILL)
        odd = s * g.dilation[1] % g.strides[1]
        return gather(self._k, self._held, self._x, wanted, self._range, odd, self._fill)

    def in_order(self, value: Any) -> Any:
        """A vector of outputs with its lanes in order."""
        order = self.stencil.order
        if order == tuple(range(len(order))):
            return value
        return self._held.hold(pick([value], [order.index(j) for j in range(len(order))]))

    def store(self, values: Callable[[int, int], Any], put: Callable[[Any, Any, int], None]) -> None:
        """Store ``values(i, v)`` (lanes in order) through ``put(value, offset in y, lanes)``."""
        g, stencil = self.stencil.geometry, self.stencil
        for i in range(self.down.size):
            for v, start in enumerate(self.starts):
                value, where = values(i, v), i * g.out_width + start
                if stencil.ragged and self.down.start + i == g.out_height - 1 and self.down.count == 1:
                    back = stencil.width - g.out_width
                    lanes = [g.out_width - back + j if j < back else stencil.width + j - back
                             for j in range(stencil.width)]  # fmt: skip
                    value = self._held.hold(pick([values(i - 1, v), value], lanes))
                    where -= back
                put(value, self._k.bind(self.y + where), stencil.width)
                self._held.forget()


def gather(
    k: Kernel, held: Registers, base: Any, wanted: Sequence[Any], inside: tuple[int, int], back: int,
    fill: float,
) -> Any | None:  # fmt: skip
    """The elements of x at ``base + wanted`` (or FILL, or ANY), from loads within ``base + inside``.

    ``back`` is how far before the first element loads should start, so that they serve others too.
    None where nothing but padding is wanted.
    """
    width, (low, high) = len(wanted), inside
    real = [w for w in wanted if isinstance(w, int)]
    if not real:
        return None
    if high - low < width or width == 1:
        numbers = [k.splat(fill, 1) if w in (FILL, ANY) else k.bind(k["x"][base + w]) for w in wanted]
        return numbers[0] if width == 1 else held.hold(pick(numbers, range(width)))
    starts = _loads(wanted, real, (low, high), back)
    loads = [k.bind(k.vector(k["x"], base + start, width)) for start in starts]
    positions = [_position(w, lane, starts, width) for lane, w in enumerate(wanted)]
    if len(loads) == 1 and positions == list(range(width)):
        return held.hold(loads[0])
    loads = [held.hold(load) for load in loads]
    if FILL in wanted:
        loads.append(k.splat(fill, width))
    return held.hold(pick(loads, positions)) if len(loads) <= 2 else pick_spread(held, loads, positions)


def _loads(wanted: Sequence[Any], real: Sequence[int], inside: tuple[int, int], back: int) -> list[int]:
    """Where vectors start that hold all of ``real``, the lanes in place if that can be."""
    width, (low, high) = len(wanted), inside
    first = next(w - lane for lane, w in enumerate(wanted) if isinstance(w, int))
    straight = all(w - lane == first for lane, w in enumerate(wanted) if isinstance(w, int))
    if straight and low <= first <= high - width:
        return [first]
    starts: list[int] = []
    for at in sorted(real):
        if not starts or at >= starts[-1] + width:
            # loads after the first follow it, so that neighbours need the same ones
            follows = starts[-1] + width if starts else at - (0 if straight else back)
            start = follows if at < follows + width else at
            starts.append(max(low, min(start, high - width)))
    return starts


def _position(wanted: Any, lane: int, starts: Sequence[int], width: int) -> int:
    """Where a lane finds its element in the loads, joined, padding after them."""
    if wanted is FILL:
        return len(starts) * width + lane
    if wanted is ANY:
        return lane
    number = next(i for i, start in enumerate(starts) if start <= wanted < start + width)
    return int(number * width + wanted - starts[number])
