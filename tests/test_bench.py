"""``sparsec bench``: what is compared with what, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import sparsec
from sparsec.bench import compare as comparing
from sparsec.bench import engines
from sparsec.bench.compare import Comparison as Found
from sparsec.bench.compare import LayerTime, compare, difference, layer_times
from sparsec.bench.engines import ENGINES, Absent, Bound, Engine, Task
from sparsec.bench.measure import Timing
from sparsec.bench.show import as_json, fastest_of_ours, verdict
from sparsec.cli import app
from sparsec.commands.bench import engines_asked_for
from sparsec.errors import ConfigError

REPORT = {"layers": [{"dense_bytes": 100, "sparsity": 0.9, "tokens": 1, "format": "csr"}]}


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of kernels of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEC_CACHE", str(tmp_path_factory.mktemp("bench") / "kernels"))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers: one of zeros mostly, one without any."""
    random = np.random.default_rng(0)
    first = random.standard_normal((96, 64)).astype(np.float32) * (random.random((96, 64)) < 0.1)
    second = random.standard_normal((64, 16)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], "second layer"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 96])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [32, 16])],
        [numpy_helper.from_array(first, "v"), numpy_helper.from_array(second, "w")],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("bench") / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def task(model: Path) -> Task:
    x = np.random.default_rng(1).standard_normal((32, 96)).astype(np.float32)
    return Task(model, {"x": x})


def times(**medians: float) -> dict[str, Timing]:
    """Timings by engine, in seconds, with narrow quartiles; an underscore stands for a hyphen."""
    return {n.replace("_", "-"): Timing(t, 0.99 * t, 1.01 * t) for n, t in medians.items()}


def found(timings: Mapping[str, Timing], **others: Any) -> Found:
    return Found(1, 30, timings, {}, **others)


