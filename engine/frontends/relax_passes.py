"""Relax's own passes that run before conversion."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax


def simplify_relax(module: Any) -> Any:
    """Decompose for inference, then fold what depends on small constants only."""
    passes = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.FoldConstant(),
        relax.transform.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(passes)(module)
