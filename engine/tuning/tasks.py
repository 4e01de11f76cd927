"""tasks: the layers of a graph that want measuring, each as a small program of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import log, log2
from typing import TYPE_CHECKING, cast

import numpy as np

from sparsec.ir.attributes import ConstAttrs
from sparsec.ir.dims import Size
from sparsec.ir.graph import Choice, Graph, Node, Op, replace
from sparsec.ir.types import PLAIN
from sparsec.ir.verify import verify
from sparsec.passes.choose_format import beside_others, candidates
from sparsec.passes.pack import pack
from sparsec.planning.planner import plan_program
from sparsec.runtime import Program
from sparsec.runtime.artifact import to_bytes
from sparsec.targets.layers import is_layer
from sparsec.targets.problem import problem_of
from sparsec.tuning.records import Config, Task
from sparsec.tuning.variants import variants

if TYPE_CHECKING:
    from sparsec.ir.types import Array
    from sparsec.sparsity.pattern import Pattern
    from sparsec.targets.target import Kernel, Problem, Target

#: densities that differ by less than this factor are one pattern
_SAME_DENSITY = 1.05
#: a size that inputs leave open is measured at this
_OPEN = 32


@dataclass(frozen=True, slots=True)
class Trial:
    """A way to run a layer: kernel, settings, predicted microseconds."""

    kernel: str
    config: Config
    predicted: float


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer, how many of its kind there are, and all ways to run it, the predicted best first."""

    task: Task
    node: Node
    problem: Problem
    pattern: Pattern
    graph: Graph
    trials: tuple[Trial, ...] = field(default=())
    count: int = 1


def task_of(problem: Problem, pattern: Pattern, target: Target, machine: str) -> Task:
    """What a layer's records are found by."""
    name = f"{target.mcpu}, {target.lanes} lanes"
    return Task(machine, name, target.threads, _problem_text(problem), _pattern_text(pattern))


def _problem_text(p: Problem) -> str:
    """Sizes, layout and what is fused, as one line."""
    columns = "open" if p.columns is None else str(p.columns)
    parts = [f"{p.rows}x{p.inner}", f"columns {columns}"]
    if p.panel:
        parts.append(f"panels of {p.panel}")
    if p.conv:
        g = p.conv
        shape = [(g.channels, g.height, g.width), (g.out_height, g.out_width), g.kernel, g.strides, g.padding]
        text = " ".join("x".join(map(str, sizes)) for sizes in [*shape, g.dilation])
        parts.append(f"convolution {text} groups {g.groups} images {g.images or 'open'}")
    if p.epilogue is not None:
        parts.append(f"epilogue {hashlib.sha256(repr(p.epilogue).encode()).hexdigest()[:8]}")
    if p.extras:
        parts.append(f"extras {' '.join(p.extras)}")
    if p.active is not None:
        parts.append(f"active {p.active:.1f}")
    return ", ".join(parts)


def _pattern_text(pattern: Pattern) -> str:
    """What of the zeros decides about time, coarse enough that layers pruned alike are one."""
    if not pattern.nonzeros:
        return "empty"
    step = round(log(pattern.density) / log(_SAME_DENSITY))
    parts = [pattern.kind, f"density {_SAME_DENSITY**step:.3g}", f"rows vary {pattern.row_variation:.1f}"]
    if pattern.block is not None:
        parts.append(f"blocks {pattern.block.rows}x{pattern.block.columns}")
    if pattern.nm_best is not None:
        parts.append(f"{pattern.nm_best.n}:{pattern.nm_best.m} axis {pattern.nm_best.axis}")
    dead = pattern.dead_rows, pattern.dead_columns
    if any(dead):
        # to the next power of two
        parts.append("dead " + " ".join(str(1 << round(log2(n)) if n else 0) for n in dead))
    return ", ".join(parts)


