"""The command line as users meet it: in a process of its own, on files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec import feeds
from sparsec.errors import ConfigError, InputError
from sparsec.runtime import PortInfo

DIGITS = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "digits.onnx"


def sparsec(
    *arguments: str | Path, cwd: Path, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command; its exit code is checked."""
    command = [sys.executable, "-m", "sparsec", *map(str, arguments)]
    environment = {**os.environ, "SPARSEC_DEBUG": "0", "COLUMNS": "120", **variables}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def refusal(*arguments: str | Path, cwd: Path) -> str:
    """What the command says on standard error when it refuses: one message, no traceback."""
    result = sparsec(*arguments, cwd=cwd, code=2)
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert result.stderr.startswith("sparsec: ")
    return result.stderr.removeprefix("sparsec: ").strip()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network that ships with the repository, compiled by the command."""
    folder = tmp_path_factory.mktemp("cli")
    path = folder / "digits.sparsec"
    result = sparsec("compile", DIGITS, "-o", path, cwd=folder)
    assert "outputs x inputs" in result.stdout and f"{path}: " in result.stdout
    assert sorted(p.name for p in folder.iterdir()) == ["digits.sparsec"]
    return path


def expected(pixels: np.ndarray) -> np.ndarray:
    """onnxruntime's scores."""
    session = onnxruntime.InferenceSession(DIGITS, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels})[0]


def assert_same(scores: np.ndarray, pixels: np.ndarray) -> None:
    reference = expected(pixels)
    assert scores.dtype == np.float32 and scores.shape == reference.shape
    assert np.abs(scores - reference).max() < 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize("batch", [1, 5, 33])
def test_run_gives_onnxruntimes_numbers(compiled: Path, tmp_path: Path, batch: int) -> None:
    pixels = np.random.default_rng(batch).random((batch, 64), np.float32)
    np.savez(tmp_path / "x.npz", pixels=pixels)
    result = sparsec("run", compiled, "--input", "x.npz", "--output", "y.npz", cwd=tmp_path)
    assert result.stdout.startswith(f"scores: float32[{batch}, 10]")
    with np.load(tmp_path / "y.npz") as found:
        assert list(found) == ["scores"]
        assert_same(found["scores"], pixels)


