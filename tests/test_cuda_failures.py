"""What goes wrong on a GPU, and is told: a driver that fails at any of its calls, arrays that lie nowhere."""

from __future__ import annotations

import gc
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_models import COLUMNS, chain, chain_model, chain_oracle, cuda_file, driver, loaded, whole
from fake_cuda.driver import (
    ILLEGAL_ADDRESS,
    INVALID_VALUE,
    LAUNCH_FAILED,
    OUT_OF_MEMORY,
    FakeDriver,
)

from sparsec.errors import ArtifactError, InputError, SparsecError
from sparsec.runtime import Program
from sparsec.runtime.arrays import to_output

__all__ = ["driver", "loaded"]

BIAS = np.arange(COLUMNS, dtype="float32")
ROOT = Path(__file__).resolve().parents[1]


#: where a failure is told; the others give things back, which nobody can do better a second time
TOLD = (
    "cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2",
    "cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel", "cuMemAlloc_v2",
    "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2", "cuPointerGetAttribute",
    "cuStreamCreate", "cuStreamWaitEvent", "cuStreamSynchronize", "cuStreamIsCapturing",
    "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch",
    "cuEventCreate", "cuEventRecord", "cuEventSynchronize", "cuEventElapsedTime",
)  # fmt: skip
QUIET = ("cuDevicePrimaryCtxRelease_v2", "cuCtxPopCurrent_v2", "cuModuleUnload", "cuMemFree_v2",
         "cuStreamDestroy_v2", "cuGraphDestroy", "cuGraphExecDestroy", "cuEventDestroy_v2")  # fmt: skip


class Everything:
    """All that a program can do; each call of the driver comes at least once."""

    def __init__(self, driver: FakeDriver) -> None:
        driver.enter()
        self.driver = driver
        self.x, self.y = (driver.array(v, offset=4) for v in (whole(3), np.zeros((3, COLUMNS), "float32")))
        self.streams = [driver.stream(), driver.stream()]

    def close(self) -> None:
        for stream in self.streams:
            self.driver.call("cuStreamDestroy_v2", self.driver.unsigned(stream))
        self.driver.free(self.x, 4)
        self.driver.free(self.y, 4)
        self.driver.leave()

    def run(self, made: list[Program]) -> None:
        """``made`` gets the program once it is loaded; wrong results fail."""
        b = chain_model(BIAS)
        b.steps[1] = replace(b.steps[1], scratch=b.size(100_000))
        self.driver.kernel("add_row", 4, self.add_row)
        made.append(Program.from_bytes(cuda_file(b)))
        [program] = made
        for _ in range(2):
            check(program, 3)
        check(program, 50)
        outputs = {"y": to_output("y", "float32", self.y)}
        by_turns = itertools.cycle(self.streams)
        prepared = program._model.prepare({"x": self.x}, outputs, None, lambda: next(by_turns))
        prepared()
        prepared()
        assert len(program.profile(whole(3), repeats=1)) == 3

    def settle(self) -> None:
        """Wait for what was only enqueued: the second run, which waits for the first."""
        self.driver.synchronize(self.streams[1])
        assert np.array_equal(self.y.values, chain_oracle(whole(3), BIAS))

    def add_row(self, blocks: int, threads: int, shared: int, parameters: Any) -> None:
        x, w, y = (self.driver.view(p, "float32") for p in parameters[:3])
        assert shared == 100_000
        items = blocks * parameters[3]
        y[:items] = x[:items] + np.tile(w[: parameters[3]], blocks)


def check(program: Program, rows: int) -> None:
    assert np.array_equal(program(whole(rows)), chain_oracle(whole(rows), BIAS))


@pytest.fixture
def everything(driver: FakeDriver) -> Iterator[Everything]:
    made = Everything(driver)
    yield made
    made.close()


def test_every_function_is_called(everything: Everything, driver: FakeDriver) -> None:
    """And those of the two lists are all there are."""
    everything.run([])
    everything.settle()
    gc.collect()
    header = (ROOT / "runtime" / "csrc" / "cuda.h").read_text(encoding="utf-8")
    functions = set(re.findall(r"\bcu[A-Z]\w+(?=, *(?:\(|\\))", header))
    assert functions == {*TOLD, *QUIET, "cuInit", "cuGetErrorString", "cuGetErrorName"}
    assert [f for f in (*TOLD, *QUIET) if driver.calls(f) == 0] == []


