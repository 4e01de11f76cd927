"""Relax's own passes that run before conversion."""

from __future__ import annotations

from typing import Any

from tvm import relax

from sparsec.frontends.relax_pads import restore_pads


def simplify_relax(module: Any) -> Any:
    """Decompose for inference, then fold what depends on small constants only."""
    decomposed = relax.transform.DecomposeOpsForInference()(restore_pads(module))
    try:
        folded = relax.transform.FoldConstant()(decomposed)
    except Exception:
        # folding lowers operators, and fails for those that cannot be lowered; they are reported later
        folded = decomposed
    return relax.transform.DeadCodeElimination()(folded)
