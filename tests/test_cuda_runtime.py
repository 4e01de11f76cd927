"""Programs for a GPU on a stand-in for CUDA's driver: results, memory, streams, recorded launches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda_models import COLUMNS, chain, chain_model, chain_oracle, cuda_file, driver, loaded, whole
from fake_cuda.driver import DeviceMemory, FakeDriver, cubin
from runtime_models import PlanBuilder, pointer, tiles_of

from sparsec.errors import InputError
from sparsec.runtime import Program
from sparsec.runtime.artifact import to_bytes
from sparsec.runtime.plan import Isa, Operator

__all__ = ["driver", "loaded"]

BIAS = np.arange(COLUMNS, dtype="float32")


@pytest.fixture
def current(driver: FakeDriver) -> Iterator[FakeDriver]:
    """A thread that uses the GPU itself, as one that runs torch does."""
    driver.enter()
    yield driver
    assert driver.depth == 1
    driver.leave()


def test_numpy_in_numpy_out(driver: FakeDriver) -> None:
    program = chain(BIAS)
    assert (program.device, program.isa) == ("cuda", "sm_90a")
    for rows in (1, 2, 13, 1, 100, 3):
        x = whole(rows, rows)
        y = program(x)
        assert type(y) is np.ndarray and np.array_equal(y, chain_oracle(x, BIAS))
    assert driver.counts["copies_in"] == 7, "weights once, and x each time"
    assert driver.counts["copies_out"] == 6


def test_any_memory_of_arrays(driver: FakeDriver) -> None:
    program = chain(BIAS)
    x = whole(20)
    for change in (x[::-1], np.asfortranarray(x), np.broadcast_to(x[:1], x.shape), memoryview(x), x[2:19]):
        assert np.array_equal(program(change), chain_oracle(np.asarray(change), BIAS))
    y = np.zeros((COLUMNS, 20), "float32").T
    program.prepare({"x": x}, {"y": y})()
    assert np.array_equal(y, chain_oracle(x, BIAS))
    y = np.zeros((21, COLUMNS), "float32")
    program.prepare({"x": x}, {"y": y[1:]})()
    assert np.array_equal(y[1:], chain_oracle(x, BIAS)) and not y[0].any()


def test_threads_mean_nothing(driver: FakeDriver) -> None:
    program = chain(BIAS)
    program.threads = 5
    assert program.threads == 5 and np.array_equal(program(whole(9)), chain_oracle(whole(9), BIAS))


def long_model(steps: int) -> PlanBuilder:
    """``x`` squared or doubled by turns, each temporary living from one step to the next."""
    b = PlanBuilder()
    at = b.input("x", ("n",))
    for i in range(steps):
        to = b.output("y", ("n",)) if i == steps - 1 else b.temporary(("n",), i, i + 1)
        kernel = ("twice", "square")[i % 2]
        b.launch(kernel, pointer(at), pointer(to), b.integer("n"), blocks=tiles_of("n"), threads=64)
        at = to
    return b


def test_temporaries_share_memory(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five temporaries, two alive at a time, and two arrays to copy through: 4 arrays, no more."""
    driver.machine(memory=4 * 4096)
    program = Program.from_bytes(cuda_file(long_model(6)))
    x = np.full(1000, 0.5, "float32")
    assert np.array_equal(program(x), np.full(1000, 64.0, "float32"))
    with pytest.raises(MemoryError, match=r"out of the GPU's memory: \d+ bytes were needed"):
        program(np.zeros(1200, "float32"))
    assert np.array_equal(program(x), np.full(1000, 64.0, "float32"))


def test_sessions_in_two_threads(driver: FakeDriver) -> None:
    program = chain(BIAS)
    wrong: list[str] = []

    def work(seed: int) -> None:
        for i in range(25):
            x = whole(1 + (seed * 5 + i) % 4, seed * 100 + i)
            if not np.array_equal(program(x), chain_oracle(x, BIAS)):
                wrong.append(f"seed {seed}, call {i}")

    callers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong and 1 <= driver.counts["streams"] <= 2


def test_inputs_outputs_and_weights_may_be_outputs(driver: FakeDriver) -> None:
    b = PlanBuilder()
    x, y = b.input("x", ("n", 3)), b.output("y", ("n", 3))
    items = (Operator.MULTIPLY, "n", 3)
    b.launch("twice", pointer(x), pointer(y), b.integer(items), blocks=tiles_of(items), threads=64)
    b.output("same", ("n", 3), buffer=x)
    b.output("w", (5,), buffer=b.constant(np.arange(5, dtype="float32")))
    program = Program.from_bytes(cuda_file(b))
    for rows in (2, 0, 3):
        values = whole(rows, rows, 3)
        y, same, w = program(values)
        assert np.array_equal(y, 2 * values) and np.array_equal(same, values) and np.array_equal(w, range(5))


