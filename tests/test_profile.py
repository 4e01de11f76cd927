"""Times of a program's steps: on models made by hand, at every thread count, and what is printed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.errors import InputError, SparsecError
from sparsec.runtime import Program, StepTime
from sparsec.runtime.profile import Watched, table, timed

from .runtime_models import PlanBuilder, compile_code, pointer, softmax_model, softmax_oracle, twice_model

COLUMNS = 37
BIAS = np.random.default_rng(1).standard_normal(COLUMNS).astype("float32")


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_code(tmp_path_factory.mktemp("kernels"))


def rows(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).standard_normal((count, COLUMNS)).astype("float32")


@pytest.mark.parametrize("threads", [1, 3])
def test_every_step_is_timed(code: bytes, threads: int) -> None:
    program = Program.from_bytes(softmax_model(BIAS).build(code), threads=threads)
    steps = program.profile(rows(500), repeats=4)
    assert [s.kernel for s in steps] == ["twice", "add_row", "softmax"]
    assert [s.node for s in steps] == ["node_0", "node_1", "node_2"]
    assert [s.tiles for s in steps] == [-(-500 * COLUMNS // 64), 500, 500]
    assert all(0 < s.nanoseconds < 10**9 for s in steps)
    np.testing.assert_allclose(program(rows(9)), softmax_oracle(rows(9), BIAS), atol=1e-6)


def test_inputs_come_by_position_by_name_or_as_a_mapping(code: bytes) -> None:
    program = Program.from_bytes(twice_model().build(code))
    x = np.ones(100, np.float32)
    for steps in (
        program.profile(x),
        program.profile(x=x),
        program.profile({"x": x}),
        program.profile(x, repeats=1),
    ):
        assert len(steps) == 1 and steps[0].tiles == 2
    assert program.profile(np.ones(0, np.float32))[0].tiles == 0


def test_longer_work_takes_longer(code: bytes) -> None:
    program = Program.from_bytes(twice_model().build(code))
    short, long = (
        min(program.profile(np.ones(n, np.float32))[0].nanoseconds for _ in range(5)) for n in (64, 10**6)
    )
    assert long > 10 * short


def test_wrong_calls_are_refused(code: bytes) -> None:
    program = Program.from_bytes(twice_model().build(code))
    x = np.ones(10, np.float32)
    with pytest.raises(InputError, match="repeats must be at least 1, not 0"):
        program.profile(x, repeats=0)
    with pytest.raises(InputError, match="no array was given for input 'x'"):
        program.profile()
    with pytest.raises(InputError, match=r"x\.astype"):
        program.profile(x.astype(np.float64))


def test_a_failing_step_is_named(code: bytes) -> None:
    b = PlanBuilder()
    b.step("check", pointer(b.input("x", (1,))), pointer(b.output("y", (1,))), serial=True)
    program = Program.from_bytes(b.build(code))
    with pytest.raises(SparsecError, match=r"step 0 \(node_0\) failed in kernel check"):
        program.profile(np.full(1, -1, np.float32))


LAYER = {
    "node": "y", "origin": "fc", "kind": "linear", "shape": [100, 50], "sparsity": 0.9, "tokens": 8,
    "kernel": "csr_spmm",
    "candidates": [
        {"kernel": "csr_spmm", "format": "csr", "microseconds": 2.0, "nbytes": 1},
        {"kernel": "dense_gemm", "format": "dense", "microseconds": 6.0, "nbytes": 1},
    ],
}  # fmt: skip
STEPS = [
    StepTime("fc", "relayout_0123", 1000, 1, bytes=64000),
    StepTime("fc", "csr_spmm_4567", 4000, 2, 8000, 2400),
]


def test_table_tells_what_the_report_knows() -> None:
    lines = [line.split() for line in table(STEPS, {"layers": [LAYER]}).splitlines()]
    assert lines[1] == ["fc", "relayout", "1", "1.0", "us", "20.0", "%", "64.0"]
    # 2 * 500 nonzeros * 8 tokens in 4 us; dense would take 6 us
    assert lines[2] == ["fc", "csr_spmm", "2", "4.0", "us", "80.0", "%", "2.0", "0.6", "1.50"]
    assert lines[3] == ["total", "5.0", "us", "1.6", "13.3"]


def test_table_claims_nothing_for_open_sizes_or_without_a_report() -> None:
    steps = [StepTime(s.node, s.kernel, s.nanoseconds, s.tiles) for s in STEPS]
    free = {**LAYER, "tokens": "batch"}
    for report in ({}, {"layers": []}, {"layers": [free]}):
        assert table(steps, report).splitlines()[2].split()[-1] == "%"
    assert table([], {}).splitlines()[-1].split() == ["total", "0.0", "us"]


class Fake:
    """A model of one step."""

    inputs = (("x", "float32", ("batch", 2)), ("z", "float32", ("2*batch + 1",)))

    def run(self, names: Any, feeds: dict[str, Any]) -> list[Any]:
        return [feeds["x"]]

    def profile(self, feeds: dict[str, Any], repeats: int) -> list[tuple[str, str, int, int]]:
        return [("fc", "csr_spmm_4567", 4000, len(feeds["x"]))]


def test_work_follows_the_sizes_of_the_inputs() -> None:
    feeds = {"x": np.zeros((3, 2), np.float32), "z": np.zeros(7, np.float32)}
    work = {"kernel": "csr_spmm_4567", "operations": "10*batch*batch + -2*batch + 7", "bytes": 12}
    [step] = timed(Fake(), {"steps": [work]}, feeds, 1)
    assert (step.operations, step.bytes) == (10 * 9 - 2 * 3 + 7, 12)
    [step] = timed(Fake(), {"steps": [{**work, "bytes": "tokens*2"}]}, feeds, 1)
    assert step.bytes == 0, "a name no input has"
    for other in ({}, {"steps": []}, {"steps": [{**work, "kernel": "another"}]}):
        assert timed(Fake(), other, feeds, 1) == [StepTime("fc", "csr_spmm_4567", 4000, 3)]


def test_watched_runs_print_once_per_shape() -> None:
    log = io.StringIO()
    watched = Watched(Fake(), {}, log)
    for count in (3, 4, 3, 3):
        watched.run(None, {"x": np.zeros((count, 2), np.float32), "z": np.zeros(1, np.float32)})
    assert [line for line in log.getvalue().splitlines() if "steps for" in line] == [
        "steps for x [3, 2], z [1]:",
        "steps for x [4, 2], z [1]:",
    ]


def test_debug_level_3_prints_and_changes_no_result(
    code: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = softmax_model(BIAS).build(code)
    quiet = Program.from_bytes(data)
    monkeypatch.setenv("SPARSEC_DEBUG", "3")
    program = Program.from_bytes(data)
    assert np.array_equal(program(rows(20)), quiet(rows(20)))
    [y] = program.run(["y"], {"x": rows(20)})
    assert np.array_equal(y, quiet(rows(20)))
    printed = capsys.readouterr().err
    assert printed.count("steps for x [20, 37]") == 1 and "softmax" in printed
    program.save(tmp_path / "m.sparsec")
    assert (tmp_path / "m.sparsec").read_bytes() == data
