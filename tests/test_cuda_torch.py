"""Torch's tensors on a GPU, by a stand-in with the few attributes of torch that the runtime asks for.

The torch of the tests has no GPU.  The stand-in keeps torch's promises about memory and streams on a stand-in
for the driver; that torch itself has those attributes, and gives what is expected of them, is a test too.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_models import COLUMNS, chain, chain_model, chain_oracle, cuda_file, loaded, used, whole
from fake_cuda.driver import FakeDriver
from runtime_models import compile_code, twice_model

from sparsec.errors import InputError
from sparsec.runtime import Program

__all__ = ["loaded"]

BIAS = np.arange(COLUMNS, dtype="float32")
CUDA = SimpleNamespace(type="cuda", index=0)


class Type(str):
    """``torch.float32``."""


class Tensor:
    """A CUDA tensor: device memory, freed with it, once the work of its stream is done."""

    layout = "strided"
    device = CUDA

    def __init__(self, torch: Torch, values: Any, strides: tuple[int, ...] | None = None) -> None:
        self.torch, self.memory, self.strides = torch, torch.driver.array(values), strides
        self.shape, self.dtype, self.requires_grad = values.shape, Type(f"torch.{values.dtype}"), False

    def __del__(self) -> None:
        self.torch.driver.synchronize(self.torch.stream or 1)
        self.torch.driver.free(self.memory)

    def detach(self) -> Tensor:
        return self

    resolve_conj = resolve_neg = detach

    def is_contiguous(self) -> bool:
        return self.strides is None

    def stride(self) -> tuple[int, ...]:
        return self.strides or (COLUMNS, 1)

    def element_size(self) -> int:
        return int(self.memory.values.itemsize)

    def data_ptr(self) -> int:
        return self.memory.address


class Torch(ModuleType):
    """The module, with one GPU and a current stream."""

    strided, float32, Tensor = "strided", Type("torch.float32"), Tensor

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__("torch")
        self.driver, self.stream, self.emptied = driver, 0, 0
        self.cuda = SimpleNamespace(current_stream=self._current_stream)

    def _current_stream(self, device: Any) -> Any:
        assert device is CUDA
        return SimpleNamespace(cuda_stream=self.stream)

    def empty(self, size: tuple[int, ...], *, dtype: Type, device: Any) -> Tensor:
        assert device is CUDA
        self.emptied += 1
        return Tensor(self, np.full(size, np.nan, dtype.removeprefix("torch.")))


@pytest.fixture
def torch(loaded: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Torch]:
    with used(loaded, monkeypatch) as driver:
        driver.enter()
        made = Torch(driver)
        monkeypatch.setitem(sys.modules, "torch", made)
        yield made
        made.stream = 0
        driver.leave()


@pytest.fixture
def streams(torch: Torch) -> Iterator[list[int]]:
    made = [torch.driver.stream(), torch.driver.stream()]
    yield made
    for stream in made:
        torch.driver.call("cuStreamDestroy_v2", ctypes.c_void_p(stream))


def values(tensor: Any) -> Any:
    return tensor.memory.values


def test_runs_are_enqueued_and_not_waited_for(torch: Torch, streams: list[int]) -> None:
    program, driver = chain(BIAS), torch.driver
    torch.stream = streams[0]
    x = Tensor(torch, whole(6))
    before = driver.counts
    for runs in (1, 2, 3):
        y = program(x)
        assert isinstance(y, Tensor) and torch.emptied == runs and np.isnan(values(y)).all()
        driver.synchronize(streams[0])
        assert np.array_equal(values(y), chain_oracle(whole(6), BIAS))
        del y
    after = driver.counts
    for copies in ("copies_in", "copies_out", "copies_within"):
        assert after[copies] == before[copies]
    assert after["synchronisations"] - before["synchronisations"] == 6, (
        "those of this test and of its tensors"
    )
    del x


def test_the_default_stream(torch: Torch) -> None:
    program = chain(BIAS)
    y = program(Tensor(torch, whole(6)))
    torch.driver.synchronize(1)
    assert np.array_equal(values(y), chain_oracle(whole(6), BIAS))
    del y


def test_runs_on_two_streams_share_memory_one_after_the_other(torch: Torch, streams: list[int]) -> None:
    """To wait for the second run is to wait for the first, which used the same arena."""
    program = chain(BIAS)
    inputs = [Tensor(torch, whole(6, seed)) for seed in range(2)]
    outputs = []
    for stream, x in zip(streams, inputs, strict=True):
        torch.stream = stream
        outputs.append(program(x))
    assert all(np.isnan(values(y)).all() for y in outputs)
    torch.driver.synchronize(streams[1])
    for seed, y in enumerate(outputs):
        assert np.array_equal(values(y), chain_oracle(whole(6, seed), BIAS))
    del inputs, outputs, x, y


def test_memory_grows_after_what_uses_it(torch: Torch, streams: list[int]) -> None:
    program = chain(BIAS)
    torch.stream = streams[0]
    small, large = Tensor(torch, whole(2)), Tensor(torch, whole(50))
    outputs = [program(small), program(large)]
    torch.driver.synchronize(streams[0])
    for rows, y in zip((2, 50), outputs, strict=True):
        assert np.array_equal(values(y), chain_oracle(whole(rows), BIAS))
    del small, large, outputs, y


def test_numpy_and_tensors_together(torch: Torch) -> None:
    b = chain_model(BIAS)
    b.input("unused", ("n",))
    program = Program.from_bytes(cuda_file(b))
    unused = Tensor(torch, np.zeros(4, "float32"))
    y = program(whole(4), unused)
    assert isinstance(y, Tensor) and np.array_equal(values(y), chain_oracle(whole(4), BIAS)), (
        "no wait is needed"
    )
    [y] = program.run(None, {"x": Tensor(torch, whole(4)), "unused": np.zeros(4, "float32")})
    assert type(y) is np.ndarray and np.array_equal(y, chain_oracle(whole(4), BIAS))
    del y, unused


def test_prepare(torch: Torch, streams: list[int]) -> None:
    """The stream is the one that is current when it is called."""
    program = chain(BIAS)
    x, given = Tensor(torch, whole(4)), Tensor(torch, np.zeros((4, COLUMNS), "float32"))
    prepared, into = program.prepare({"x": x}), program.prepare({"x": x}, {"y": given})
    assert into.outputs[0] is given
    for seed, stream in enumerate((*streams, *streams)):
        torch.stream = stream
        values(x)[:] = whole(4, seed)
        for run in (prepared, into):
            run()
            torch.driver.synchronize(stream)
            assert np.array_equal(values(run.outputs[0]), chain_oracle(whole(4, seed), BIAS))
    assert torch.driver.counts["graph_launches"] == 6
    del x, given, prepared, into, run


def test_inside_a_recording_of_the_caller(torch: Torch, streams: list[int]) -> None:
    """What torch.cuda.graph does: the caller's recording gets the launches, on the current stream."""
    program, driver, stream = chain(BIAS), torch.driver, ctypes.c_void_p(streams[0])
    x = Tensor(torch, whole(4))
    torch.stream = streams[0]
    prepared = program.prepare({"x": x})
    to_host = program.prepare({"x": x}, {"y": np.zeros((4, COLUMNS), "float32")})
    for _ in range(3):
        prepared()
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuStreamBeginCapture_v2", stream, 1)
    prepared()
    with pytest.raises(
        InputError, match=r"being recorded \(captured\): all arrays must lie in the GPU's memory"
    ):
        to_host()
    driver.call("cuStreamEndCapture", stream, ctypes.byref(graph))
    driver.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, driver.unsigned(0))
    values(x)[:] = whole(4, 7)
    driver.call("cuGraphLaunch", executable, stream)
    driver.synchronize(streams[0])
    assert np.array_equal(values(prepared.outputs[0]), chain_oracle(whole(4, 7), BIAS))
    driver.call("cuGraphDestroy", graph)
    driver.call("cuGraphExecDestroy", executable)
    del x, prepared, to_host


