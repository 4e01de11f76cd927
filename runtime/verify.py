"""What a model file holds and whether it is as it was written: every checksum, the weights' too.

Nothing of the file is executed.  Checksums find damage; only a SHA-256 kept elsewhere finds who
changed a file on purpose.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any, TypeAlias

from sparsec.errors import ArtifactError
from sparsec.runtime.artifact import FORMAT_VERSION, MAGIC
from sparsec.runtime.shipping import digest_of, expanded, is_compressed
from sparsec.runtime.tables import OF_AN_ISA, Section

Bytes: TypeAlias = "mmap.mmap | bytes"

_HEADER = struct.Struct("<8sIIQI36x")
_CRC_AT = 24
_ENTRY = struct.Struct("<IIQQI4x")
_ISA = struct.Struct("<IIII")
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Checked:
    """One section: ``isa`` is the instruction set it is for, empty for all."""

    name: str
    isa: str
    nbytes: int
    sound: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """A file, its SHA-256, its sections, and what is wrong with it, a sentence each."""

    path: str
    nbytes: int
    sha256: str
    compressed: bool
    sections: tuple[Checked, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "path": self.path, "bytes": self.nbytes, "sha256": self.sha256, "compressed": self.compressed,
            "sound": self.sound, "problems": list(self.problems),
            "sections": [
                {"name": s.name, "isa": s.isa, "bytes": s.nbytes, "sound": s.sound} for s in self.sections
            ],
        }  # fmt: skip


def verify(path: str | os.PathLike[str], sha256: str | None = None) -> Verified:
    """Read all of a model file, compressed or not, and compare it with its checksums.

    Args:
        path: the file.
        sha256: what the file's SHA-256 must be, in hexadecimal digits.

    Raises:
        ArtifactError: there is no such file, or it cannot be read.
    """
    digest, name = digest_of(path), os.fspath(path)
    compressed = is_compressed(path)
    problems = []
    if sha256 is not None and digest != sha256.lower():
        problems.append(f"the file is not the one that was asked for: its SHA-256 is {digest}, not {sha256}")
    sections: tuple[Checked, ...] = ()
    try:
        if compressed:
            with expanded(path, None, quiet=True) as whole:
                sections, found = _checked(os.fspath(whole))
        else:
            sections, found = _checked(name)
        problems += found
    except ArtifactError as error:
        problems.append(str(error).removeprefix(f"{name}: "))
    return Verified(name, os.path.getsize(path), digest, compressed, sections, tuple(problems))


def _checked(path: str) -> tuple[tuple[Checked, ...], list[str]]:
    size = os.path.getsize(path)
    if size == 0:
        return (), ["not a sparsec file: it is empty"]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        problem, count = _header(data)
        if problem:
            return (), [problem]
        sections = _sections(data, count)
    damaged = [f"{s.name} for {s.isa}" if s.isa else s.name for s in sections if not s.sound]
    missing = [kind.name.lower() for kind in Section if kind.name.lower() not in {s.name for s in sections}]
    problems = [
        f"the file is damaged in its {name}; copy it again or compile the model again" for name in damaged
    ]
    problems += [f"the file has no section called {name}" for name in missing]
    return sections, problems


def _header(data: Bytes) -> tuple[str, int]:
    """What is wrong with the header, empty if nothing, and the number of sections."""
    if data[: len(MAGIC)] != MAGIC:
        return "not a sparsec file: it does not start with the sparsec mark", 0
    if len(data) < _HEADER.size:
        return f"the file is truncated: {len(data)} bytes do not hold its header", 0
    _, version, count, size, crc = _HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        return f"the file has format version {version}, this sparsec reads version {FORMAT_VERSION}", 0
    if size > len(data):
        return f"the file is truncated: it has {len(data)} of {size} bytes; copy it again", 0
    end = _HEADER.size + count * _ENTRY.size
    blank = bytes(data[:_CRC_AT]) + bytes(4) + bytes(data[_CRC_AT + 4 : end])
    if size < len(data) or end > len(data) or zlib.crc32(blank) != crc:
        return "the file is damaged in its header; copy it again or compile the model again", 0
    return "", count


def _sections(data: Bytes, count: int) -> tuple[Checked, ...]:
    entries = [_ENTRY.unpack_from(data, _HEADER.size + i * _ENTRY.size) for i in range(count)]
    names = _isa_names(data, {kind: (start, size) for kind, _, start, size, _ in entries})
    known = {int(kind) for kind in Section}
    return tuple(
        Checked(
            Section(kind).name.lower(),
            (names[isa] if isa < len(names) else str(isa)) if kind in OF_AN_ISA else "",
            size,
            start + size <= len(data) and _crc(data, start, size) == crc,
        )
        for kind, crc, start, size, isa in entries
        if kind in known
    )


def _isa_names(data: Bytes, places: dict[int, tuple[int, int]]) -> list[str]:
    """The names in the table of instruction sets, as far as it can be read."""
    start, size = places.get(Section.ISAS, (0, 0))
    text, length = places.get(Section.STRINGS, (0, 0))
    strings = bytes(data[text : text + length])
    rows = bytes(data[start : start + size])
    firsts = [row[0] for row in _ISA.iter_unpack(rows[: len(rows) // _ISA.size * _ISA.size])]
    return [strings[first:].split(b"\0")[0].decode(errors="replace") for first in firsts]


def _crc(data: Bytes, start: int, size: int) -> int:
    crc = 0
    for at in range(start, start + size, _CHUNK):
        crc = zlib.crc32(data[at : min(at + _CHUNK, start + size)], crc)
    return crc