def test_differences_are_relative_and_notice_what_is_no_number() -> None:
    ones, nan = np.ones((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)
    endless = np.array([np.inf, -2.0], np.float32)
    assert difference([ones, 4 * ones], [ones, 5 * ones]) == pytest.approx(0.2)
    assert difference([nan], [ones]) == difference([ones], [nan]) == difference([nan], [nan]) == np.inf
    assert difference([ones], [ones[:1]]) == difference([ones], [ones, ones]) == np.inf
    assert difference([np.array([True])], [np.array([True])]) == difference([], []) == 0.0
    assert difference([endless], [endless]) == 0.0 and difference([-endless], [endless]) == np.inf
    assert difference([np.zeros((0, 4))], [np.zeros((0, 4))]) == 0.0


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_compute_what_sparsec_computes(model: Path, name: str) -> None:
    pytest.importorskip(name)
    programs = {"sparsec": sparsec.compile(model), "sparsec-dense": sparsec.compile(model, dense=True)}
    result = compare(programs, [ENGINES[name]], task(model), rounds=2)
    assert set(result.timings) == {*programs, name} and result.reference == name and result.wrong == []
    assert set(result.differences) == set(programs) and result.versions[name] == ENGINES[name].version
    assert list(result.others) == [name] and set(result.ours) == set(programs)


def test_an_engine_that_is_wrong_or_fails_is_said_to(model: Path) -> None:
    def failing(error: Exception) -> Callable[[Task], Bound]:
        def bind(task: Task) -> Bound:
            raise error

        return bind

    right = sparsec.compile(model)(*task(model).feeds.values())
    engines = [
        Engine("right", "numpy", lambda task: Bound(lambda: None, lambda: [right])),
        Engine("wrong", "numpy", lambda task: Bound(lambda: None, lambda: [1.001 * right])),
        Engine("empty", "numpy", lambda task: Bound(lambda: None, lambda: [])),
        Engine("absent", "numpy", failing(Absent("it has its reasons"))),
        Engine("broken", "numpy", failing(ValueError("no such operator\nand more"))),
    ]
    result = compare({"sparsec": sparsec.compile(model)}, engines, task(model), rounds=2)
    assert result.reference == "right" and result.wrong == ["wrong", "empty"]
    assert 0.0009 < result.differences["wrong"] < 0.0011 and list(result.others) == ["right"]
    said = "\n".join(verdict(result, [], REPORT, "m.onnx"))
    assert (
        "absent is left out: it has its reasons" in said and "broken is left out: it fails: no such" in said
    )
    assert "wrong, empty: their outputs are not those of right" in said and "and more" not in said
    assert as_json(result, [], [])["differences"]["empty"] is None


def test_layers_are_timed_with_both_kernels(model: Path) -> None:
    chosen, dense = sparsec.compile(model), sparsec.compile(model, dense=True)
    assert [layer["format"] for layer in chosen.report["layers"]][1] == "dense"
    (layer,) = layer_times(chosen, dense, task(model).feeds, rounds=2)
    assert layer.name == "first" and layer.kernel == chosen.report["layers"][0]["kernel"]
    assert 0 < layer.seconds < 1 and 0 < layer.dense < 1


def test_layers_run_dense_when_told_to(model: Path) -> None:
    x = task(model).feeds["x"]
    chosen, dense = sparsec.compile(model), sparsec.compile(model, dense=["first"])
    first = dense.report["layers"][0]
    assert first["format"] == "dense" and "asked for" in first["reason"]
    assert {c["kernel"] for c in first["candidates"]} == {
        c["kernel"] for c in chosen.report["layers"][0]["candidates"]
    }
    assert np.allclose(chosen(x), dense(x), atol=1e-4)
    whole = sparsec.analyze(model, dense=True)["layers"]
    assert [layer["format"] for layer in whole] == ["dense"] * 2 and whole[0]["bytes"] >= 4 * 96 * 64
    with pytest.raises(ConfigError, match=r"no layer is called third; .* are first, second layer"):
        sparsec.analyze(model, dense=["first", "third"])


def test_a_layer_is_faster_dense_by_more_than_noise() -> None:
    assert LayerTime("a", "csr_spmm", 10e-6, 9e-6).faster_dense
    assert not LayerTime("a", "csr_spmm", 10e-6, 9.8e-6).faster_dense
    assert not LayerTime("a", "csr_spmm", 1e-6, 0.6e-6).faster_dense


def test_sparsec_wins() -> None:
    result = found(times(sparsec=1e-3, openvino=3e-3, onnxruntime=2e-3), reference="openvino")
    (said,) = verdict(result, [], REPORT, "m.onnx")
    assert said == "sparsec wins: 2.00x the speed of the best dense engine (onnxruntime) on 1 thread"
    assert fastest_of_ours(result) == "sparsec"


def test_dense_wins_and_what_to_do_is_said() -> None:
    layers = [LayerTime(f"layer{i}", "csr_spmm", 1e-4 * (9 - i), 1e-2) for i in range(7)]
    report = {"layers": [{"dense_bytes": 100, "sparsity": 0.05, "tokens": "batch", "format": "csr"}]}
    said = "\n".join(verdict(found(times(sparsec=3e-3, openvino=1e-3)), layers, report, "my model.onnx"))
    assert "dense wins: openvino has 3.00x the speed of sparsec" in said
    assert "layer0 900 us, layer1 800 us" in said and "layer5" not in said
    assert "5 % of the weights are zero" in said and "--shape" in said
    assert "sparsec tune 'my model.onnx'" in said


def test_equal_is_called_equal() -> None:
    close = {"sparsec": Timing(1.0, 0.9, 1.1), "openvino": Timing(1.05, 0.95, 1.2)}
    assert verdict(found(close), [], REPORT, "m.onnx")[0].startswith("sparsec and openvino are equally fast")


def test_our_own_dense_kernels_are_proposed_where_they_win() -> None:
    layers = [LayerTime("a/b c", "csr_spmm", 2e-3, 1e-3), LayerTime("d", "csr_spmm", 1e-3, 9e-3)]
    mixed = found(times(sparsec=5e-3, sparsec_mixed=4e-3, sparsec_dense=9e-3))
    said = verdict(mixed, layers, REPORT, "m.onnx")
    assert fastest_of_ours(mixed) == "sparsec-mixed" and "not compared with other engines" in said
    assert "a/b c: csr_spmm takes 2.00 ms, dense 1.00 ms" in said
    assert said[-1].endswith("1.25x as fast: sparsec compile m.onnx --dense 'a/b c'")
    dense = found(times(sparsec=5e-3, sparsec_dense=4e-3, openvino=9e-3))
    said = verdict(dense, layers, REPORT, "m.onnx")
    assert fastest_of_ours(dense) == "sparsec-dense" and said[-1].endswith(
        "sparsec compile m.onnx --dense all"
    )
    assert said[0].startswith("sparsec-dense wins: 2.25x")


def test_engines_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Engine("here", "numpy", engines.bind_openvino)
    gone = Engine("gone", "no-such-package", engines.bind_openvino, readers=("nor_this",))
    monkeypatch.setattr(engines, "ENGINES", {"here": here, "gone": gone})
    monkeypatch.setattr(engines, "READERS", ("here", "gone"))
    assert engines_asked_for(None, False) == engines_asked_for("here, here", False) == [here]
    assert engines_asked_for(None, True) == engines_asked_for("none", False) == []
    with pytest.raises(ConfigError, match="gone: not installed; pip install no-such-package nor_this"):
        engines_asked_for("here,gone", False)
    with pytest.raises(ConfigError, match="tensorrt: expected here, gone or none"):
        engines_asked_for("here,tensorrt", False)
    with pytest.raises(ConfigError, match="give that one"):
        engines_asked_for("here", True)


def test_torch_runs_a_module_and_no_file_without_a_reader(model: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(96, 4)
    x = task(model).feeds
    bound = ENGINES["torch"].bind(Task(model, x, module=lambda: layer))
    bound.call()
    assert np.allclose(bound.outputs()[0], layer(torch.from_numpy(x["x"])).detach().numpy())
    if ENGINES["torch"].missing:
        assert ENGINES["torch"].missing == ("onnx2torch",)
        with pytest.raises(Absent, match="ONNX file only"):
            ENGINES["torch"].bind(Task(model, x))


def test_layers_found_faster_dense_are_timed_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [LayerTime("first", "csr_spmm", 2e-3, 1e-3), LayerTime("second layer", "csr_spmm", 1e-3, 9e-3)]
    monkeypatch.setattr(comparing, "layer_times", lambda *_, **__: layers)
    cores = os.sched_getaffinity(0)
    try:
        command = ["bench", str(model), "--rounds", "2", "--against", "none", "--json"]
        result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "best.sparsec")])
    finally:
        os.sched_setaffinity(0, cores)  # the command pins its process, which here is the tests' own
    said = json.loads(result.stdout)
    assert set(said["engines"]) == {"sparsec", "sparsec-dense", "sparsec-mixed"}
    assert said["reference"] == "sparsec-dense" and max(said["differences"].values()) < 1e-5
    assert [layer["faster_dense"] for layer in said["layers"]] == [True, False]
    written = sparsec.load(tmp_path / "best.sparsec").report["layers"]
    assert (written[0]["format"] == "dense") == (said["use"] != "sparsec")
