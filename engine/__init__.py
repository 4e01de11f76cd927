"""sparsec: an open compiler for sparse neural networks.

>>> program = sparsec.compile("model.onnx")            # doctest: +SKIP
>>> y = program(x)                                     # doctest: +SKIP

Importing this package loads neither tvm, torch nor onnx; compiling does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparsec.errors import (
    ArtifactError,
    BuildError,
    ConfigError,
    InputError,
    IRError,
    ModelError,
    SparsecError,
    Unsupported,
)

if TYPE_CHECKING:
    import os

    from sparsec.compiler import analyze, compile
    from sparsec.runtime import Program
    from sparsec.tuning.tune import tune

__all__ = [
    "ArtifactError", "BuildError", "ConfigError", "IRError", "InputError", "ModelError", "Program",
    "SparsecError", "Unsupported", "analyze", "compile", "load", "tune",
]  # fmt: skip

_LAZY = {
    "compile": "sparsec.compiler",
    "analyze": "sparsec.compiler",
    "Program": "sparsec.runtime",
    "tune": "sparsec.tuning.tune",
}


def load(path: str | os.PathLike[str], threads: int | None = None) -> Program:
    """Load a compiled model; needs no compiler.

    Args:
        path: a ``.sparsec`` file.
        threads: threads to run on (default ``SPARSEC_THREADS``, else 1).

    Raises:
        ArtifactError: the file is missing, damaged, of another version, or for another CPU.
    """
    from sparsec.runtime import Program

    return Program.load(path, threads=threads)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sparsec' has no attribute {name!r}")
