"""Records, the search, the process that measures, and what compile() makes of it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

import sparsec
from sparsec import pipeline
from sparsec.compiler import ANALYSIS
from sparsec.errors import ConfigError
from sparsec.frontends import import_model
from sparsec.targets.processor import this_processor
from sparsec.targets.x86 import native
from sparsec.tuning.measurer import Measurer
from sparsec.tuning.records import Record, Records, Task, append
from sparsec.tuning.search import Budget, Search, chosen
from sparsec.tuning.tasks import Layer, layers_of, near, program_bytes
from sparsec.tuning.worker import Answer, compare

TASK = Task("cpu", "avx2", 1, "8x8", "unstructured")
CSR = ("csr_spmm", (("block", 8), ("group", 2)))
DENSE = ("dense_gemm", (("height", 6),))


def record(key: Any = CSR, micro: float | None = 2.0, task: Task = TASK, status: str = "ok") -> Record:
    return Record(task, *key, micro, status)


def weight(rows: int = 48, columns: int = 64, density: float = 0.1) -> Any:
    random = np.random.default_rng(3)
    return (random.standard_normal((rows, columns)) * (random.random((rows, columns)) < density)).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def layer() -> Layer:
    graph = pipeline.run(import_model(weight()), native(), ANALYSIS)
    [found] = layers_of(graph, native(), this_processor().key)
    return found


def test_records_are_lines_that_merge_by_concatenation(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for micro in (2.0, 4.0, 3.0):
        append(first, record(micro=micro))
    append(second, record(DENSE, 9.0))
    append(second, record(DENSE, None, status="crashed: SIGSEGV"))
    merged = tmp_path / "c.jsonl"
    merged.write_bytes(first.read_bytes() + second.read_bytes())
    for found in (Records.read([merged]), Records.read([first, second])):
        assert len(found) == 5 and found.damaged == 0
        assert found.times(TASK) == {CSR: 3.0, DENSE: 9.0}
        assert found.tried(TASK) == {CSR, DENSE}
    assert json.loads(first.read_text().splitlines()[0])["config"] == {"block": 8, "group": 2}


@pytest.mark.parametrize(
    "damage",
    ["{", "null", '{"version": 1}', record().line.replace("2.0", "-2.0"), record().line.replace("2.0", "NaN"),
     record().line.replace('"csr_spmm"', "7"), "\x00\xff", record().line[:40]],
)  # fmt: skip
def test_what_is_no_record_is_passed_over_and_kept(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record())
    with path.open("a") as file:
        file.write(damage)  # no newline: as a killed process leaves it
    append(path, record(DENSE, 9.0))
    found = Records.read([path])
    assert found.times(TASK) == {CSR: 2.0, DENSE: 9.0} and found.damaged == 1
    assert damage.split("\n")[0].encode()[:5] in path.read_bytes()


def test_records_of_another_version_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record().line.replace('"version": 1', '"version": 0') + "\n")
    assert not len(Records.read([path]))


def test_processes_write_one_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    script = (
        "import sys; from pathlib import Path; from sparsec.tuning.records import *\n"
        "task = Task('cpu', 'avx2', 1, '8x8', sys.argv[2])\n"
        "for i in range(200): append(Path(sys.argv[1]), Record(task, 'csr_spmm', (('i', i),), 1.0 + i))"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(path), str(i)]) for i in range(3)]
    assert [p.wait(timeout=120) for p in running] == [0, 0, 0]
    found = Records.read([path])
    assert len(found) == 600 and found.damaged == 0


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record())
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(ConfigError, match="records cannot be written"):
            append(path, record(DENSE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before


def test_a_folder_is_no_file_of_records(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="records cannot be read"):
        Records.read([tmp_path])
    with pytest.raises(ConfigError, match="--records"):
        append(tmp_path, record())


class Clock:
    """A measurer that knows every trial's time, or fails."""

    def __init__(self, times: dict[Any, float | str], default: float = 100.0) -> None:
        self.times, self.default, self.asked = times, default, list[Any]()

    def measure(self, layer: Layer, kernel: str, config: Any) -> Answer:
        self.asked.append((kernel, config))
        found = self.times.get((kernel, config), self.default * 1.5)
        return (
            Answer(None, None, found) if isinstance(found, str) else Answer(found / 1e6, self.default / 1e6)
        )


