"""The benchmark's parts: pruning, rows, energy, DeepSparse's server, table and plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import deepsparse_engine  # noqa: E402
import energy  # noqa: E402
from limits import Limits, measured  # noqa: E402
from operations import work_of  # noqa: E402
from process import checked  # noqa: E402
from pruning import Sparsity  # noqa: E402
from run import medians  # noqa: E402
from table import markdown, realised  # noqa: E402
from workloads import WORKLOADS, Absent  # noqa: E402

WEIGHT = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 1), (4, 4), (16, 16)])
def test_blocks_stay_or_go_whole(block: tuple[int, int]) -> None:
    mask = Sparsity(50, block).mask(WEIGHT)
    high, wide = block
    parts = mask.reshape(32 // high, high, 48 // wide, wide).transpose(0, 2, 1, 3).reshape(-1, high * wide)
    assert (parts == parts[:, :1]).all() and mask.mean() == 0.5
    sums = np.abs(WEIGHT).reshape(32 // high, high, 48 // wide, wide).sum(axis=(1, 3)).ravel()
    assert sums[parts[:, 0]].min() >= sums[~parts[:, 0]].max()


@pytest.mark.parametrize("kept", [(2, 4), (1, 4), (2, 8)])
def test_n_of_m_keep_the_largest_of_every_group_of_inputs(kept: tuple[int, int]) -> None:
    n, m = kept
    groups = Sparsity(kept=kept).mask(WEIGHT).reshape(-1, m)
    assert (groups.sum(axis=1) == n).all()
    assert all(
        np.abs(w)[g].min() > np.abs(w)[~g].max() for w, g in zip(WEIGHT.reshape(-1, m), groups, strict=True)
    )
    assert Sparsity().mask(WEIGHT).all()


def test_workloads_have_names_of_their_own_and_every_family_runs_dense() -> None:
    names = [w.name for w in WORKLOADS]
    assert len(set(names)) == len(names)
    for family in ("ffn_1", "ffn_32", "ffn_128", "ffn_512", "mlp_1", "mlp_128", "bert", "llama", "resnet50"):
        assert f"{family}_dense" in names


def test_medians_of_processes() -> None:
    timing = lambda t: {"median_us": t, "q1_us": t - 1, "q3_us": t + 1, "disturbed": 0.3 * (t == 9)}  # noqa: E731
    found = medians([{"engines": {"sparsec": timing(t)}} for t in (9, 2, 3)])
    assert found["sparsec"] == {"median_us": 3, "q1_us": 2, "q3_us": 4, "disturbed": 0.1}


class Outputs:
    """A bound engine that computes some array."""

    def __init__(self, value: float) -> None:
        self.value = value

    def call(self) -> None:
        """Nothing to do."""

    def outputs(self) -> list[Any]:
        """The array."""
        return [np.full(3, self.value, np.float32)]


def test_a_wrong_rival_is_found_and_a_wrong_sparsec_ends_the_run() -> None:
    bound: Any = {"sparsec": Outputs(1), "onnxruntime": Outputs(1), "deepsparse": Outputs(2)}
    assert checked("w", bound) == {"sparsec": 0.0, "deepsparse": 1.0}
    with pytest.raises(SystemExit, match="w: outputs differ"):
        checked("w", bound | {"sparsec": Outputs(1.1)})


def zone(root: Path, name: str, value: int) -> None:
    (root / name).mkdir(parents=True)
    (root / name / "energy_uj").write_text(f"{value}\n")
    (root / name / "max_energy_range_uj").write_text("999\n")


def test_energy_is_that_of_the_packages(tmp_path: Path) -> None:
    assert energy.counter(tmp_path) is None
    for name, value in (("intel-rapl:0", 990), ("intel-rapl:0:0", 5), ("intel-rapl:1", 100)):
        zone(tmp_path, name, value)
    counter = energy.counter(tmp_path)
    assert counter and counter.read() == [990, 100]
    assert counter.spent([990, 100], [10, 130]) == 20 + 30, "the first began anew"
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text(str((100 + 3 * len(calls)) % 1000))

    found = counter.per_call(call, seconds=0.002)
    assert found == pytest.approx(3 * len(calls) % 1000 / len(calls))


def test_products_of_activations_are_work_that_zeros_do_not_remove(tmp_path: Path) -> None:
    helper = onnx.helper
    w = np.zeros((6, 4), np.float32)
    w[:3] = 1
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["h", "t"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 5, 6])],
        [helper.make_tensor_value_info("y", 1, [2, 5, 5])],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    work = work_of(path, None)
    products = 2 * 2 * 5 * 5 * 4
    assert work and (work.useful, work.dense) == (2 * 12 * 10 + products, 2 * 24 * 10 + products)
    assert work.weights == 24 and not work.bound_by_weights


FAKE = """
class Engine:
    def __init__(self, model, batch_size, num_cores, input_shapes):
        if num_cores > 2:
            raise RuntimeError("too many cores\\nindeed")
        self.input_names = ["b", "a"]
        print("a greeting")
    def run(self, inputs, val_inp):
        return [inputs[0] - inputs[1]]