def test_a_recording_outlives_larger_runs(torch: Torch, streams: list[int]) -> None:
    """What it points to is not released when its session runs something larger."""
    program, driver, stream = chain(BIAS), torch.driver, ctypes.c_void_p(streams[0])
    x, large = Tensor(torch, whole(4)), Tensor(torch, whole(400))
    torch.stream = streams[0]
    prepared = program.prepare({"x": x})
    prepared()
    recorded = prepared.outputs[0]
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuStreamBeginCapture_v2", stream, 1)
    prepared()
    driver.call("cuStreamEndCapture", stream, ctypes.byref(graph))
    driver.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, driver.unsigned(0))
    del prepared  # its session is the next run's
    found = program(large)
    driver.synchronize(streams[0])
    assert np.array_equal(values(found), chain_oracle(whole(400), BIAS))
    values(x)[:] = whole(4, 5)
    driver.call("cuGraphLaunch", executable, stream)
    driver.synchronize(streams[0])
    assert np.array_equal(values(recorded), chain_oracle(whole(4, 5), BIAS))
    driver.call("cuGraphDestroy", graph)
    driver.call("cuGraphExecDestroy", executable)
    del x, large, recorded, found


def test_profile_waits_for_the_current_stream(torch: Torch, streams: list[int]) -> None:
    torch.stream = streams[1]
    steps = chain(BIAS).profile(Tensor(torch, whole(4)), repeats=2)
    assert [s.kernel for s in steps] == ["twice", "add_row", "square"]


