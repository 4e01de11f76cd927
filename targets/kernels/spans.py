"""spans: loops over so many elements in whole vectors, and tiles of one size that cover an axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparsec.targets.kernels.builder import Kernel


def tile_start(k: Kernel, number: Any, count: int, step: int, size: int) -> Any:
    """Where tile ``number`` of ``count`` begins, the last early enough to end at ``size``."""
    from tvm.script.ir_builder import tirx as T

    if count == 1:
        return k.constant(0)
    start = number * step
    return k.bind(start if size % step == 0 else T.min(start, k.constant(size - step)))


def cover(count: int, lanes: int) -> list[tuple[int, int, int]]:
    """Vectors that cover ``count`` elements and nothing else: runs of (first, vectors, width).

    The last overlaps the one before it; fewer elements than a vector take narrower ones.
    """
    if count <= 0:
        return []
    width = lanes
    while width > count:
        width //= 2
    whole, left = divmod(count, width)
    runs = [(0, whole, width)]
    if left:
        runs.append((count - width, 1, width))
    return runs


def spans(k: Kernel, count: int, lanes: int) -> Iterator[tuple[Any, int]]:
    """Emit the loops over :func:`cover`; yields (offset, width) inside them."""
    for first, vectors, width in cover(count, lanes):
        if vectors == 1:
            yield first, width
            continue
        with k.loop(vectors) as j:
            yield k.bind(first + j * width), width
