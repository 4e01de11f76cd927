"""The runtime: loads and runs compiled models; needs NumPy and nothing of the compiler."""

from __future__ import annotations

from sparsec.runtime.program import PortInfo, Prepared, Program, StepTime

__all__ = ["PortInfo", "Prepared", "Program", "StepTime"]
