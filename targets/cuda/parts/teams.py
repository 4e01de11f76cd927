"""teams: threads that work on one row together, and what they agree on.

A team is a power of two of neighbouring threads: a part of a warp, a warp, or the whole block.  Its
members combine a value by shuffles, and through shared memory where there are several warps, always in
the same order.  Partial results that lie ``parts`` times in a block, once for each of its columns, are
combined through shared memory too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import WARP, Array, Kernel

#: two float32 to one: associative and commutative, but for rounding
Join: TypeAlias = Callable[[Kernel, Any, Any], Any]


def add(k: Kernel, a: Any, b: Any) -> Any:
    """The sum."""
    return a + b


def larger(k: Kernel, a: Any, b: Any) -> Any:
    """The maximum; a NaN on either side wins, as in NumPy."""
    return k.value(instructions.maximum, a, b)


def smaller(k: Kernel, a: Any, b: Any) -> Any:
    """The minimum; a NaN on either side wins, as in NumPy."""
    return k.value(instructions.minimum, a, b)


def across(k: Kernel, value: Any, join: Join, team: int) -> Any:
    """What all members of a team have, joined; every member gets it.

    Args:
        k: the kernel; all threads of the block must come here.
        value: a float32 of each thread.
        join: what joins two.
        team: members: up to 32, a power of two, or all threads of the block, a multiple of 32.
    """
    total = k.bind(value)
    distance = min(team, WARP) // 2
    while distance:
        total = k.bind(join(k, total, k.value(instructions.shuffle_xor, total, distance)))
        distance //= 2
    if team <= WARP:
        return total
    slots = k.shared(team // WARP, "float32")
    with k.when(k.lane == 0):
        slots.put(k.warp, total)
    k.sync()
    return joined(k, [slots[i] for i in range(team // WARP)], join)


def joined(k: Kernel, values: Sequence[Any], join: Join) -> Any:
    """Values of one thread, joined in pairs, so that errors of sums grow slowly."""
    left = [k.bind(v) for v in values]
    while len(left) > 1:
        pairs = [k.bind(join(k, a, b)) for a, b in zip(left[::2], left[1::2], strict=False)]
        left = pairs + left[len(pairs) * 2 :]
    return left[0]


def across_parts(k: Kernel, values: Array, count: int, join: Join, parts: int) -> None:
    """Join, in place, registers of the threads ``part * columns + column`` over all parts of a block.

    Args:
        k: the kernel; all threads of the block must come here.
        values: ``count`` float32 registers.
        count: how many.
        join: what joins two.
        parts: into which the block's threads are divided.
    """
    if parts == 1:
        return
    columns = k.threads // parts
    slots = k.shared(count * k.threads, "float32")
    for i in range(count):
        slots.put(i * k.threads + k.thread, values[i])
    k.sync()
    column = k.bind(k.thread % columns)
    for i in range(count):
        found = [slots[i * k.threads + part * columns + column] for part in range(parts)]
        values.put(i, joined(k, found, join))