def searched(
    layer: Layer, clock: Any, records: Records, trials: int = 30, path: Path | None = None
) -> Search:
    search = Search([layer], native(), records, path, clock, Budget(None, trials))
    search.run()
    return search


def test_the_search_finds_what_is_faster_and_confirms_it(layer: Layer) -> None:
    default, target = layer.trials[0], native()
    best = min(near(layer, default.kernel, default.config, target), key=lambda t: t.predicted)
    clock, records = (
        Clock({(default.kernel, default.config): 100.0, (best.kernel, best.config): 40.0}),
        Records(),
    )
    searched(layer, clock, records)
    assert clock.asked[0] == (default.kernel, default.config)
    assert clock.asked.count((best.kernel, best.config)) == 4
    times = records.times(layer.task)
    assert chosen(times, (default.kernel, default.config)) == (best.kernel, best.config)


def test_what_was_measured_is_not_measured_again(layer: Layer, tmp_path: Path) -> None:
    path, first = tmp_path / "records.jsonl", Clock({})
    searched(layer, first, Records(), trials=4, path=path)
    again = Clock({})
    searched(layer, again, Records.read([path]), trials=4, path=path)
    assert len(first.asked) == 4 and not set(first.asked) & set(again.asked)


def test_a_failing_trial_costs_one_and_a_failing_default_all(layer: Layer) -> None:
    default = layer.trials[0]
    key = default.kernel, default.config
    records = Records()
    searched(
        layer,
        Clock({key: 100.0, (layer.trials[1].kernel, layer.trials[1].config): "crashed: SIGSEGV"}),
        records,
    )
    assert key in records.times(layer.task) and len(records.times(layer.task)) > 1
    clock = Clock({key: "took more than 60 s"})
    searched(layer, clock, Records())
    assert clock.asked == [key]


def test_noise_does_not_choose(layer: Layer) -> None:
    assert chosen({CSR: 100.0, DENSE: 99.5}, CSR) == CSR
    assert chosen({CSR: 100.0, DENSE: 90.0}, CSR) == DENSE
    assert chosen({DENSE: 90.0}, CSR) == DENSE
    assert chosen({}, CSR) is None


STUB = """
import os, signal, sys, time
from sparsec.tuning.worker import Answer, Work, receive, send
out = os.fdopen(os.dup(1), "wb")
while (message := receive(sys.stdin.buffer)) is not None:
    if isinstance(message, Work):
        send(out, Answer(None, None))
    elif message[0] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif message[0] == "hang":
        time.sleep(60)
    elif message[0] == "exit":
        sys.exit(3)
    else:
        send(out, Answer(1e-6, 2e-6))
"""


@pytest.fixture
def measurer() -> Iterator[Measurer]:
    with Measurer(native(), patience=3.0, command=(sys.executable, "-c", STUB)) as found:
        yield found


def test_a_crash_a_hang_or_an_end_costs_one_trial(layer: Layer, measurer: Measurer) -> None:
    assert measurer.measure(layer, "fine", ()) == Answer(1e-6, 2e-6)
    assert measurer.measure(layer, "crash", ()).status == "crashed: SIGSEGV"
    assert measurer.measure(layer, "fine", ()).seconds == 1e-6
    assert measurer.measure(layer, "hang", ()).status == "took more than 3 s"
    assert measurer.measure(layer, "exit", ()).status == "ended with code 3"
    assert measurer.measure(layer, "fine", ()).status == "ok"


def test_a_worker_measures_and_refuses(layer: Layer) -> None:
    default = layer.trials[0]
    with Measurer(native()) as measurer:
        found = measurer.measure(layer, default.kernel, default.config)
        assert found.status == "ok" and found.seconds and 0 < found.seconds < 1 and found.default
        assert measurer.measure(layer, default.kernel, (("group", 2),)).status.startswith("failed: KeyError")
        assert measurer.measure(layer, default.kernel, default.config).status == "ok"


def test_wrong_results_are_no_time(layer: Layer) -> None:
    graph = pipeline.run(import_model(weight() * 2), native(), ANALYSIS)
    [other] = layers_of(graph, native(), "cpu")
    default = layer.trials[0]
    right, wrong = (
        program_bytes(one.graph, one.node.name, default.kernel, default.config, native())
        for one in (layer, other)
    )
    assert compare(right, wrong, layer.node.name, 1).status == "wrong results"