def test_launches_are_recorded_when_addresses_come_again(driver: FakeDriver) -> None:
    program = chain(BIAS)
    x = whole(8)
    prepared = program.prepare({"x": x})
    replays = []
    for seed in range(5):
        x[:] = whole(8, seed)
        prepared()
        assert np.array_equal(prepared.outputs[0], chain_oracle(x, BIAS))
        replays.append(driver.counts["graph_launches"])
    assert replays == [0, 1, 2, 3, 4] and driver.counts["captures"] == 1
    assert driver.calls("cuLaunchKernel") == 6, "one run by launches, one recorded"
    assert driver.counts["launches"] == 15


def test_recording_can_be_turned_off(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CUDA_GRAPHS", "0")
    program = chain(BIAS)
    for _ in range(3):
        assert np.array_equal(program(whole(8)), chain_oracle(whole(8), BIAS))
    assert driver.counts["captures"] == 0 and driver.calls("cuLaunchKernel") == 9


def test_one_launch_is_not_recorded(driver: FakeDriver) -> None:
    program = Program.from_bytes(cuda_file(long_model(1)))
    for _ in range(3):
        program(np.zeros(8, "float32"))
    assert driver.counts["captures"] == 0


def test_changed_addresses_are_launched_and_recorded_anew(current: FakeDriver) -> None:
    """Six addresses by turns, of which four recordings are kept; each result is that of its own input."""
    program = chain(BIAS)
    inputs = [current.array(whole(4, seed)) for seed in range(6)]
    out = current.array(np.zeros((4, COLUMNS), "float32"))
    prepared = [program.prepare({"x": x}, {"y": out}) for x in inputs]
    for turn in range(3):
        for i, run in enumerate(prepared):
            run()
            assert np.array_equal(out.values, chain_oracle(whole(4, i), BIAS)), (turn, i)
    assert current.counts["captures"] == 6, "each prepared program has a session of its own"
    del prepared, run

    for turn in range(3):
        for i, x in enumerate(inputs[:4]):
            assert np.array_equal(program(x), chain_oracle(whole(4, i), BIAS)), (turn, i)
    assert current.counts["executables"] >= 4
    before = current.counts["captures"]
    for i, x in enumerate(inputs[:4] * 2):
        assert np.array_equal(program(x), chain_oracle(whole(4, i % 4), BIAS))
    assert current.counts["captures"] == before, "four sets of addresses stay recorded"
    for x in inputs[4:] * 2:
        program(x)
    assert current.counts["captures"] == before + 2
    for memory in (*inputs, out):
        current.free(memory)


def test_device_arrays_are_used_in_place(current: FakeDriver) -> None:
    program = chain(BIAS)
    x, y = current.array(whole(5)), current.array(np.zeros((5, COLUMNS), "float32"))
    before = current.counts
    program.prepare({"x": x}, {"y": y})()
    assert np.array_equal(y.values, chain_oracle(whole(5), BIAS))
    assert np.array_equal(program(x), chain_oracle(whole(5), BIAS)), "NumPy out, where no torch is"
    after = current.counts
    assert (after["copies_in"], after["copies_within"]) == (before["copies_in"], before["copies_within"])
    assert after["copies_out"] - before["copies_out"] == 1
    for memory in (x, y):
        current.free(memory)


def test_device_arrays_that_are_not_aligned_are_copied(current: FakeDriver) -> None:
    program = chain(BIAS)
    x, y = (current.array(v, offset=4) for v in (whole(5), np.zeros((5, COLUMNS), "float32")))
    program.prepare({"x": x}, {"y": y})()
    assert np.array_equal(y.values, chain_oracle(whole(5), BIAS)) and current.counts["copies_within"] == 2
    for memory in (x, y):
        current.free(memory, 4)


def test_an_output_over_its_input_is_written_last(current: FakeDriver) -> None:
    """``y = 2 * x``, then ``y += x``, which reads x once more."""
    b = PlanBuilder()
    x, y = b.input("x", (1, 8)), b.output("y", (1, 8))
    b.launch("twice", pointer(x), pointer(y), b.integer(8), threads=64)
    b.launch("add_row", pointer(y), pointer(x), pointer(y), b.integer(8), shared=32)
    memory = current.array(whole(1, 5, 8))
    run = Program.from_bytes(cuda_file(b)).prepare({"x": memory}, {"y": memory})
    for turn in range(1, 4):
        run()
        assert np.array_equal(memory.values, 3**turn * whole(1, 5, 8))
    current.free(memory)


def test_device_and_host_arrays_together(current: FakeDriver) -> None:
    b = PlanBuilder()
    x, other, y = b.input("x", ("n", 8)), b.input("other", (8,)), b.output("y", ("n", 8))
    b.launch("add_row", pointer(x), pointer(other), pointer(y), b.integer(8), blocks="n", shared=32)
    program = Program.from_bytes(cuda_file(b))
    device = current.array(whole(3, 1, 8))
    row = np.arange(8, dtype="float32")
    assert np.array_equal(program(device, other=row), whole(3, 1, 8) + row)
    assert np.array_equal(program(whole(3, 1, 8), other=current_row(current, row)), whole(3, 1, 8) + row)
    current.free(device)


def current_row(driver: FakeDriver, row: Any) -> Any:
    """An array of the GPU whose memory goes with it."""

    class Owned(DeviceMemory):
        def __del__(self) -> None:
            driver.free(self)

    made = driver.array(row)
    return Owned(driver, made.address, made.shape, made.dtype)


def test_the_stream_an_array_names_is_used(current: FakeDriver) -> None:
    """Its own work comes first: the input is copied there by a stream that nobody waited for."""
    program = chain(BIAS)
    stream, other = current.stream(), current.stream()
    source, x = current.array(whole(4, 3)), current.array(np.zeros((4, COLUMNS), "float32"), stream=stream)
    memory = (x.address, source.address, x.values.nbytes)
    current.call("cuMemcpyDtoDAsync_v2", *map(current.unsigned, memory), current.unsigned(stream))
    assert np.array_equal(program(x), chain_oracle(whole(4, 3), BIAS))
    b = chain_model(BIAS)
    b.input("second", ("n",))
    second = current.array(np.zeros(4, "float32"), stream=other)
    with pytest.raises(InputError, match="inputs come from different CUDA streams"):
        Program.from_bytes(cuda_file(b))(x, second)
    for array in (source, x, second):
        current.free(array)
    for each in (stream, other):
        current.call("cuStreamDestroy_v2", current.unsigned(each))


@pytest.mark.parametrize("repeats", [1, 4])
def test_profile(driver: FakeDriver, repeats: int) -> None:
    steps = chain(BIAS).profile(whole(7), repeats=repeats)
    assert [(s.node, s.kernel, s.tiles) for s in steps] == [
        ("node_0", "twice", 5), ("node_1", "add_row", 7), ("node_2", "square", 5)
    ]  # fmt: skip
    assert all(0 < s.nanoseconds < 10**9 for s in steps)
    assert driver.counts["launches"] == 3 * (repeats + 1)
    with pytest.raises(InputError, match="repeats must be at least 1, not 0"):
        chain(BIAS).profile(whole(7), repeats=0)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "sm_90a"), ((8, 0), "sm_80"), ((8, 6), "sm_80"), ((8, 9), "sm_89")],
)
def test_the_first_code_that_the_gpu_runs(
    driver: FakeDriver, capability: tuple[int, int], expected: str
) -> None:
    b = chain_model(BIAS)
    kinds = ("sm_90a", "sm_89", "sm_80")
    data = to_bytes(b.plan(), [Isa(k, (k,), b.plan().steps, cubin()) for k in kinds], b.weights)
    driver.machine(capability=capability)
    program = Program.from_bytes(data)
    assert program.isa == expected and np.array_equal(program(whole(3)), chain_oracle(whole(3), BIAS))


def test_the_second_gpu(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.machine(devices=2)
    monkeypatch.setenv("SPARSEC_DEVICE", "1")
    program = chain(BIAS)
    driver.enter(0)
    elsewhere = driver.array(whole(3))
    with pytest.raises(
        InputError, match=r"input 'x' lies on GPU 0, this program runs on GPU 1; move it there"
    ):
        program(elsewhere)
    driver.free(elsewhere)
    driver.leave(0)
    driver.enter(1)
    here = driver.array(whole(3))
    assert np.array_equal(program(here), chain_oracle(whole(3), BIAS))
    driver.free(here)
    driver.leave(1)