def test_run_reads_onnx_and_writes_npy(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((3, 64))  # float64 on purpose
    np.save(tmp_path / "x.npy", pixels)
    sparsec("run", DIGITS, "-i", "x.npy", "-o", "y.npy", "--threads", "2", cwd=tmp_path)
    assert_same(np.load(tmp_path / "y.npy"), pixels.astype(np.float32))


def test_run_makes_inputs_up(compiled: Path, tmp_path: Path) -> None:
    result = sparsec("run", compiled, "--size", "batch=4", "--json", cwd=tmp_path)
    assert "random inputs: pixels [4, 64]" in result.stderr
    (output,) = json.loads(result.stdout)["outputs"]
    assert output["name"] == "scores" and output["shape"] == [4, 10] and output["dtype"] == "float32"
    assert output["min"] <= output["mean"] <= output["max"]


def test_quiet_is_quiet(compiled: Path, tmp_path: Path) -> None:
    result = sparsec("run", compiled, "--quiet", cwd=tmp_path)
    assert result.stdout == result.stderr == ""


def test_compile_writes_beside_the_model_and_reports_json(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(DIGITS.read_bytes())
    result = sparsec("compile", "m.onnx", "--shape", "pixels=8,64", "--json", cwd=tmp_path)
    said = json.loads(result.stdout)
    assert said["output"] == "m.sparsec" and said["bytes"] == (tmp_path / "m.sparsec").stat().st_size
    layers = said["report"]["layers"]
    assert len(layers) == 4
    for layer in layers:
        assert layer["found"] and layer["reason"] and layer["kernel"] and layer["format"]
        assert layer["kernel"] in {c["kernel"] for c in layer["candidates"]}


def test_compile_twice_gives_the_same_bytes(compiled: Path, tmp_path: Path) -> None:
    sparsec("compile", DIGITS, "-o", "again.sparsec", "--quiet", cwd=tmp_path)
    assert (tmp_path / "again.sparsec").read_bytes() == compiled.read_bytes()


def test_explain_agrees_for_both_kinds_of_file(compiled: Path, tmp_path: Path) -> None:
    first = json.loads(sparsec("explain", compiled, "--json", cwd=tmp_path).stdout)["layers"]
    second = json.loads(sparsec("explain", DIGITS, "--json", cwd=tmp_path).stdout)["layers"]
    for key in ("node", "found", "kernel", "format", "reason", "candidates"):
        assert [layer[key] for layer in first] == [layer[key] for layer in second]
    text = sparsec("explain", compiled, "--candidates", cwd=tmp_path).stdout
    for layer in first:
        assert layer["kernel"] in text
    assert "why" in text and "predicted" in text


def test_bench_compares_with_onnxruntime(tmp_path: Path) -> None:
    options = ("--rounds", "2", "--against", "onnxruntime", "-o", "fastest.sparsec")
    result = sparsec("bench", DIGITS, *options, "--size", "batch=2", "--json", cwd=tmp_path)
    said = json.loads(result.stdout)
    ours = {name for name in said["engines"] if name.startswith("sparsec")}
    assert {"sparsec", "sparsec-dense"} <= ours and set(said["engines"]) == {*ours, "onnxruntime"}
    assert said["reference"] == "onnxruntime" and said["use"] in ours
    assert set(said["differences"]) == ours and max(said["differences"].values()) < 1e-4
    assert all(0 < e["q1_us"] <= e["median_us"] <= e["q3_us"] for e in said["engines"].values())
    assert all(layer["us"] > 0 and layer["dense_us"] > 0 for layer in said["layers"])
    np.save(tmp_path / "x.npy", np.ones((2, 64), np.float32))
    sparsec("run", "fastest.sparsec", "-i", "x.npy", "-o", "y.npy", "-q", cwd=tmp_path)
    assert_same(np.load(tmp_path / "y.npy"), np.ones((2, 64), np.float32))


def test_bench_prints_a_table_without_control_characters(tmp_path: Path) -> None:
    result = sparsec("bench", DIGITS, "--rounds", "2", "--no-beside-dense", cwd=tmp_path)
    assert (
        "speed" in result.stdout and "sparsec-dense" not in result.stdout and " on 1 thread" in result.stdout
    )
    assert all(c.isprintable() or c == "\n" for c in result.stdout + result.stderr)
    assert sparsec("bench", DIGITS, "--rounds", "1", "--against", "none", "-q", cwd=tmp_path).stdout == ""


def test_bench_times_every_step(compiled: Path, tmp_path: Path) -> None:
    said = json.loads(sparsec("bench", compiled, "--rounds", "2", "--profile", "--json", cwd=tmp_path).stdout)
    report = json.loads(sparsec("explain", compiled, "--json", cwd=tmp_path).stdout)
    assert [s["kernel"] for s in said["steps"]] == [s["kernel"] for s in report["steps"]]
    assert all(s["nanoseconds"] > 0 and s["bytes"] > 0 for s in said["steps"])
    assert [s["operations"] > 0 for s in said["steps"]] == ["operations" in s for s in report["steps"]]
    text = sparsec("bench", compiled, "--rounds", "2", "--profile", cwd=tmp_path).stdout
    assert all(word in text for word in ("GFLOP/s", "GB/s", "x dense predicted", "total"))


def test_run_and_help_load_no_compiler(compiled: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sparsec.cli import app\n"
        "try: app(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'tvm', 'torch', 'onnx', 'scipy'}))"
    )
    for arguments in (["run", str(compiled), "-q"], ["explain", str(compiled)], ["--help"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert result.stdout.splitlines()[-1] == "[]", arguments


def test_missing_and_damaged_files_are_refused(compiled: Path, tmp_path: Path) -> None:
    assert "absent.onnx: no such file" in refusal("compile", "absent.onnx", cwd=tmp_path)
    assert "absent.sparsec" in refusal("run", "absent.sparsec", cwd=tmp_path)
    (tmp_path / "cut.onnx").write_bytes(DIGITS.read_bytes()[:100_000])
    assert "cut.onnx" in refusal("compile", "cut.onnx", cwd=tmp_path)
    (tmp_path / "text.onnx").write_text("not a model\n")
    assert "text.onnx" in refusal("run", "text.onnx", cwd=tmp_path)
    (tmp_path / "cut.sparsec").write_bytes(compiled.read_bytes()[:5000])
    assert refusal("run", "cut.sparsec", cwd=tmp_path)
    (tmp_path / "none.sparsec").write_bytes(DIGITS.read_bytes())
    assert refusal("explain", "none.sparsec", cwd=tmp_path)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["cut.onnx", "cut.sparsec", "none.sparsec", "text.onnx"]


def test_wrong_inputs_are_refused(compiled: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "names.npz", image=np.zeros((1, 64), np.float32), more=np.zeros(1))
    assert "holds image, more; the model's inputs are pixels" in refusal(
        "run", compiled, "-i", "names.npz", cwd=tmp_path
    )
    np.savez(tmp_path / "shape.npz", pixels=np.zeros((2, 63), np.float32))
    assert "pixels" in refusal("run", compiled, "-i", "shape.npz", "-o", "y.npz", cwd=tmp_path)
    np.savez(tmp_path / "type.npz", pixels=np.zeros((2, 64), np.int64))
    assert "pixels" in refusal("run", compiled, "-i", "type.npz", cwd=tmp_path)
    (tmp_path / "text.npz").write_text("not an archive")
    assert "text.npz: not an .npz" in refusal("run", compiled, "-i", "text.npz", cwd=tmp_path)
    assert "absent.npz: no such file" in refusal("run", compiled, "-i", "absent.npz", cwd=tmp_path)
    assert not (tmp_path / "y.npz").exists()


def test_wrong_options_are_refused(compiled: Path, tmp_path: Path) -> None:
    assert "NAME=VALUE" in refusal("compile", DIGITS, "--shape", "pixels", cwd=tmp_path)
    assert "'-1'" in refusal("compile", DIGITS, "--shape", "pixels=-1,64", cwd=tmp_path)
    assert "there is no folder" in refusal("compile", DIGITS, "-o", "no/where.sparsec", cwd=tmp_path)
    assert "compiled already" in refusal("compile", compiled, cwd=tmp_path)
    assert "compiled already" in refusal("run", compiled, "--shape", "pixels=1,64", cwd=tmp_path)
    assert "batches" in refusal("run", compiled, "--size", "batches=2", cwd=tmp_path)
    assert "threads" in refusal("run", compiled, "--threads", "0", cwd=tmp_path)
    assert "from 1 to 256" in refusal("compile", DIGITS, "--threads", "257", cwd=tmp_path)
    assert "not-there" in refusal("compile", DIGITS, "--dense", "not-there", "-q", cwd=tmp_path)
    assert "tensorrt" in refusal("bench", DIGITS, "--against", "tensorrt", cwd=tmp_path)
    assert "give that one" in refusal("bench", compiled, "--against", "onnxruntime", cwd=tmp_path)
    assert "there is no folder" in refusal("bench", DIGITS, "-o", "no/where.sparsec", cwd=tmp_path)
    assert "z80" in refusal("compile", DIGITS, "--target", "z80", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unsupported_operators_are_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonMaxSuppression", ["b", "s"], ["i"], name="keep"),
        helper.make_node("StringNormalizer", ["t"], ["u"], name="lower"),
    ]
    inputs = [
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 6, 4]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 2, 6]),
        helper.make_tensor_value_info("t", TensorProto.STRING, [3]),
    ]
    outputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, None),
        helper.make_tensor_value_info("u", TensorProto.STRING, None),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    said = refusal("compile", "m.onnx", cwd=tmp_path)
    assert "StringNormalizer" in said and "lower" in said


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = sparsec("run", "absent.sparsec", cwd=tmp_path, code=1, SPARSEC_DEBUG="1")
    assert "Traceback" in result.stderr and "ArtifactError" in result.stderr


