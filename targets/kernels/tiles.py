"""tiles: a grid of blocks over the axes of a tensor, numbered row-major, as a kernel's tiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from sparsec.ir.dims import Dim, Size, product
from sparsec.targets.kernels.builder import Kernel


def strides(shape: Sequence[Size]) -> tuple[Size, ...]:
    """Distance between neighbours along each axis of a row-major tensor."""
    return tuple(product(shape[i + 1 :]) for i in range(len(shape)))


class Sized(Protocol):
    """A kernel under construction, for whatever machine."""

    @property
    def sizes(self) -> Mapping[str, Any]:
        """Its parameters that are sizes."""


class Numbers:
    """Run-time sizes as parameters of a kernel; the known ones are literals."""

    def __init__(self, sizes: Iterable[Size]) -> None:
        self.dims = tuple(dict.fromkeys(s for s in sizes if isinstance(s, Dim)))
        self.labels = tuple(f"n{i}" for i in range(len(self.dims)))
        self._label = dict(zip(self.dims, self.labels, strict=True))

    def value(self, k: Sized, size: Size) -> Any:
        """The size where the kernel runs; an ``int`` stays one."""
        return k.sizes[self._label[size]] if isinstance(size, Dim) else size


class Grid:
    """Blocks of ``steps`` elements over axes of ``sizes`` (numbers or expressions)."""

    def __init__(self, k: Kernel, sizes: Sequence[Any], steps: Sequence[int]) -> None:
        self.k, self.sizes, self.steps = k, sizes, steps
        self.blocks = [self._blocks(size, step) for size, step in zip(sizes, steps, strict=True)]

    def _blocks(self, size: Any, step: int) -> Any:
        from tvm.script.ir_builder import tirx as T

        if isinstance(size, int):
            return -(-size // step)
        return size if step == 1 else self.k.bind(T.truncdiv(size + (step - 1), self.k.constant(step)))

    @property
    def count(self) -> Any:
        """How many blocks there are."""
        return product_of(self.k, self.blocks)

    def starts(self, tile: Any) -> list[Any]:
        """The first index of a block along each axis."""
        from tvm.script.ir_builder import tirx as T

        k = self.k
        starts: list[Any] = [0] * len(self.blocks)
        rest = k.bind(tile)
        several = [i for i, blocks in enumerate(self.blocks) if not (isinstance(blocks, int) and blocks == 1)]
        for i in reversed(several):
            if i == several[0]:
                starts[i] = k.bind(rest * self.steps[i])
                break
            blocks = number(k, self.blocks[i])
            starts[i] = k.bind(T.truncmod(rest, blocks) * self.steps[i])
            rest = k.bind(T.truncdiv(rest, blocks))
        return starts

    def extent(self, axis: int, start: Any) -> Any:
        """Elements along an axis of the block that starts there."""
        from tvm.script.ir_builder import tirx as T

        k, size, step = self.k, self.sizes[axis], self.steps[axis]
        if isinstance(size, int) and size % step == 0:
            return step
        return k.bind(T.min(number(k, size) - start, k.constant(step)))


def number(k: Kernel, value: Any) -> Any:
    """An expression, whether or not the value is one."""
    return k.constant(value) if isinstance(value, int) else value


def product_of(k: Kernel, values: Sequence[Any]) -> Any:
    """The product of numbers and expressions."""
    total: Any = 1
    for value in values:
        total = total * value
    return k.constant(total) if isinstance(total, int) else k.bind(total)
