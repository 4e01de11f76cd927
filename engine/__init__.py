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


def load(
    path: str | os.PathLike[str], threads: int | None = None, *, verify: bool = False,
    isa: str | None = None, sha256: str | None = None,
) -> Program:  # fmt: skip
    """Load a compiled model; needs no compiler.

    A model file holds machine code: load only what you would run as a program.

    Args:
        path: a ``.sparsec`` file.
        threads: threads to run on (default ``SPARSEC_THREADS``, else 1).
        verify: also compare all weights with their checksum.
        isa: of a file with code for several instruction sets, the one to run (default
            ``SPARSEC_ISA``, else the most capable this processor runs).
        sha256: the file's SHA-256 in hexadecimal digits; any other file is refused.

    Raises:
        ArtifactError: the file is missing, damaged, of another version, for another CPU, or not
            the pinned one.
    """
    from sparsec.runtime import Program

    return Program.load(path, threads=threads, verify=verify, isa=isa, sha256=sha256)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        try:
            return getattr(import_module(_LAZY[name]), name)
        except ModuleNotFoundError as error:
            if error.name not in _LAZY.values() and error.name != "sparsec.tuning":
                raise
            raise ImportError(
                f"sparsec.{name} needs the compiler, and sparsec-runtime only runs models: "
                "pip uninstall sparsec-runtime, then pip install sparsec"
            ) from error
    raise AttributeError(f"module 'sparsec' has no attribute {name!r}")
