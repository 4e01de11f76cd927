"""lines: the positions of a convolution as one line, on which a tap is a constant distance.

Output positions of all images are numbered ``q = (image * height + y) * pitch + x`` on a line that also has
a few numbers too many, so that tap (r, s) of any of them reads the padded input at ``q + distance(r, s)``
(SkimCaffe's and Escort's observation: Park et al. 2017, Chen 2018).  With stride 1 the zeros to the right
of a row are those to the left of the next, and what lies below an image is what lies above the next: 7x7
positions with 3x3 taps take 8x8 numbers and not 9x9.  Strides split the input into *phases*, one for each
remainder of a coordinate.  Numbers that are no positions compute something nobody stores.

A block of threads has ``count`` numbers and holds, for some channels, what their taps read: ``length``
elements of each phase.  Elements of two bytes are read in pairs; for odd distances there is a second copy,
one element on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.geometry import Geometry

#: lengths are multiples of so many elements, for copies of 16 bytes
_ALIGNED = 8


@dataclass(frozen=True)
class Line:
    """The line of a geometry, whose ``images`` does not matter, cut into ``count`` numbers a block.

    ``channels`` are held at a time; ``dtype`` is x's.
    """

    geometry: Geometry
    count: int
    channels: int
    dtype: str

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return 4 if self.dtype == "float32" else 2

    @property
    def neighbours(self) -> int:
        """Numbers that a thread reads at once."""
        return 4 // self.size

    @cached_property
    def pitch(self) -> int:
        """Numbers from a row to the next."""
        return _shared_padding(self.geometry, 1)

    @cached_property
    def height(self) -> int:
        """Rows from an image to the next."""
        return _shared_padding(self.geometry, 0)

    @property
    def per_image(self) -> int:
        """Numbers from an image to the next."""
        return self.height * self.pitch

    @cached_property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """Remainders (of y, of x) that taps have, in order."""
        return tuple(sorted({self._tap(r, s)[0] for r, s in self._taps}))

    @property
    def _taps(self) -> list[tuple[int, int]]:
        high, wide = self.geometry.kernel
        return [(r, s) for r in range(high) for s in range(wide)]

    def _tap(self, r: int, s: int) -> tuple[tuple[int, int], int]:
        g = self.geometry
        (down, a), (right, b) = (
            divmod(r * g.dilation[0], g.strides[0]),
            divmod(s * g.dilation[1], g.strides[1]),
        )
        return (a, b), down * self.pitch + right

    @cached_property
    def distances(self) -> tuple[tuple[int, int], ...]:
        """(Number of the phase, distance in it) of each tap."""
        taps = [self._tap(r, s) for r, s in self._taps]
        return tuple((self.phases.index(phase), distance) for phase, distance in taps)

    @cached_property
    def length(self) -> int:
        """Elements of a phase of a channel."""
        reach = self.count + max(distance for _, distance in self.distances)
        return -(-reach // _ALIGNED) * _ALIGNED

    @property
    def copies(self) -> int:
        """How often a channel is held: twice if pairs begin at odd distances too."""
        return 2 if self.neighbours == 2 and any(distance % 2 for _, distance in self.distances) else 1

    @property
    def blocks(self) -> int:
        """How many times channels are held, one after the other."""
        return -(-self.geometry.channels // self.channels)

    @property
    def held(self) -> int:
        """Elements of one copy of the channels."""
        return self.channels * len(self.phases) * self.length

    @property
    def second(self) -> int:
        """Where the second copy begins; the first element has no place there, but in the gap before."""
        return self.held + _ALIGNED

    @property
    def elements(self) -> int:
        """Elements of all copies of the channels."""
        return self.second + self.held if self.copies == 2 else self.held

    @property
    def bytes(self) -> int:
        """Shared memory for the channels."""
        return self.elements * self.size

    @cached_property
    def vector(self) -> int:
        """Neighbours of x that are so on the line, wherever one begins: 1, or up to 16 bytes."""
        g = self.geometry
        if g.taps > 1 or g.strides != (1, 1) or g.padding != (0, 0) or g.height != 1 or self.pitch != g.width:
            return 1
        return next(v for v in (16 // self.size, 8 // self.size, 4 // self.size, 1) if g.width % v == 0)

    def places(self) -> NDArray[Any]:
        """Where a tap of a channel lies among those held, [channels, taps]; counted in ``neighbours``."""
        phase = np.array([p for p, _ in self.distances])
        distance = np.array([d for _, d in self.distances])
        channel = np.arange(self.channels)[:, None] * len(self.phases)
        at = (channel + phase) * self.length + distance
        odd = distance % self.neighbours
        found: NDArray[Any] = np.where(odd, at - 1 + self.second, at) // self.neighbours
        return found


def _shared_padding(g: Geometry, axis: int) -> int:
    """Numbers along an axis, as few as leave apart what has to be."""
    out, size = ((g.out_height, g.height), (g.out_width, g.width))[axis]
    stride, before = g.strides[axis], g.padding[axis]
    reach = (g.kernel[axis] - 1) * g.dilation[axis]
    apart = out + reach // stride
    if stride > 1:
        return apart
    # whatever lies beyond must be zeros here and there: right of x here, left of x in the next row
    return min(apart, max(out, size + before, out + reach - before))
