"""The interpreter of CUDA kernels refuses what a GPU would not forgive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Kernel, device_function, int64
from sparsec.targets.cuda.interpreter.run import InterpreterError, compiled, run

WARP = 32
#: the types of float and integer arguments, as the kernels here take them
FLOATS = [("x", "float32"), ("y", "float32")]
INTEGERS = [("x", "int32"), ("y", "int32")]


def of(
    body: Callable[[Kernel], None],
    threads: int = WARP,
    pointers: Sequence[tuple[str, str]] = FLOATS,
) -> Any:
    """The kernel of a body."""
    return device_function("tested", threads, pointers, [], body)


def ran(
    body: Callable[[Kernel], None], x: Any, count: int, pointers: Sequence[tuple[str, str]] = FLOATS,
    blocks: int = 1, threads: int = WARP,
) -> Any:  # fmt: skip
    """What a kernel of pointers x and y writes to y's ``count`` elements."""
    y = np.zeros(count, pointers[1][1])
    run(of(body, threads, pointers), blocks, [x, y])
    return y


def values(count: int, kind: Any = np.float32) -> Any:
    """Normal random numbers."""
    return np.random.default_rng(0).standard_normal(count).astype(kind)


def test_accesses_outside_arrays_name_the_place() -> None:
    def body(k: Kernel) -> None:
        k["y"].put(k.block * WARP + int64(k.thread), T.float32(1))

    with pytest.raises(
        InterpreterError, match=r"y: element 70 is outside its 70 elements of 4 \(block 2, thread 6\)"
    ):
        ran(body, np.zeros(1, np.float32), 70, blocks=3)


def test_vectors_must_be_aligned() -> None:
    def body(k: Kernel) -> None:
        k["y"].put(0, k["x"].vector(int64(k.thread) * 4 + 2, 4), 4)

    with pytest.raises(InterpreterError, match=r"x: element 2 .* no multiple"):
        ran(body, values(256), 4)


def test_division_by_zero() -> None:
    def body(k: Kernel) -> None:
        k["y"].put(k.thread, k.thread // k["x"][k.thread])

    x = np.ones(WARP, np.int32)
    ran(body, x, WARP, INTEGERS)
    x[9] = 0
    with pytest.raises(InterpreterError, match=r"division by zero .*thread 9"):
        ran(body, x, WARP, INTEGERS)


def test_memory_nobody_wrote_is_poison() -> None:
    def body(k: Kernel) -> None:
        register, shared = k.registers(2), k.shared(64, "float16")
        register.put(0, T.float32(1))
        k["y"].put(k.thread, T.max(register[0] + register[1], T.float32(0)))
        k["y"].put(WARP + k.thread, T.cast(shared[k.thread], "float32"))

    assert np.isnan(ran(body, np.zeros(1, np.float32), 2 * WARP)).all()


def test_shared_memory_has_an_end() -> None:
    def body(k: Kernel) -> None:
        k.shared(40, "float32").put(k.thread * 2, T.float32(1))

    with pytest.raises(InterpreterError, match=r"shared memory: element 40 is outside its 40 .*thread 20"):
        ran(body, np.zeros(1, np.float32), 1)


@pytest.mark.parametrize("instruction", [instructions.syncwarp, None])
def test_barriers_need_all_threads(instruction: Any) -> None:
    def body(k: Kernel) -> None:
        with k.when(k.thread < 40):
            if instruction is None:
                k.sync()
            else:
                k.call(instruction)

    with pytest.raises(
        InterpreterError, match="40 of 64 threads" if instruction is None else "8 of its threads"
    ):
        ran(body, np.zeros(1, np.float32), 1, threads=64)


def test_unknown_things_are_named() -> None:
    def barrier(k: Kernel) -> None:
        T.evaluate(T.tvm_storage_sync("warp"))

    with pytest.raises(InterpreterError, match="syncwarp"):
        compiled(of(barrier))

    mine = instructions.Instruction("mine", "", lambda machine, value: 2 * value, "float32")

    def calls(k: Kernel) -> None:
        k["y"].put(k.thread, k.value(mine, k["x"][k.thread]))

    with pytest.raises(InterpreterError, match="mine"):
        compiled(of(calls))
    x, y = values(WARP), np.zeros(WARP, np.float32)
    run(of(calls), 1, [x, y], instructions=[mine])
    np.testing.assert_array_equal(y, 2 * x)
