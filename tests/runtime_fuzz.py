"""Flips bytes of a model file and loads the result: run by test_artifact in a process of its own.

``python runtime_fuzz.py model.sparsec count seed``.  Prints how many flips were refused at load,
refused at binding, and accepted; a crash shows as the exit status.
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from collections import Counter

import numpy as np

from sparsec.errors import ArtifactError, SparsecError
from sparsec.runtime import Program

HEADER, ENTRY, WEIGHTS, CODE = 64, 32, 15, 14


def sections(data: bytes | bytearray) -> list[tuple[int, int, int]]:
    """(kind, offset, size) of each section."""
    (count,) = struct.unpack_from("<I", data, 12)
    entries = (struct.unpack_from("<IIQQ", data, HEADER + i * ENTRY) for i in range(count))
    return [(kind, offset, size) for kind, _, offset, size in entries]


def repair(data: bytearray) -> None:
    """Make all checksums right again."""
    for i, (_, offset, size) in enumerate(sections(data)):
        struct.pack_into("<I", data, HEADER + i * ENTRY + 4, zlib.crc32(data[offset : offset + size]))
    struct.pack_into("<I", data, 24, 0)
    (count,) = struct.unpack_from("<I", data, 12)
    struct.pack_into("<I", data, 24, zlib.crc32(data[: HEADER + count * ENTRY]))


def flip(data: bytearray, low: int, high: int, rng: random.Random) -> None:
    """Change one to three bytes of a range, often to values at the edges."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(low, high)
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)))


def plain(original: bytes, rng: random.Random) -> str:
    """Flip anywhere before the weights; what still loads must still compute."""
    data = bytearray(original)
    flip(data, 0, sections(original)[-1][1], rng)
    x = np.ones((3, 37), "float32")
    try:
        result = Program.from_bytes(data)(x)
    except ArtifactError:
        return "refused at load"
    assert np.array_equal(result, Program.from_bytes(original)(x)), "a flip changed the result"
    return "accepted"


def repaired(original: bytes, rng: random.Random) -> str:
    """Flip in the tables and repair the checksums, so that only the tables' own checks are left."""
    data = bytearray(original)
    tables = [s for s in sections(original) if s[0] not in (1, CODE, WEIGHTS) and s[2]]
    _, offset, size = rng.choice(tables)
    flip(data, offset, offset + size, rng)
    repair(data)
    try:
        program = Program.from_bytes(data)
    except (ArtifactError, MemoryError):
        return "refused at load"
    repr(program)
    try:
        program.prepare({port.name: np.ones((3, 37), "float32") for port in program.inputs})
    except (SparsecError, MemoryError):
        return "refused at binding"
    return "accepted"


def main() -> None:
    """Run the flips."""
    path, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open(path, "rb") as file:
        original = file.read()
    for attempt in (plain, repaired):
        outcomes = Counter(attempt(original, random.Random(f"{seed} {i}")) for i in range(count))
        print(attempt.__name__, dict(outcomes))


if __name__ == "__main__":
    main()
