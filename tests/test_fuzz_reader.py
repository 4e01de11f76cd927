"""The reader of model files against changed files: a short run of the fuzzer, and what it found before.

``SPARSEC_FUZZ_SECONDS`` says how long (5); ``python tests/fuzz/run.py --seconds 600`` runs longer.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.errors import ArtifactError, InputError
from sparsec.runtime import Program
from sparsec.runtime.plan import Operator
from sparsec.runtime.verify import verify

from .fuzz import run as fuzzer
from .fuzz import seeds
from .runtime_fuzz import ENTRY, HEADER, flip, repair, sections
from .runtime_models import BEGIN, END, PlanBuilder, compile_code, pointer, twice_model

SECONDS = int(os.environ.get("SPARSEC_FUZZ_SECONDS", "5"))


REASON = fuzzer.missing()
fuzzed = pytest.mark.skipif(REASON is not None, reason=f"not fuzzed: {REASON}")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    fuzzer.build(folder, optimize="-O0")
    return folder


@fuzzed
def test_changed_files_break_nothing(target: Path, tmp_path: Path) -> None:
    """And many of them load, so that it is not the checksums that keep the fuzzer out."""
    outcome = fuzzer.fuzz(target / "load_model", tmp_path, SECONDS)
    assert outcome.status == 0, outcome.text[-6000:]
    counts = outcome.counts
    assert counts["files"] > 50 and 0.1 < counts["loaded"] / counts["files"] < 0.9, counts
    assert counts["bound"] > counts["loaded"] / 10 and counts["ran"] > counts["loaded"] / 20, counts


@fuzzed
@pytest.mark.parametrize(
    ("source", "check"),
    [
        ("plan.c", "case ARGUMENT_POINTER: return a->value < plan->buffer_count;"),
        ("binding.c", "(uint64_t)bytes > weights - (uint64_t)buffer->index"),
    ],
    ids=["plan", "binding"],
)
def test_a_check_left_out_is_found(target: Path, tmp_path: Path, source: str, check: str) -> None:
    text = (fuzzer.CSRC / source).read_text(encoding="utf-8")
    assert text.count(check) == 1
    without = check.replace("a->value < plan->buffer_count", "true").replace(
        "(uint64_t)bytes > weights - (uint64_t)buffer->index", "false"
    )
    program = fuzzer.build(tmp_path, {source: text.replace(check, without)}, target, "-O0")
    outcome = fuzzer.fuzz(program, tmp_path, 60, "-seed=1")
    assert outcome.status != 0 and list((tmp_path / "found").iterdir())
    assert re.search("ERROR: AddressSanitizer|runtime error", outcome.text), outcome.text[-3000:]


def test_seeds_are_small() -> None:
    assert all(len(data) <= fuzzer.MOST_BYTES for data in seeds.seeds().values())


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_code(tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("length", [-1, -(1 << 63), (1 << 48) + 1, (1 << 63) - 1])
def test_lengths_of_ports_can_be(code: bytes, length: int) -> None:
    """A caller computes with them before any shape is bound."""
    with pytest.raises(ArtifactError, match="inputs is damaged: entry 0 has a length that cannot be"):
        Program.from_bytes(twice_model(length).build(code))
    b = twice_model(64)
    b.output("z", (length,), buffer=1)
    with pytest.raises(ArtifactError, match="outputs is damaged: entry 1 has a length that cannot be"):
        Program.from_bytes(b.build(code))


def test_steps_share_no_arguments(code: bytes) -> None:
    """The second step's tiles would be the first one's too."""
    b = twice_model()
    b.step("twice", pointer(0), pointer(1), b.integer("n"), BEGIN, END, tiles=1000)
    changed = bytearray(b.build(code))
    start = next(offset for kind, offset, _ in sections(changed) if kind == 13)
    struct.pack_into("<I", changed, start + 40 + 8, 0)
    repair(changed)
    with pytest.raises(ArtifactError, match="table of steps is damaged: entry 1 has arguments of another"):
        Program.from_bytes(changed)


@pytest.mark.parametrize(
    ("sizes", "text", "kind"),
    [
        ({"tiles": 1 << 62}, "the inputs are too large: step 0 has too many tiles", InputError),
        ({"scratch": (1 << 63) - 1}, "out of memory: 9223372036854775807 bytes", MemoryError),
    ],
)
def test_sizes_of_steps_can_be(code: bytes, sizes: dict[str, int], text: str, kind: type[Exception]) -> None:
    b = PlanBuilder()
    x, y = b.input("x", ("n",)), b.output("y", ("n",))
    options: dict[str, Any] = {"tiles": 1, "nanoseconds": 10**9} | sizes
    b.step("twice", pointer(x), pointer(y), b.integer((Operator.MULTIPLY, "n", 1)), BEGIN, END, **options)
    program = Program.from_bytes(b.build(code), threads=2)
    with pytest.raises(kind, match=text):
        program(np.ones(100, "float32"))


def test_a_manifest_without_end_is_refused(code: bytes) -> None:
    deep = b"[" * 100_000
    changed = bytearray(twice_model().build(code, report=" " * len(deep)))
    start = next(offset for kind, offset, _ in sections(changed) if kind == 1)
    changed[start : start + len(deep)] = deep
    repair(changed)
    program = Program.from_bytes(changed)
    with pytest.raises(ArtifactError, match="the manifest of the file is damaged"):
        _ = program.manifest


def test_verify_reads_what_it_may(tmp_path: Path) -> None:
    """Changed headers and tables, with right checksums, give an answer."""
    rng = random.Random(0)
    answers = set()
    for name, data in seeds.seeds().items():
        for i in range(30):
            changed = bytearray(data)
            if len(data) > HEADER:
                flip(changed, 8, (HEADER + 15 * ENTRY, len(data))[i % 2], rng)
                with contextlib.suppress(struct.error):
                    repair(changed)
            (tmp_path / name).write_bytes(changed)
            answers |= {problem.partition(":")[0][:24] for problem in verify(tmp_path / name).problems}
    assert len(answers) > 5, answers
