"""lower_precision: a float32 model in float16 or bfloat16, where the target was asked for that.

Values and constants inside the graph change their dtype.  Inputs and outputs stay what they are unless
``Target.port_dtype`` is that dtype too; operators carried as TIR stay, whose code is for float32.
Kernels add in float32 whatever they read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16)
import numpy as np

from sparsec.ir.attributes import ElementwiseAttrs
from sparsec.ir.expr import Arg
from sparsec.ir.graph import Graph, Node, Op, const_node, fresh_name, replace, with_nodes
from sparsec.targets.target import Target

if TYPE_CHECKING:
    from sparsec.ir.types import Array

_FLOAT32 = "float32"


def lower_precision(graph: Graph, target: Target) -> Graph:
    """Compute in ``target.dtype`` what the model computes in float32."""
    if target.dtype == _FLOAT32 or any(n.type.dtype == target.dtype for n in graph.nodes):
        return graph
    return _Lowering(graph, target.dtype, target.port_dtype).run()


@dataclass(slots=True)
class _Lowering:
    graph: Graph
    dtype: str
    ports: str
    nodes: dict[str, Node] = field(default_factory=dict)
    built: list[Node] = field(default_factory=list)
    consts: dict[str, Array] = field(default_factory=dict)
    #: (value, dtype) -> the name it has in that dtype
    cast: dict[tuple[str, str], str] = field(default_factory=dict)

    def run(self) -> Graph:
        self.nodes = self.graph.node_map()
        self.consts = dict(self.graph.consts)
        kept = {n.name for n in self.graph.nodes if self._stays(n)}
        for n in self.graph.nodes:
            wanted = _FLOAT32 if n.op is Op.TIR else self.dtype
            # an item is of whatever its node made
            args = n.args if n.op is Op.ITEM else tuple(self._as(a, wanted, kept) for a in n.args)
            lowered = n.type.dtype == _FLOAT32 and n.name not in kept
            kind = replace(n.type, dtype=self.dtype) if lowered else n.type
            self.built.append(replace(n, args=args, type=kind))
        outputs = tuple(self._as(o, self.ports, kept) for o in self.graph.outputs)
        return with_nodes(self.graph, self.built, self.consts, outputs)

    def _stays(self, n: Node) -> bool:
        """Whether a value keeps its dtype."""
        if n.op is Op.ITEM:
            return self.nodes[n.args[0]].op is Op.TIR
        if n.op is Op.INPUT and self.ports == self.dtype:
            return n.type.dtype != _FLOAT32
        return n.op in (Op.INPUT, Op.CONST, Op.TIR) or n.type.dtype != _FLOAT32

    def _as(self, name: str, dtype: str, kept: set[str]) -> str:
        """A float32 value of the model in a dtype; other values as they are."""
        n = self.nodes[name]
        have = _FLOAT32 if name in kept else self.dtype
        if n.type.dtype != _FLOAT32 or have == dtype:
            return name
        if (name, dtype) not in self.cast:
            self.cast[name, dtype] = self._made(n, dtype)
        return self.cast[name, dtype]

    def _made(self, n: Node, dtype: str) -> str:
        label = fresh_name(f"{n.name}_{dtype}", {*self.nodes, *(m.name for m in self.built)})
        if n.op is Op.CONST:
            self.consts[label] = _rounded(self.graph.consts[n.name], dtype)
            node = replace(const_node(label, self.consts[label]), attrs=n.attrs)
        else:
            kind = replace(n.type, dtype=dtype)
            node = Node(label, Op.ELEMENTWISE, (n.name,), kind, ElementwiseAttrs(Arg(0)), origin=n.origin)
        self.built.append(node)
        return label


def _rounded(array: Array, dtype: str) -> Array:
    """To nearest; what is too large for float16 becomes its largest number, as no weight is infinite."""
    if dtype == "float16":
        most = float(np.finfo(np.float16).max)
        array = np.where(np.isfinite(array), np.clip(array, -most, most), array)
    return array.astype(np.dtype(dtype))