def test_compile_uses_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path))
    w = weight()
    assert "predicted" in sparsec.compile(w).report["layers"][0]["reason"]
    outcome = sparsec.tune(w, trials=3)
    assert outcome.trials >= 2 and outcome.records == tmp_path / "records.jsonl" and outcome.layers[0].untuned
    program = sparsec.compile(w)
    entry = program.report["layers"][0]
    assert "measured" in entry["reason"]
    assert any("measured_microseconds" in c for c in entry["candidates"])
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    np.testing.assert_allclose(program(x), x @ w.T, atol=1e-4)
    assert "predicted" in sparsec.compile(w, records=False).report["layers"][0]["reason"]


def test_a_slow_choice_is_given_up_once_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: Layer
) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path))
    default = layer.trials[0]
    dense = next(t for t in layer.trials if t.kernel == "dense_gemm")
    append(tmp_path / "records.jsonl", Record(layer.task, default.kernel, default.config, 50.0))
    append(tmp_path / "records.jsonl", Record(layer.task, dense.kernel, dense.config, 20.0))
    entry = sparsec.analyze(weight())["layers"][0]
    assert entry["format"] == "dense" and f"{default.kernel} took 50.0 us" in entry["reason"]


def test_tune_within_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path))
    program = sparsec.compile(weight(), tune=Budget(trials=2))
    assert "measured" in program.report["layers"][0]["reason"]
    monkeypatch.setenv("SPARSEC_CACHE", "")
    with pytest.raises(ConfigError, match="set SPARSEC_CACHE"):
        sparsec.tune(weight(), trials=1)


def test_layers_pruned_alike_are_measured_once() -> None:
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = [
        (random.standard_normal((64, 64)) * (random.random((64, 64)) < 0.1)).astype(np.float32) for _ in "abc"
    ]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(3)]
    port = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, 64]) for n in ("x0", "x3")]
    initial = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    model = helper.make_model(helper.make_graph(nodes, "g", port[:1], port[1:], initial))
    layers = layers_of(pipeline.run(import_model(model), native(), ANALYSIS), native(), "cpu")
    assert sum(one.count for one in layers) == 3 and len(layers) <= 2


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


def _started(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def test_other_machines_measure(layer: Layer, tmp_path: Path) -> None:
    """A tracker that lends two servers, and a server asked directly."""
    pytest.importorskip("tornado")
    pytest.importorskip("psutil")
    from sparsec.tuning.remote import name_of
    from sparsec.tuning.tune import tune_graph

    port = 21000 + os.getpid() % 8000
    processes = [
        _started(
            "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)
        )
    ]
    try:
        lent = ("--tracker", f"127.0.0.1:{port}", "--key", "board")
        for i, how in enumerate((lent, lent, ())):
            processes.append(_started("sparsec.tuning.remote", "--port", str(port + 200 + 150 * i), *how))
        lines = [p.stdout.readline().decode() for p in processes[1:] if p.stdout]
        assert all(line.startswith("listening on") for line in lines)
        remote = f"board@127.0.0.1:{port}"
        assert name_of(remote) == this_processor().key
        path = tmp_path / "records.jsonl"
        outcome = tune_graph(import_model(weight()), native(), path, Budget(None, 2), remote=remote)
        assert outcome.layers[0].untuned and len(Records.read([path])) >= 2
        assert name_of(lines[-1].split()[-1]) == this_processor().key
    finally:
        for process in processes:
            _ended(process)


@pytest.mark.parametrize("text", ["board", "host", "host:", ":9090", "key@host", "host:port"])
def test_a_remote_is_a_place(text: str) -> None:
    from sparsec.tuning.remote import parse_remote

    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_remote(text)


def test_nobody_answers() -> None:
    pytest.importorskip("tornado")
    pytest.importorskip("psutil")
    from sparsec.tuning.remote import name_of

    with pytest.raises(ConfigError, match="nobody answers"):
        name_of("127.0.0.1:9")


@pytest.mark.parametrize(
    ("target", "text"), [("neoverse-n1", "--remote"), ("x86-64-v3,x86-64-v4", "one target")]
)
def test_what_cannot_be_measured_here_is_refused(target: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        sparsec.tune(weight(), trials=1, target=target, records=tmp_path / "records.jsonl")
