"""sharing: values that lie inside others, so that nothing has to copy them.

A slice that is one piece of its argument is read where it is.  The parts of a concat along the
outermost axis are written straight into it by whatever makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from sparsec.ir.dims import Size
from sparsec.ir.graph import Graph, Node, Op
from sparsec.ir.types import Type
from sparsec.targets.calls import Call, Context, written
from sparsec.targets.lowering_moves import concat, part_begins, parts_of

#: what operators carried as TIR, and kernels of a GPU, expect of an address
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Place:
    """The value whose memory it is, and the byte of it where another begins."""

    owner: str
    offset: Size = 0


@dataclass(slots=True)
class Sharing:
    """The steps left to run, and where every value is.

    ``inside`` names for a value the one it lies in; following it ends at the owner.
    """

    graph: Graph
    context: Context
    calls: list[tuple[Node, Call]]
    inside: dict[str, Place] = field(default_factory=dict)
    _made: dict[str, Type] = field(default_factory=dict)
    _rigid: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Find what can share memory, and drop or shorten the calls that copied it."""
        for n, call in self.calls:
            made = dict(written(self.graph.nodes, n))
            self._made.update(made)
            if call.tensors or call.threads:
                self._rigid.update(made, n.args)
        calls = {n.name: call for n, call in self.calls}
        for n in self.graph.nodes:
            if n.op is Op.RESHAPE:
                self.inside[n.name] = Place(n.args[0])
            elif n.op is Op.SLICE and n.name in calls and self._is_read_in_place(n):
                del calls[n.name]
            elif n.op is Op.CONCAT and n.name in calls and not calls[n.name].tensors:
                self._write_in_place(n, calls)
        # what is shortened is made by one call; a node of several keeps them all
        several = {n.name for (n, _), (m, _) in pairwise(self.calls) if n is m}
        self.calls = [
            (n, call if n.name in several else calls[n.name]) for n, call in self.calls if n.name in calls
        ]

    def place(self, name: str) -> Place:
        """Where a value is."""
        offset: Size = 0
        while name in self.inside:
            name, offset = self.inside[name].owner, self.inside[name].offset + offset
        return Place(name, offset)

    def _is_read_in_place(self, n: Node) -> bool:
        begin = part_begins(n, self.context) if self._plain((n.name, n.args[0])) else None
        if begin is None:
            return False
        self.inside[n.name] = Place(n.args[0], begin)
        views = self._views((n.name,))
        if views.isdisjoint(self.graph.outputs) and self._fits(views, self.place(n.name).offset):
            return True
        del self.inside[n.name]
        return False

    def _write_in_place(self, n: Node, calls: dict[str, Call]) -> None:
        """Give the makers of a concat's parts their place in it."""
        ready = set()
        for position, begin in parts_of(n, self.context).items():
            part = n.args[position]
            owner = self.place(part).owner
            if self._can_move(owner, part, n, begin):
                self.inside[owner] = Place(n.name, begin)
                ready.add(position)
        if not ready:
            return
        left = [i for i, a in enumerate(n.args) if i not in ready and self.context.type(a).elements != 0]
        if left and calls[n.name].threads:
            from sparsec.targets.cuda.kernels.moves import concat as concat_on_gpu

            (calls[n.name],) = concat_on_gpu(n, self.context, ready)
        elif left:
            calls[n.name] = concat(n, self.context, ready)
        else:
            del calls[n.name]

    def _can_move(self, owner: str, part: str, n: Node, begin: Size) -> bool:
        """Whether all of ``owner`` is the part, some step makes it, and nothing keeps it where it is."""
        made = self._made.get(owner)
        if made is None or owner == n.name or made.elements != self.context.type(part).elements:
            return False
        if made.layout.panel or not self._plain((part, n.name)):
            return False
        views = self._views([m.name for m in self.graph.nodes if self.place(m.name).owner == owner] + [owner])
        return views.isdisjoint(self.graph.outputs) and self._fits(views, begin)

    def _views(self, names: Sequence[str]) -> set[str]:
        """The values and all that may be read inside them."""
        found = set(names)
        for n in self.graph.nodes:
            if n.op in (Op.RESHAPE, Op.SLICE) and n.args[0] in found:
                found.add(n.name)
        return found

    def _fits(self, views: set[str], offset: Size) -> bool:
        """Whether whoever reads or writes the values takes them at this offset."""
        return (isinstance(offset, int) and offset % _ALIGNMENT == 0) or views.isdisjoint(self._rigid)

    def _plain(self, names: Sequence[str]) -> bool:
        return not any(self.context.type(name).layout.panel for name in names)
