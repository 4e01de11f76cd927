"""GPUs as targets: their names, which one is here, what they compute in, and what commands say of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("tvm")

import onnx_models
from cuda_models import chain_model, cuda_file, driver, loaded
from fake_cuda.driver import FakeDriver
from graph_build import BATCH, Build
from sass import needs_nvcc
from test_cli import refusal, sparsec

from sparsec import analyze, compile
from sparsec.errors import ArtifactError, BuildError, ConfigError
from sparsec.ir.graph import Graph, Op, replace
from sparsec.passes.lower_precision import lower_precision
from sparsec.runtime import Program
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.toolkit import nvcc
from sparsec.targets.named import computing_in, runs_here, target_named
from sparsec.targets.problem import predicted_columns, problem_of
from sparsec.tuning.tune import tune

__all__ = ["driver", "loaded"]

DIGITS = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "digits.onnx"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_LIBCUDA", "libcuda_of_no_machine.so")


@pytest.mark.parametrize(
    ("capability", "name"), [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90a")], ids=str
)
def test_the_gpu_of_this_machine(driver: FakeDriver, capability: tuple[int, int], name: str) -> None:
    driver.machine(capability=capability)
    assert target_named("cuda").name == name
    here = {target.name for target in gpus.TARGETS if runs_here(target)}
    assert here == ({"sm_80"} if capability[0] == 8 else {"sm_90", "sm_90a"})


def test_gpus_that_no_target_is_for(driver: FakeDriver) -> None:
    driver.machine(capability=(7, 5))
    with pytest.raises(ConfigError, match=r"compute capability 7\.5; there are targets for 8\.x \(sm_80\)"):
        target_named("cuda")
    driver.machine(devices=0)
    with pytest.raises(ConfigError, match=r"none was found.*sm_80 or sm_90a"):
        target_named("cuda")


@pytest.mark.usefixtures("no_gpu")
def test_a_machine_without_one() -> None:
    with pytest.raises(ConfigError, match=r"none was found.*sm_80 or sm_90a"):
        target_named("cuda")
    assert not any(map(runs_here, gpus.TARGETS))


def test_what_a_target_computes_in() -> None:
    assert computing_in(gpus.SM80, None) is gpus.SM80
    assert computing_in(gpus.SM80, "bfloat16").dtype == "bfloat16"
    both = computing_in(target_named("sm_90a,sm_80"), "float16")
    assert [t.dtype for t in (both, *both.others)] == ["float16"] * 2
    for name in ("x86-64-v3", "aarch64"):
        with pytest.raises(ConfigError, match=f"{name} computes in float32 only; float16 is for GPUs"):
            computing_in(target_named(name), "float16")
    with pytest.raises(ConfigError, match="unknown dtype 'float8': choose one of float32, float16, bfloat16"):
        computing_in(gpus.SM90A, "float8")
    with pytest.raises(ConfigError, match=r"one architecture, not for .*sm_80 \(cuda\)"):
        target_named("x86-64-v3,sm_80")


def test_what_is_for_processors_is_refused() -> None:
    model = onnx_models.mlp(3)
    with pytest.raises(ConfigError, match="computes in float32 only"):
        compile(model, target="x86-64-v3", dtype="float16")
    with pytest.raises(ConfigError, match="no kernel for GPUs skips inputs"):
        analyze(model, target="sm_80", calibrate={"x": np.zeros((3, 64), np.float32)})
    with pytest.raises(ConfigError, match="sm_80 are chosen by prediction"):
        tune(DIGITS, target="sm_80", records=Path("unused.jsonl"))


def halved(graph: Graph, dtype: str = "float16") -> Graph:
    return lower_precision(graph, replace(gpus.SM80, dtype=dtype))


def test_lower_precision_changes_values_and_no_ports() -> None:
    b = Build()
    x = b.input(BATCH, 8)
    y = b.softmax(b.linear(x, 6))
    graph = b.graph(y, x)
    done = halved(graph)
    assert [n.type.dtype for n in done.inputs] == ["float32"]
    nodes = done.node_map()
    assert [nodes[o].type.dtype for o in done.outputs] == ["float32"] * 2
    assert done.outputs[1] == x, "what no kernel touches stays"
    inside = [n for n in done.nodes if n.op in (Op.MATMUL, Op.SOFTMAX)]
    assert {n.type.dtype for n in inside} == {"float16"}
    assert all(nodes[a].type.dtype == "float16" for n in inside for a in n.args)
    assert halved(done) is done and lower_precision(graph, gpus.SM80) is graph


def test_weights_that_are_too_large_for_halves() -> None:
    b = Build()
    graph = b.graph(b.matmul(b.input(2, 2), b.const([[1e6, -1e6], [np.inf, 1e-9]])))
    (w,) = (a for a in halved(graph).consts.values() if a.dtype == np.float16)
    assert w.tolist() == [[65504.0, -65504.0], [np.inf, 0.0]]


def test_reports_are_of_the_whole_gpu() -> None:
    report = analyze(onnx_models.mlp("n"), target="sm_90a", dtype="float16")
    facts = report["target"]
    assert facts["name"] == "sm_90a" and 900e3 < facts["gflops"] < 1000e3
    assert [read["from"] for read in facts["reads"]] == ["L2", "memory"]
    for layer in report["layers"]:
        rows, inner = layer["shape"]
        assert layer["dense_bytes"] == 2 * rows * inner and layer["predicted_for"] == 32
        assert layer["bound_bytes"] < layer["dense_bytes"]
    b = Build()
    nodes = b.graph(b.linear(b.input(BATCH, 8), 6)).node_map()
    problem = problem_of(nodes, next(n for n in nodes.values() if n.op is Op.MATMUL))
    assert predicted_columns(problem, gpus.SM80) == 32
    assert predicted_columns(problem, target_named("x86-64-v3")) == 1


def test_the_command_explains(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ("--target", "sm_90a", "--dtype", "float16", "--html", page)
    text = sparsec("explain", DIGITS, *arguments, cwd=tmp_path).stdout
    assert "csr_conv" in text and "expected:" in text
    assert "sm_90a" in page.read_text(encoding="utf-8")


@needs_nvcc
def test_the_command_compiles(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.mlp("n", (16, 8)).SerializeToString())
    said = sparsec("compile", path, "--target", "sm_80", "--dtype", "bfloat16", "--json", cwd=tmp_path).stdout
    described = json.loads(said)
    assert described["report"]["target"]["name"] == "sm_80"
    assert (tmp_path / "model.sparsec").stat().st_size == described["bytes"]


@needs_nvcc
def test_a_file_for_a_gpu_explains_itself_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no driver, and compressed; a damaged one is still refused."""
    monkeypatch.setenv("SPARSEC_LIBCUDA", "libcuda_of_no_machine.so")
    sparsec("compile", DIGITS, "-o", "a.sparsec", "--target", "sm_80", cwd=tmp_path)
    assert "csr_conv" in sparsec("explain", "a.sparsec", cwd=tmp_path).stdout
    damaged = bytearray((tmp_path / "a.sparsec").read_bytes())
    damaged[-100] ^= 1
    (tmp_path / "b.sparsec").write_bytes(damaged)
    assert "compiled for a CUDA GPU" in refusal("explain", "b.sparsec", cwd=tmp_path)


def test_the_toolkit_is_where_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CUDA", "/nowhere")
    with pytest.raises(BuildError, match="SPARSEC_CUDA=/nowhere has no bin/nvcc"):
        nvcc()


def test_what_commands_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_LIBCUDA", "libcuda_of_no_machine.so")
    told = {
        ("explain", DIGITS, "--target", "cuda"): "name it: sm_80 or sm_90a",
        ("explain", DIGITS, "--dtype", "float16"): "float16 is for GPUs",
        ("tune", DIGITS, "--target", "sm_90a"): "chosen by prediction",
        ("bench", DIGITS, "--target", "sm_90a"): "no such GPU is here to run on",
        ("run", DIGITS, "--target", "sm_90a"): "no such GPU is here to run on",
    }
    for arguments, text in told.items():
        assert text in refusal(*arguments, cwd=tmp_path)


def test_the_driver_runs_what_was_compiled_for_it(driver: FakeDriver) -> None:
    """A program for a GPU of another kind than this machine's is refused by its name."""
    driver.machine(capability=(8, 0))
    with pytest.raises(ArtifactError, match="sm_90a"):
        Program.from_bytes(cuda_file(chain_model(np.zeros(37, np.float32))))