def test_tensors_that_are_refused(torch: Torch) -> None:
    program = chain(BIAS)
    with pytest.raises(InputError, match=r"input 'x' has gaps or another order .* pass x.contiguous\(\)"):
        program(Tensor(torch, whole(4), strides=(1, 4)))
    double = Tensor(torch, whole(4))
    double.dtype = Type("torch.bfloat16")
    with pytest.raises(InputError, match=r"must be float32, got torch.bfloat16; pass x.to\(torch.float32\)"):
        program(double)
    learned = Tensor(torch, whole(4))
    learned.requires_grad = True
    with pytest.raises(InputError, match=r"output 'y' must be a dense tensor .* that requires no gradient"):
        program.prepare({"x": whole(4)}, {"y": learned})
    with pytest.raises(InputError, match=r"output 'y' must be a writable float32 array of shape \[n, 37\]"):
        program.prepare({"x": whole(4)}, {"y": Tensor(torch, whole(5))})
    del double, learned


def test_a_program_for_the_processor_takes_none(torch: Torch, tmp_path: Any) -> None:
    program = Program.from_bytes(twice_model().build(compile_code(tmp_path)))
    text = "lies in a GPU's memory, the program runs on the processor; pass x.cpu()"
    x = Tensor(torch, np.zeros(4, "float32"))
    assert program.device == "cpu"
    with pytest.raises(InputError, match=f"input 'x' {text}".replace("(", r"\(").replace(")", r"\)")):
        program(x)
    del x


def test_torch_is_as_the_stand_in() -> None:
    """Every attribute used is torch's, and a real tensor answers as the stand-in does."""
    torch = pytest.importorskip("torch")
    real = torch.zeros(3, COLUMNS)
    for name in (
        vars(Tensor).keys() - vars(object).keys() - {"__module__", "__del__", "__dict__", "__weakref__"}
    ):
        assert hasattr(real, name), name
    assert real.layout is torch.strided and not real.requires_grad and str(real.dtype) == "torch.float32"
    assert real.device.type == "cpu" and real.is_contiguous() and not real.t().is_contiguous()
    assert real.stride() == (COLUMNS, 1) and real.element_size() == 4 and tuple(real.shape) == (3, COLUMNS)
    assert real.data_ptr() == real.numpy().ctypes.data and real.detach().data_ptr() == real.data_ptr()
    assert real.resolve_conj().resolve_neg().data_ptr() == real.data_ptr()
    assert torch.empty((2, 3), dtype=torch.float32, device=real.device).shape == (2, 3)
    assert "device" in inspect.signature(torch.cuda.current_stream).parameters
    assert "self.cuda_stream" in inspect.getsource(torch.cuda.Stream)
