"""Writing ``model.sparsec``: a plan, its code and its weights in one file.

The layout is described in ``csrc/format.h``, which also reads it.  Equal arguments give equal
bytes, and a file appears under its name only when it is whole.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import ArtifactError
from sparsec.runtime.files import replacing
from sparsec.runtime.plan import Operator, Plan, Port

Array: TypeAlias = NDArray[Any]

MAGIC = b"SPARSEC\n"
FORMAT_VERSION = 1
ALIGNMENT = 64
PAGE = 4096

_HEADER = struct.Struct("<8sIIQI36x")
_SECTION = struct.Struct("<IIQQ8x")
_EXPRESSION = struct.Struct("<I4xqq")
_BUFFER = struct.Struct("<IIqII")
_TENSOR = struct.Struct("<IIII")
_ARGUMENT = struct.Struct("<II")
_STEP = struct.Struct("<IIIIIII4xQ")
_PORT = struct.Struct("<IIIII4x")

#: DLPack's type codes by the kind letter of a NumPy dtype
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_SERIAL = 1


class Section(IntEnum):
    """The sections of a file, in order."""

    MANIFEST = 1
    FEATURES = 2
    STRINGS = 3
    SYMBOLS = 4
    EXPRESSIONS = 5
    BUFFERS = 6
    SHAPES = 7
    TENSORS = 8
    ARGUMENTS = 9
    STEPS = 10
    INPUTS = 11
    OUTPUTS = 12
    CODE = 13
    WEIGHTS = 14


def weight_offsets(arrays: Iterable[Array]) -> tuple[list[int], int]:
    """Where each constant starts in the weights section, and the section's size in bytes.

    Constants lie in the given order, each at a multiple of 64; the offsets are what
    ``Buffer(BufferKind.CONSTANT, offset, ...)`` refers to.
    """
    offsets: list[int] = []
    end = 0
    for array in arrays:
        start = _up(end, ALIGNMENT)
        offsets.append(start)
        end = start + array.nbytes
    return offsets, _up(end, ALIGNMENT)


def write(
    path: str | os.PathLike[str],
    plan: Plan,
    code: bytes,
    weights: Sequence[Array],
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """Write a model file.

    Args:
        path: the file; it is replaced in one step, and untouched when writing fails.
        plan: what the executor runs; constants at the offsets of :func:`weight_offsets`.
        code: a shared object for the target, holding every step's ``__tvm_ffi_<kernel>`` and
            ``csrc/shim.c``.
        weights: the constants, any shape and dtype, stored in row-major order.
        manifest: ``target`` (a name), ``features`` (those of ``/proc/cpuinfo`` that loading
            requires), ``report`` (a dictionary that JSON can hold); all optional.

    Raises:
        ArtifactError: the plan's numbers do not fit the tables, or the file cannot be written.
    """
    with replacing(path) as file:
        _write_sections(file, plan, code, weights, manifest or {})


def to_bytes(
    plan: Plan, code: bytes, weights: Sequence[Array], manifest: Mapping[str, Any] | None = None
) -> bytes:
    """The bytes :func:`write` would write."""
    file = io.BytesIO()
    _write_sections(file, plan, code, weights, manifest or {})
    return file.getvalue()


def manifest_of(data: bytes) -> dict[str, Any]:
    """The manifest of bytes that :func:`to_bytes` made; no processor has to understand the code."""
    kind, _, start, size = _SECTION.unpack_from(data, _HEADER.size)
    assert kind == Section.MANIFEST
    return dict(json.loads(data[start : start + size]))


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _write_sections(
    file: BinaryIO, plan: Plan, code: bytes, weights: Sequence[Array], manifest: Mapping[str, Any]
) -> None:
    tables = _tables(plan, manifest)
    tables[Section.CODE] = code
    at = _HEADER.size + len(Section) * _SECTION.size
    entries = b""
    for kind in list(Section)[:-1]:
        at = _up(at, ALIGNMENT)
        data = tables[kind]
        entries += _SECTION.pack(kind, zlib.crc32(data), at, len(data))
        at += len(data)
    start = _up(at, PAGE)
    offsets, size = weight_offsets(weights)
    arrays = [np.ascontiguousarray(w) for w in weights]
    entries += _SECTION.pack(Section.WEIGHTS, _weights_crc(arrays, offsets, size), start, size)
    file.write(_header(entries, start + size) + entries)
    for kind in list(Section)[:-1]:
        _pad(file, ALIGNMENT)
        file.write(tables[kind])
    _pad(file, PAGE)
    for chunk in _weight_chunks(arrays, offsets, size):
        file.write(chunk)


def _header(entries: bytes, file_size: int) -> bytes:
    blank = _HEADER.pack(MAGIC, FORMAT_VERSION, len(Section), file_size, 0)
    return _HEADER.pack(
        MAGIC, FORMAT_VERSION, len(Section), file_size, zlib.crc32(entries, zlib.crc32(blank))
    )


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(b"\0" * (-file.tell() % alignment))


def _weight_chunks(arrays: Sequence[Array], offsets: Sequence[int], size: int) -> Iterable[Any]:
    at = 0
    for array, offset in zip(arrays, offsets, strict=True):
        yield b"\0" * (offset - at)
        yield array.reshape(-1).view(np.uint8).data
        at = offset + array.nbytes
    yield b"\0" * (size - at)


def _weights_crc(arrays: Sequence[Array], offsets: Sequence[int], size: int) -> int:
    crc = 0
    for chunk in _weight_chunks(arrays, offsets, size):
        crc = zlib.crc32(chunk, crc)
    return crc


@dataclass(slots=True)
class _Pools:
    """Strings and shapes that several tables share."""

    text: bytearray = field(default_factory=lambda: bytearray(b"\0"))
    places: dict[str, int] = field(default_factory=lambda: {"": 0})
    shapes: list[int] = field(default_factory=list)
    extents: dict[tuple[int, ...], int] = field(default_factory=dict)

    def string(self, value: str) -> int:
        """The byte offset of a string."""
        if "\0" in value:
            raise ArtifactError(f"the name {value!r} holds a zero character")
        if value not in self.places:
            self.places[value] = len(self.text)
            self.text += value.encode() + b"\0"
        return self.places[value]

    def extent(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Start and length of a shape."""
        if shape not in self.extents:
            self.extents[shape] = len(self.shapes)
            self.shapes += shape
        return self.extents[shape], len(shape)


