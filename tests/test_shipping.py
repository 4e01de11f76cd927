"""Files on their way: verified, pinned, compressed, and damaged in every place."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_fuzz import CODE, HEADER, WEIGHTS, sections
from runtime_models import compile_code, softmax_model, softmax_oracle

import sparsec
from sparsec.errors import ArtifactError
from sparsec.runtime import Program, artifact, shipping
from sparsec.runtime.plan import Isa
from sparsec.runtime.verify import verify

BIAS = np.random.default_rng(1).standard_normal(37).astype("float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model with two codes."""
    code = compile_code(tmp_path_factory.mktemp("kernels"))
    b = softmax_model(BIAS)
    plan = b.plan()
    isas = [Isa(name, (), plan.steps, code) for name in ("one", "two")]
    return artifact.to_bytes(plan, isas, b.weights, {"report": {"layers": list(range(200))}})


@pytest.fixture
def file(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.sparsec"
    path.write_bytes(data)
    return path


def check(program: Program) -> None:
    x = np.random.default_rng(2).standard_normal((11, 37)).astype("float32")
    np.testing.assert_allclose(program(x), softmax_oracle(x, BIAS), atol=1e-6)


def command(
    *arguments: str | Path, code: int, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "sparsec", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        check=False, env={**os.environ, "SPARSEC_DEBUG": "0", **variables},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_sound_file(file: Path, data: bytes) -> None:
    found = verify(file)
    assert found.sound and found.problems == () and not found.compressed
    assert found.nbytes == len(data) and found.sha256 == hashlib.sha256(data).hexdigest()
    assert [(s.name, s.nbytes) for s in found.sections] == [
        (artifact.Section(kind).name.lower(), size) for kind, _, size in sections(data)
    ]
    assert [s.isa for s in found.sections if s.name == "code"] == ["one", "two"]
    assert verify(file, found.sha256.upper()).sound
    pinned = verify(file, "0" * 64)
    assert not pinned.sound and "it is not the one" not in pinned.problems[0]
    assert f"its SHA-256 is {found.sha256}, not {'0' * 64}" in pinned.problems[0]


def test_every_section_is_read(file: Path, data: bytes) -> None:
    """A flip is found and its section named; loading finds it but in weights and codes that do not run."""
    for index, (kind, offset, size) in enumerate(sections(data)):
        if size == 0:
            continue
        changed = bytearray(data)
        changed[offset + size - 1] ^= 0x40
        file.write_bytes(changed)
        found = verify(file)
        name = artifact.Section(kind).name.lower()
        assert [s.sound for s in found.sections] == [i != index for i in range(len(found.sections))]
        assert len(found.problems) == 1 and f"damaged in its {name}" in found.problems[0]
        second_code = kind == CODE and found.sections[index].isa == "two"
        if kind == WEIGHTS or second_code:
            Program.load(file)
            with pytest.raises(ArtifactError, match=f"damaged in its {name}"):
                Program.load(file, verify=True)
        else:
            with pytest.raises(ArtifactError, match=f"damaged in its {name}"):
                Program.load(file)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: b"", "not a sparsec file: it is empty"),
        (lambda d: b"\x08\x07\x12\x07pytorch", "it does not start with the sparsec mark"),
        (lambda d: d[:30], "the file is truncated: 30 bytes do not hold its header"),
        (lambda d: d[:-1], "the file is truncated: it has"),
        (lambda d: d + b"\0", "damaged in its header"),
        (lambda d: d[:8] + b"\x09" + d[9:], "format version 9, this sparsec reads version 2"),
        (lambda d: d[:12] + b"\xff" + d[13:], "damaged in its header"),
        (lambda d: d[: HEADER + 9] + b"\xff" + d[HEADER + 10 :], "damaged in its header"),
    ],
)
def test_headers(file: Path, data: bytes, change: Callable[[bytes], bytes], text: str) -> None:
    file.write_bytes(change(data))
    found = verify(file)
    assert not found.sound and text in found.problems[0] and found.sections == ()
    with pytest.raises(ArtifactError, match=r"truncated|not a sparsec|damaged|version"):
        Program.load(file)


