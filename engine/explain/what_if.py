"""what_if: a model as if it had been pruned otherwise, and what that is predicted to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import networkx as nx

from sparsec import pipeline
from sparsec.compiler import ANALYSIS, PASSES, with_measured
from sparsec.errors import ModelError
from sparsec.explain.report import report_of
from sparsec.ir.graph import Graph, Node, Op, with_nodes
from sparsec.passes.remove_channels import remove_channels
from sparsec.sparsity.prune import Pruning
from sparsec.targets.layers import is_layer, weight_matrix
from sparsec.targets.target import Target

if TYPE_CHECKING:
    from sparsec.ir.types import Array
    from sparsec.pipeline import Pass

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prune:
    """A pass: prunes the weight of every layer a kernel can be chosen for.

    Whole channels are kept where they are the model's outputs: of layers no other layer reads.
    """

    pruning: Pruning

    def __call__(self, graph: Graph, target: Target) -> Graph:
        nodes = graph.node_map()
        layers = [n for n in graph.nodes if is_layer(nodes, n)]
        if self.pruning.channels:
            last = _last(graph, {n.name for n in layers})
            layers = [n for n in layers if n.name not in last]
        consts = dict(graph.consts)
        for n in layers:
            consts[n.args[1]] = pruned(n, consts[n.args[1]], self.pruning)
        return with_nodes(graph, graph.nodes, consts)


def pruned(n: Node, weight: Array, pruning: Pruning) -> Array:
    """A layer's weight with what ``pruning`` removes set to zero; its own shape and dtype."""
    matrix = weight_matrix(n, weight)
    kept = matrix * pruning.mask(matrix)
    if n.op is Op.MATMUL:
        return kept.T
    rows, channels, high, wide = weight.shape
    return kept.reshape(rows, high, wide, channels).transpose(0, 3, 1, 2).copy()


def _last(graph: Graph, layers: set[str]) -> set[str]:
    """The layers that no other layer comes after."""
    flow = nx.DiGraph((a, n.name) for n in graph.nodes for a in n.args)
    return {name for name in layers if not (nx.descendants(flow, name) & layers)}


def as_if_pruned(graph: Graph, target: Target, pruning: Pruning) -> Graph:
    """An imported graph simplified and then pruned: to be compiled as any other.

    Raises:
        ModelError: no layer of it can be pruned.
    """
    ready = pipeline.run(graph, target, PASSES[: PASSES.index(remove_channels)])
    nodes = ready.node_map()
    if not any(is_layer(nodes, n) for n in ready.nodes):
        raise ModelError("the model has no layer with a constant weight that could be pruned")
    return pipeline.run(ready, target, (Prune(pruning),))


def analysed(graph: Graph, target: Target, measured: Pass | None = None) -> dict[str, Any]:
    """The report of an imported graph, without code being generated; ``measured`` as for ``artifact``."""
    return report_of(pipeline.run(graph, target, with_measured(ANALYSIS, measured)), None, target)


def compared(now: Report, then: Report, pruning: Pruning) -> dict[str, Any]:
    """What the pruning changes: its ``text``, and for every layer that has candidates a row.

    A row: ``node``, and of ``now`` and ``then`` the layer of either report.
    """
    after = {layer["node"]: layer for layer in then["layers"]}
    rows = [
        {"node": layer["node"], "now": _short(layer), "then": _short(after[layer["node"]])}
        for layer in cast("Sequence[Report]", now["layers"])
        if layer["candidates"] and layer["node"] in after
    ]
    return {"text": str(pruning), "layers": rows}


def _short(layer: Report) -> dict[str, Any]:
    return {key: value for key, value in layer.items() if key not in ("raster", "config", "reason")}
