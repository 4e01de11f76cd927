"""recurrent_shape: what a recurrent kernel is generated for, its weight, and its shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.ir.attributes import RecurrentAttrs
from sparsec.targets.kernels.recurrent import GATES

#: threads of a block, and bytes of a read
THREADS, READ = 512, 16


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel is generated for.

    ``sequences`` a block; ``shared`` tells of each initial state whether the whole batch starts from
    one line; ``resident`` whether the weight is kept in shared memory; ``dtypes`` are of the pointers.
    """

    attrs: RecurrentAttrs
    hidden: int
    sequences: int
    shared: tuple[bool, ...]
    resident: bool
    dtypes: tuple[str, ...]

    @property
    def gates(self) -> int:
        """Gates of a unit."""
        return GATES[self.attrs.kind]

    @property
    def phases(self) -> tuple[int, ...]:
        """Gates a pass over the units computes: a gru needs all resets before its last gate."""
        two = self.attrs.kind == "gru" and not self.attrs.reset_after
        return (2, 1) if two else (self.gates,)

    @property
    def inputs(self) -> int:
        """Inputs of a read of the weight."""
        return READ // np.dtype(self.dtypes[1]).itemsize

    @property
    def wide(self) -> int:
        """Units in whole reads."""
        return -(-self.hidden // self.inputs) * self.inputs

    @property
    def units(self) -> int:
        """Units that a block's threads have at once."""
        return next(u for u in (32, 64, 128, 256, THREADS) if u >= self.hidden or u == THREADS)

    @property
    def shares(self) -> int:
        """Threads that share the inputs of a unit."""
        return THREADS // self.units

    @property
    def weights(self) -> int:
        """Elements of the packed weight."""
        return self.wide * self.gates * self.hidden

    @property
    def names(self) -> list[str]:
        """The pointers: inputs, last states, y."""
        states = ["h", "c"] if self.attrs.kind == "lstm" else ["h"]
        bias = ["b"] if self.attrs.reset_after else []
        return ["x", "r", *(f"{s}0" for s in states), *bias, *(f"last_{s}" for s in states), "y"]


@dataclass(frozen=True, slots=True)
class Areas:
    """Where what is in shared memory begins, in floats: h twice, c (or a gru's z), r * h, sums."""

    shape: Shape

    @property
    def lines(self) -> int:
        """A state of all sequences."""
        return self.shape.sequences * self.shape.wide

    @property
    def sums(self) -> int:
        """Where sums begin."""
        return 4 * self.lines

    @property
    def floats(self) -> int:
        """All of it."""
        return self.sums + THREADS * max(self.shape.phases) * self.shape.sequences


def pack(weight: Any, attrs: RecurrentAttrs) -> Any:
    """``weight[H, G * H]`` for each phase as [16 bytes of inputs][gates][units][inputs], zeros at the end."""
    hidden, inputs = len(weight), READ // weight.dtype.itemsize
    missing = -hidden % inputs
    gates = np.pad(weight.reshape(hidden, GATES[attrs.kind], hidden), ((0, missing), (0, 0), (0, 0)))
    read = gates.reshape(-1, inputs, *gates.shape[1:]).transpose(0, 2, 3, 1)
    two = attrs.kind == "gru" and not attrs.reset_after
    return np.concatenate([part.reshape(-1) for part in ((read[:, :2], read[:, 2:]) if two else (read,))])
