"""Runs passes: verifies after each, times, prints, dumps."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO, TypeAlias

from sparsec.config import Settings, settings
from sparsec.errors import IRError
from sparsec.ir import printer
from sparsec.ir.graph import Graph
from sparsec.ir.verify import verify
from sparsec.progress import Progress, counted
from sparsec.targets.target import Target

#: Pure; returns the same object when nothing changed.
Pass: TypeAlias = Callable[[Graph, Target], Graph]


def run(
    graph: Graph, target: Target, passes: Sequence[Pass], log: TextIO | None = None,
    progress: Progress | None = None,
) -> Graph:  # fmt: skip
    """Apply passes in order.

    ``SPARSEC_DEBUG=1`` writes a line per pass to ``log`` (standard error when None), ``2`` also
    what it changed; ``SPARSEC_DUMP`` receives the text of the graph before and after each pass.
    ``progress`` hears of every pass.

    Raises:
        IRError: a pass broke a rule of the IR; the message names the pass.
    """
    chosen = settings()
    out = sys.stderr if log is None else log
    verify(graph)
    _dump(graph, chosen.dump, 0, "imported")
    for number, one in enumerate(counted(passes, "passes", progress), start=1):
        started = time.perf_counter()
        after = _apply(one, graph, target)
        _report(one, graph, after, time.perf_counter() - started, chosen, out)
        _dump(after, chosen.dump, number, pass_name(one))
        graph = after
    return graph


def pass_name(one: Pass) -> str:
    """A function's own name, or its class's in snake_case: ``ChooseFormat()`` is choose_format."""
    given = getattr(one, "__name__", None)
    if isinstance(given, str):
        return given
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(one).__name__).lower()


def _apply(one: Pass, graph: Graph, target: Target) -> Graph:
    try:
        after = one(graph, target)
        return after if after is graph else verify(after)
    except IRError as error:
        raise IRError(f"pass {pass_name(one)}: {error}") from error


def _report(one: Pass, before: Graph, after: Graph, seconds: float, chosen: Settings, log: TextIO) -> None:
    if chosen.debug >= 1:
        counts = f"{len(before.nodes)} -> {len(after.nodes)} nodes"
        unchanged = "  (unchanged)" if after is before else ""
        print(f"{pass_name(one):<24} {seconds * 1e3:9.2f} ms  {counts}{unchanged}", file=log)
    if chosen.debug >= 2 and after is not before:
        print(printer.diff(before, after), end="", file=log)


def _dump(graph: Graph, folder: Path | None, number: int, name: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}_{name}.txt").write_text(printer.text(graph), encoding="utf-8")
