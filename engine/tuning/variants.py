"""variants: settings near a kernel's own, for what no model of a cache predicts.

The words are those of every kernel: ``block`` of inputs and ``channels`` a block, ``chunk`` of rows a unit
of work, ``vectors`` at a time, ``group`` of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsec.targets.target import Problem, Target

#: offsets into a tile of X are stored in 16 bits
_REACH = 65536


def variants(problem: Problem, config: Mapping[str, int], target: Target) -> list[dict[str, int]]:
    """Configurations one word away from ``config``.

    A kernel may refuse some; their trials fail and cost nothing else.
    """
    return [{**config, word: value} for word, value in _moves(problem, config, target)]


def _moves(problem: Problem, config: Mapping[str, int], target: Target) -> Iterator[tuple[str, int]]:
    """Other values of single words."""
    if "block" in config and problem.panel:
        most = min(problem.inner, _REACH // problem.panel)
        yield from (("block", b) for b in _scaled(config["block"], 1, most, config.get("m", 1)))
    if "channels" in config and problem.conv:
        # twice the windows may not fit 16-bit offsets
        yield from (
            ("channels", c) for c in _scaled(config["channels"], 1, config["channels"], config.get("m", 1))
        )
    if "chunk" in config:
        group = max(1, config.get("group", 1))
        yield from (("chunk", c) for c in _scaled(config["chunk"], group, problem.rows, group))
    if "vectors" in config and problem.panel:
        available = problem.panel // target.lanes
        yield from (("vectors", v) for v in (1, 2, 4) if available % v == 0 and v != config["vectors"])


def _scaled(value: int, low: int, high: int, multiple: int) -> list[int]:
    """Half, double and near it, rounded up to a multiple."""
    wanted = (value // 2, value * 2 // 3, value * 3 // 2, value * 2)
    found = dict.fromkeys(-(-w // multiple) * multiple for w in wanted)
    return [w for w in found if low <= w <= high and w != value]
