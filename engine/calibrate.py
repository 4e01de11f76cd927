"""calibrate: what share of its inputs every layer finds active, seen in samples.

A program that ends in the layers' inputs is compiled and run on the samples.  For a layer at n
tokens an input feature is active where any of the n holds something else than zero.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sparsec import feeds
from sparsec.errors import InputError
from sparsec.ir.attributes import MatmulAttrs
from sparsec.ir.graph import Graph, Node, replace, with_nodes
from sparsec.ir.types import Type
from sparsec.pipeline import Pass
from sparsec.planning.planner import plan_program
from sparsec.runtime import PortInfo, Program
from sparsec.runtime.artifact import to_bytes
from sparsec.targets.layers import is_linear
from sparsec.targets.named import native
from sparsec.targets.target import Target

Array: TypeAlias = NDArray[Any]
Sample: TypeAlias = Mapping[str, Any]
#: one sample or several; or a file of arrays as ``sparsec run`` reads it
Samples: TypeAlias = Sample | Sequence[Sample] | str | os.PathLike[str]


@dataclass(frozen=True, eq=False, slots=True)
class Calibrate:
    """The pass: sets ``MatmulAttrs.active`` of every linear layer with a constant weight.

    ``samples`` as :func:`samples_of` makes them; ``finish``: the passes that make a graph with
    patterns ready to be planned.
    """

    samples: Sequence[Sample]
    finish: tuple[Pass, ...]

    def __call__(self, graph: Graph, target: Target) -> Graph:
        nodes = graph.node_map()
        layers = [n for n in graph.nodes if is_linear(nodes, n)]
        if not layers:
            return graph
        shares = self._active_shares(graph, tuple(dict.fromkeys(n.args[0] for n in layers)))
        measured = {n.name: _with_share(n, shares[n.args[0]]) for n in layers}
        return with_nodes(graph, [measured.get(n.name, n) for n in graph.nodes])

    def _active_shares(self, graph: Graph, values: tuple[str, ...]) -> dict[str, float]:
        """Mean over the samples of the active share of each value's features."""
        program = self._program(graph, values)
        totals = np.zeros(len(values))
        for number, sample in enumerate(self.samples, start=1):
            try:
                found = program.run(None, sample)
            except InputError as error:
                raise InputError(f"calibrate: sample {number} of {len(self.samples)}: {error}") from error
            totals += [active_share(x) for x in found]
        return dict(zip(values, (totals / len(self.samples)).tolist(), strict=True))

    def _program(self, graph: Graph, values: tuple[str, ...]) -> Program:
        """A program for this machine, whatever the model is compiled for, that returns ``values``."""
        cut = with_nodes(Graph(graph.nodes, values, values, graph.consts), graph.nodes)
        machine = native()
        for one in self.finish:
            cut = one(cut, machine)
        planned = plan_program(cut, machine)
        manifest = {"target": machine.name, "features": list(machine.features), "report": {}}
        return Program.from_bytes(to_bytes(planned.plan, planned.code, planned.weights, manifest))


def _with_share(n: Node, share: float) -> Node:
    # four digits: what is written must not depend on how a sum was rounded
    return replace(n, attrs=replace(cast(MatmulAttrs, n.attrs), active=round(share, 4)))


def active_share(x: Array) -> float:
    """The share of the last axis' features that are not zero in all tokens; NaN is not zero."""
    tokens = x.reshape(-1, x.shape[-1])
    return float((tokens != 0).any(axis=0).mean()) if x.size else 0.0


def samples_of(given: Samples, graph: Graph) -> tuple[dict[str, Array], ...]:
    """What a user gave as samples, an array per input in each.

    Where all arrays have the same multiple of the inputs' (known) first sizes, each is cut into
    that many samples.

    Raises:
        InputError: there is none, or names that do not fit; a wrong shape or type shows when it runs.
    """
    ports = [PortInfo(n.name, n.type.dtype, _sizes(n.type)) for n in graph.inputs]
    if isinstance(given, str | os.PathLike):
        given = feeds.read(Path(given), ports)
    several = [given] if isinstance(given, Mapping) else list(given)
    if not several:
        raise InputError("calibrate: there are no samples; give at least one array for every input")
    found = [cut for sample in several for cut in _cut(_named(sample, ports), graph)]
    if not found:
        raise InputError("calibrate: the arrays hold no sample")
    return tuple(found)


def _sizes(t: Type) -> tuple[int | str, ...]:
    return tuple(s if isinstance(s, int) else str(s) for s in t.shape)


def _named(sample: object, ports: Sequence[PortInfo]) -> dict[str, Array]:
    """Arrays by input name, floating-point ones in the input's width."""
    if not isinstance(sample, Mapping):
        raise InputError(f"calibrate: a sample maps input names to arrays; got {type(sample).__name__}")
    names = {port.name for port in ports}
    if set(sample) != names:
        raise InputError(
            f"calibrate: a sample holds {', '.join(sorted(map(str, sample))) or 'nothing'}; "
            f"the model's inputs are {', '.join(sorted(names))}"
        )
    return {p.name: feeds.converted(np.asarray(sample[p.name]), p) for p in ports}


def _cut(sample: dict[str, Array], graph: Graph) -> list[dict[str, Array]]:
    """One sample, or as many as its arrays hold one behind the other."""
    counts = {_copies(sample[n.name], n.type) for n in graph.inputs}
    (count,) = counts if len(counts) == 1 else {None}
    if count is None:
        return [sample]
    parts = {name: np.split(x, count) if count else [] for name, x in sample.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(count)]


def _copies(x: Array, t: Type) -> int | None:
    """How often an input's first size goes into an array's, None where it does not or is not known."""
    first = t.shape[0] if t.shape else None
    if not isinstance(first, int) or first < 1 or x.ndim < 1 or len(x) % first:
        return None
    return len(x) // first
