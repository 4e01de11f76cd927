"""The interpreter refuses accesses of shared memory that no barrier orders, and copies nobody waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Kernel, device_function, int64
from sparsec.targets.cuda.interpreter.run import InterpreterError, run

THREADS = 64
#: what orders accesses: nothing, threads of a warp, threads of a block
Order = Callable[[Kernel], None]


def nothing(k: Kernel) -> None:
    """No barrier."""


def warp(k: Kernel) -> None:
    """A barrier of the warp."""
    k.call(instructions.syncwarp)


def block(k: Kernel) -> None:
    """A barrier of the block."""
    k.sync()


def ran(body: Callable[[Kernel], None], x: Any, count: int, *, check: bool = True) -> Any:
    """What one block of a kernel of x and y writes to y."""
    y = np.zeros(count, np.float32)
    function = device_function("tested", THREADS, [("x", str(x.dtype)), ("y", "float32")], [], body)
    run(function, 1, [x, y], check=check)
    return y


def numbers(count: int = THREADS) -> Any:
    """0, 1, 2 ..."""
    return np.arange(count, dtype=np.float32)


def exchange(order: Order, partner: Callable[[Any], Any]) -> Callable[[Kernel], None]:
    """Every thread stores to shared memory, then loads what its partner stored."""

    def body(k: Kernel) -> None:
        shared = k.shared(THREADS, "float32")
        shared.put(k.thread, k["x"][k.thread])
        order(k)
        k["y"].put(k.thread, shared[partner(k.thread)])

    return body


@pytest.mark.parametrize(
    "order, partner, allowed",
    [
        (nothing, lambda t: t, True),
        (nothing, lambda t: t ^ 1, False),
        (warp, lambda t: t ^ 1, True),
        (warp, lambda t: t ^ 32, False),
        (block, lambda t: t ^ 32, True),
    ],
    ids=["own", "lane", "lane ordered", "warp", "warp ordered"],
)
def test_reads_after_writes(order: Order, partner: Callable[[Any], Any], allowed: bool) -> None:
    if allowed:
        np.testing.assert_array_equal(
            ran(exchange(order, partner), numbers(), THREADS), partner(np.arange(THREADS))
        )
        return
    other = partner(0)
    message = f"thread 0 reads byte {4 * other} that thread {other} wrote, with no barrier"
    with pytest.raises(InterpreterError, match=message):
        ran(exchange(order, partner), numbers(), THREADS)
    # in lockstep nothing goes wrong: the checks alone notice
    ran(exchange(order, partner), numbers(), THREADS, check=False)


@pytest.mark.parametrize(
    "order, distance, allowed",
    [(nothing, 0, True), (nothing, 1, False), (warp, 1, True), (warp, 32, False), (block, 32, True)],
)
def test_writes_after_reads(order: Order, distance: int, allowed: bool) -> None:
    def body(k: Kernel) -> None:
        shared = k.shared(THREADS, "float32")
        shared.put(k.thread, k["x"][k.thread])
        k.sync()
        k["y"].put(k.thread, shared[k.thread ^ distance])
        order(k)
        shared.put(k.thread, T.float32(0))

    if allowed:
        np.testing.assert_array_equal(ran(body, numbers(), THREADS), np.arange(THREADS) ^ distance)
        return
    with pytest.raises(InterpreterError, match=r"thread 0 writes byte 0 that .* read"):
        ran(body, numbers(), THREADS)


def test_a_reader_among_many_is_remembered() -> None:
    """All threads read a word, then one of them writes it: the others had not finished."""

    def body(k: Kernel) -> None:
        shared = k.shared(4, "float32")
        with k.when(k.thread == 0):
            shared.put(0, T.float32(7))
        k.sync()
        k["y"].put(k.thread, shared[0])
        with k.when(k.thread == THREADS - 1):
            shared.put(0, T.float32(8))

    with pytest.raises(InterpreterError, match=r"thread 63 writes byte 0 that .* read"):
        ran(body, numbers(), THREADS)


@pytest.mark.parametrize("distance", [1, 32])
def test_two_threads_write_one_word(distance: int) -> None:
    def body(k: Kernel) -> None:
        with k.when((k.thread & ~distance) == 0):
            k.shared(4, "float32").put(0, T.float32(1))

    with pytest.raises(InterpreterError, match="writes byte 0 that thread"):
        ran(body, numbers(), 1)


def test_halves_of_a_word_belong_to_different_threads() -> None:
    """Neighbouring halves are no conflict, even after 128-bit accesses; the same half is."""

    def body(shift: int) -> Callable[[Kernel], None]:
        def emitted(k: Kernel) -> None:
            words = k.shared(THREADS * 4, "uint32")
            halves = k.shared_at(0, "float16")
            words.put(k.thread * 4, T.Broadcast(T.uint32(0), 4), 4)
            k.sync()
            halves.put(k.thread * 8 + 1, T.float16(1))
            k["y"].put(k.thread, T.cast(halves[(k.thread ^ 1) * 8 + shift], "float32"))

        return emitted

    np.testing.assert_array_equal(ran(body(0), numbers(), THREADS), np.zeros(THREADS))
    with pytest.raises(InterpreterError, match=r"reads byte \d+ that thread"):
        ran(body(1), numbers(), THREADS)


def test_matrix_loads_read_as_a_warp() -> None:
    """A lane's row may have come from that very lane: ldmatrix still needs a barrier of the warp."""

    def body(order: Order) -> Callable[[Kernel], None]:
        def emitted(k: Kernel) -> None:
            shared, got = k.shared(THREADS * 8, "uint16"), k.registers(4, "uint32")
            for i in range(8):
                shared.put(k.thread * 8 + i, T.cast(k.thread * 8 + i, "uint16"))
            order(k)
            k.call(instructions.ldmatrix_x4, got.pointer(0), shared.pointer(k.thread * 8))
            k["y"].put(k.thread, T.cast(got[0] & T.uint32(0xFFFF), "float32"))

        return emitted

    want = np.add.outer(np.array([0, 32]) * 8, np.arange(32) * 2).reshape(-1)
    np.testing.assert_array_equal(ran(body(warp), numbers(), THREADS), want)
    with pytest.raises(InterpreterError, match=r"warp 0 reads byte 0 that thread 0 wrote"):
        ran(body(nothing), numbers(), THREADS)


