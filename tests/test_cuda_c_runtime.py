"""The C library's own interface to a GPU: arrays there, the caller's stream; by ctypes, without Program."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_models import COLUMNS, chain_model, chain_oracle, cuda_file, loaded, used, whole
from fake_cuda.driver import DeviceMemory, FakeDriver
from runtime_models import compile_code, twice_model

from sparsec.runtime.__main__ import PLACES

__all__ = ["loaded"]

BIAS = np.arange(COLUMNS, dtype="float32")
FLOAT32 = 0x12002
INPUT, KERNEL = 2, 4


class Failure(ctypes.Structure):
    """struct sparsec_failure."""

    _fields_ = [("kind", ctypes.c_int), ("text", ctypes.c_char * 1024)]


class Array(ctypes.Structure):
    """struct sparsec_array."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("rank", ctypes.c_int), ("dtype", ctypes.c_uint32),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("stage", ctypes.c_bool), ("device", ctypes.c_int),
    ]  # fmt: skip


def array_of(value: Any, strides: tuple[int, ...] | None = None) -> Array:
    """An array of NumPy, or of the stand-in's memory."""
    there = isinstance(value, DeviceMemory)
    numbers = ctypes.c_int64 * len(value.shape)
    return Array(
        value.address if there else value.ctypes.data, len(value.shape), FLOAT32, numbers(*value.shape),
        numbers(*strides) if strides else None, False, there,
    )  # fmt: skip


@pytest.fixture(scope="module")
def library() -> Any:
    """libsparsec; the types of results that are not int."""
    found = ctypes.CDLL(str(Path(PLACES["libdir"][0]) / "libsparsec.so"))
    for name in ("model_from_bytes", "session_take", "session_bind"):
        getattr(found, f"sparsec_{name}").restype = ctypes.c_void_p
    found.sparsec_model_device.restype = ctypes.c_char_p
    return found


