"""next_speedup: which layers another pruning would make faster, by the predictions of the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from sparsec.ir.attributes import ConstAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Choice, Graph, Node, Op
from sparsec.passes.choose_format import beside_others, candidates
from sparsec.sparsity.pattern import infer
from sparsec.sparsity.prune import Pruning, largest_blocks
from sparsec.targets.layers import is_layer, weight_matrix
from sparsec.targets.problem import predicted_columns, problem_of

if TYPE_CHECKING:
    from sparsec.ir.types import Array
    from sparsec.targets.target import Target

#: how many kinds of layers are looked at, those predicted to take the longest
LAYERS = 3
#: what is tried on a layer that has zeros, at the density it has
BLOCKS = ((16, 1), (4, 1))
#: what is tried on one that has few
SHARE, FEW = 0.9, 0.5
#: a gain smaller than the error of a prediction is none
_WORTH = 0.9
#: elements beyond which a weight is too large to look at in passing
_LARGEST = 1 << 25
#: a size that inputs leave open is taken as this
_OPEN = 32


def suggestions(graph: Graph, target: Target) -> list[dict[str, Any]]:
    """For the slowest layers the pruning that is predicted to gain most, if any gains.

    Each: ``node``, ``pattern`` (as ``--pattern`` takes it), ``sparsity`` then, and the predicted
    ``microseconds`` now and ``then``, of as many tokens or images as the candidates' times are for.
    """
    nodes = graph.node_map()
    layers = [n for n in graph.nodes if n.choice and is_layer(nodes, n, target.dtypes)]
    kinds: dict[object, Node] = {}
    for n in sorted(layers, key=lambda n: -_run_time(nodes, n, target)):
        # of layers that are alike one tells of all
        kinds.setdefault((nodes[n.args[1]].type, n.choice[0].kernel, round(_run_time(nodes, n, target))), n)
    found = [_best(graph, nodes, n, target) for n in list(kinds.values())[:LAYERS]]
    return [one for one in found if one]


def chosen_microseconds(choice: Choice) -> float:
    """The prediction for what was chosen."""
    times = (c.microseconds for c in choice.candidates if c.kernel == choice.kernel)
    return next(times, choice.candidates[0].microseconds if choice.candidates else 0.0)


def _run_time(nodes: dict[str, Node], n: Node, target: Target) -> float:
    problem = problem_of(nodes, n)
    if problem.columns is not None:
        return chosen_microseconds(n.choice[0])
    per = predicted_columns(problem, target)
    return chosen_microseconds(n.choice[0]) * _known(tokens_of(n)) / per


def tokens_of(n: Node) -> Size:
    """How often a layer's weight is used: tokens, or output positions of all images."""
    return product((n.type.shape[0], *n.type.shape[2:])) if n.op is Op.CONV2D else n.type.tokens


def _known(size: Size) -> float:
    if isinstance(size, int):
        return size
    return float(sum(factor * _OPEN ** len(names) for names, factor in size.terms))


def _best(graph: Graph, nodes: dict[str, Node], n: Node, target: Target) -> dict[str, Any] | None:
    weight = graph.consts[n.args[1]]
    if weight.size > _LARGEST:
        return None
    now = chosen_microseconds(n.choice[0])
    problem, matrix = problem_of(nodes, n), weight_matrix(n, weight)
    machine = beside_others(graph, nodes, n, target)
    tried = []
    for pruning in _prunings(nodes[n.args[1]], matrix):
        ranked = candidates(problem, infer(_as_if(matrix, pruning)), machine)
        if ranked:
            tried.append((ranked[0][0].microseconds, pruning))
    if not tried:
        return None
    then, pruning = min(tried, key=lambda one: one[0])
    if then > _WORTH * now:
        return None
    pattern = "unstructured" if pruning.block == (1, 1) else pruning.blocks
    return {
        "node": n.name, "pattern": pattern, "sparsity": round(pruning.share, 6),
        "microseconds": now, "then": then,
    }  # fmt: skip


def _prunings(w: Node, matrix: Array) -> Iterator[Pruning]:
    pattern = cast(ConstAttrs, w.attrs).pattern or infer(matrix)
    if pattern.sparsity < FEW:
        yield Pruning(SHARE)
    elif pattern.kind != "blocks":
        yield from (Pruning(pattern.sparsity, b) for b in BLOCKS if b[0] < len(matrix))


def _as_if(matrix: Array, pruning: Pruning) -> Array:
    """What would be left if those of its blocks stayed that weigh most now, each of them full."""
    return largest_blocks(matrix, pruning.share, pruning.block)
