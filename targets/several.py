"""several: one plan for several instruction sets, which share its layouts, buffers and packed weights.

Everything is chosen for the first named target, by its figures, with the smallest caches of any: who
names several says so which machine matters most.  What is chosen must run on all of them.
A packed weight is read by every target either with vectors of its own, where the packing does not
depend on them (see targets.kernels.portable), or by the code of the narrower vectors it was packed
for, compiled for the wider target, which has all instructions of the narrower one.  A packing that
some target could read in neither way is no candidate.  The same holds of panels that are no multiple of
a target's vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from sparsec.errors import ConfigError
from sparsec.ir.graph import Node, Op
from sparsec.targets.kernels.portable import read_with
from sparsec.targets.target import Kernel, Packing, Problem, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsec.sparsity.pattern import Pattern

#: the setting that says for how many lanes a weight was packed
_LANES = "lanes"


def joined(targets: Sequence[Target]) -> Target:
    """The first target, with the others as :attr:`Target.others` and kernels that run on all.

    Raises:
        ConfigError: the targets are of several architectures, or one is named twice.
    """
    first, *others = targets
    if not others:
        return first
    kinds = {t.architecture: t.name for t in targets}
    if len(kinds) > 1:
        told = " and ".join(f"{name} ({kind})" for kind, name in kinds.items())
        raise ConfigError(f"one file holds code for one architecture, not for {told}; compile one for each")
    if len({t.name for t in targets}) < len(targets):
        raise ConfigError(f"a target is named twice: {', '.join(t.name for t in targets)}")
    if first.gpu:
        # packings do not depend on the kind of GPU
        return replace(first, l1=min(t.l1 for t in targets), others=tuple(others))
    l1, l2 = min(t.l1 for t in targets), min(t.l2 for t in targets)
    members = tuple(replace(t, l1=l1, l2=l2, kernels=()) for t in targets)
    kernels = tuple(cast(Kernel, Joint(cast(ModuleType, k), members)) for k in first.kernels)
    return replace(
        first, l1=l1, l2=l2, kernels=kernels, others=tuple(replace(m, kernels=kernels) for m in members[1:])
    )


def members_of(target: Target) -> tuple[Target, ...]:
    """The targets that code is made for, in the order they were named."""
    return (replace(target, others=()) if target.others else target, *target.others)


def most_capable_first(targets: Sequence[Target]) -> list[Target]:
    """By vectors, then by the number of features; of equals the one named first."""
    return sorted(targets, key=lambda t: (-t.lanes, -len(t.features)))


def narrowest(target: Target) -> Target:
    """The target, or the one of several with the shortest vectors."""
    return min(members_of(target), key=lambda t: t.lanes)


def lowering_target(nodes: Mapping[str, Node], n: Node, member: Target, target: Target) -> Target:
    """What code of a member for one node is generated with: itself, or as if its vectors were shorter."""
    if not target.others:
        return target
    panels = {nodes[a].type.layout.panel for a in n.args} | {n.type.layout.panel}
    most = narrowest(target).lanes if n.op is Op.RECURRENT else member.lanes
    widths = [t for t in members_of(target) if t.lanes <= most and not any(p % t.lanes for p in panels)]
    return member if member in widths else _with_vectors(member, max(widths, key=lambda t: t.lanes))


def _with_vectors(member: Target, of: Target) -> Target:
    return replace(member, lanes=of.lanes, registers=of.registers)


@dataclass(frozen=True, slots=True)
class Joint:
    """A kernel for all members at once; its settings also say for how many lanes it packs."""

    kernel: ModuleType
    members: tuple[Target, ...]

    @property
    def name(self) -> str:
        """The kernel's."""
        return str(self.kernel.name)

    @property
    def format(self) -> str:
        """The kernel's."""
        return str(self.kernel.format)

    def accepts(self, problem: Problem, pattern: Pattern, target: Target) -> bool:
        """Whether all members run the problem from one packing."""
        return any(True for _ in self._options(problem, pattern, target))

    def space(self, problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
        """Those of the first member's vectors, then of shorter ones."""
        return tuple(self._options(problem, pattern, target))

    def _options(self, problem: Problem, pattern: Pattern, target: Target) -> Iterator[dict[str, int]]:
        for lanes in dict.fromkeys(m.lanes for m in self.members if m.lanes <= self.members[0].lanes):
            packed = self._packed_for(lanes, target)
            if not self.kernel.accepts(problem, pattern, packed):
                continue
            for config in self.kernel.space(problem, pattern, packed):
                if all(self._code(problem, config, packed, m) for m in self.members):
                    yield {**config, _LANES: lanes}

    def _packed_for(self, lanes: int, target: Target) -> Target:
        """The first member's facts, or what ``target`` knows better, with vectors of so many lanes."""
        registers = min(m.registers for m in self.members if m.lanes == lanes)
        first = self.members[0]
        return replace(target, l1=first.l1, l2=first.l2, lanes=lanes, registers=registers, others=())

    def _code(
        self, problem: Problem, config: Mapping[str, int], packed: Target, member: Target
    ) -> tuple[Target, dict[str, int]] | None:
        """With which vectors and settings a member reads a packing, None where it cannot."""
        own = read_with(self.name, problem, config, packed, member)
        if own is not None:
            return _with_vectors(packed, packed if member.lanes == packed.lanes else member), own
        return (packed, dict(config)) if packed.lanes < member.lanes else None

    def _code_for(
        self, problem: Problem, config: Mapping[str, int], member: Target
    ) -> tuple[Target, dict[str, int]]:
        plain, packed = self._split(config, member)
        found = self._code(problem, plain, packed, member)
        assert found is not None, f"{member.name} cannot read what {self.name} packs with {dict(config)}"
        return found

    def _split(self, config: Mapping[str, int], target: Target) -> tuple[dict[str, int], Target]:
        """The kernel's own settings, and the vectors packed for."""
        plain = {key: value for key, value in config.items() if key != _LANES}
        return plain, self._packed_for(config[_LANES], target)

    def predict(self, problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
        """Predicted cycles on the first member."""
        facts, own = self._code_for(problem, config, target)
        return float(self.kernel.predict(problem, pattern, own, facts))

    def pack(
        self, weight: NDArray[Any], problem: Problem, config: Mapping[str, int], target: Target
    ) -> Packing:
        """The one packing all members read."""
        plain, packed = self._split(config, target)
        packing: Packing = self.kernel.pack(weight, problem, plain, packed)
        return replace(packing, config=tuple(sorted({**dict(packing.config), _LANES: packed.lanes}.items())))

    def nbytes(self, problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
        """Predicted bytes of the packed weight."""
        plain, packed = self._split(config, target)
        return int(self.kernel.nbytes(problem, pattern, plain, packed))

    def scratch_floats(self, problem: Problem, packing: Packing, target: Target) -> int:
        """Scratch of the code for ``target``, one of the members."""
        facts, own = self._code_for(problem, dict(packing.config), target)
        floats = getattr(self.kernel, "scratch_floats", lambda *_: 16)
        return int(floats(problem, replace(packing, config=tuple(sorted(own.items()))), facts))

    def emit(self, problem: Problem, packing: Packing, target: Target, name: str) -> Any:
        """The TIR function for ``target``, one of the members."""
        facts, own = self._code_for(problem, dict(packing.config), target)
        return self.kernel.emit(problem, replace(packing, config=tuple(sorted(own.items()))), facts, name)
