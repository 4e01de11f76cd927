"""The graph under construction: nodes, constants, and what Relax variables stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sparsec.ir.attributes import Attrs, ElementwiseAttrs
from sparsec.ir.expr import Arg, Expr, rewrite
from sparsec.ir.graph import Node, Op, const_node, fresh_name
from sparsec.ir.types import Type

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Mask:
    """A truth value kept as an expression (1 or 0) over float32 nodes until something reads it."""

    expr: Expr
    args: tuple[str, ...]
    call: Any


@dataclass(frozen=True, slots=True)
class Spread:
    """A node broadcast to a larger shape, kept back until something needs it as a tensor."""

    source: str
    call: Any


#: what a Relax variable stands for: a node, something not yet stored, a tuple, or a shape
Value: TypeAlias = str | Mask | Spread | tuple["Value", ...] | None


@dataclass
class Operands:
    """Collects the arguments of one elementwise node, each once."""

    names: list[str] = field(default_factory=list)

    def node(self, name: str) -> Expr:
        """The expression that reads a node."""
        if name not in self.names:
            self.names.append(name)
        return Arg(self.names.index(name))

    def mask(self, mask: Mask) -> Expr:
        """A mask's expression over this node's arguments."""
        return rewrite(mask.expr, lambda arg: self.node(mask.args[arg.index]))


@dataclass
class Building:
    """Nodes and constants so far; names are made unique as they come."""

    made: dict[str, Node] = field(default_factory=dict)
    consts: dict[str, Array] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    literals: dict[tuple[bytes, str, tuple[int, ...]], str] = field(default_factory=dict)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, in the order they came."""
        return tuple(self.made.values())

    def add(
        self, stem: str, op: Op, args: Sequence[str], type_: Type, attrs: Attrs = None, origin: str = ""
    ) -> str:
        """Append a node and return its name."""
        name = self.claim(stem)
        self.made[name] = Node(name, op, tuple(args), type_, attrs, (), origin)
        return name

    def add_const(self, stem: str, array: Array) -> str:
        """Append a constant that keeps its own name."""
        name = self.claim(stem)
        self.made[name] = const_node(name, array)
        self.consts[name] = array
        return name

    def add_literal(self, array: Array) -> str:
        """A constant found inside the model; equal ones share a node."""
        key = (array.tobytes(), str(array.dtype), array.shape)
        if key not in self.literals:
            self.literals[key] = self.add_const("const", np.asarray(array, order="C"))
        return self.literals[key]

    def elementwise(self, stem: str, expr: Expr, names: Sequence[str], type_: Type, origin: str) -> str:
        """An elementwise node; an expression that is one bare argument of the same type is no node."""
        return self.add(stem, Op.ELEMENTWISE, names, type_, ElementwiseAttrs(expr), origin)

    def is_constant(self, name: str) -> bool:
        """Whether a value depends on constants only, by operators that simplify computes."""
        n = self.made[name]
        if n.op in (Op.RESHAPE, Op.TRANSPOSE, Op.ELEMENTWISE):
            return all(self.is_constant(a) for a in n.args)
        return n.op is Op.CONST

    def claim(self, stem: str) -> str:
        """A name nobody has."""
        name = fresh_name(stem, self.taken)
        self.taken.add(name)
        return name
