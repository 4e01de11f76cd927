"""geometry: the sizes of a convolution or pooling layer, as kernels see them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is known of a sliding window over ``x[images, groups * channels, height, width]``.

    ``channels`` are input channels a group; ``kernel`` taps, ``strides`` and ``dilation`` are
    (vertical, horizontal); ``padding`` is (top, left), what lies below and right follows from the
    output's size.  ``images`` is None when only known at run time.
    """

    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    images: int | None = 1

    @property
    def taps(self) -> int:
        """Elements of one channel that an output element reads."""
        return self.kernel[0] * self.kernel[1]

    @property
    def positions(self) -> int:
        """Output elements of one channel of one image."""
        return self.out_height * self.out_width
