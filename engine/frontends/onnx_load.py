"""Reading ONNX: from a path, bytes or a ModelProto to a graph and its constants as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import inliner, numpy_helper

from sparsec.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

Source: TypeAlias = Union[str, Path, bytes, "onnx.ModelProto"]


@dataclass
class OnnxModel:
    """A model without its initializers, which are ``constants`` by name.

    ``proto`` is a private copy that may be changed; its graph inputs are the user's inputs only.
    """

    proto: onnx.ModelProto
    constants: dict[str, Array]

    @property
    def graph(self) -> onnx.GraphProto:
        """The main graph."""
        return self.proto.graph

    @property
    def opset(self) -> int:
        """The version of the default operator set (1 when the model names none)."""
        versions = [o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")]
        return versions[0] if versions else 1


def load_onnx(source: Source) -> OnnxModel:
    """Read a model; weights in external files are memory-mapped.

    Raises:
        ModelError: no such file, not ONNX, damaged, or with nothing to compute.
    """
    proto, folder, label = _proto(source)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{label}: the model has no nodes or no outputs; is it an ONNX model file?")
    constants = {t.name: _array(t, folder, label) for t in proto.graph.initializer}
    if proto.graph.sparse_initializer:
        constants |= dict(_dense(s, folder, label) for s in proto.graph.sparse_initializer)
    copy = _without_initializers(proto, constants)
    _check_names(copy.graph, constants, label)
    return OnnxModel(copy, constants)


def _proto(source: Source) -> tuple[onnx.ModelProto, Path | None, str]:
    if isinstance(source, onnx.ModelProto):
        return source, None, "the ModelProto"
    if isinstance(source, bytes):
        return _parse(source, "the bytes given"), None, "the bytes given"
    path = Path(source)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of an .onnx file")
    return _parse(path.read_bytes(), str(path)), path.parent, str(path)


def _parse(data: bytes, label: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as damaged:
        raise ModelError(f"{label}: not an ONNX model, or cut short ({damaged}); export it again") from None
    return proto


def _array(tensor: onnx.TensorProto, folder: Path | None, label: str) -> Array:
    try:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return _mapped(tensor, folder, label)
        found: Array = numpy_helper.to_array(tensor)
        return found
    except (ValueError, TypeError, OSError) as damaged:
        raise ModelError(f"{label}: initializer {tensor.name!r} cannot be read: {damaged}") from damaged


def _mapped(tensor: onnx.TensorProto, folder: Path | None, label: str) -> Array:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    if folder is None:
        raise ModelError(
            f"{label}: weight {tensor.name!r} is in the file {fields.get('location')!r}; "
            "give the model's path instead"
        )
    path = (folder / fields["location"]).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ModelError(
            f"{label}: the weights file {fields['location']!r} is not beside the model; put it back there"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", int(fields.get("offset", 0)), shape)


def _dense(sparse: onnx.SparseTensorProto, folder: Path | None, label: str) -> tuple[str, Array]:
    values = _array(sparse.values, folder, label)
    indices = _array(sparse.indices, folder, label)
    shape = tuple(sparse.dims)
    dense = np.zeros(shape, values.dtype)
    where = np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)
    dense[where] = values
    return sparse.values.name, dense


def _without_initializers(proto: onnx.ModelProto, constants: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy that drops initializers, and the inputs that old models list for them."""
    copy = onnx.ModelProto(ir_version=proto.ir_version)
    copy.opset_import.extend(proto.opset_import)
    copy.graph.name = proto.graph.name or "main"
    copy.graph.node.extend(proto.graph.node)
    copy.graph.output.extend(proto.graph.output)
    copy.graph.input.extend(i for i in proto.graph.input if i.name not in constants)
    return copy


def _check_names(graph: onnx.GraphProto, constants: Mapping[str, Array], label: str) -> None:
    known = {i.name for i in graph.input} | constants.keys() | {""}
    for node in graph.node:
        absent = [name for name in node.input if name not in known]
        if absent:
            raise ModelError(
                f"{label}: node {node.name or node.op_type!r} reads {absent[0]!r}, "
                "which nothing before it makes"
            )
        known.update(node.output)
    for output in graph.output:
        if output.name not in known:
            raise ModelError(f"{label}: output {output.name!r} is made by no node")