@pytest.fixture
def driver(loaded: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    with used(loaded, monkeypatch) as found:
        found.enter()
        yield found
        found.leave()


class Session:
    """A model of the library, and one session."""

    def __init__(self, library: Any, data: bytes) -> None:
        self.library, self.failure = library, Failure()
        self.model = self.pointer("model_from_bytes", data, ctypes.c_size_t(len(data)), False)
        self.session = self.pointer("session_take", self.model)

    def pointer(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        made = getattr(self.library, f"sparsec_{name}")(*arguments, ctypes.byref(self.failure))
        assert made, self.failure.text
        return ctypes.c_void_p(made)

    def device(self) -> str:
        return str(self.library.sparsec_model_device(self.model).decode())

    def use(self, stream: int | None) -> int:
        return int(self.library.sparsec_session_set_stream(self.session, ctypes.c_void_p(stream)))

    def run(self, x: Array, y: Array) -> int:
        binding = self.pointer("session_bind", self.session, ctypes.byref(x))
        run = self.library.sparsec_session_run
        return int(run(self.session, binding, ctypes.byref(x), ctypes.byref(y), ctypes.byref(self.failure)))

    def close(self) -> None:
        self.library.sparsec_session_give_back(self.session)
        self.library.sparsec_model_free(self.model)


@pytest.fixture
def session(library: Any, driver: FakeDriver) -> Iterator[Session]:
    made = Session(library, cuda_file(chain_model(BIAS)))
    yield made
    made.close()


def test_arrays_of_the_host(session: Session) -> None:
    x, y = whole(5), np.zeros((5, COLUMNS), "float32")
    assert session.device() == "cuda" and session.run(array_of(x), array_of(y)) == 0
    assert np.array_equal(y, chain_oracle(x, BIAS))


def test_a_callers_stream(session: Session, driver: FakeDriver) -> None:
    """Its runs are enqueued; on the session's own stream they have ended."""
    stream, x = driver.stream(), driver.array(whole(5))
    y = driver.array(np.zeros((5, COLUMNS), "float32"))
    expected = chain_oracle(whole(5), BIAS)
    for turn in range(3):
        y.values[:] = 0
        assert session.use(stream) == 0 and session.run(array_of(x), array_of(y)) == 0
        assert not y.values.any(), turn
        driver.synchronize(stream)
        assert np.array_equal(y.values, expected)
    y.values[:] = 0
    assert session.use(None) == 0 and session.run(array_of(x), array_of(y)) == 0
    assert np.array_equal(y.values, expected)
    driver.call("cuStreamDestroy_v2", driver.unsigned(stream))
    for memory in (x, y):
        driver.free(memory)


def test_a_session_given_back_forgets_the_stream(session: Session, driver: FakeDriver) -> None:
    stream, x = driver.stream(), driver.array(whole(5))
    y = driver.array(np.zeros((5, COLUMNS), "float32"))
    session.use(stream)
    session.library.sparsec_session_give_back(session.session)
    session.session = session.pointer("session_take", session.model)
    assert session.run(array_of(x), array_of(y)) == 0
    assert np.array_equal(y.values, chain_oracle(whole(5), BIAS)) and driver.counts["streams"] == 2
    driver.call("cuStreamDestroy_v2", driver.unsigned(stream))
    for memory in (x, y):
        driver.free(memory)


def test_recorded_launches_are_of_one_arena(session: Session, driver: FakeDriver) -> None:
    """Larger shapes move the arena: the same arrays are launched anew, not replayed into freed memory."""
    x, y = driver.array(whole(5)), driver.array(np.zeros((5, COLUMNS), "float32"))
    large = driver.array(whole(50)), driver.array(np.zeros((50, COLUMNS), "float32"))
    for pair in ((x, y), (x, y), (x, y), large, (x, y), (x, y), (x, y)):
        pair[1].values[:] = 0
        assert session.run(*map(array_of, pair)) == 0, session.failure.text
        assert np.array_equal(pair[1].values, chain_oracle(pair[0].values, BIAS))
    assert driver.counts["captures"] == 2 and driver.counts["graph_launches"] == 4
    for memory in (x, y, *large):
        driver.free(memory)


def test_strides(session: Session, driver: FakeDriver) -> None:
    """Those of no gaps are none."""
    x, y = driver.array(whole(5)), driver.array(np.zeros((5, COLUMNS), "float32"))
    assert session.run(array_of(x, (4 * COLUMNS, 4)), array_of(y)) == 0
    assert np.array_equal(y.values, chain_oracle(whole(5), BIAS))
    assert session.run(array_of(x, (8 * COLUMNS, 4)), array_of(y)) == INPUT
    assert b"input 'x' has gaps or another order of its axes in the GPU's memory" in session.failure.text
    for memory in (x, y):
        driver.free(memory)


def test_a_failed_run_says_its_kind(session: Session, driver: FakeDriver) -> None:
    x, y = whole(5), np.zeros((5, COLUMNS), "float32")
    driver.fail("cuLaunchKernel", 3, 1)
    assert session.run(array_of(x), array_of(y)) == KERNEL
    assert session.failure.text.startswith(
        b"step 2 (node_2) failed in kernel square: the GPU refuses the launch"
    )
    assert session.run(array_of(x), array_of(y)) == 0 and np.array_equal(y, chain_oracle(x, BIAS))


def test_a_model_for_the_processor(library: Any, tmp_path: Path) -> None:
    made = Session(library, twice_model().build(compile_code(tmp_path)))
    x, y = np.ones(5, "float32"), np.zeros(5, "float32")
    there = array_of(x)
    there.device = 1
    assert made.device() == "cpu" and made.use(1) == INPUT
    assert made.run(there, array_of(y)) == INPUT
    assert b"input 'x' lies in a GPU's memory, the program runs on the processor" in made.failure.text
    assert made.run(array_of(x), array_of(y)) == 0 and np.array_equal(y, [2] * 5)
    made.close()
