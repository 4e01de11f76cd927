"""pack_recurrent: store every recurrent weight, and a bias inside the steps, as the kernel reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from sparsec.ir.attributes import RecurrentAttrs
from sparsec.ir.graph import Candidate, Choice, Graph, Node, Op, replace, with_nodes
from sparsec.targets.kernels import recurrent
from sparsec.targets.lowering_recurrent import recurrent_shape
from sparsec.targets.several import narrowest
from sparsec.targets.target import Target

if TYPE_CHECKING:
    from sparsec.ir.types import Array


def pack_recurrent(graph: Graph, target: Target) -> Graph:
    """Give every recurrent node with constant weights its choice and packed constants."""
    target = narrowest(target)
    nodes = graph.node_map()
    todo = {n.name for n in graph.nodes if n.op is Op.RECURRENT and not n.choice and _is_constant(nodes, n)}
    if not todo:
        return graph
    consts = dict(graph.consts)
    done = [_chosen(n, nodes, consts, target) if n.name in todo else n for n in graph.nodes]
    return with_nodes(graph, done, consts)


def _is_constant(nodes: dict[str, Node], n: Node) -> bool:
    return all(nodes[a].op is Op.CONST for a in (n.args[1], *_biases(n)))


def _biases(n: Node) -> tuple[str, ...]:
    return n.args[3:] if getattr(n.attrs, "reset_after", False) else ()


def _chosen(n: Node, nodes: dict[str, Node], consts: dict[str, Array], target: Target) -> Node:
    arrays, cycles = (_packed_for_gpu if target.gpu else _packed)(n, nodes, consts, target)
    names = []
    for label, array in arrays.items():
        names.append(f"{n.name}.0.{label}")
        consts[names[-1]] = array
    micro = cycles / target.gigahertz / 1e3
    candidate = Candidate("recurrent", "dense", round(micro, 2), arrays["values"].nbytes)
    reason = "dense: there is no sparse kernel for the recurrent weight"
    choice = Choice("recurrent", "dense", (), tuple(names), (1, None), reason, (candidate,))
    return replace(n, choice=(choice,))


def _steps_and_batch(n: Node) -> tuple[int, int]:
    steps, batch = (s if isinstance(s, int) else 1 for s in n.type.shape[:2])
    return steps, batch


def _packed(
    n: Node, nodes: dict[str, Node], consts: dict[str, Array], target: Target
) -> tuple[dict[str, Array], float]:
    """A processor's arrays, and cycles."""
    shape = recurrent_shape(nodes, n, target)
    arrays = {"values": recurrent.pack(consts[n.args[1]], shape, target)}
    for name in _biases(n):
        missing = recurrent.padded(shape.hidden, target) - shape.hidden
        arrays["bias"] = np.pad(consts[name], (0, missing))
    return arrays, recurrent.predict(shape, *_steps_and_batch(n), target)


def _packed_for_gpu(
    n: Node, nodes: dict[str, Node], consts: dict[str, Array], target: Target
) -> tuple[dict[str, Array], float]:
    """A GPU's arrays, the same for all, and cycles."""
    from sparsec.targets.cuda.kernels import recurrent as kernel
    from sparsec.targets.cuda.parts.recurrent_shape import pack

    arrays = {"values": pack(consts[n.args[1]], cast(RecurrentAttrs, n.attrs))}
    for name in _biases(n):
        arrays["bias"] = consts[name]
    shape = kernel.shape_of(n, nodes, target)
    return arrays, kernel.predict(shape, *_steps_and_batch(n), target) if shape else 0.0
