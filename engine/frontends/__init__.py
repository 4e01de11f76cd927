"""Readers of models: ONNX, PyTorch, bare matrices.  Each returns a :class:`sparsec.ir.graph.Graph`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.errors import ModelError

if TYPE_CHECKING:
    from sparsec.ir.graph import Graph

ACCEPTED = (
    "the path of an .onnx file, its bytes, an onnx.ModelProto, a torch.nn.Module with example_inputs, "
    "a torch.export.ExportedProgram, a scipy sparse matrix or 2-D array [outputs, inputs], or a list of "
    "(weight, bias or None, activation or None)"
)


def import_model(
    model: Any,
    shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    dynamic_shapes: Any = None,
) -> Graph:
    """Read any model this package knows.

    Args:
        model: see :data:`ACCEPTED`.
        shapes: input sizes of an ONNX model (see ``from_onnx``).
        example_inputs: positional inputs of a torch module (see ``from_torch``).
        dynamic_shapes: passed on to ``torch.export.export``.

    Raises:
        ModelError: none of these, or it cannot be read.
        Unsupported: the model uses operators that cannot be compiled.
    """
    if _is_onnx(model):
        from sparsec.frontends.from_onnx import from_onnx

        return from_onnx(model, shapes)
    if shapes:
        raise ModelError("shapes is for ONNX models; torch takes dynamic_shapes, matrices need none")
    if _is_of(model, "torch.nn", "Module"):
        return _module(model, example_inputs, dynamic_shapes)
    if _is_of(model, "torch.export", "ExportedProgram"):
        from sparsec.frontends.from_torch import from_exported

        return from_exported(model)
    if _is_matrix(model):
        from sparsec.frontends.from_scipy import from_scipy

        return from_scipy(model)
    raise ModelError(f"cannot read a model from {type(model).__name__}; give {ACCEPTED}")


def _module(module: Any, example_inputs: tuple[Any, ...] | None, dynamic_shapes: Any) -> Graph:
    if example_inputs is None:
        raise ModelError("a torch module needs example_inputs, a tuple of tensors of the right shapes")
    from sparsec.frontends.from_torch import from_torch

    return from_torch(module, example_inputs, dynamic_shapes)


def _is_onnx(model: Any) -> bool:
    if isinstance(model, str | Path):
        if Path(model).suffix.lower() not in (".onnx", ".pb", ".onnx_data"):
            raise ModelError(f"{model}: only .onnx files are read by path; give {ACCEPTED}")
        return True
    return isinstance(model, bytes) or _is_of(model, "onnx", "ModelProto")


def _is_of(model: Any, package: str, name: str) -> bool:
    """Whether it is an instance of a class of a package that someone has already imported."""
    kind = getattr(sys.modules.get(package), name, None)
    return isinstance(kind, type) and isinstance(model, kind)


def _is_matrix(model: Any) -> bool:
    if isinstance(model, list):
        return True
    import numpy as np
    from scipy import sparse

    return isinstance(model, np.ndarray) or bool(sparse.issparse(model))
