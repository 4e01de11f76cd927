"""Model files: written whole and equal, read as if an enemy had written them."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.errors import ArtifactError
from sparsec.runtime import Program, artifact
from sparsec.runtime.artifact import Section
from sparsec.runtime.plan import Argument, ArgumentKind, Buffer, BufferKind, Expression, Operator, Plan, Step

from .runtime_fuzz import HEADER, repair, sections
from .runtime_models import PlanBuilder, compile_code, pointer, softmax_model, softmax_oracle, twice_model

BIAS = np.random.default_rng(1).standard_normal(37).astype("float32")


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_code(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def data(code: bytes) -> bytes:
    return softmax_model(BIAS).build(code, target="test", features=[], report={"layers": [1, 2]})


@pytest.fixture
def file(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.sparsec"
    path.write_bytes(data)
    return path


def refused(data: bytes | bytearray, text: str) -> None:
    with pytest.raises(ArtifactError, match=text):
        Program.from_bytes(data)


def check(program: Program) -> None:
    x = np.random.default_rng(2).standard_normal((11, 37)).astype("float32")
    np.testing.assert_allclose(program(x), softmax_oracle(x, BIAS), atol=1e-6)


def test_write_load_save_load(code: bytes, data: bytes, tmp_path: Path) -> None:
    model = softmax_model(BIAS)
    first, second = tmp_path / "first.sparsec", tmp_path / "second.sparsec"
    manifest = {"target": "test", "features": [], "report": {"layers": [1, 2]}}
    artifact.write(first, model.plan(), code, model.weights, manifest)
    assert first.read_bytes() == data
    program = Program.load(first, verify=True)
    check(program)
    program.save(second)
    program.save(first)
    check(program)
    assert first.read_bytes() == second.read_bytes() == data
    check(Program.load(str(second)))
    assert sorted(os.listdir(tmp_path)) == ["first.sparsec", "second.sparsec"]
    assert first.stat().st_mode & 0o777 == second.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_manifest(data: bytes) -> None:
    program = Program.from_bytes(data)
    assert program.report == {"layers": [1, 2]}
    assert program.manifest["target"] == "test" and program.manifest["features"] == []
    assert program.manifest["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["n", 37]}]


def test_sections_are_aligned(data: bytes) -> None:
    found = sections(data)
    assert [kind for kind, _, _ in found] == list(Section)
    assert all(offset % 64 == 0 for _, offset, _ in found)
    assert found[-1][1] % 4096 == 0 and found[-1][1] + found[-1][2] == len(data)


def test_weight_offsets() -> None:
    arrays = [np.zeros(3, "int8"), np.zeros(0, "f4"), np.zeros((5, 7), "f4"), np.float32(1).reshape(())]
    assert artifact.weight_offsets(arrays) == ([0, 64, 64, 256], 320)


def test_weights_of_any_layout(code: bytes, tmp_path: Path) -> None:
    b = PlanBuilder()
    x, y = b.input("x", (1,)), b.output("y", (3, 2))
    w = b.constant(np.arange(6, dtype="float32").reshape(2, 3).T)
    b.step("copy_tensor", b.tensor(w, (3, 2)), b.tensor(y, (3, 2)), serial=True)
    b.constant(np.zeros((), "float64"))
    assert x == 0
    program = Program.from_bytes(b.build(code), verify=True)
    assert np.array_equal(program(np.zeros(1, "f4")), [[0, 3], [1, 4], [2, 5]])


def test_failed_write_leaves_the_old_file(file: Path, data: bytes, code: bytes) -> None:
    plan = Plan((), (Expression(Operator.CONSTANT, 1 << 64),), (), (), (), (), ())
    with pytest.raises(ArtifactError, match="does not fit"):
        artifact.write(file, plan, code, [], {})
    with pytest.raises(TypeError):
        artifact.write(file, softmax_model(BIAS).plan(), code, [], {"report": object()})
    assert file.read_bytes() == data and os.listdir(file.parent) == [file.name]
    with pytest.raises(ArtifactError, match="cannot be written: No such file or directory"):
        Program.load(file).save(file.parent / "absent" / "model.sparsec")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent\.sparsec: no such file"):
        Program.load(tmp_path / "absent.sparsec")
    with pytest.raises(ArtifactError, match="not a regular file"):
        Program.load(tmp_path)
    for name, content, text in [
        ("empty", b"", "not a sparsec file: it is empty"),
        ("onnx", b"\x08\x07\x12\x07pytorch" * 100, "not a sparsec file: it does not start"),
        ("short", artifact.MAGIC + b"\1", "the file is truncated: 9 bytes"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{name}: {text}"):
            Program.load(tmp_path / name)


def test_another_version(data: bytes) -> None:
    changed = bytearray(data)
    struct.pack_into("<I", changed, 8, 7)
    refused(changed, "format version 7, this sparsec reads version 2; compile the model again")


def test_truncation(data: bytes) -> None:
    ends = {
        end for _, offset, size in sections(data) for end in (offset, offset + size - 1, offset + size // 2)
    }
    for end in sorted(ends | {1, 7, 8, 63, 64, 65, HEADER + 32}):
        if 0 < end < len(data):
            refused(data[:end], "truncated|not a sparsec file")
    refused(data + b"\0", "the file is damaged in its header")


def test_a_damaged_section_is_named(data: bytes) -> None:
    for kind, offset, size in sections(data):
        changed = bytearray(data)
        if size and kind != Section.WEIGHTS:
            changed[offset + size // 2] ^= 0x10
            refused(changed, f"the file is damaged in its {Section(kind).name.lower()}; copy it again")
    changed = bytearray(data)
    changed[HEADER + 8] ^= 1
    refused(changed, "the file is damaged in its header")


def test_damaged_weights_are_found_on_request(file: Path, data: bytes) -> None:
    changed = bytearray(data)
    changed[sections(data)[-1][1]] ^= 1
    file.write_bytes(changed)
    Program.load(file)
    with pytest.raises(ArtifactError, match=r"model\.sparsec: the file is damaged in its weights"):
        Program.load(file, verify=True)


def test_missing_features_are_named(code: bytes) -> None:
    made = twice_model().build(code, features=["flyv9", "flyv10"])
    refused(
        made, "compiled for a processor with flyv9, flyv10, which this one lacks; compile it for this machine"
    )


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
def test_present_features_load(code: bytes) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    words = next(line for line in lines if line.startswith(("flags", "Features"))).split(":")[1].split()
    Program.from_bytes(twice_model().build(code, features=[words[0], words[-1]]))
    refused(twice_model().build(code, features=[words[0], words[-1] + "x"]), f"with {words[-1]}x, which")


def test_code_problems(code: bytes) -> None:
    b = twice_model()
    b.step("unheard_of", pointer(0), pointer(1))
    refused(b.build(code), "the code has no kernel called unheard_of; compile the model again")
    refused(twice_model().build(b"\x7fELF but no more"), "the code cannot be loaded on this machine")


def test_code_through_a_file(code: bytes, tmp_path: Path) -> None:
    """Where code cannot be loaded from memory, a file in TMPDIR carries it and leaves nothing behind."""
    made = tmp_path / "model.sparsec"
    made.write_bytes(twice_model().build(code))
    folder = tmp_path / "temporary"
    folder.mkdir()
    shim = tmp_path / "no_memfd.c"
    shim.write_text("int memfd_create(const char *n, unsigned f) { (void)n, (void)f; return -1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", str(shim), "-o", str(tmp_path / "no_memfd.so")], check=True)
    script = (
        "import sys, numpy as np; from sparsec.runtime import Program;"
        "print(Program.load(sys.argv[1])(np.ones(2, 'f4')))"
    )
    environment = os.environ | {"LD_PRELOAD": str(tmp_path / "no_memfd.so"), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(made)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[2. 2.]" and not os.listdir(folder)


def _set_argument(kind: ArgumentKind, value: int) -> Callable[[PlanBuilder], None]:
    def change(b: PlanBuilder) -> None:
        s = b.steps[0]
        b.steps[0] = Step(s.kernel, (Argument(kind, value),), s.tiles, s.scratch)

    return change


def _set_buffer(index: int, buffer: Buffer) -> Callable[[PlanBuilder], None]:
    def change(b: PlanBuilder) -> None:
        b.buffers[index] = buffer

    return change


def _append_buffers(*parts: tuple[int, int]) -> Callable[[PlanBuilder], None]:
    """Parts of (buffer, start)."""
    return lambda b: b.buffers.extend(Buffer(BufferKind.PART, whole, 0, start) for whole, start in parts)


def _append_expression(expression: Expression) -> Callable[[PlanBuilder], None]:
    return lambda b: b.expressions.append(expression)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_set_argument(ArgumentKind.POINTER, 99), "table of arguments is damaged: entry 0 refers to nothing"),
        (_set_argument(ArgumentKind.TENSOR, 0), "table of arguments"),
        (_set_argument(ArgumentKind.INTEGER, 1 << 31), "table of arguments"),
        (
            _set_buffer(0, Buffer(BufferKind.OUTPUT, 0, 0)),
            "table of buffers is damaged: entry 0 refers to nothing",
        ),
        (
            _set_buffer(0, Buffer(BufferKind.INPUT, 0, 1 << 20)),
            "table of buffers is damaged: entry 0 has no size",
        ),
        (
            _set_buffer(0, Buffer(BufferKind.TEMPORARY, 0, 0)),
            "table of inputs is damaged: entry 0 has no buffer",
        ),
        (_set_buffer(1, Buffer(BufferKind.TEMPORARY, 0, 0, 1, 0)), "table of buffers"),
        (_set_buffer(1, Buffer(BufferKind.TEMPORARY, 0, 0, 0, 9)), "table of buffers"),
        (_set_buffer(1, Buffer(BufferKind.CONSTANT, 3, 0)), "table of buffers"),
        (_set_buffer(1, Buffer(BufferKind.CONSTANT, -64, 0)), "table of buffers"),
        (_append_buffers((2, 0)), "table of buffers is damaged: entry 2 refers to nothing"),
        (_append_buffers((-1, 0)), "table of buffers"),
        (_append_buffers((0, 1 << 20)), "table of buffers"),
        (_append_buffers((0, 0), (2, 0)), "table of buffers is damaged: entry 3 refers to nothing"),
        (_set_buffer(1, Buffer(BufferKind.PART, 0, 0)), "table of outputs is damaged: entry 0 has only"),
        (_append_expression(Expression(Operator.ADD, 1 << 40, 0)), "table of expressions is damaged"),
        (_append_expression(Expression(Operator.SYMBOL, 5)), "table of expressions is damaged"),
        (_append_expression(Expression(Operator.MAXIMUM, 0, -1)), "table of expressions is damaged"),
        (lambda b: b.symbols.append("m"), "the size m is the length of no input axis"),
    ],
)
def test_plans_that_refer_to_nothing(code: bytes, change: Callable[[PlanBuilder], None], text: str) -> None:
    b = twice_model()
    change(b)
    refused(b.build(code), text)


def test_sizes_that_fit_nothing(code: bytes) -> None:
    """Buffers beyond the weights, tensors beyond their buffer, sizes that overflow or are negative."""
    x = np.ones(5, "float32")
    far = twice_model()
    far.buffers.append(Buffer(BufferKind.CONSTANT, 1 << 40, far.size(64)))
    with pytest.raises(ArtifactError, match="buffer 2 lies outside the file's weights"):
        Program.from_bytes(far.build(code))(x)
    for start, size in ((4, "n"), (-4, 4), (1 << 40, 0)):
        outside = twice_model()
        nbytes = outside.nbytes((size,), "float32")
        outside.buffers.append(Buffer(BufferKind.PART, 0, nbytes, outside.size(start)))
        with pytest.raises(ArtifactError, match="buffer 2 lies outside the buffer it is part of"):
            Program.from_bytes(outside.build(code))(x)
    wide = twice_model()
    wide.tensor(0, ("n", 2))
    with pytest.raises(ArtifactError, match="tensor 0 is larger than its buffer"):
        Program.from_bytes(wide.build(code))(x)
    for size, text in [
        ((Operator.MULTIPLY, "n", 1 << 62), r"the inputs are too large: the size n\*\d+ has no value"),
        ((Operator.CEIL_DIVIDE, "n", (Operator.ADD, "n", -5)), "has no value"),
        ((Operator.ADD, "n", -9), "the inputs are too small: the size n . -9 would be negative"),
    ]:
        b = twice_model()
        b.buffers.append(Buffer(BufferKind.TEMPORARY, 0, b.size(size), 0, 0))
        with pytest.raises(ValueError, match=text):
            Program.from_bytes(b.build(code))(x)
    huge = twice_model()
    huge.buffers.append(Buffer(BufferKind.TEMPORARY, 0, huge.size((Operator.MULTIPLY, "n", 1 << 45)), 0, 0))
    with pytest.raises(MemoryError):
        Program.from_bytes(huge.build(code))(x)


def test_sections_that_lie(data: bytes) -> None:
    """Offsets and sizes at the edges, with right checksums, are refused."""
    for entry in range(len(Section)):
        for offset, value in [
            (8, 1 << 63),
            (8, len(data) + 64),
            (8, 1),
            (16, 1 << 63),
            (16, len(data)),
            (16, 5),
        ]:
            changed = bytearray(data)
            struct.pack_into("<Q", changed, HEADER + entry * 32 + offset, value)
            try:
                repair(changed)
                Program.from_bytes(changed)
            except ArtifactError:
                continue
            assert offset == 16, f"section {Section(entry + 1).name} may start at {value}"


@pytest.mark.parametrize("seed", [0, 1])
def test_flipped_bytes_never_crash(file: Path, seed: int) -> None:
    command: list[Any] = [sys.executable, Path(__file__).with_name("runtime_fuzz.py"), file, 300, seed]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "refused at load" in done.stdout and "refused at binding" in done.stdout
