"""conv_plans: what a configuration of a convolution by tiles means: its K, its columns, its cost.

A configuration has ``rows`` (output channels) and ``positions`` of a block's tile, the ``depth`` of a step,
and ``line``: whether x lies along lines (see conv_lines) or comes as columns (see dense_conv).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda import cost
from sparsec.targets.cuda.parts.lines import Line
from sparsec.targets.geometry import Geometry
from sparsec.targets.target import Problem, Target

Config = Mapping[str, int]

#: shared memory of an sm_80 that a block may take
SHARED = 160 << 10
#: instructions that copying an element of x costs; cycles of a block beside its steps, and of a step at least
_COPY_INSTRUCTIONS, _AROUND, _STEP = 16, 1000, 200
#: few and many images, to weigh tiles for a number that only the run tells, and configurations offered
_IMAGES, _OFFERED = (1, 16), 4


def geometry_of(problem: Problem) -> Geometry:
    """The convolution's sizes."""
    assert problem.conv is not None
    return problem.conv


def ranked(
    problem: Problem, configurations: Iterable[dict[str, int]], predict: Callable[[Problem, Config], float]
) -> tuple[dict[str, int], ...]:
    """The best-predicted configurations, best first.

    Where only the run tells how many images there are, few and many count alike.
    """
    g = geometry_of(problem)
    counts = _IMAGES if g.images is None else (g.images,)
    known = [replace(problem, columns=count * g.positions, conv=replace(g, images=count)) for count in counts]

    def worth(config: dict[str, int]) -> float:
        return prod(predict(one, config) for one in known)

    return tuple(sorted(configurations, key=worth)[:_OFFERED])


def line_of(problem: Problem, config: Config) -> Line:
    """The line that a configuration cuts."""
    geometry = replace(geometry_of(problem), images=None)
    return Line(geometry, config["positions"], config["depth"], problem.dtype)


def line_fits(problem: Problem, config: Config, weights: int) -> bool:
    """Whether lines may gain something, and have room in shared memory beside ``weights`` bytes."""
    line = line_of(problem, config)
    pixels = 2 * line.length * len(line.phases) * line.channels * line.size
    return row_of_positions(problem) == 1 and weights + pixels + 4 * line.count <= SHARED


def per_image(problem: Problem, config: Config) -> int:
    """Columns of the product that an image takes."""
    return line_of(problem, config).per_image if config["line"] else geometry_of(problem).positions


def inner_of(problem: Problem, config: Config) -> int:
    """K in whole steps."""
    g, depth = geometry_of(problem), config["depth"]
    if config["line"]:
        return -(-g.channels // depth) * depth * g.taps
    return -(-problem.inner // depth) * depth


def row_tiles(problem: Problem, rows: int) -> int:
    """Tiles of ``rows`` output channels that make a group."""
    return -(-(problem.rows // geometry_of(problem).groups) // rows)


def row_of_positions(problem: Problem) -> int:
    """Neighbouring positions that read neighbours of x, and lie in one image: a power of two up to 8."""
    g = geometry_of(problem)
    if g.taps > 1 or g.strides != (1, 1) or g.padding != (0, 0) or g.height * g.width != g.positions:
        return 1
    return vector_of(problem)


def vector_of(problem: Problem) -> int:
    """Neighbouring positions that are neighbours in y, a power of two up to 8."""
    return next(v for v in (8, 4, 2, 1) if geometry_of(problem).positions % v == 0)


def in_steps(weight: NDArray[Any], problem: Problem, config: Config) -> NDArray[Any]:
    """``weight[M, R*S*C]`` as [groups, M / groups, K in whole steps].

    Along lines, K counts blocks of channels, taps, and the channels of a block.
    """
    g, inner = geometry_of(problem), inner_of(problem, config)
    rows = problem.rows // g.groups
    taken = np.asarray(weight).reshape(g.groups, rows, g.taps, g.channels)
    if config["line"]:
        padded = np.zeros((g.groups, rows, g.taps, inner // g.taps), weight.dtype)
        padded[..., : g.channels] = taken
        blocks = padded.reshape(g.groups, rows, g.taps, -1, config["depth"])
        return blocks.transpose(0, 1, 3, 2, 4).reshape(g.groups, rows, inner)
    padded = np.zeros((g.groups, rows, inner), weight.dtype)
    padded[..., : problem.inner] = taken.reshape(g.groups, rows, -1)
    return padded


def has_taps(problem: Problem, config: Config) -> bool:
    """Whether the packed weight comes with ``taps``: int32, each tap's place on the line."""
    return bool(config["line"]) and geometry_of(problem).taps > 1


def taps_of(problem: Problem, config: Config) -> dict[str, NDArray[Any]]:
    """That array, if there is one."""
    if not has_taps(problem, config):
        return {}
    line = line_of(problem, config)
    return {"taps": np.array([p * line.length + distance for p, distance in line.distances], np.int32)}


def cycles(
    problem: Problem, config: Config, target: Target, rate: float, weights: int, share: float = 1.0
) -> float:
    """Predicted cycles of one launch.

    Args:
        problem: the layer.
        config: its configuration.
        target: whose GPU.
        rate: operations a cycle of a multiprocessor that multiplies, zeros counted.
        weights: bytes of the packed weight.
        share: of the dense weight's bytes that is read.
    """
    g, item, inner = geometry_of(problem), cost.item_bytes(problem), inner_of(problem, config)
    images = g.images or 1
    columns = -(-images * per_image(problem, config) // config["positions"])
    blocks = columns * row_tiles(problem, config["rows"]) * g.groups
    elements = copied(problem, config)
    # copies and stores share the schedulers' 128 instructions a cycle with what multiplies
    copies = elements * _COPY_INSTRUCTIONS / 128
    products = 2.0 * config["rows"] * config["positions"] * inner / rate
    busy = max(products, 0.7 * copies) + 0.3 * min(products, copies)
    lanes = 1 if config["line"] else vector_of(problem)
    stores = config["rows"] * config["positions"] * (8 + 13 / lanes) / 128
    each = max(busy, _STEP * inner / config["depth"]) + 0.7 * stores + _AROUND
    moved = images * (g.groups * g.channels * g.height * g.width + problem.rows * g.positions) * item
    full = sum(extra == "full" for extra in problem.extras) * images * problem.rows * g.positions * item
    read = share * config["rows"] * inner * item + elements * item * row_of_positions(problem)
    return cost.kernel_cycles(
        target, operations=each * blocks, rate=1.0, blocks=blocks,
        memory_bytes=moved + full + weights, l2_bytes=blocks * read,
    )  # fmt: skip


def copied(problem: Problem, config: Config) -> float:
    """Copies of x that a block makes, each of an element or of neighbouring ones."""
    if config["line"]:
        line = line_of(problem, config)
        return float(line.length * len(line.phases) * line.blocks * line.channels)
    return config["positions"] * inner_of(problem, config) / row_of_positions(problem)
