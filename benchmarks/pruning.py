"""Which weights of a linear layer stay: the largest, one by one, in blocks, or N of every M."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.sparsity.prune import largest_blocks, largest_of_groups

Weights = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Sparsity:
    """``percent`` zeros in blocks of outputs x inputs, or ``kept`` = (N, M): N of every M inputs stay."""

    percent: int = 0
    block: tuple[int, int] = (1, 1)
    kept: tuple[int, int] | None = None

    @property
    def about(self) -> str:
        """As tables say it."""
        if self.kept:
            return f"{self.kept[0]}:{self.kept[1]} along the inputs"
        if not self.percent:
            return "dense"
        how = "unstructured" if self.block == (1, 1) else f"in blocks of {self.block[0]}x{self.block[1]}"
        return f"{self.percent} % {how}"

    @property
    def short(self) -> str:
        """As names of workloads say it."""
        if self.kept:
            return f"{self.kept[0]}of{self.kept[1]}"
        if not self.percent:
            return "dense"
        high, wide = self.block
        return f"u{self.percent}" if high == wide == 1 else f"b{high}x{wide}_{self.percent}"

    def mask(self, weight: Weights) -> Weights:
        """True for every weight[outputs, inputs] that stays."""
        if self.kept:
            return largest_of_groups(weight, *self.kept)
        return largest_blocks(weight, self.percent / 100, self.block)


def prune(module: Any, sparsity: Sparsity) -> None:
    """Set what does not stay of every linear layer to zero, in place."""
    import torch

    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.data
            weight *= torch.from_numpy(sparsity.mask(weight.numpy()))
