"""A program beside dense engines on the same file: outputs compared, times taken in turns.

Our own dense kernels take part as engines of their own: ``sparsec-dense`` runs every layer dense,
``sparsec-mixed`` those that were faster so when every step of both programs was timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsec.bench.engines import Absent, Bound, Engine, Task, bind_program
from sparsec.bench.measure import Timing, interleaved
from sparsec.progress import Progress, counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsec.runtime import Program

#: largest difference between engines, as a share of the largest output, that rounding explains
TOLERANCE = 1e-4
#: a layer is faster dense when it takes at most this share of its time, and this many seconds less
SHARE, LEAST = 0.95, 0.5e-6
#: seconds of a run below which each turn of a layer is several runs
QUICK = 0.01
#: names of our own programs
SPARSEC, DENSE, MIXED = "sparsec", "sparsec-dense", "sparsec-mixed"


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Seconds a layer takes with the kernel chosen and with a dense one."""

    name: str
    kernel: str
    seconds: float
    dense: float

    @property
    def faster_dense(self) -> bool:
        """Whether it should run dense."""
        return self.dense <= SHARE * self.seconds and self.seconds - self.dense >= LEAST


@dataclass(frozen=True, slots=True)
class Comparison:
    """Times by engine, and what each computed.

    ``differences`` are to the outputs of ``reference``, which is not among them; ``left_out``
    says of engines without times why.
    """

    threads: int
    rounds: int
    timings: Mapping[str, Timing]
    versions: Mapping[str, str]
    reference: str = ""
    differences: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """Engines whose outputs are not the reference's."""
        return [name for name, apart in self.differences.items() if apart > TOLERANCE]

    @property
    def others(self) -> dict[str, Timing]:
        """Those of other engines that compute what the reference computes, fastest first."""
        found = {n: t for n, t in self.timings.items() if not n.startswith(SPARSEC) and n not in self.wrong}
        return dict(sorted(found.items(), key=lambda item: item[1].median))

    @property
    def ours(self) -> dict[str, Timing]:
        """Those of our programs, fastest first."""
        found = {n: t for n, t in self.timings.items() if n.startswith(SPARSEC)}
        return dict(sorted(found.items(), key=lambda item: item[1].median))


def compare(
    programs: Mapping[str, Program], engines: Sequence[Engine], task: Task, rounds: int = 30,
    progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """Bind, check and time.

    Args:
        programs: our own, by a name that begins with ``sparsec``.
        engines: dense ones, which run ``task``; one that cannot is left out with its reason.
        task: the file, and the inputs everyone gets.
        rounds: turns each of them gets.
        progress: hears of every round.
    """
    bound = {name: bind_program(program, task.feeds) for name, program in programs.items()}
    left_out: dict[str, str] = {}
    for engine in engines:
        try:
            bound[engine.name] = engine.bind(task)
            bound[engine.name].call()
        except Absent as reason:
            left_out[engine.name] = str(reason)
        except Exception as failure:  # whatever another library raises on a file it cannot run
            left_out[engine.name] = f"it fails: {str(failure).strip().splitlines()[0][:200]}"
            bound.pop(engine.name, None)
    reference = next((e.name for e in engines if e.name in bound), DENSE if DENSE in bound else "")
    differences = differences_from(reference, bound) if reference else {}
    calls = {name: one.call for name, one in bound.items()}
    timings = interleaved(calls, rounds, pause=pause_for(task.threads), progress=progress)
    versions = {e.name: e.version for e in engines if e.name in bound}
    return Comparison(task.threads, rounds, timings, versions, reference, differences, left_out)


def pause_for(threads: int) -> float:
    """Seconds after which waiting threads of other engines sleep."""
    return 0.002 if threads == 1 else 0.06


def differences_from(reference: str, bound: Mapping[str, Bound]) -> dict[str, float]:
    """How far every engine's outputs are from those of one."""
    outputs = {}
    for name, one in bound.items():
        one.call()
        outputs[name] = one.outputs()
    return {name: difference(y, outputs[reference]) for name, y in outputs.items() if name != reference}


def difference(ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]]) -> float:
    """The largest difference of any output, as a share of its largest number.

    Infinite for NaN, for another shape, and for another number of outputs; 0 for two equal infinities.
    """
    if len(ours) != len(theirs):
        return float("inf")
    return max((_apart(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _apart(a: NDArray[Any], b: NDArray[Any]) -> float:
    if a.shape != b.shape:
        return float("inf")
    unlike = a != b
    error = np.abs(np.subtract(a[unlike], b[unlike], dtype=np.float64)).max(initial=0)
    scale = np.abs(b[np.isfinite(b)]).max(initial=0) or 1.0
    share = float(error) / float(scale)
    return share if np.isfinite(share) else float("inf")


def layer_times(
    chosen: Program, dense: Program, feeds: Mapping[str, Any], rounds: int = 5,
    progress: Progress | None = None,
) -> list[LayerTime]:  # fmt: skip
    """Layers with a sparse kernel, timed in both programs by turns; the slowest first."""
    repeats = 5 if sum(_by_node(chosen, feeds, 1).values()) < QUICK else 1
    turns: dict[str, list[dict[str, float]]] = {"chosen": [], "dense": []}
    for _ in counted(range(rounds), "layers", progress):
        turns["chosen"].append(_by_node(chosen, feeds, repeats))
        turns["dense"].append(_by_node(dense, feeds, repeats))
    times = {
        name: {node: median(turn.get(node, 0.0) for turn in found) for node in found[0]}
        for name, found in turns.items()
    }
    layers = {layer["origin"] or layer["node"]: layer for layer in chosen.report["layers"]}
    found = [
        LayerTime(name, layer["kernel"], times["chosen"][name], times["dense"][name])
        for name, layer in layers.items()
        if layer["format"] != "dense" and name in times["chosen"] and name in times["dense"]
    ]
    return sorted(found, key=lambda layer: -layer.seconds)


def _by_node(program: Program, feeds: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """Seconds of all steps of a node, by its name."""
    spent: dict[str, float] = {}
    for step in program.profile(feeds, repeats=repeats):
        spent[step.node] = spent.get(step.node, 0.0) + step.nanoseconds / 1e9
    return spent


def is_sparse(program: Program) -> bool:
    """Whether any layer skips zeros, or channels were left out."""
    return any(layer["format"] != "dense" or "removed" in layer for layer in program.report["layers"])
