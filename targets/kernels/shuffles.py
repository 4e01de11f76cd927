"""shuffles: transposes, spreads and sums of a few vectors, in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.kernels.math import lanes_of
from sparsec.targets.kernels.spans import spans

#: elements of a 128-bit register, within which shuffles are cheapest
QUARTER = 4


class Registers:
    """Values named in turn, so that TVM never writes an expression out twice.

    Made at the start of a kernel: TVM loses track of buffers that are declared in loops.
    """

    def __init__(self, k: Kernel, capacity: int) -> None:
        self._k, self._capacity = k, capacity
        widths = [1 << i for i in range(1, k.lanes.bit_length())]
        self._slots = {lanes: k.registers(capacity, lanes) for lanes in widths}
        self._used: dict[int, int] = {}

    def hold(self, value: Any) -> Any:
        """The value, kept in a register."""
        lanes = lanes_of(value)
        slot = self._used.get(lanes, 0)
        assert slot < self._capacity, "a slot used twice would lose the value it holds"
        self._used[lanes] = slot + 1
        self._k.assign(self._slots[lanes], slot, value)
        return self._slots[lanes][slot]

    def forget(self) -> None:
        """Use the slots anew: nothing held so far is read again."""
        self._used.clear()


def pick(vectors: Sequence[Any], lanes: Sequence[int]) -> Any:
    """The elements of the vectors, joined, at constant positions."""
    from tvm.script.ir_builder import tirx as T

    return T.Shuffle(list(vectors), list(lanes))


def pick_spread(held: Registers, vectors: Sequence[Any], positions: Sequence[int]) -> Any:
    """:func:`pick` by shuffles of two vectors at a time, which are single instructions."""
    width = lanes_of(vectors[0])
    found = None
    for number, vector in enumerate(vectors):
        inside = [position // width == number for position in positions]
        if not any(inside):
            continue
        if found is None:
            found = (vector, [position % width for position in positions])
            continue
        first, order = found
        taken = [
            width + position % width if mine else at
            for position, mine, at in zip(positions, inside, order, strict=True)
        ]
        found = (held.hold(pick([first, vector], taken)), list(range(width)))
    assert found is not None
    first, order = found
    return first if order == list(range(width)) else held.hold(pick([first], order))


def transpose_strip(k: Kernel, held: Registers, load: Callable[[int], Any], width: int) -> list[Any]:
    """Four vectors of ``width``: element j of vector i is element i of ``load(j)``, four elements.

    Quarters of vectors are gathered by loads; what is left is a transpose within quarters.
    """
    quarters = width // QUARTER
    rows = []
    for r in range(QUARTER):
        parts = [k.bind(load(QUARTER * q + r)) for q in range(quarters)]
        rows.append(held.hold(pick(parts, range(width))) if quarters > 1 else parts[0])

    return transpose_quarters(held, rows)


def transpose_quarters(held: Registers, rows: Sequence[Any]) -> list[Any]:
    """The transpose of four vectors within every quarter."""
    width = lanes_of(rows[0])

    def mixed(a: Any, b: Any, order: tuple[int, ...]) -> Any:
        """Every quarter of a and b in the order given, 4 and above being b's."""
        first = [at % QUARTER + at // QUARTER * width for at in order]
        return held.hold(pick([a, b], [QUARTER * q + at for q in range(width // QUARTER) for at in first]))

    low, high = (0, 4, 1, 5), (2, 6, 3, 7)
    first, second = (0, 1, 4, 5), (2, 3, 6, 7)
    halves = [(mixed(rows[0], rows[1], order), mixed(rows[2], rows[3], order)) for order in (low, high)]
    return [mixed(a, b, order) for a, b in halves for order in (first, second)]


def combine_rows(held: Registers, rows: Sequence[Any], join: Callable[[Any, Any], Any]) -> Any:
    """One vector from as many as it has lanes: its lane i combines all lanes of row i.

    Neighbours are joined first, then quarters; every row in the same order.
    """
    width = lanes_of(rows[0])
    assert len(rows) == width
    values = list(rows)
    while len(values) > 1:
        unit = 1 if width // len(values) < min(QUARTER, width) else QUARTER
        even, odd = (_every_other(width, unit, start) for start in (0, 1))
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [held.hold(join(pick(pair, even), pick(pair, odd))) for pair in pairs]
    return values[0]


def _every_other(width: int, unit: int, start: int) -> list[int]:
    """Every other unit of two vectors: within each quarter, or of the whole for units of a quarter."""
    group = min(QUARTER, width) if unit == 1 else width
    return [
        source + first + at + lane
        for first in range(0, width, group)
        for source in (0, width)
        for at in range(start * unit, group, 2 * unit)
        for lane in range(unit)
    ]


def strided(k: Kernel, held: Registers, buffer: Any, offset: Any, stride: int, lanes: int) -> Any:
    """``lanes`` elements ``stride`` apart, from whole vectors that read nothing past the last."""
    from tvm.script.ir_builder import tirx as T

    if stride == 1 or lanes == 1:
        return k.vector(buffer, offset, lanes)
    if stride > QUARTER:
        return buffer[T.Ramp(offset, stride, lanes)]
    last = stride * (lanes - 1) + 1 - lanes
    starts = [*range(0, (stride - 1) * lanes, lanes), last]
    vectors = [k.bind(k.vector(buffer, offset + start, lanes)) for start in starts]
    # the last vector begins early, so its elements stand further back
    places = [p if p < last else p - last + (stride - 1) * lanes for p in range(0, stride * lanes, stride)]
    return pick_spread(held, vectors, places)


def vectors(k: Kernel, count: Any, width: int) -> Iterator[tuple[Any, int]]:
    """Emit the loops over ``count`` elements; yields (offset, lanes) inside them.

    The last vector overlaps the one before it, and fewer elements than a vector are taken in
    narrower ones or one by one: what is done to an element must be right to do twice.
    """
    from tvm.script.ir_builder import tirx as T

    if isinstance(count, int):
        yield from spans(k, count, width)
        return
    whole = k.bind(T.truncdiv(count, k.constant(width)))
    with k.loop(whole) as i:
        yield k.bind(i * width), width
    with k.when(whole * width < count), T.If(whole > 0):
        with T.Then():
            yield k.bind(count - width), width
        with T.Else(), k.loop(count) as i:
            yield i, 1
