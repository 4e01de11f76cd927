"""The tables of a model file: a plan, its instruction sets and its manifest as rows of bytes.

``csrc/format.h`` declares the rows.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from sparsec.errors import ArtifactError
from sparsec.runtime.plan import Isa, Operator, Plan, Port, Step

_ISA = struct.Struct("<IIII")
_EXPRESSION = struct.Struct("<I4xqq")
_BUFFER = struct.Struct("<IIqII")
_TENSOR = struct.Struct("<IIII")
_ARGUMENT = struct.Struct("<II")
_STEP = struct.Struct("<IIIIIIIIQ")
_PORT = struct.Struct("<IIIII4x")

#: DLPack's type codes by the kind letter of a NumPy dtype
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
#: which NumPy does not know
_BFLOAT16 = ("bfloat16", 0x11004)
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
    INPUTS = 9
    OUTPUTS = 10
    ISAS = 11
    ARGUMENTS = 12
    STEPS = 13
    CODE = 14
    WEIGHTS = 15


#: the sections that every instruction set has of its own
OF_AN_ISA = (Section.ARGUMENTS, Section.STEPS, Section.CODE)


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
    if name == _BFLOAT16[0]:
        return _BFLOAT16[1]
    dtype = np.dtype(name)
    if dtype.kind not in _CODES or dtype.name == "longdouble" or dtype.itemsize > 8:
        raise ArtifactError(
            f"{name} is no type that kernels know; use float16/32/64, bfloat16, int8-64, uint8-64 or bool"
        )
    return 1 << 16 | dtype.itemsize * 8 << 8 | _CODES[dtype.kind]


def tables_of(
    plan: Plan, isas: Sequence[Isa], manifest: Mapping[str, Any]
) -> tuple[dict[Section, bytes], list[dict[Section, bytes]]]:
    """The sections all share, and those of each instruction set."""
    pools = _Pools()
    try:
        tables = _plan_tables(plan, pools)
        own = [_isa_tables(isa, pools) for isa in isas]
    except struct.error as error:
        raise ArtifactError(f"a number of the plan does not fit the file's tables: {error}") from error
    rows, features = b"", list[int]()
    for isa in isas:
        rows += _ISA.pack(pools.string(isa.name), machine_of(isa.code), len(features), len(isa.features))
        features += map(pools.string, isa.features)
    tables[Section.ISAS], tables[Section.FEATURES] = rows, _numbers(features)
    tables[Section.MANIFEST] = _manifest(plan, isas, manifest)
    tables[Section.STRINGS] = bytes(pools.text)
    tables[Section.SHAPES] = _numbers(pools.shapes)
    return tables, own


def machine_of(code: bytes) -> int:
    """What an ELF object's header says it runs on (``e_machine``), 0 for anything else."""
    return int.from_bytes(code[18:20], "little") if code[:4] == b"\x7fELF" else 0


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
        Section.INPUTS: _ports(plan.inputs, pools),
        Section.OUTPUTS: _ports(plan.outputs, pools),
    }


def _isa_tables(isa: Isa, pools: _Pools) -> dict[Section, bytes]:
    return {
        Section.ARGUMENTS: b"".join(_ARGUMENT.pack(a.kind, a.value) for s in isa.steps for a in s.arguments),
        Section.STEPS: _steps(isa.steps, pools),
        Section.CODE: isa.code,
    }


def _steps(steps: Sequence[Step], pools: _Pools) -> bytes:
    rows: list[bytes] = []
    first = 0
    for s in steps:
        names = (pools.string(s.kernel), pools.string(s.node))
        flags = _SERIAL if s.serial else 0
        sizes = (first, len(s.arguments), s.tiles, s.scratch, flags, s.threads, s.nanoseconds)
        rows.append(_STEP.pack(*names, *sizes))
        first += len(s.arguments)
    return b"".join(rows)


def _ports(ports: Sequence[Port], pools: _Pools) -> bytes:
    rows = ((pools.string(p.name), _dtype(p.dtype), *pools.extent(p.shape), p.buffer) for p in ports)
    return b"".join(_PORT.pack(*row) for row in rows)


def _manifest(plan: Plan, isas: Sequence[Isa], given: Mapping[str, Any]) -> bytes:
    described = {
        "sparsec": given.get("sparsec", _version()),
        "target": given.get("target", ""),
        "features": [f for f in isas[0].features if all(f in isa.features for isa in isas)],
        "isas": [
            {"name": isa.name, "features": list(isa.features), "code_bytes": len(isa.code)} for isa in isas
        ],
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