def layers_of(graph: Graph, target: Target, machine: str) -> list[Layer]:
    """The distinct layers of an analysed graph (every choice made, nothing packed)."""
    nodes = graph.node_map()
    found: dict[Task, Layer] = {}
    for n in graph.nodes:
        if not n.choice or not is_layer(nodes, n):
            continue
        problem = problem_of(nodes, n)
        pattern = cast("Pattern", cast(ConstAttrs, nodes[n.args[1]].attrs).pattern)
        task = task_of(problem, pattern, target, machine)
        if task in found:
            found[task] = replace(found[task], count=found[task].count + 1)
        else:
            trials = tuple(_trials(problem, pattern, beside_others(graph, nodes, n, target)))
            found[task] = Layer(task, n, problem, pattern, alone(graph, n), trials)
    return list(found.values())


def _trials(problem: Problem, pattern: Pattern, target: Target) -> Iterator[Trial]:
    """Every kernel's every configuration: what an untuned compilation takes, then the predicted best."""
    ranked = candidates(problem, pattern, target)
    _, kernel, config = ranked[0]
    default = _trial(kernel, problem, pattern, config, target)
    rest = {
        _trial(kernel, problem, pattern, config, target)
        for _, kernel, _ in ranked
        for config in kernel.space(problem, pattern, target)
    }
    yield default
    yield from sorted(rest - {default}, key=lambda t: (t.predicted, t.kernel, t.config))


def near(layer: Layer, kernel_name: str, config: Config, target: Target) -> list[Trial]:
    """What differs from a configuration in one word."""
    kernel = next(k for k in target.kernels if k.name == kernel_name)
    return [
        _trial(kernel, layer.problem, layer.pattern, one, target)
        for one in variants(layer.problem, dict(config), target)
    ]


def _trial(
    kernel: Kernel, problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target
) -> Trial:
    micro = kernel.predict(problem, pattern, config, target) / target.gigahertz / 1e3
    return Trial(kernel.name, tuple(sorted(config.items())), micro)


def alone(graph: Graph, n: Node) -> Graph:
    """The layer as a graph of its own, plain tensors in and out, all it reads but constants an input."""
    nodes = graph.node_map()
    made: list[Node] = []
    consts: dict[str, Array] = {}
    for name in dict.fromkeys(n.args):
        node = nodes[name]
        if node.op is Op.CONST:
            made.append(node)
            consts[name] = graph.consts[name]
            continue
        plain = replace(node.type, layout=PLAIN)
        label = name if node.type.layout == PLAIN else f"{name}.plain"
        made.append(Node(label, Op.INPUT, (), plain))
        if label != name:
            made.append(Node(name, Op.RELAYOUT, (label,), node.type))
    made.append(replace(n, choice=(), origin=""))
    output = n.name
    if n.type.layout != PLAIN:
        output = f"{n.name}.plain"
        made.append(Node(output, Op.RELAYOUT, (n.name,), replace(n.type, layout=PLAIN)))
    return verify(Graph(tuple(made), (output,), ("y",), consts))


def program_bytes(layer: Graph, name: str, kernel: str, config: Config, target: Target) -> bytes:
    """The model file of a layer (see :func:`alone`) run by one kernel with given settings.

    Raises:
        SparsecError: that cannot be built.
    """
    form = next(k.format for k in target.kernels if k.name == kernel)
    choice = Choice(kernel, form, config)
    chosen = replace(
        layer, nodes=tuple(replace(n, choice=(choice,)) if n.name == name else n for n in layer.nodes)
    )
    planned = plan_program(pack(chosen, target), target)
    manifest = {
        "target": target.name,
        "features": list(target.features),
        "report": {"layers": [], "steps": []},
    }
    return to_bytes(planned.plan, planned.code, planned.weights, manifest)


def feeds_of(program: Program, active: float | None = None) -> dict[str, Array]:
    """Normal numbers for every input, sizes left open at 32; of the first a share of features is zero."""
    random = np.random.default_rng(0)
    feeds = {
        port.name: random.standard_normal([_known(s) for s in port.shape]).astype(np.float32)
        for port in program.inputs
    }
    if active is not None:
        x = feeds[program.inputs[0].name]
        x[..., random.random(x.shape[-1]) >= active] = 0
    return feeds


def _known(size: Size | str) -> int:
    return size if isinstance(size, int) else _OPEN