def test_target_of_another_processor(tmp_path: Path) -> None:
    sparsec("compile", DIGITS, "-o", "wide.sparsec", "--target", "x86-64-v4", "-q", cwd=tmp_path)
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    if "avx512f" in flags.split():
        sparsec("run", "wide.sparsec", "-q", cwd=tmp_path)
    else:
        assert "avx512" in refusal("run", "wide.sparsec", cwd=tmp_path)


def test_two_inputs_by_name(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["a", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, k]) for n, k in (("a", 6), ("b", 4), ("y", 4))
    ]
    graph = helper.make_graph(nodes, "g", ports[:2], ports[2:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    a, b = np.ones((2, 6), np.float32), np.full((2, 4), 0.5, np.float32)
    np.savez(tmp_path / "x.npz", b=b, a=a)
    sparsec("run", "m.onnx", "-i", "x.npz", "-o", "y.npz", cwd=tmp_path)
    with np.load(tmp_path / "y.npz") as found:
        np.testing.assert_allclose(found["y"], a @ weight + b, rtol=1e-5, atol=1e-5)


def test_shapes_are_parsed() -> None:
    from sparsec.commands.options import parse_shapes

    assert parse_shapes(["x=1,3,32,32", "a=b=n, 8"]) == {"x": (1, 3, 32, 32), "a=b": ("n", 8)}
    assert parse_shapes(None) is None
    for text in ("x", "=1", "x=", "x=1.5", "x=1,,2", "x=0"):
        with pytest.raises(ConfigError):
            parse_shapes([text])


def test_random_inputs_follow_the_ports() -> None:
    ports = [PortInfo("x", "float32", ("n", 3)), PortInfo("k", "int64", ("n",)), PortInfo("m", "bool", (2,))]
    made = feeds.random(ports, {"n": 5})
    assert {n: (x.dtype.name, x.shape) for n, x in made.items()} == {
        "x": ("float32", (5, 3)), "k": ("int64", (5,)), "m": ("bool", (2,)),
    }  # fmt: skip
    with pytest.raises(InputError, match="computed shape"):
        feeds.random([PortInfo("x", "float32", ("2*n + 1",))])


def test_outputs_may_have_any_name(tmp_path: Path) -> None:
    outputs = {"file": np.arange(3), "a/b:0": np.float32(2)}
    feeds.write(tmp_path / "y.npz", outputs)
    with np.load(tmp_path / "y.npz") as found:
        assert set(found) == set(outputs) and np.array_equal(found["file"], outputs["file"])
    with pytest.raises(InputError, match="one array"):
        feeds.write(tmp_path / "y.npy", outputs)