"""


def test_deepsparse_runs_in_an_interpreter_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deepsparse.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(deepsparse_engine.VARIABLE, sys.executable)
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph, ir_version=10), tmp_path / "m.onnx")
    feeds = {"a": np.ones((2, 3), np.float32), "b": np.full((2, 3), 5, np.float32)}
    server = deepsparse_engine.Server(tmp_path / "m.onnx", feeds, threads=1)
    assert server.turn(100).seconds > 0
    server()
    [y] = server.outputs()
    assert (y == 4).all() and y.shape == (2, 3)
    server.close()
    with pytest.raises(Absent, match=r"^too many cores$"):
        deepsparse_engine.Server(tmp_path / "m.onnx", feeds, threads=3)


def row(**facts: Any) -> dict[str, Any]:
    """A row as run.py writes them."""
    numbers = {"median_us": 100.0, "q1_us": 90.0, "q3_us": 110.0, "disturbed": 0.0}
    engines = {"sparsec": numbers, "openvino": numbers | {"median_us": 400.0}, "deepsparse": numbers}
    return {
        "workload": "ffn_1_u90", "about": "768-3072-768, GELU, 1 token, 90 % unstructured", "group": "linear",
        "threads": 1, "rounds": 30, "engines": engines, "versions": {"sparsec": "0"}, "left_out": {},
        "energy_uj": "not readable here", "weight_bytes": 2_000_000, "layout_bytes": 2048,
        "fma_gflops": 100.0, "processes": [{}] * 3, "operations": 5_000_000, "dense_operations": 50_000_000,
        "best_dense": "openvino", "ratio": 4.0, **facts,
    }  # fmt: skip


MACHINE = {"cpu": "A CPU", "family": "1", "model": "2", "flags": ["avx2"]}


def test_table_shows_what_rows_hold() -> None:
    assert realised(row()) == pytest.approx(0.4)
    text = markdown({"machine": MACHINE, "results": [row(), row(about="b", read_gbs=40.0)]})
    assert "median of 30 interleaved rounds in each of 3 processes" in text
    heading, _, first, second = (line for line in text.splitlines() if line.startswith("|"))
    assert "torch" not in heading and "energy" not in heading
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[-6:] == ["4.00x", "1.00x", "40%", "50.0", "50% of FMA", "2.00 KB"]
    assert "50% of 40 GB/s" in second and "Energy per inference: not readable here." in text
    spent = {"sparsec": 1500.0, "openvino": 6000.0}
    assert "1.5 mJ (dense 6 mJ)" in markdown({"machine": MACHINE, "results": [row(energy_uj=spent)]})


def test_table_shows_old_rows_too() -> None:
    new = ("processes", "operations", "dense_operations", "energy_uj", "left_out", "weight_bytes",
           "layout_bytes", "fma_gflops", "group")  # fmt: skip
    old = {key: value for key, value in row().items() if key not in new}
    text = markdown({"machine": MACHINE, "results": [old]})
    assert "in each of" not in text and "4.00x" in text and "limit" not in text


def test_plot_is_drawn_alike_every_time(tmp_path: Path) -> None:
    plot = pytest.importorskip("plot", exc_type=ImportError)
    results = {"machine": MACHINE, "results": [row(), row(threads=2), row(group="bert", about="BERT")]}
    written = plot.draw(results, tmp_path / "cpu.json")
    assert [p.name for p in written] == ["cpu.svg", "cpu-2-threads.svg"]
    first = written[0].read_bytes()
    assert plot.draw(results, tmp_path / "cpu.json")[0].read_bytes() == first and b"<svg" in first


@pytest.mark.slow
def test_limits_are_measured() -> None:
    found = measured(1, sizes=(1 << 18, 1 << 20))
    assert 1 < found.fma_gflops < 2000 and all(1 < rate < 5000 for rate in found.read_gbs.values())
    json.dumps({"fma_gflops": found.fma_gflops, "read_gbs": dict(found.read_gbs)})
    assert Limits(1.0, {100: 5.0, 1000: 2.0}).gbs(101) == 2.0 == Limits(1.0, {100: 2.0}).gbs(101)
