"""The interpreter of CUDA kernels computes what a GPU would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy import special
from tvm import tirx
from tvm.script.ir_builder import tirx as T

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
    sizes: Sequence[str] = (),
) -> Any:
    """The kernel of a body."""
    return device_function("tested", threads, pointers, sizes, body)


def ran(
    body: Callable[[Kernel], None], x: Any, count: int, pointers: Sequence[tuple[str, str]] = FLOATS,
    blocks: int = 1, threads: int = WARP,
) -> Any:  # fmt: skip
    """What a kernel of pointers x and y writes to y's ``count`` elements."""
    kind = np.dtype(ml_dtypes.bfloat16 if pointers[1][1] == "bfloat16" else pointers[1][1])
    y = np.zeros(count, kind)
    run(of(body, threads, pointers), blocks, [x, y])
    return y


def values(count: int, kind: Any = np.float32) -> Any:
    """Normal random numbers."""
    return np.random.default_rng(0).standard_normal(count).astype(kind)


@pytest.mark.parametrize("count", [1, 255, 256, 70_001])
def test_elementwise_with_a_tail(count: int) -> None:
    def body(k: Kernel) -> None:
        i = k.bind(k.block * 64 + int64(k.thread))
        with k.when(i < k.sizes["n"]):
            k["y"].put(i, T.max(k["x"][i] * T.float32(2) + T.float32(1), T.float32(0)))

    x, y = values(count), np.zeros(count, np.float32)
    run(of(body, 64, FLOATS, ["n"]), -(-count // 64), [x, y, count])
    np.testing.assert_array_equal(y, np.maximum(x * np.float32(2) + np.float32(1), 0))


def test_chunks_of_blocks_do_not_show() -> None:
    """More blocks than are run at a time: each writes its number."""

    def body(k: Kernel) -> None:
        k.registers(512)  # so that few blocks fit
        with k.when(k.thread == 5):
            k["y"].put(k.block, T.cast(k.block, "float32"))

    np.testing.assert_array_equal(ran(body, np.zeros(1, np.float32), 3000, blocks=3000), np.arange(3000))


def test_vectors_and_views() -> None:
    def body(k: Kernel) -> None:
        i = k.bind(int64(k.thread) * 4)
        k["y"].put(i, T.cast(k["x"].vector(i, 4), "float32x4") * T.Broadcast(T.float32(2), 4), 4)
        words = k.view("y", "uint32")
        words.put(128 + i, words.vector(i, 4), 4)

    x = values(128, np.float16)
    y = ran(body, x, 256, [("x", "float16"), ("y", "float32")])
    np.testing.assert_array_equal(y, np.tile(2 * x.astype(np.float32), 2))


def test_a_transposition_through_shared_memory() -> None:
    """Blocks of 16 x 16 of a matrix whose sides are no multiples of that."""
    side, rows, columns = 16, 40, 70
    across = -(-columns // side)

    def body(k: Kernel) -> None:
        tile = k.shared(side * (side + 1), "float32")
        top, left = k.bind(k.block // across * side), k.bind(k.block % across * side)
        line, place = k.bind(k.thread // side), k.bind(k.thread % side)
        with k.when(T.And(top + line < rows, left + place < columns)):
            tile.put(line * (side + 1) + place, k["x"][(top + line) * columns + left + place])
        k.sync()
        with k.when(T.And(left + line < columns, top + place < rows)):
            k["y"].put((left + line) * rows + top + place, tile[place * (side + 1) + line])

    x = values(rows * columns)
    got = ran(body, x, rows * columns, blocks=-(-rows // side) * across, threads=side * side)
    np.testing.assert_array_equal(got.reshape(columns, rows), x.reshape(rows, columns).T)


def test_loops_of_different_length_and_loops_inside() -> None:
    """Thread t sums 0 .. t - 1, t times over its own inner loop; one `while` counts down."""

    def body(k: Kernel) -> None:
        total, left = k.registers(1), k.registers(1, "int32")
        total.put(0, T.float32(0))
        with k.loop(k.thread) as i, k.loop(i) as j, k.when(j % 2 == 0):
            total.put(0, total[0] + T.cast(j, "float32"))
        left.put(0, k.thread)
        with k.whenever(left[0] > 3):
            left.put(0, left[0] - 3)
        k["y"].put(k.thread, total[0] * T.float32(100) + T.cast(left[0], "float32"))

    y = ran(body, np.zeros(1, np.float32), WARP)
    want = [
        100 * sum(j for i in range(t) for j in range(0, i, 2)) + ((t - 1) % 3 + 1 if t else 0)
        for t in range(WARP)
    ]
    np.testing.assert_array_equal(y, want)


def test_integers_wrap_and_divide_as_c_and_as_floor() -> None:
    cases = [
        lambda a: a * 65539 + (1 << 30), lambda a: T.truncdiv(a, 7), lambda a: T.truncmod(a, 7),
        lambda a: a // 7, lambda a: a % 7, lambda a: a % 8, lambda a: a // 8, lambda a: a >> 3,
        lambda a: a << 5,
        lambda a: (a & 12) | (a ^ 5), lambda a: ~a, lambda a: T.popcount(a), lambda a: T.clz(a),
        lambda a: T.cast(T.cast(a, "int8"), "int32"), lambda a: T.cast(T.cast(a, "uint16"), "int32"),
    ]  # fmt: skip

    def body(k: Kernel) -> None:
        for i, case in enumerate(cases):
            k["y"].put(k.thread + WARP * i, case(k["x"][k.thread]))

    x = np.concatenate([np.arange(-15, 15), [-(1 << 31), (1 << 31) - 1]]).astype(np.int32)
    got = ran(body, x, WARP * len(cases), INTEGERS).reshape(-1, WARP)
    wide = x.astype(np.int64)
    towards_zero = np.trunc(wide / 7).astype(np.int64)
    bits = [int(v) & 0xFFFFFFFF for v in wide]
    want = [
        wide * 65539 + (1 << 30), towards_zero, wide - 7 * towards_zero, wide // 7, wide % 7, wide % 8,
        wide // 8, wide >> 3, wide << 5, (wide & 12) | (wide ^ 5), ~wide, [b.bit_count() for b in bits],
        [32 - b.bit_length() for b in bits], x.astype(np.int8), x.astype(np.uint16),
    ]  # fmt: skip
    for row, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(row, np.asarray(expected, np.int64).astype(np.int32))


def test_functions_of_floats() -> None:
    cases: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
        (T.exp, np.exp), (T.exp2, np.exp2), (lambda a: T.log(T.fabs(a)), lambda a: np.log(np.abs(a))),
        (lambda a: T.sqrt(a * a), np.abs), (lambda a: T.rsqrt(T.fabs(a)), lambda a: np.abs(a) ** -0.5),
        (T.tanh, np.tanh), (T.erf, special.erf), (T.sin, np.sin), (T.cos, np.cos), (T.floor, np.floor),
        (T.ceil, np.ceil), (T.round, lambda a: np.trunc(a + np.copysign(0.5, a))), (T.sigmoid, special.expit),
        (lambda a: T.pow(T.fabs(a), T.float32(1.5)), lambda a: np.abs(a) ** 1.5),
        (lambda a: T.fma(a, a, T.float32(-1)), lambda a: a * a - 1), (lambda a: T.min(a, T.float32(0)),
                                                                     lambda a: np.minimum(a, 0)),
    ]  # fmt: skip

    def body(k: Kernel) -> None:
        for i, (emitted, _) in enumerate(cases):
            k["y"].put(k.thread + WARP * i, emitted(k["x"][k.thread]))

    x = values(WARP)
    got = ran(body, x, WARP * len(cases)).reshape(-1, WARP)
    for row, (_, function) in zip(got, cases, strict=True):
        np.testing.assert_allclose(row, function(x.astype(np.float64)), rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_halves_are_rounded_to_nearest_even(kind: str) -> None:
    """Conversions, and products and sums rounded one by one."""

    def body(k: Kernel) -> None:
        a = k.bind(T.cast(k["x"][k.thread], kind))
        k["y"].put(k.thread, a)
        k["y"].put(k.thread + WARP, a * a + a)

    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    step = float(ml_dtypes.finfo(dtype).eps)
    x = np.concatenate([1 + step * (0.5 + np.arange(8)), values(24)]).astype(np.float32)
    got = ran(body, x, 2 * WARP, [("x", "float32"), ("y", kind)])
    a = x.astype(dtype)
    # ties go to the even neighbour
    np.testing.assert_array_equal(got[:8].astype(float), 1 + step * np.array([0, 2, 2, 4, 4, 6, 6, 8]))
    np.testing.assert_array_equal(got[:WARP], a)
    squares = (a.astype(np.float32) ** 2).astype(dtype)
    np.testing.assert_array_equal(
        got[WARP:], (squares.astype(np.float32) + a.astype(np.float32)).astype(dtype)
    )


def test_floats_become_integers_towards_zero_and_saturate() -> None:
    def body(k: Kernel) -> None:
        k["y"].put(k.thread, T.cast(k["x"][k.thread], "int32"))

    x = np.zeros(WARP, np.float32)
    x[:6] = [-1.9, 1.9, 3e9, -3e9, np.nan, np.inf]
    limits = np.iinfo(np.int32)
    got = ran(body, x, WARP, [("x", "float32"), ("y", "int32")])
    np.testing.assert_array_equal(got[:6], [-1, 1, limits.max, limits.min, 0, limits.max])


def test_reinterpreted_bits_and_shuffled_lanes() -> None:
    def body(k: Kernel) -> None:
        quad = k.bind(k["x"].vector(int64(k.thread) * 4, 4))
        k["y"].put(int64(k.thread) * 4, T.reinterpret("float32x4", T.reinterpret("uint32x4", quad)), 4)
        k["y"].put(128 + k.thread, tirx.Shuffle([quad], [2]))
        word = T.reinterpret("uint32", tirx.Shuffle([quad], [1])) ^ T.uint32(1 << 31)
        k["y"].put(160 + k.thread, T.reinterpret("float32", word))

    x = values(128)
    got = ran(body, x, 192)
    np.testing.assert_array_equal(got, np.concatenate([x, x[2::4], -x[1::4]]))


def test_what_is_not_taken_is_not_evaluated() -> None:
    """`if_then_else`, `and`, `or` guard loads outside the array; `Select` does not."""

    def guarded(k: Kernel) -> None:
        inside = k.thread < 8
        k["y"].put(k.thread, T.if_then_else(inside, k["x"][k.thread], T.float32(-1)))
        with k.when(T.And(inside, k["x"][k.thread] > T.float32(0))):
            k["y"].put(WARP + k.thread, T.float32(1))
        with k.when(T.Or(T.Not(inside), k["x"][k.thread] > T.float32(0))):
            k["y"].put(2 * WARP + k.thread, T.float32(1))

    x = values(8)
    got = ran(guarded, x, 3 * WARP).reshape(3, WARP)
    np.testing.assert_array_equal(got[0], np.concatenate([x, np.full(24, -1)]))
    np.testing.assert_array_equal(got[1], np.concatenate([x > 0, np.zeros(24)]))
    np.testing.assert_array_equal(got[2], np.concatenate([x > 0, np.ones(24)]))

    def eager(k: Kernel) -> None:
        k["y"].put(k.thread, tirx.Select(k.thread < 8, k["x"][k.thread], T.float32(-1)))

    with pytest.raises(InterpreterError, match="x: element 8 is outside its 8 elements"):
        ran(eager, x, WARP)


def test_addresses_and_a_resolver() -> None:
    """A driver hands raw addresses; memory ends where its allocation does."""

    def body(k: Kernel) -> None:
        k["y"].put(int64(k.thread) * 4, k["x"].vector(int64(k.thread) * 4, 4), 4)

    heap = np.zeros(2048, np.uint8)
    x = values(128)
    heap[16 : 16 + x.nbytes] = x.view(np.uint8)
    kernel = compiled(of(body))
    kernel.run(1, [4096 + 16, 4096 + 1024], resolve=lambda address: heap[address - 4096 :])
    np.testing.assert_array_equal(heap[1024:1536].view(np.float32), x)
    with pytest.raises(InterpreterError, match="no multiple"):
        kernel.run(1, [4096 + 20, 4096 + 1024], resolve=lambda address: heap[address - 4096 :])
    with pytest.raises(InterpreterError, match="y: element 0 is outside its 0 elements"):
        kernel.run(1, [4096 + 16, 0], resolve=lambda address: heap[address - 4096 :])
