"""graph_list: the graph as a list from inputs to outputs, with arcs for values read later on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: pixels
ROW, BOX, LEFT, TOP, LANE = 30, 22, 8, 8, 13
WIDTH = 520


@dataclass(frozen=True, slots=True)
class Box:
    """A node: where it is drawn, how, and what it says."""

    y: int
    kind: str
    title: str
    detail: str
    share: float


@dataclass(frozen=True, slots=True)
class Picture:
    """The whole: pixels, those of a box across, boxes and the paths of edges between them."""

    width: int
    height: int
    box: int
    boxes: tuple[Box, ...]
    edges: tuple[str, ...]


def drawn(
    nodes: Sequence[Mapping[str, Any]],
    layers: Sequence[Mapping[str, Any]],
    shares: Sequence[float | None],
) -> Picture:
    """Lay out a report's ``graph``; ``shares`` are the layers' shares of the time."""
    places = {n["node"]: i for i, n in enumerate(nodes)}
    edges = sorted((places[a], places[n["node"]]) for n in nodes for a in n["args"] if a in places)
    straight = [first for first, last in edges if last == first + 1]
    later: dict[int, list[int]] = {}
    for first, last in edges:
        if last > first + 1:
            later.setdefault(first, []).append(last)
    lanes = _lanes({first: max(readers) for first, readers in later.items()})
    paths = [f"M{LEFT + 20} {TOP + ROW * first + BOX}v{ROW - BOX}" for first in straight]
    paths += [_arc(first, readers, lanes[first]) for first, readers in later.items()]
    boxes = tuple(_box(i, n, layers, shares) for i, n in enumerate(nodes))
    width = LEFT + WIDTH + LANE * (2 + max(lanes.values(), default=-1))
    return Picture(width, 2 * TOP + ROW * len(nodes), WIDTH, boxes, tuple(paths))


def _lanes(spans: Mapping[int, int]) -> dict[int, int]:
    """For every value the first lane that is free down to its last reader; long ones outermost."""
    taken: list[list[tuple[int, int]]] = []
    found = {}
    for first, last in sorted(spans.items(), key=lambda e: (e[1] - e[0], e)):
        free = (i for i, lane in enumerate(taken) if all(last <= a or b <= first for a, b in lane))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        found[first] = lane
    return found


def _arc(first: int, readers: Sequence[int], lane: int) -> str:
    """Out to the lane, down to the last reader, and back at every one."""
    x, out = LEFT + WIDTH, LEFT + WIDTH + LANE * (lane + 1)
    ends = [TOP + ROW * i + 6 for i in readers]
    back = "".join(f"M{out} {end - 6}q0 6 -6 6H{x}" for end in ends)
    return f"M{x} {TOP + ROW * first + BOX - 6}H{out - 6}q6 0 6 6V{max(ends) - 6}{back}"


def _box(
    place: int, n: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], shares: Sequence[float | None]
) -> Box:
    shape = " x ".join(map(str, n["shape"])) or "one number"
    title, kind, share = str(n["op"]), "other", 0.0
    if n["op"] == "input":
        title, kind = str(n["node"]), "input"
    elif "layer" in n:
        index = int(n["layer"])
        layer, share = layers[index], shares[index] or 0.0
        kind = "dense" if layer.get("format") == "dense" else "sparse"
        zeros = f"{100 * float(layer.get('sparsity', 0.0)):.0f} % zeros"
        title = f"{index + 1}  {layer.get('kernel', n['op'])}, {zeros}"
    return Box(TOP + ROW * place, kind, title, shape, share)
