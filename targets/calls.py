"""calls: one kernel call as lowering describes it, and the pieces every rule needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from sparsec.ir.attributes import ItemAttrs, TirAttrs
from sparsec.ir.dims import Size
from sparsec.ir.graph import Node, outputs_of
from sparsec.ir.types import Type
from sparsec.targets.build import kernel_object, operator_object
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Target


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call.

    ``object`` makes the machine code; ``reads`` names values or packed constants in parameter
    order, the value it makes last; ``numbers``, ``tiles`` and ``scratch`` (bytes) are
    expressions; ``tensors`` marks an operator carried as TIR, which takes DLTensors.
    """

    kernel: str
    object: Callable[[], bytes]
    reads: tuple[str, ...]
    numbers: tuple[int, ...]
    tiles: int
    scratch: int
    microseconds: float
    tensors: bool = False
    #: of a step on a GPU: threads of a block; ``tiles`` are the blocks, ``scratch`` the dynamic shared memory
    threads: int = 0
    #: values beside the node's own that this call makes for the node's next calls
    makes: tuple[tuple[str, Type], ...] = ()
    #: the TIR of a step on a GPU
    function: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Context:
    """What lowering a node needs to see."""

    nodes: Mapping[str, Node]
    sizes: Sizes
    target: Target

    def type(self, name: str) -> Type:
        """The type of a value."""
        return self.nodes[name].type


def written(nodes: Iterable[Node], n: Node) -> list[tuple[str, Type]]:
    """The values a node makes: itself, or all items of a node with several, read or not."""
    types = outputs_of(n)
    if len(types) == 1:
        return [(n.name, n.type)]
    items = {m.attrs.index: m.name for m in nodes if isinstance(m.attrs, ItemAttrs) and m.args[0] == n.name}
    # an output nobody reads still needs memory to be written to
    return [(items.get(i, f"{n.name}#{i}"), t) for i, t in enumerate(types)]


@cache
def _sources() -> str:
    """A digest of the emitters, so that cached objects never outlive the code that made them."""
    digest = hashlib.sha256()
    for part in sorted(files("sparsec.targets.kernels").iterdir(), key=lambda p: p.name):
        if part.name.endswith((".py", ".ll")):
            digest.update(part.read_bytes())
    return digest.hexdigest()[:16]


def kernel_call(
    context: Context, stem: str, key: object, emit: Callable[[str], Any], reads: tuple[str, ...],
    numbers: tuple[int, ...], tiles: int, scratch: int, cycles: float,
) -> Call:  # fmt: skip
    """A call of one of our kernels; ``key`` holds all that ``emit(name)`` depends on."""
    target = context.target
    described = f"{stem}|{key!r}|{target.lanes}|{target.registers}|{_sources()}"
    name = f"{stem}_{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    micro = cycles / target.gigahertz / 1e3
    return Call(
        name,
        lambda: kernel_object(described, lambda: emit(name), target),
        reads,
        numbers,
        tiles,
        scratch,
        micro,
    )


def known(size: Size, default: int = 32) -> int:
    """A number to estimate time with."""
    return size if isinstance(size, int) else default


def cycles_of(t: Type, context: Context, each: float) -> float:
    """Estimated cycles of a node that spends ``each`` on a vector."""
    return known(t.elements, 4096) * each / context.target.lanes


def panel_count(t: Type, sizes: Sizes) -> int:
    """The number of token panels, as an expression."""
    return sizes.ceil_divide(sizes.of(t.tokens), t.layout.panel)


def operator_call(n: Node, context: Context, attrs: TirAttrs, reads: tuple[str, ...]) -> Call:
    """A call of an operator carried as TIR: one tile, tensors for arguments."""
    sizes = context.sizes
    work = sum(known(context.type(a).elements, 4096) for a in n.args) * 10.0
    return Call(
        attrs.name, lambda: operator_object(attrs.module, context.target), reads, (), sizes.of(1),
        sizes.of(64), work / context.target.gigahertz / 1e3, tensors=True,
    )  # fmt: skip
