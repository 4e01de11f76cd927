"""layer_norm, rms_norm and softmax, vectorised.

Both see their tensor as ``[outer][axis][inner]`` and work along the middle.  With an inner axis
(token panels, or a softmax over an outer axis) lanes are neighbouring columns and nothing is
summed across lanes; without one, lanes run along the axis and are summed at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sparsec.ir.dims import Size
from sparsec.targets.kernels import math
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.target import Target


def _size(k: Kernel, size: Size, label: str) -> Any:
    return k.constant(size) if isinstance(size, int) else k.sizes[label]


def _across(value: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine the lanes of a vector into one number, pairwise."""
    from tvm.script.ir_builder import tirx as T

    parts = [T.Shuffle([value], [i]) for i in range(lanes)]
    while len(parts) > 1:
        parts = [combine(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


class Lines:
    """The lines along the axis of one tile: how to walk, load, store and reduce them."""

    def __init__(self, k: Kernel, axis: Any, inner: Any, tile: Any, lane: Any, lanes: int) -> None:
        self.k, self.axis, self.inner, self.lanes = k, axis, inner, lanes
        self.base = k.bind(tile * axis * inner + lane)

    def walk(self) -> Iterator[tuple[Any, Any, int]]:
        """(axis index, element offset, lanes) of every vector along the line."""
        with self.k.loop(self.axis) as i:
            yield i, self.base + i * self.inner, self.lanes

    def reduce(
        self, acc: Any, slot: int, start: float, step: Callable[..., Any], join: Callable[..., Any]
    ) -> Any:
        """Fold ``step(total, offset, lanes)`` along the line."""
        k = self.k
        k.assign(acc, slot, k.splat(start, self.lanes))
        for _, at, lanes in self.walk():
            k.assign(acc, slot, step(acc[slot], at, lanes))
        return k.bind(acc[slot])


class Rows:
    """One contiguous row: vectors along it, then single elements, lanes combined at the end."""

    def __init__(self, k: Kernel, axis: Any, tile: Any) -> None:
        self.k, self.axis, self.lanes = k, axis, k.lanes
        self.base = k.bind(tile * axis)
        self.whole = k.bind(axis // k.lanes)

    def walk(self) -> Iterator[tuple[Any, Any, int]]:
        """(axis index, element offset, lanes): whole vectors first, then the rest."""
        with self.k.loop(self.whole) as i:
            yield i * self.lanes, self.base + i * self.lanes, self.lanes
        with self.k.loop(self.whole * self.lanes, self.axis) as i:
            yield i, self.base + i, 1

    def reduce(
        self, acc: Any, slot: int, start: float, step: Callable[..., Any], join: Callable[..., Any]
    ) -> Any:
        """Fold ``step(total, offset, lanes)`` along the row; one number in every lane."""
        from tvm.script.ir_builder import tirx as T

        k = self.k
        single = T.alloc_buffer((1,), "float32", scope="local")
        k.assign(acc, slot, k.splat(start))
        k.assign(single, 0, T.float32(start))
        for _, at, lanes in self.walk():
            if lanes > 1:
                k.assign(acc, slot, step(acc[slot], at, lanes))
            else:
                k.assign(single, 0, step(single[0], at, 1))
        return k.bind(join(_across(acc[slot], self.lanes, join), single[0]))


def _spread(k: Kernel, value: Any, lanes: int) -> Any:
    """A reduction's result for ``lanes`` lanes."""
    have = math.lanes_of(value)
    return k.splat(value, lanes) if have == 1 and lanes > 1 else value


def _each_line(k: Kernel, axis: Size, inner: Size, work: Callable[[Any], None]) -> None:
    """Call ``work(lines)`` for every line of this call's tiles, vectors of lines where possible."""
    with k.tiles() as tile:
        if inner == 1:
            work(Rows(k, _size(k, axis, "axis"), tile))
            return
        width, length = _size(k, inner, "inner"), _size(k, axis, "axis")
        whole = k.bind(width // k.lanes)
        with k.loop(whole) as i:
            work(Lines(k, length, width, tile, i * k.lanes, k.lanes))
        if not (isinstance(inner, int) and inner % k.lanes == 0):
            with k.loop(whole * k.lanes, width) as lane:
                work(Lines(k, length, width, tile, lane, 1))


def layer_norm(axis: Size, inner: Size, epsilon: float, target: Target, name: str) -> Any:
    """``(x - mean) / sqrt(variance + epsilon) * gamma + beta`` along the axis (Ba et al. 2016)."""
    from tvm.script.ir_builder import tirx as T

    def normalise(k: Kernel, acc: Any, lines: Any) -> None:
        count = T.cast(_size(k, axis, "axis"), "float32")
        total = lines.reduce(acc, 0, 0.0, lambda t, at, n: t + k.vector(k["x"], at, n), lambda a, b: a + b)
        mean = k.bind(total / _like(k, count, total))

        def square(t: Any, at: Any, n: int) -> Any:
            d = k.bind(k.vector(k["x"], at, n) - _spread(k, mean, n))
            return t + d * d

        variance = lines.reduce(acc, 0, 0.0, square, lambda a, b: a + b)
        spread = variance / _like(k, count, variance) + math.constant(epsilon, variance)
        scale = k.bind(math.constant(1.0, variance) / T.sqrt(spread))
        for i, at, n in lines.walk():
            along = isinstance(lines, Rows)
            gamma = k.vector(k["gamma"], i, n) if along else _spread(k, k["gamma"][i], n)
            beta = k.vector(k["beta"], i, n) if along else _spread(k, k["beta"][i], n)
            x = k.vector(k["x"], at, n)
            k.put(k["y"], at, (x - _spread(k, mean, n)) * _spread(k, scale, n) * gamma + beta, n)

    return _build(name, ("x", "gamma", "beta", "y"), axis, inner, target, normalise)


def rms_norm(axis: Size, inner: Size, epsilon: float, target: Target, name: str) -> Any:
    """``x / sqrt(mean of x * x + epsilon) * gamma`` along the axis (Zhang and Sennrich 2019)."""
    from tvm.script.ir_builder import tirx as T

    def normalise(k: Kernel, acc: Any, lines: Any) -> None:
        def square(t: Any, at: Any, n: int) -> Any:
            x = k.bind(k.vector(k["x"], at, n))
            return t + x * x

        count = T.cast(_size(k, axis, "axis"), "float32")
        total = lines.reduce(acc, 0, 0.0, square, lambda a, b: a + b)
        spread = total / _like(k, count, total) + math.constant(epsilon, total)
        scale = k.bind(math.constant(1.0, total) / T.sqrt(spread))
        for i, at, n in lines.walk():
            gamma = k.vector(k["gamma"], i, n) if isinstance(lines, Rows) else _spread(k, k["gamma"][i], n)
            k.put(k["y"], at, k.vector(k["x"], at, n) * _spread(k, scale, n) * gamma, n)

    return _build(name, ("x", "gamma", "y"), axis, inner, target, normalise)


def softmax(axis: Size, inner: Size, log: bool, target: Target, name: str) -> Any:
    """``exp(x - max) / sum(exp(x - max))`` along the axis, or its logarithm."""
    from tvm.script.ir_builder import tirx as T

    def normalise(k: Kernel, acc: Any, lines: Any) -> None:
        top = lines.reduce(acc, 0, float("-inf"), lambda t, at, n: T.max(t, k.vector(k["x"], at, n)), T.max)

        def accumulate(t: Any, at: Any, n: int) -> Any:
            e = math.exp(k.bind(k.vector(k["x"], at, n) - _spread(k, top, n)))
            k.put(k["y"], at, e, n)
            return t + e

        total = lines.reduce(acc, 0, 0.0, accumulate, lambda a, b: a + b)
        shift = k.bind(top + math.log(total)) if log else k.bind(math.constant(1.0, total) / total)
        for _, at, n in lines.walk():
            if log:
                value = k.vector(k["x"], at, n) - _spread(k, shift, n)
            else:
                value = k.vector(k["y"], at, n) * _spread(k, shift, n)
            k.put(k["y"], at, value, n)

    return _build(name, ("x", "y"), axis, inner, target, normalise)


def _like(k: Kernel, number: Any, like: Any) -> Any:
    return _spread(k, number, math.lanes_of(like))


def _build(
    name: str, names: tuple[str, ...], axis: Size, inner: Size, target: Target, work: Callable[..., None]
) -> Any:
    def body(k: Kernel) -> None:
        acc = k.registers(1)
        single = k.registers(1, 1)
        _each_line(k, axis, inner, lambda lines: work(k, acc if lines.lanes > 1 else single, lines))

    return prim_func(name, target.lanes, [(n, "float32") for n in names], ("axis", "inner"), body)
