"""Small model files to begin fuzzing with, written into a folder: ``python seeds.py folder``.

Every table has rows; no code is native.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_cuda.driver import cubin
from runtime_fuzz import repair
from runtime_models import BEGIN, END, SCRATCH, PlanBuilder, pointer, softmax_model, tiles_of, twice_model

from sparsec.runtime.artifact import to_bytes
from sparsec.runtime.plan import Buffer, BufferKind, Isa, Operator, Plan

CODE = b"not native"
BIAS = np.arange(37, dtype="float32")

#: bits of the header's last word, as load_model.c reads it
VERIFY, BY_NAME, BY_FILE, WITH_DIGEST, STAGED, UNREAD = (1 << i for i in range(6))
OTHER_DIGEST, OTHER_TYPE, OTHER_RANK, OTHER_LENGTHS, STRIDED, TIMED = (1 << i for i in range(6, 12))
ON_DEVICE, AGAIN = 1 << 12, 1 << 13


def part(b: PlanBuilder, whole: int, first: object, nbytes: object) -> int:
    """A buffer inside another."""
    b.buffers.append(Buffer(BufferKind.PART, whole, b.size(nbytes), b.size(first)))
    return len(b.buffers) - 1


def tensors_model() -> PlanBuilder:
    """Two inputs of several types, parts of a temporary and of a weight, an output that is an input."""
    b = PlanBuilder()
    x, i = b.input("x", ("n", 4, "m")), b.input("i", ("m", 3), "int64")
    items = (Operator.MULTIPLY, (Operator.MULTIPLY, "n", 4), "m")
    y = b.output("y", (items,))
    w = b.constant(np.arange(100, dtype="int8"))
    t = b.temporary((items, 2), 0, 2)
    half = part(b, t, (Operator.MULTIPLY, items, 4), (Operator.MULTIPLY, items, 4))
    b.step("first", b.tensor(x, ("n", 4, "m")), pointer(half), pointer(part(b, w, 64, 36)), b.integer("m"))
    b.step("second", SCRATCH, b.tensor(i, ("m", 3), "int64"), pointer(t), BEGIN, END,
           tiles=tiles_of((Operator.MAXIMUM, "n", "m")), scratch=(Operator.ADD, items, 100))  # fmt: skip
    b.step("third", b.tensor(half, (items,)), b.tensor(y, (items,)), serial=True)
    b.output("same", ("n", 4, "m"), buffer=x)
    b.output("kept", (items, 2), buffer=t)
    return b


def fixed_model() -> PlanBuilder:
    """No open length, a scalar, a weight as an output."""
    b = PlanBuilder()
    x = b.input("x", (2, 8), "float16")
    s = b.input("s", ())
    b.output("w", (8,), buffer=b.constant(BIAS[:8]))
    y = b.output("y", (), "bool")
    b.step("only", pointer(x), pointer(s), pointer(y))
    return b


def cuda_model() -> PlanBuilder:
    """Launches on parts, temporaries and a weight; an output that is an input."""
    b = PlanBuilder()
    x, y = b.input("x", ("n", 8)), b.output("y", ("n", 8))
    items = (Operator.MULTIPLY, "n", 8)
    w, t, s = b.constant(BIAS[:8]), b.temporary(("n", 8, 2), 0, 1), b.temporary(("n", 8), 1, 2)
    half = part(b, t, (Operator.MULTIPLY, items, 4), (Operator.MULTIPLY, items, 4))
    b.launch("first", pointer(x), pointer(half), b.integer(items), blocks=tiles_of(items), threads=64)
    b.launch(
        "second", pointer(half), pointer(w), pointer(s), blocks="n", shared=(Operator.MULTIPLY, "n", 100)
    )
    b.launch("first", pointer(s), pointer(y), b.integer(items), blocks=tiles_of(items), threads=1024)
    b.output("same", ("n", 8), buffer=x)
    return b


def for_gpus(b: PlanBuilder) -> bytes:
    """Code for two kinds of GPUs, of which there is the second."""
    kinds = [Isa(kind, (kind,), tuple(b.steps), cubin()) for kind in ("sm_100a", "sm_90a")]
    return to_bytes(b.plan(), kinds, b.weights)


def several(plan: Plan, weights: list[np.ndarray]) -> bytes:
    """Code for three instruction sets, of which this processor has the last two."""
    coarse = tuple(replace(s, nanoseconds=1) for s in plan.steps)
    isas = [Isa("first", ("no such feature",), plan.steps, CODE), Isa("second", (), coarse, CODE * 2)]
    return to_bytes(plan, [*isas, Isa("third", ("fpu",), plan.steps, CODE)], weights)


def loaded_by(data: bytes, how: int) -> bytes:
    """The same file, to be loaded in another way."""
    changed = bytearray(data)
    struct.pack_into("<I", changed, 60, how)
    repair(changed)
    return bytes(changed)


def seeds() -> dict[str, bytes]:
    """File name to bytes."""
    builders = {
        "twice": twice_model(),
        "softmax": softmax_model(BIAS),
        "tensors": tensors_model(),
        "fixed": fixed_model(),
    }
    files = {name: b.build(CODE) for name, b in builders.items()}
    for name in ("softmax", "tensors"):
        files[f"{name}_several"] = several(builders[name].plan(), builders[name].weights)
    ways = {
        "verified": VERIFY | STRIDED,
        "named": BY_NAME | TIMED,
        "file": BY_FILE | STAGED,
        "pinned": WITH_DIGEST | UNREAD,
        "other_file": WITH_DIGEST | OTHER_DIGEST,
        "other_arrays": OTHER_TYPE | OTHER_RANK,
        "other_lengths": OTHER_LENGTHS,
        "other_outputs": OTHER_TYPE | OTHER_LENGTHS,
    }
    files |= {way: loaded_by(files["softmax_several"], how) for way, how in ways.items()}
    files["cuda"] = for_gpus(cuda_model())
    for name, how in {"again": AGAIN, "there": ON_DEVICE | AGAIN, "timed": TIMED, "strided": STRIDED}.items():
        files[f"cuda_{name}"] = loaded_by(files["cuda"], how)
    return files | {"empty": b"", "compressed": b"\x28\xb5\x2f\xfd", "header": files["twice"][:64]}


if __name__ == "__main__":
    for name, data in seeds().items():
        Path(sys.argv[1], name).write_bytes(data)