# -- asynchronous copies


def copied(wait: int | None, order: Order = block) -> Callable[[Kernel], None]:
    """Two groups of one copy each; then the neighbour's first and second elements."""

    def body(k: Kernel) -> None:
        stages = [k.shared(THREADS * 4, "float32") for _ in range(2)]
        for i, stage in enumerate(stages):
            source = k["x"].pointer(int64((i * THREADS + k.thread) * 4))
            k.call(instructions.cp_async_16, stage.pointer(k.thread * 4), source, k.thread % 2)
            k.call(instructions.cp_async_commit)
        if wait is not None:
            k.call(instructions.cp_async_wait(wait))
        order(k)
        for i, stage in enumerate(stages):
            k["y"].put(i * THREADS + k.thread, stage[(k.thread ^ 32) * 4])

    return body


def test_copies_arrive_when_they_are_waited_for() -> None:
    """A group that is not waited for is poison; a copy that is not valid writes zeros."""
    x = numbers(2 * 4 * THREADS) + 1
    thread = np.arange(THREADS)
    first, second = (x[(i * THREADS + (thread ^ 32)) * 4] * (thread % 2) for i in range(2))
    none, one, both = (ran(copied(wait), x, 2 * THREADS).reshape(2, THREADS) for wait in (None, 1, 0))
    assert np.isnan(none).all() and np.isnan(one[1]).all()
    np.testing.assert_array_equal(one[0], first)
    np.testing.assert_array_equal(both, [first, second])


def test_invalid_copies_do_not_read() -> None:
    def body(k: Kernel) -> None:
        shared = k.shared(THREADS, "float32")
        source = k["x"].pointer(int64(k.thread))
        k.call(instructions.cp_async_4, shared.pointer(k.thread), source, T.cast(k.thread < 40, "int32"))
        k.call(instructions.cp_async_commit)
        k.call(instructions.cp_async_wait(0))
        k["y"].put(k.thread, shared[k.thread])

    np.testing.assert_array_equal(ran(body, numbers(40), THREADS), np.r_[numbers(40), np.zeros(24)])
    with pytest.raises(InterpreterError, match=r"x: element .* is outside"):
        ran(body, numbers(39), THREADS)


def test_what_arrived_is_for_others_only_after_a_barrier() -> None:
    with pytest.raises(InterpreterError, match="reads byte"):
        ran(copied(0, nothing), numbers(8 * THREADS), 2 * THREADS)


def test_threads_wait_for_their_own_copies() -> None:
    """The odd threads close a group more than the even ones: for them `wait 1` means another group."""

    def body(k: Kernel) -> None:
        shared = k.shared(2 * THREADS, "float32")
        for i in range(2):
            with k.when((k.thread + i) % 2 == 1) if i else k.when(k.thread >= 0):
                at = i * THREADS + k.thread
                k.call(instructions.cp_async_4, shared.pointer(at), k["x"].pointer(int64(at)), 1)
                k.call(instructions.cp_async_commit)
        k.call(instructions.cp_async_wait(1))
        k["y"].put(k.thread, shared[k.thread])

    got = ran(body, numbers(2 * THREADS), THREADS)
    # even threads have two groups, and their first has arrived; the odd ones' only one has not
    np.testing.assert_array_equal(got[0::2], np.arange(0, THREADS, 2))
    assert np.isnan(got[1::2]).all()