def _dtype(name: str) -> int:
    dtype = np.dtype(name)
    if dtype.kind not in _CODES or dtype.name == "longdouble" or dtype.itemsize > 8:
        raise ArtifactError(
            f"{name} is no type that kernels know; use float16/32/64, int8-64, uint8-64 or bool"
        )
    return 1 << 16 | dtype.itemsize * 8 << 8 | _CODES[dtype.kind]


def _tables(plan: Plan, manifest: Mapping[str, Any]) -> dict[Section, bytes]:
    pools = _Pools()
    try:
        tables = _plan_tables(plan, pools)
    except struct.error as error:
        raise ArtifactError(f"a number of the plan does not fit the file's tables: {error}") from error
    tables[Section.FEATURES] = _numbers([pools.string(f) for f in manifest.get("features", ())])
    tables[Section.MANIFEST] = _manifest(plan, manifest)
    tables[Section.STRINGS] = bytes(pools.text)
    tables[Section.SHAPES] = _numbers(pools.shapes)
    return tables


def _numbers(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _plan_tables(plan: Plan, pools: _Pools) -> dict[Section, bytes]:
    return {
        Section.SYMBOLS: _numbers([pools.string(s) for s in plan.symbols]),
        Section.EXPRESSIONS: b"".join(_EXPRESSION.pack(e.operator, e.a, e.b) for e in plan.expressions),
        Section.BUFFERS: b"".join(
            _BUFFER.pack(b.kind, b.nbytes, b.index, b.first, b.last) for b in plan.buffers
        ),
        Section.TENSORS: b"".join(
            _TENSOR.pack(t.buffer, _dtype(t.dtype), *pools.extent(t.shape)) for t in plan.tensors
        ),
        Section.ARGUMENTS: b"".join(_ARGUMENT.pack(a.kind, a.value) for s in plan.steps for a in s.arguments),
        Section.STEPS: _steps(plan, pools),
        Section.INPUTS: _ports(plan.inputs, pools),
        Section.OUTPUTS: _ports(plan.outputs, pools),
    }


def _steps(plan: Plan, pools: _Pools) -> bytes:
    rows: list[bytes] = []
    first = 0
    for s in plan.steps:
        names = (pools.string(s.kernel), pools.string(s.node))
        flags = _SERIAL if s.serial else 0
        rows.append(_STEP.pack(*names, first, len(s.arguments), s.tiles, s.scratch, flags, s.nanoseconds))
        first += len(s.arguments)
    return b"".join(rows)


def _ports(ports: Sequence[Port], pools: _Pools) -> bytes:
    rows = ((pools.string(p.name), _dtype(p.dtype), *pools.extent(p.shape), p.buffer) for p in ports)
    return b"".join(_PORT.pack(*row) for row in rows)


def _manifest(plan: Plan, given: Mapping[str, Any]) -> bytes:
    described = {
        "sparsec": given.get("sparsec", _version()),
        "target": given.get("target", ""),
        "features": list(given.get("features", ())),
        "inputs": [_described(plan, p) for p in plan.inputs],
        "outputs": [_described(plan, p) for p in plan.outputs],
        "report": given.get("report", {}),
    }
    return json.dumps(described, sort_keys=True, indent=1).encode()


def _version() -> str:
    try:
        return version("sparsec")
    except PackageNotFoundError:
        return "unknown"


def _described(plan: Plan, port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": [size_text(plan, i) for i in port.shape]}


def size_text(plan: Plan, index: int) -> int | str:
    """A size of a plan for people: a number, or an expression over its symbols."""
    e = plan.expressions[index]
    if e.operator is Operator.CONSTANT:
        return e.a
    if e.operator is Operator.SYMBOL:
        return plan.symbols[e.a]
    joint = {Operator.ADD: " + ", Operator.MULTIPLY: "*", Operator.CEIL_DIVIDE: " ceil/ "}.get(
        e.operator, " max "
    )
    return f"{size_text(plan, e.a)}{joint}{size_text(plan, e.b)}"