def test_random_damage_never_breaks_verifying(file: Path, data: bytes) -> None:
    """Whatever loading refuses verifying finds, with any bytes changed."""
    rng = random.Random(3)
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 3))):
            changed[rng.randrange(min(4096, len(changed)))] = rng.randrange(256)
        file.write_bytes(changed)
        assert verify(file).sound == (bytes(changed) == data) or changed == data or _padding(data, changed)


def _padding(data: bytes, changed: bytearray) -> bool:
    """Whether all that differs lies between sections, which nothing reads."""
    spans = [(0, HEADER + 32 * len(sections(data)))] + [
        (start, start + size) for _, start, size in sections(data)
    ]
    differing = [i for i, (a, b) in enumerate(zip(data, changed, strict=True)) if a != b]
    return not any(start <= i < end for i in differing for start, end in spans)


def test_pins(file: Path, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    check(sparsec.load(file, sha256=digest))
    check(Program.load(file, sha256=digest.upper(), verify=True))
    check(Program.from_bytes(data, sha256=digest))
    for wrong in (digest[:-1], digest + "0", "", "0" * 64, f"{digest[:-1]}g"):
        with pytest.raises(ArtifactError, match=f"its SHA-256 is {digest}, not {wrong}"):
            Program.load(file, sha256=wrong)
    with pytest.raises(ArtifactError, match="its SHA-256 is"):
        Program.from_bytes(data[:-1] + b"\x01", sha256=digest)


@pytest.mark.parametrize("size", [*range(1, 10), *range(50, 70), *range(110, 135), 1000, 4096, 100_001])
def test_the_executors_sha256_is_hashlibs(size: int) -> None:
    """Lengths about where padding takes one block more; the text of a refusal holds the digest."""
    content = random.Random(size).randbytes(size)
    with pytest.raises(
        ArtifactError, match=f"its SHA-256 is {hashlib.sha256(content).hexdigest()}, not none"
    ):
        Program.from_bytes(content, sha256="none")


def test_verify_by_command(file: Path, data: bytes, tmp_path: Path) -> None:
    digest = hashlib.sha256(data).hexdigest()
    done = command("verify", "model.sparsec", code=0, cwd=tmp_path)
    assert (
        "code (two)" in done.stdout
        and f"sha256 {digest}" in done.stdout
        and "as it was written" in done.stdout
    )
    assert (
        command("verify", "model.sparsec", "--quiet", "--sha256", digest, code=0, cwd=tmp_path).stdout == ""
    )
    changed = bytearray(data)
    changed[-100] ^= 1
    file.write_bytes(changed)
    done = command("verify", "model.sparsec", code=1, cwd=tmp_path)
    assert "DAMAGED" in done.stdout and "damaged in its weights; copy it again" in done.stdout
    said = json.loads(command("verify", "model.sparsec", "--json", code=1, cwd=tmp_path).stdout)
    assert said["sound"] is False and said["bytes"] == len(data)
    assert [s["name"] for s in said["sections"] if not s["sound"]] == ["weights"]
    assert "no such file" in command("verify", "absent.sparsec", code=2, cwd=tmp_path).stderr


class TestCompressed:
    """What needs the package zstandard."""

    @pytest.fixture(autouse=True)
    def _zstandard(self) -> None:
        pytest.importorskip("zstandard", reason="the package zstandard is not installed")

    def test_there_and_back(self, file: Path, data: bytes, tmp_path: Path) -> None:
        small, back = tmp_path / "m.sparsec.zst", tmp_path / "back.sparsec"
        shipping.compress(file, small)
        assert shipping.is_compressed(small) and not shipping.is_compressed(file)
        assert small.stat().st_size < len(data) / 2
        shipping.decompress(small, back)
        assert back.read_bytes() == data
        assert sorted(os.listdir(tmp_path)) == ["back.sparsec", "m.sparsec.zst", "model.sparsec"]

    def test_loading_expands_and_says_so(self, file: Path, tmp_path: Path) -> None:
        small = tmp_path / "m.sparsec"  # content decides, not the name
        shipping.compress(file, small)
        digest = hashlib.sha256(small.read_bytes()).hexdigest()
        with pytest.warns(UserWarning, match="m.sparsec is compressed and expanded anew") as told:
            check(sparsec.load(small, verify=True))
        assert len(told) == 1
        with pytest.warns(UserWarning, match="expanded"):
            program = Program.load(small, sha256=digest, isa="two")
        assert program.isa == "two"
        with pytest.raises(ArtifactError, match=f"m.sparsec: the file is not the one .* is {digest}, not 00"):
            Program.load(small, sha256="00")
        assert sorted(os.listdir(tmp_path)) == ["m.sparsec", "model.sparsec"]

    def test_verifying_looks_inside(self, file: Path, data: bytes, tmp_path: Path) -> None:
        small = tmp_path / "m.sparsec.zst"
        shipping.compress(file, small)
        found = verify(small)
        assert found.sound and found.compressed and len(found.sections) == len(sections(data))
        assert found.sha256 == hashlib.sha256(small.read_bytes()).hexdigest()
        changed = bytearray(data)
        changed[-100] ^= 1
        file.write_bytes(changed)
        shipping.compress(file, small)
        assert verify(small).problems == (
            "the file is damaged in its weights; copy it again or compile the model again",
        )

    def test_damage(self, file: Path, tmp_path: Path) -> None:
        small = tmp_path / "m.sparsec.zst"
        shipping.compress(file, small)
        whole = small.read_bytes()
        for changed in (whole[:-1], whole[: len(whole) // 2], whole[:300] + b"\xff" + whole[301:], whole[:5]):
            small.write_bytes(changed)
            with pytest.raises(
                ArtifactError, match=r"m\.sparsec\.zst: .*(damaged|truncated|no sparsec file)"
            ):
                shipping.decompress(small, tmp_path / "out.sparsec")
            assert not verify(small).sound
        assert not (tmp_path / "out.sparsec").exists()

    def test_what_expands_without_end_is_cut_off(self, file: Path, data: bytes, tmp_path: Path) -> None:
        import zstandard

        bomb = tmp_path / "bomb.sparsec.zst"
        bomb.write_bytes(zstandard.ZstdCompressor().compress(data + bytes(64 << 20)))
        assert bomb.stat().st_size < 100_000
        with pytest.raises(ArtifactError, match="it holds more than a model file"):
            shipping.decompress(bomb, tmp_path / "out.sparsec")
        bomb.write_bytes(zstandard.ZstdCompressor().compress(bytes(1 << 20)))
        with pytest.raises(ArtifactError, match="what is compressed in it is no sparsec file"):
            shipping.decompress(bomb, tmp_path / "out.sparsec")

    def test_what_is_refused(self, file: Path, tmp_path: Path) -> None:
        small = tmp_path / "m.sparsec.zst"
        shipping.compress(file, small)
        with pytest.raises(ArtifactError, match="compressed already"):
            shipping.compress(small, tmp_path / "twice.zst")
        with pytest.raises(ArtifactError, match="it is not compressed"):
            shipping.decompress(file, tmp_path / "out.sparsec")
        with pytest.raises(ArtifactError, match="no such file"):
            shipping.decompress(tmp_path / "absent.zst", tmp_path / "out.sparsec")

    def test_commands(self, file: Path, data: bytes, tmp_path: Path) -> None:
        command("compress", "model.sparsec", code=0, cwd=tmp_path)
        (tmp_path / "model.sparsec").unlink()
        done = command("run", "model.sparsec.zst", "--size", "n=3", code=0, cwd=tmp_path)
        assert "y: float32[3, 37]" in done.stdout and "is compressed and expanded anew" in done.stderr
        assert (
            "of model.sparsec.zst" in command("decompress", "model.sparsec.zst", code=0, cwd=tmp_path).stdout
        )
        assert (tmp_path / "model.sparsec").read_bytes() == data


def test_the_executor_says_how_to_expand() -> None:
    with pytest.raises(ArtifactError, match="compressed for shipping; expand it first: sparsec decompress"):
        Program.from_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))


def test_without_the_package(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_nothing: Any = None
    monkeypatch.setitem(sys.modules, "zstandard", import_nothing)
    with pytest.raises(ArtifactError, match=r"need the package zstandard: pip install sparsec\[ship\]"):
        shipping.compress(file, tmp_path / "m.zst")
    (tmp_path / "m.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.warns(UserWarning), pytest.raises(ArtifactError, match=r"pip install sparsec\[ship\]"):
        Program.load(tmp_path / "m.zst")
    assert sorted(os.listdir(tmp_path)) == ["m.zst", "model.sparsec"]
