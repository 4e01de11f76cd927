"""What explain says: totals, what to prune next, what if, measured times; and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sparsec.explain.summary import Times, next_speed_up, number, shares_of, times_of, totals_of
from sparsec.explain.text import render
from sparsec.sparsity.prune import Pruning

onnx = pytest.importorskip("onnx")
pytest.importorskip("tvm")

from sparsec.errors import ModelError  # noqa: E402
from sparsec.explain.what_if import analysed, as_if_pruned  # noqa: E402
from sparsec.frontends import import_model  # noqa: E402
from sparsec.targets.x86 import AVX2  # noqa: E402

from .report_cases import RANDOM, layer, measured_report, pruned, residual  # noqa: E402
from .test_cli import DIGITS, refusal, sparsec  # noqa: E402


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return measured_report()


def test_sizes_that_inputs_leave_open() -> None:
    assert number(7) == 7 and number("64*batch + 8") == 64 * 32 + 8
    assert number("2*a*b + -1*a", {"a": 3, "b": 5}) == 27
    per_panel = layer(
        "n", "csr_spmm", {"csr_spmm": 2.0, "dense_gemm": 6.0}, tokens="49*batch", predicted_for=32
    )
    assert times_of(per_panel) == Times(2.0 * 49, 6.0 * 49)
    assert times_of(per_panel, {"batch": 1}) == Times(4.0, 12.0)


def test_totals_and_shares() -> None:
    layers = [
        layer("one", "csr_spmm", {"csr_spmm": 10.0, "dense_gemm": 40.0}),
        layer("two", "dense_gemm", {"dense_gemm": 30.0}),
        layer("three", "opaque", {}),
    ]
    totals = totals_of({"layers": layers, "steps": [{}] * 5})
    assert (totals.layers, totals.steps, totals.bytes, totals.dense_bytes) == (3, 5, 120, 300)
    assert totals.expected == 70 / 40 and totals.measured is None
    assert shares_of({"layers": layers}) == [0.25, 0.75, None]
    timed = {"layers": [{**layers[0], "measured_microseconds": 20.0}], "measured": {"microseconds": 50.0}}
    assert shares_of(timed) == [0.4]
    assert totals_of({"layers": []}).expected is None and shares_of({}) == []


def test_measured_times_come_before_predicted_ones() -> None:
    times = Times(10.0, 40.0, 20.0, 60.0)
    assert (times.time, times.dense, times.speed_up) == (20.0, 60.0, 3.0)
    assert (Times(10.0, 40.0, 20.0).time, Times(10.0, 40.0, 20.0).speed_up) == (20.0, 4.0)
    assert Times().speed_up is None and Times().time is None
    one = layer("one", "csr_spmm", {"csr_spmm": 10.0, "dense_gemm": 40.0})
    one["candidates"][0]["measured_microseconds"] = 12.0  # as a tuner leaves it
    assert times_of(one).measured == 12.0


def test_the_next_speed_up_is_where_most_time_is_saved() -> None:
    layers = [
        layer("one", "csr_spmm", {"csr_spmm": 10.0, "dense_gemm": 40.0}),
        layer("two", "csr_spmm", {"csr_spmm": 30.0, "dense_gemm": 50.0}, origin="block.1"),
        layer("three", "dense_gemm", {"dense_gemm": 60.0}, sparsity=0.0, found="0.0 % zero, dense"),
    ]
    tried = [
        {"node": "one", "pattern": "4x1", "sparsity": 0.62, "microseconds": 10.0, "then": 1.0},
        {"node": "two", "pattern": "16x1", "sparsity": 0.62, "microseconds": 30.0, "then": 12.0},
    ]
    assert next_speed_up({"layers": layers, "suggestions": tried}) == (
        "layer 2 (block.1) is 62 % unstructured and takes 30 % of the time: "
        "as 16x1 blocks at the same density it would take 0.4 of its time"
    )
    dense = {"node": "three", "pattern": "unstructured", "sparsity": 0.9, "microseconds": 60.0, "then": 15.0}
    assert next_speed_up({"layers": layers, "suggestions": [*tried, dense]}) == (
        "layer 3 (three) is dense and takes 60 % of the time: "
        "with 90 % of it pruned it would take 0.25 of its time"
    )
    assert "no other pruning" in next_speed_up({"layers": layers, "suggestions": []})
    assert next_speed_up({"layers": layers}) == next_speed_up({"suggestions": []}) == ""


def test_suggestions_are_the_kernels_own_predictions() -> None:
    weight = pruned((512, 768), 0.4)
    graph = import_model([(weight, None, None)])
    found = analysed(graph, AVX2)
    [one] = found["suggestions"]
    [now] = found["layers"]
    assert one["node"] == now["node"] and one["microseconds"] == times_of(now, {}).predicted
    assert one["pattern"] in ("16x1", "4x1") and one["sparsity"] == pytest.approx(0.6, abs=0.01)
    high = int(one["pattern"].split("x")[0])
    full = np.repeat(RANDOM.random((512 // high, 768)) < 0.4, high, axis=0).astype(np.float32)
    [blocks] = analysed(import_model([(full, None, None)]), AVX2)["layers"]
    assert times_of(blocks).predicted == pytest.approx(one["then"], rel=0.05)


def test_a_model_as_if_it_were_pruned(report: dict[str, Any]) -> None:
    before = import_model(residual())
    for pruning in (Pruning(0.9, (16, 1)), Pruning(kept=(2, 4)), Pruning(0.8)):
        after = as_if_pruned(before, AVX2, pruning)
        layers = {entry["node"]: entry for entry in analysed(after, AVX2)["layers"]}
        assert len(layers) == 3
        assert all(entry["sparsity"] >= pruning.share - 0.05 for entry in layers.values())
    rows = report["what_if"]["layers"]
    assert report["what_if"]["text"] == "90 % zeros in blocks of 16x1" and len(rows) == 3
    assert [row["now"]["node"] for row in rows] == [row["then"]["node"] for row in rows]
    second = rows[1]
    assert second["now"]["format"] == "dense" and second["then"]["format"] != "dense"
    assert second["then"]["bytes"] < 0.3 * second["now"]["bytes"]


def test_channels_of_the_last_layer_stay() -> None:
    graph = as_if_pruned(import_model(residual()), AVX2, Pruning(0.5, channels=True))
    dead = [
        int((~graph.consts[n.args[1]].any(axis=(1, 2, 3) if n.op == "conv2d" else 0)).sum())
        for n in graph.nodes
        if n.op in ("conv2d", "matmul")
    ]
    assert dead == [16, 16, 0]


def test_channels_that_go_make_what_is_left_smaller() -> None:
    """The prediction is of the network without them: the middle layer is about a quarter."""
    weights = [
        RANDOM.standard_normal(shape).astype(np.float32) for shape in ((256, 64), (256, 256), (10, 256))
    ]
    before = import_model([(w, None, "relu") for w in weights])
    now = analysed(before, AVX2)["layers"]
    then = analysed(as_if_pruned(before, AVX2, Pruning(0.5, channels=True)), AVX2)["layers"]
    assert [layer["removed"] for layer in then] == [
        {"outputs": 128, "inputs": 0}, {"outputs": 128, "inputs": 128}, {"outputs": 0, "inputs": 128},
    ]  # fmt: skip
    assert times_of(then[1]).predicted < 0.35 * times_of(now[1]).predicted


def test_groups_follow_the_channels_of_a_tap() -> None:
    graph = as_if_pruned(import_model(residual()), AVX2, Pruning(kept=(2, 4)))
    weights = [graph.consts[n.args[1]] for n in graph.nodes if n.op == "conv2d"]
    assert [w.shape for w in weights] == [(32, 16, 3, 3), (32, 32, 3, 3)]
    for weight in weights:
        groups = (weight != 0).reshape(len(weight), -1, 4, 3, 3).sum(axis=2)
        assert groups.max() <= 2 and (weight != 0).any()
    assert ((weights[1] != 0).reshape(32, 8, 4, 3, 3).sum(axis=2) == 2).all()


def test_a_model_without_layers_cannot_be_pruned() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", 1, [2])], [onnx.helper.make_tensor_value_info("y", 1, [2])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match="no layer with a constant weight"):
        as_if_pruned(import_model(model), AVX2, Pruning(0.9))


def test_every_step_and_layer_has_a_measured_time(report: dict[str, Any]) -> None:
    about = report["measured"]
    assert about["sizes"] == {"batch": 2} and about["turns"] == 2
    assert about["microseconds"] == pytest.approx(
        sum(s["measured_microseconds"] for s in report["steps"]), abs=0.1
    )
    assert about["dense_microseconds"] > 0
    for entry in report["layers"]:
        times = times_of(entry, about["sizes"])
        assert times.measured and times.dense_measured
        timed = {c["kernel"] for c in entry["candidates"] if "measured_microseconds" in c}
        assert entry["kernel"] in timed and any(k.startswith("dense") for k in timed)
    assert all(0 < share < 1 for share in shares_of(report) if share is not None)
    json.dumps(report)


def test_the_terminal_shows_all_of_it(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    render(report, Console(width=100), candidates=True)
    text = capsys.readouterr().out
    for word in ("predicted", "measured", "share", "if pruned to 90 % zeros in blocks of 16x1", "all layers",
                 "expected: ", "measured: ", "next: layer ", "batch=2"):  # fmt: skip
        assert word in text, word
    assert max(map(len, text.splitlines())) <= 100
    render({"layers": [layer("old", "csr_spmm", {"csr_spmm": 1.0})]}, Console(width=100))
    assert "old" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_answers_what_if_and_writes_a_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--prune", "90%", "--pattern", "16x1", "--measure", "--rounds", "1", "--size", "batch=4")
    result = sparsec("explain", DIGITS, *options, "--html", "page.html", "--json", cwd=tmp_path)
    said = json.loads(result.stdout)
    assert said["what_if"]["text"] == "90 % zeros in blocks of 16x1" and said["measured"]["sizes"] == {
        "batch": 4
    }
    assert all("measured_microseconds" in row["then"] for row in said["what_if"]["layers"])
    assert 'id="what-if"' in (tmp_path / "page.html").read_text()
    text = sparsec("explain", DIGITS, "--pattern", "2:4", "--no-picture", cwd=tmp_path).stdout
    assert "if pruned to 2:4 along inputs" in text and "expected: " in text


def test_the_command_refuses_what_means_nothing(tmp_path: Path) -> None:
    def said(*options: str, model: str | Path = DIGITS) -> str:
        return refusal("explain", model, *options, cwd=tmp_path)

    assert said("--prune", "90") == "--prune 90: expected a share of zeros below 100%, as 90% or 0.9"
    assert "--pattern 16by1: expected unstructured, blocks as 16x1" in said(
        "--prune", "90%", "--pattern", "16by1"
    )
    assert "as in --prune 90%" in said("--pattern", "16x1")
    assert "leaves 50 % zeros" in said("--prune", "90%", "--pattern", "2:4")
    assert "--prune and --pattern are for .onnx files" in said("--prune", "90%", model="m.sparsec")
    assert "there is no folder" in said("--html", "no/page.html")
    assert "no such file" in said("--measure", model="absent.onnx")
    assert list(tmp_path.iterdir()) == []
