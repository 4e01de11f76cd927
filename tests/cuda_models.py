"""Small models for a GPU, and their kernels in NumPy for the stand-in of CUDA's driver."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda.driver import FakeDriver, build, cubin
from runtime_models import PlanBuilder, pointer, tiles_of

from sparsec.runtime import Program
from sparsec.runtime.plan import Operator

BLOCK = 64
COLUMNS = 37


def chain_model(bias: Any, columns: int = COLUMNS) -> PlanBuilder:
    """``y[n, k] = (2 * x + bias) ** 2`` over two temporaries, three launches."""
    b = PlanBuilder()
    items = (Operator.MULTIPLY, "n", columns)
    x, y = b.input("x", ("n", columns)), b.output("y", ("n", columns))
    w = b.constant(bias)
    one, two = b.temporary(("n", columns), 0, 1), b.temporary(("n", columns), 1, 2)
    b.launch("twice", pointer(x), pointer(one), b.integer(items), blocks=tiles_of(items), threads=BLOCK)
    b.launch(
        "add_row", pointer(one), pointer(w), pointer(two), b.integer(columns), blocks="n", shared=4 * columns
    )
    b.launch("square", pointer(two), pointer(y), b.integer(items), blocks=tiles_of(items), threads=BLOCK)
    return b


def chain_oracle(x: Any, bias: Any) -> Any:
    """What the chain computes; exact in float32 for small whole numbers."""
    return (2 * x + bias) ** 2


def cuda_file(b: PlanBuilder, kind: str = "sm_90a") -> bytes:
    """The model file of a plan for one kind of GPU."""
    return b.build(cubin(), target=kind, features=[kind])


def chain(bias: Any) -> Program:
    """The chain, loaded."""
    return Program.from_bytes(cuda_file(chain_model(bias)))


def whole(rows: int, seed: int = 0, columns: int = COLUMNS) -> Any:
    """Small whole numbers as float32."""
    return np.random.default_rng(seed).integers(-9, 9, (rows, columns)).astype("float32")


def add_kernels(driver: FakeDriver) -> None:
    """The chain's kernels: each block does its own part, so that a wrong grid is a wrong result."""

    def blockwise(function: Any) -> Any:
        def kernel(blocks: int, threads: int, shared: int, parameters: Sequence[int]) -> None:
            x, y = driver.view(parameters[0], "float32"), driver.view(parameters[1], "float32")
            for block in range(blocks):
                part = slice(block * threads, min((block + 1) * threads, parameters[2]))
                y[part] = function(x[part])

        return kernel

    def add_row(blocks: int, threads: int, shared: int, parameters: Sequence[int]) -> None:
        x, w, y = (driver.view(p, "float32") for p in parameters[:3])
        columns = parameters[3]
        assert threads == 128 and shared == 4 * columns
        for block in range(blocks):
            part = slice(block * columns, (block + 1) * columns)
            y[part] = x[part] + w[:columns]

    driver.kernel("twice", 3, blockwise(lambda x: 2 * x))
    driver.kernel("square", 3, blockwise(lambda x: x * x))
    driver.kernel("add_row", 4, add_row)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    """The stand-in, built and loaded once for a file of tests."""
    return FakeDriver(build(tmp_path_factory.mktemp("driver")))


@pytest.fixture
def driver(loaded: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """The stand-in as the driver of one test."""
    with used(loaded, monkeypatch) as found:
        yield found


@contextmanager
def used(driver: FakeDriver, patch: pytest.MonkeyPatch, library: Path | None = None) -> Iterator[FakeDriver]:
    """Let the runtime find the stand-in; in the end nothing may be left in it, and nothing was misused."""
    patch.setenv("SPARSEC_LIBCUDA", str(library or driver.path))
    driver.reset()
    driver.machine()
    add_kernels(driver)
    yield driver
    gc.collect()
    assert driver.living == {} and driver.depth == 0
    assert driver.counts["violations"] == 0
