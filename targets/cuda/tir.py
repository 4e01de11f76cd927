"""TVM's words for TIR, loaded when the first of them is used.

Kernels' packing and predictions need no compiler: a machine with a GPU packs weights without TVM.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Module:
    """A module that is imported by its first use."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


#: what builds functions, and what their nodes are
T: Any = _Module("tvm.script.ir_builder.tirx")
tirx: Any = _Module("tvm.tirx")
IR: Any = _Module("tvm.script.ir_builder")