def used_again(made: list[Program]) -> None:
    for program in made:
        check(program, 3)


@pytest.mark.parametrize("function", TOLD)
def test_a_failure_is_told_and_nothing_leaks(
    everything: Everything, driver: FakeDriver, function: str
) -> None:
    """At every single call; what was loaded can be used afterwards."""
    before = driver.living
    made: list[Program] = []
    first = driver.calls(function)
    everything.run(made)
    count = driver.calls(function) - first
    for nth in range(1, count + 1):
        made.clear()
        gc.collect()
        assert driver.living == before
        driver.fail(function, nth, INVALID_VALUE)
        with pytest.raises(SparsecError) as caught:
            everything.run(made)
        told = str(caught.value)
        del caught
        if function != "cuPointerGetAttribute":
            assert "invalid argument (CUDA_ERROR_INVALID_VALUE, 1)" in told, told
        assert not re.match("cu[A-Z]", told) and len(told) > 35, told
        for _ in range(2):
            used_again(made)
    assert count > 0


@pytest.mark.parametrize("function", QUIET)
def test_what_fails_at_the_end_changes_nothing(
    everything: Everything, driver: FakeDriver, function: str
) -> None:
    for nth in (1, 2, 3):
        driver.fail(function, nth, INVALID_VALUE)
        everything.run([])
        everything.settle()
        gc.collect()
    driver.reset()


@pytest.mark.parametrize(
    ("code", "name"), [(ILLEGAL_ADDRESS, "ILLEGAL_ADDRESS"), (LAUNCH_FAILED, "LAUNCH_FAILED")]
)
def test_after_an_error_that_lasts_all_calls_fail_cleanly(driver: FakeDriver, code: int, name: str) -> None:
    program = chain(BIAS)
    prepared = program.prepare({"x": whole(3)})
    check(program, 3)
    driver.fail("cuLaunchKernel", 2, code)
    with pytest.raises(
        SparsecError, match=rf"step 1 \(node_1\) failed in kernel add_row: .*CUDA_ERROR_{name}"
    ):
        program(whole(3))
    for call in (
        lambda: program(whole(3)),
        prepared,
        lambda: program.profile(whole(3)),
        lambda: program(whole(9)),
    ):
        with pytest.raises(SparsecError, match=f"CUDA_ERROR_{name}"):
            call()
    with pytest.raises(ArtifactError, match=f"CUDA_ERROR_{name}"):
        chain(BIAS)


def test_a_kernel_that_fails_while_it_runs(driver: FakeDriver) -> None:
    """Launches are not waited for one by one, so no step can be named."""

    def fails(blocks: int, threads: int, shared: int, parameters: Any) -> None:
        driver.view(12345)

    program = chain(BIAS)
    driver.kernel("square", 3, fails)
    with pytest.raises(
        SparsecError, match=r"the run failed on the GPU: unspecified launch failure \(CUDA_ERROR"
    ):
        program(whole(3))
    [failure] = driver.failures
    assert "no memory is allocated at 0x3039" in failure


def test_too_little_memory(driver: FakeDriver) -> None:
    driver.fail("cuMemAlloc_v2", 1, OUT_OF_MEMORY)
    with pytest.raises(MemoryError, match=r"the GPU cannot take the weights, \d+ bytes: out of memory"):
        chain(BIAS)
    driver.machine(memory=4000)
    program = chain(BIAS)
    with pytest.raises(MemoryError, match=r"out of the GPU's memory: \d+ bytes were needed"):
        program(whole(100))
    check(program, 3)


def test_arrays_that_lie_nowhere(driver: FakeDriver) -> None:
    program = chain(BIAS)
    host = whole(3)

    about: dict[str, Any] = {"shape": host.shape, "typestr": "<f4", "data": (host.ctypes.data, False)}
    lying = SimpleNamespace(__cuda_array_interface__=about)
    with pytest.raises(InputError, match="input 'x' does not lie in a GPU's memory"):
        program(lying)
    about["typestr"] = "<f8"
    with pytest.raises(InputError, match="input 'x' must be float32, got float64"):
        program(lying)
    about |= {"typestr": "<f4", "data": (0, True)}
    with pytest.raises(InputError, match="output 'y' must be a writable array"):
        program.prepare({"x": host}, {"y": lying})
    with pytest.raises(InputError, match="input 'x' has no data"):
        program(lying)
