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
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import ArtifactError
from sparsec.runtime.files import replacing
from sparsec.runtime.plan import Isa, Plan
from sparsec.runtime.tables import OF_AN_ISA, Section, tables_of

Array: TypeAlias = NDArray[Any]

MAGIC = b"SPARSEC\n"
FORMAT_VERSION = 2
ALIGNMENT = 64
PAGE = 4096

_HEADER = struct.Struct("<8sIIQI36x")
_SECTION = struct.Struct("<IIQQI4x")

#: instruction sets a file may have code for, as csrc/format.h says
MOST_ISAS = 16


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
    code: bytes | Sequence[Isa],
    weights: Sequence[Array],
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """Write a model file.

    Args:
        path: the file; it is replaced in one step, and untouched when writing fails.
        plan: what the executor runs; constants at the offsets of :func:`weight_offsets`.
        code: a shared object for the target, holding every step's ``__tvm_ffi_<kernel>`` and
            ``csrc/shim.c``; or the code for several instruction sets, the most capable first.
        weights: the constants, any shape and dtype, stored in row-major order.
        manifest: ``target`` (a name), ``features`` (those of ``/proc/cpuinfo`` that loading
            requires, unless ``code`` says itself), ``report`` (a dictionary that JSON can hold);
            all optional.

    Raises:
        ArtifactError: the plan's numbers do not fit the tables, or the file cannot be written.
    """
    with replacing(path) as file:
        _write_sections(file, plan, code, weights, manifest or {})


def to_bytes(
    plan: Plan,
    code: bytes | Sequence[Isa],
    weights: Sequence[Array],
    manifest: Mapping[str, Any] | None = None,
) -> bytes:
    """The bytes :func:`write` would write."""
    file = io.BytesIO()
    _write_sections(file, plan, code, weights, manifest or {})
    return file.getvalue()


def manifest_of(data: bytes) -> dict[str, Any]:
    """The manifest of bytes that :func:`to_bytes` made; no processor has to understand the code."""
    kind, _, start, size, _ = _SECTION.unpack_from(data, _HEADER.size)
    assert kind == Section.MANIFEST
    return dict(json.loads(data[start : start + size]))


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _write_sections(
    file: BinaryIO, plan: Plan, code: bytes | Sequence[Isa], weights: Sequence[Array],
    manifest: Mapping[str, Any],
) -> None:  # fmt: skip
    sections = _sections(plan, _isas(plan, code, manifest), manifest)
    count = len(sections) + 1
    at = _HEADER.size + count * _SECTION.size
    entries = b""
    for kind, isa, data in sections:
        at = _up(at, ALIGNMENT)
        entries += _SECTION.pack(kind, zlib.crc32(data), at, len(data), isa)
        at += len(data)
    start = _up(at, PAGE)
    offsets, size = weight_offsets(weights)
    arrays = [np.ascontiguousarray(w) for w in weights]
    entries += _SECTION.pack(Section.WEIGHTS, _weights_crc(arrays, offsets, size), start, size, 0)
    file.write(_header(entries, count, start + size) + entries)
    for _, _, data in sections:
        _pad(file, ALIGNMENT)
        file.write(data)
    _pad(file, PAGE)
    for chunk in _weight_chunks(arrays, offsets, size):
        file.write(chunk)


def _isas(plan: Plan, code: bytes | Sequence[Isa], manifest: Mapping[str, Any]) -> Sequence[Isa]:
    if isinstance(code, bytes):
        features = tuple(manifest.get("features", ()))
        return (Isa(str(manifest.get("target", "")), features, plan.steps, code),)
    if not 1 <= len(code) <= MOST_ISAS:
        raise ArtifactError(f"a file holds code for 1 to {MOST_ISAS} instruction sets, not {len(code)}")
    return code


def _sections(
    plan: Plan, isas: Sequence[Isa], manifest: Mapping[str, Any]
) -> list[tuple[Section, int, bytes]]:
    """Kind, instruction set and bytes of every section but the weights, in the file's order."""
    tables, own = tables_of(plan, isas, manifest)
    shared = [(kind, 0, tables[kind]) for kind in Section if kind in tables]
    return shared + [(kind, i, one[kind]) for i, one in enumerate(own) for kind in OF_AN_ISA]


def _header(entries: bytes, count: int, file_size: int) -> bytes:
    blank = _HEADER.pack(MAGIC, FORMAT_VERSION, count, file_size, 0)
    crc = zlib.crc32(entries, zlib.crc32(blank))
    return _HEADER.pack(MAGIC, FORMAT_VERSION, count, file_size, crc)


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
