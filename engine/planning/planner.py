"""planner: the finished graph as the executor's tables, its machine code and its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sparsec.errors import Unsupported
from sparsec.ir.dims import Size
from sparsec.ir.graph import Graph, Node, Op, outputs_of
from sparsec.ir.types import Type
from sparsec.planning.sharing import Place, Sharing
from sparsec.progress import Progress, counted
from sparsec.runtime.artifact import weight_offsets
from sparsec.runtime.plan import Argument, ArgumentKind, Buffer, BufferKind, Isa, Plan, Port, Step, Tensor
from sparsec.targets.calls import Call, Context, written
from sparsec.targets.linking import link
from sparsec.targets.lowering import lower
from sparsec.targets.several import lowering_target, members_of, most_capable_first
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Target

if TYPE_CHECKING:
    from sparsec.ir.types import Array


@dataclass(frozen=True, slots=True)
class Planned:
    """What an artifact is written from; ``calls`` are parallel to ``plan.steps``.

    ``code`` is for each target, the most capable first; ``plan`` and ``calls`` are as the one named
    first has them.
    """

    plan: Plan
    code: tuple[Isa, ...]
    weights: tuple[Array, ...]
    calls: tuple[Call, ...]


def plan_program(graph: Graph, target: Target, progress: Progress | None = None) -> Planned:
    """Lower every node, plan its memory, and link its code.

    ``progress`` hears of every kernel built.

    Raises:
        Unsupported: lists every node that nothing can run.
        BuildError: code generation failed.
    """
    return _Planner(graph, target).run(progress)


def _is_empty(n: Node) -> bool:
    """Whether a node makes no elements at all, and so nothing has to run."""
    return all(t.elements == 0 for t in outputs_of(n))


def _makers(calls: Sequence[tuple[Node, Call]]) -> list[Callable[[], bytes]]:
    """What makes the objects of some calls, each kernel once."""
    return [make for _, make in sorted({c.kernel: c.object for _, c in calls}.items())]


def _made(makers: Sequence[Callable[[], bytes]], target: Target, progress: Progress | None) -> list[bytes]:
    """Every kernel's code; for a GPU another program makes it, and several of those run at a time."""
    if not target.gpu:
        return [make() for make in counted(makers, "kernels", progress)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = [pool.submit(make) for make in makers]
        try:
            return [one.result() for one in counted(pending, "kernels", progress)]
        finally:
            # after a failure what has not begun need not
            pool.shutdown(wait=False, cancel_futures=True)


def _moved(calls: Sequence[tuple[Node, Call]]) -> list[tuple[str, tuple[str, ...]]]:
    """Which values every call reads and writes."""
    return [(n.name, c.reads) for n, c in calls]


@dataclass(slots=True)
class _Value:
    """Where a value lives: an input, a constant, or the result of a step."""

    type: Type
    kind: BufferKind
    first: int = 0
    last: int = 0


@dataclass(slots=True)
class _Planner:
    graph: Graph
    target: Target
    sizes: Sizes = field(default_factory=Sizes)
    calls: list[tuple[Node, Call]] = field(default_factory=list)
    #: the same calls as each further target makes them
    others: list[list[tuple[Node, Call]]] = field(default_factory=list)
    #: value name -> the value whose memory it is, and from which byte on
    places: dict[str, Place] = field(default_factory=dict)
    values: dict[str, _Value] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    buffer_of: dict[str, int] = field(default_factory=dict)
    parts: dict[tuple[Place, int], int] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    def run(self, progress: Progress | None) -> Planned:
        self._lower_all()
        self._place_values()
        arrays, offsets = self._weights()
        self._make_buffers(offsets)
        outputs = tuple(
            self._port(label, self.graph.node_map()[o].type, self._owner(o))
            for label, o in zip(self.graph.output_names, self.graph.outputs, strict=True)
        )
        inputs = tuple(self._port(n.name, n.type, n.name) for n in self.graph.inputs)
        steps, *others = (tuple(self._step(n, c) for n, c in calls) for calls in (self.calls, *self.others))
        plan = Plan(
            tuple(self.sizes.symbols), tuple(self.sizes.expressions), tuple(self.buffers),
            tuple(self.tensors), steps, inputs, outputs,
        )  # fmt: skip
        code = self._code((steps, *others), progress)
        return Planned(plan, code, tuple(arrays), tuple(c for _, c in self.calls))

    def _code(self, steps: Sequence[tuple[Step, ...]], progress: Progress | None) -> tuple[Isa, ...]:
        """Every target's code."""
        makers = [_makers(calls) for calls in (self.calls, *self.others)]
        made = _made([make for one in makers for make in one], self.target, progress)
        found = {}
        for member, own, count in zip(members_of(self.target), steps, map(len, makers), strict=True):
            code, made = link(made[:count], member), made[count:]
            found[member] = Isa(member.name, member.features, own, code)
        return tuple(found[member] for member in most_capable_first(tuple(found)))

    def _lower_all(self) -> None:
        first, *others = (self._lowered(member) for member in members_of(self.target))
        self.calls, self.others = first.calls, [other.calls for other in others]
        self.places = {n.name: first.place(n.name) for n in self.graph.nodes}
        for other in self.others:
            assert _moved(other) == _moved(self.calls), "targets of one plan read and write other values"

    def _lowered(self, member: Target) -> Sharing:
        """The calls of one target, and which values share memory."""
        nodes = self.graph.node_map()
        calls: list[tuple[Node, Call]] = []
        failures: list[tuple[str, str]] = []
        reasons: list[str] = []
        for n in self.graph.nodes:
            if n.op in (Op.INPUT, Op.CONST, Op.RESHAPE, Op.ITEM) or _is_empty(n):
                continue
            context = Context(nodes, self.sizes, lowering_target(nodes, n, member, self.target))
            try:
                calls.extend((n, call) for call in lower(n, context))
            except Unsupported as failure:
                failures.append((str(n.op), n.origin or n.name))
                reasons.append(str(failure))
        if failures:
            raise Unsupported("no kernel for:\n  " + "\n  ".join(reasons), failures)
        sharing = Sharing(self.graph, Context(nodes, self.sizes, member), calls)
        sharing.run()
        return sharing

    def _owner(self, name: str) -> str:
        return self.places[name].owner if name in self.places else name

    def _place_values(self) -> None:
        nodes = self.graph.node_map()
        for n in self.graph.nodes:
            if n.op in (Op.INPUT, Op.CONST):
                kind = BufferKind.INPUT if n.op is Op.INPUT else BufferKind.CONSTANT
                self.values[n.name] = _Value(n.type, kind)
            elif _is_empty(n):
                made = written(self.graph.nodes, n)
                self.values.update({v: _Value(t, BufferKind.TEMPORARY) for v, t in made})
        for index, (n, call) in enumerate(self.calls):
            for name, type_ in (*written(self.graph.nodes, n), *call.makes):
                owner = self._owner(name)
                whole = type_ if owner == name else nodes[owner].type
                self.values.setdefault(owner, _Value(whole, BufferKind.TEMPORARY, index, index))
            for name in call.reads:
                value = self.values.get(self._owner(name))
                if value is not None:
                    value.last = max(value.last, index)
        final = len(self.calls)
        for name in self.graph.outputs:
            value = self.values[self._owner(name)]
            value.last = max(value.last, final - 1)
            if value.kind is BufferKind.TEMPORARY:
                value.kind = BufferKind.OUTPUT

    def _weights(self) -> tuple[list[Array], Mapping[str, int]]:
        used = [name for _, c in self.calls for name in c.reads] + list(self.graph.outputs)
        names = [n for n in dict.fromkeys(map(self._owner, used)) if n in self.graph.consts]
        arrays = [np.ascontiguousarray(self.graph.consts[n]) for n in names]
        offsets, _ = weight_offsets(arrays)
        return arrays, dict(zip(names, offsets, strict=True))

    def _make_buffers(self, offsets: Mapping[str, int]) -> None:
        position = {n.name: i for i, n in enumerate(self.graph.inputs)}
        for name, offset in offsets.items():
            nbytes = self.sizes.of(int(self.graph.consts[name].nbytes))
            self._buffer(name, Buffer(BufferKind.CONSTANT, offset, nbytes))
        outputs = {self._owner(o): i for i, o in reversed(list(enumerate(self.graph.outputs)))}
        for name, value in self.values.items():
            if value.kind is BufferKind.CONSTANT:
                continue
            index = position.get(name, outputs.get(name, 0))
            nbytes = self._bytes(value.type)
            self._buffer(name, Buffer(value.kind, index, nbytes, value.first, value.last))

    def _buffer(self, name: str, buffer: Buffer) -> None:
        self.buffer_of[name] = len(self.buffers)
        self.buffers.append(buffer)

    def _bytes(self, t: Type) -> int:
        width = np.dtype(t.dtype).itemsize
        panel = t.layout.panel
        if not panel:
            return self.sizes.of(t.elements * width)
        panels = self.sizes.ceil_divide(self.sizes.of(t.tokens), panel)
        return self.sizes.multiply(panels, self.sizes.of(t.shape[-1] * (panel * width)))

    def _port(self, label: str, t: Type, name: str) -> Port:
        return Port(label, t.dtype, self._shape(t.shape), self.buffer_of[name])

    def _shape(self, shape: tuple[Size, ...]) -> tuple[int, ...]:
        return tuple(self.sizes.of(s) for s in shape)

    def _step(self, n: Node, call: Call) -> Step:
        arguments = self._operator_arguments(n, call) if call.tensors else self._kernel_arguments(call)
        return Step(
            call.kernel, arguments, call.tiles, call.scratch, serial=call.tensors,
            nanoseconds=int(call.microseconds * 1e3), node=n.origin or n.name, threads=call.threads,
        )  # fmt: skip

    def _kernel_arguments(self, call: Call) -> tuple[Argument, ...]:
        pointers = [Argument(ArgumentKind.POINTER, self._buffer_of(r)) for r in call.reads]
        numbers = [Argument(ArgumentKind.INTEGER, e) for e in call.numbers]
        if call.threads:
            return (*pointers, *numbers)
        ends = [Argument(ArgumentKind.TILE_BEGIN), Argument(ArgumentKind.TILE_END)]
        return (Argument(ArgumentKind.SCRATCH), *pointers, *numbers, *ends)

    def _operator_arguments(self, n: Node, call: Call) -> tuple[Argument, ...]:
        nodes = self.graph.node_map()
        found = [self._tensor(a, nodes[a].type) for a in n.args]
        found += [self._tensor(name, t) for name, t in written(self.graph.nodes, n)]
        return tuple(Argument(ArgumentKind.TENSOR, t) for t in found)

    def _tensor(self, name: str, t: Type) -> int:
        self.tensors.append(Tensor(self._buffer_of(name), t.dtype, self._shape(t.shape)))
        return len(self.tensors) - 1

    def _buffer_of(self, name: str) -> int:
        place = self.places.get(name, Place(name))
        whole = self.buffer_of[place.owner]
        if place.offset == 0:
            return whole
        nbytes = self._bytes(self.graph.node_map()[name].type)
        if (place, nbytes) not in self.parts:
            self.parts[place, nbytes] = len(self.buffers)
            first = self.sizes.of(place.offset)
            self.buffers.append(Buffer(BufferKind.PART, whole, nbytes, first))
        return self.parts[place, nbytes]
