"""Instructions of the GPU: their meanings give what NumPy gives, and nvcc takes every one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.build import kernel_cubin
from sparsec.targets.cuda.builder import Kernel, device_function, int64
from sparsec.targets.cuda.interpreter.fragments import sparse_indices, sparse_metadata
from sparsec.targets.cuda.interpreter.run import InterpreterError, run
from sparsec.targets.cuda.toolkit import find
from sparsec.targets.named import target_named

WARP = 32
HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
both_halves = pytest.mark.parametrize("kind", list(HALVES))


def random(seed: int, *shape: int) -> Any:
    """Normal random float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one_warp(
    body: Callable[[Kernel], None], pointers: Sequence[tuple[str, str]], arrays: Sequence[Any]
) -> None:
    """Run a kernel as one warp."""
    run(device_function("tested", WARP, pointers, [], body), 1, [a.reshape(-1) for a in arrays])


# -- shuffles and small things


def test_a_sum_and_a_largest_over_warps() -> None:
    def body(k: Kernel) -> None:
        value = k["x"][k.block * 128 + int64(k.thread)]
        k["y"].put((k.block * 2) * 128 + int64(k.thread), instructions.warp_sum(k, value))
        k["y"].put((k.block * 2 + 1) * 128 + int64(k.thread), instructions.warp_max(k, value))

    x, y = random(0, 3, 4, WARP), np.zeros((3, 2, 4, WARP), np.float32)
    function = device_function("tested", 128, [("x", "float32"), ("y", "float32")], [], body)
    run(function, 3, [x.reshape(-1), y.reshape(-1)])
    np.testing.assert_allclose(y[:, 0], np.repeat(x.sum(-1, keepdims=True), WARP, -1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(y[:, 1], np.repeat(x.max(-1, keepdims=True), WARP, -1))


def test_shuffles_move_values_between_lanes() -> None:
    def body(k: Kernel) -> None:
        value, word = k["x"][k.lane], T.cast(k.lane, "uint32")
        k["y"].put(k.lane, k.value(instructions.shuffle_down, value, 5))
        k["y"].put(32 + k.lane, k.value(instructions.shuffle_xor, value, 6))
        k["y"].put(64 + k.lane, k.value(instructions.shuffle_from, value, (k.lane * 7) % 32))
        for i, shuffle in enumerate((
            instructions.shuffle_down_u32, instructions.shuffle_xor_u32, instructions.shuffle_from_u32,
        )):  # fmt: skip
            k["y"].put(96 + i * 32 + k.lane, T.cast(k.value(shuffle, word, 3), "float32"))
        votes = k.bind(k.value(instructions.ballot, T.cast(k["x"][k.lane] > T.float32(0), "int32")))
        k["y"].put(192 + k.lane, T.cast(votes >> T.cast(k.lane, "uint32") & T.uint32(1), "float32"))
        k["y"].put(224 + k.lane, T.cast(k.value(instructions.popc, votes), "float32"))

    x, y = random(0, WARP), np.zeros((8, WARP), np.float32)
    one_warp(body, [("x", "float32"), ("y", "float32")], [x, y])
    lane = np.arange(WARP)
    down = [np.where(lane + d < WARP, lane + d, lane) for d in (5, 3)]
    want = [x[down[0]], x[lane ^ 6], x[lane * 7 % 32], down[1], lane ^ 3, np.full(WARP, 3), x > 0,
            np.full(WARP, (x > 0).sum())]  # fmt: skip
    np.testing.assert_array_equal(y, want)


@both_halves
def test_packing_and_unpacking(kind: str) -> None:
    def body(k: Kernel) -> None:
        word = k.bind(k.value(instructions.pack(kind), k["x"][2 * k.lane], k["x"][2 * k.lane + 1]))
        k.view("y", "uint32").put(k.lane, word)
        pair = k.registers(2)
        k.call(instructions.unpack(kind), pair.pointer(0), word)
        for i in range(2):
            k["z"].put(2 * k.lane + i, pair[i])

    x, y, z = random(0, 64), np.zeros(64, HALVES[kind]), np.zeros(64, np.float32)
    one_warp(body, [("x", "float32"), ("y", kind), ("z", "float32")], [x, y, z])
    np.testing.assert_array_equal(y, x.astype(HALVES[kind]))
    np.testing.assert_array_equal(z, y.astype(np.float32))


def test_read_only_loads_and_atomic_additions() -> None:
    def body(k: Kernel) -> None:
        words = k.registers(4, "uint32")
        k.call(instructions.load_once, words.pointer(0), k["x"].pointer(k.lane * 4))
        for i in range(4):
            k.call(instructions.atomic_add, k["y"].pointer(k.lane % 3), T.reinterpret("float32", words[i]))

    x, y = random(0, WARP, 4), np.zeros(3, np.float32)
    one_warp(body, [("x", "float32"), ("y", "float32")], [x, y])
    np.testing.assert_allclose(y, [x[i::3].sum() for i in range(3)], rtol=1e-5)


# -- matrices


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrix_loads(count: int, transposed: bool) -> None:
    """Lane 4 g + q holds elements 2 q and 2 q + 1 of row g, or of column g, of every matrix."""
    load = getattr(instructions, f"ldmatrix_x{count}{'_trans' if transposed else ''}")

    def body(k: Kernel) -> None:
        shared, words = k.shared(256, "float16"), k.registers(4, "uint32")
        for i in range(8):
            shared.put(i * 32 + k.lane, k["x"][i * 32 + k.lane])
        k.sync()
        # lanes beyond the matrices' rows may give any address
        k.call(
            load, words.pointer(0), shared.pointer(T.if_then_else(k.lane < 8 * count, k.lane * 8, 1 << 20))
        )
        for i in range(count):
            k.view("y", "uint32").put(i * 32 + k.lane, words[i])

    x, y = random(0, 4, 8, 8).astype(np.float16), np.zeros((count, 8, 4, 2), np.float16)
    one_warp(body, [("x", "float16"), ("y", "float16")], [x, y])
    for i in range(count):
        np.testing.assert_array_equal(y[i].reshape(8, 8), x[i].T if transposed else x[i])


@both_halves
def test_a_product_of_matrices(kind: str) -> None:
    """C[32, 16] = A[32, 32] B[32, 16]: two warps, staged by asynchronous copies, loaded by ldmatrix."""
    rows, columns, inner = 32, 16, 32

    def body(k: Kernel) -> None:
        a, b = k.shared(rows * inner, kind), k.shared(inner * columns, kind)
        for array, name, pieces in ((a, "a", rows * inner // 8), (b, "b", inner * columns // 8)):
            with k.loop(pieces // 64) as i:
                at = k.bind((i * 64 + k.thread) * 8)
                k.call(instructions.cp_async_16, array.pointer(at), k[name].pointer(int64(at)), 1)
        k.call(instructions.cp_async_commit)
        k.call(instructions.cp_async_wait(0))
        k.sync()
        sums, left, right = k.registers(8), k.registers(4, "uint32"), k.registers(2, "uint32")
        for i in range(8):
            sums.put(i, T.float32(0))
        with k.loop(inner // 16) as step:
            row = k.warp * 16 + k.lane % 16
            at = a.pointer(row * inner + step * 16 + k.lane // 16 * 8)
            k.call(instructions.ldmatrix_x4, left.pointer(0), at)
            for j in range(2):
                at = b.pointer((step * 16 + k.lane % 16) * columns + j * 8)
                k.call(instructions.ldmatrix_x2_trans, right.pointer(0), at)
                k.call(
                    instructions.mma_m16n8k16(kind), sums.pointer(j * 4), left.pointer(0), right.pointer(0)
                )
        for i in range(8):
            row = k.warp * 16 + k.lane // 4 + i % 4 // 2 * 8
            k["c"].put(row * columns + i // 4 * 8 + k.lane % 4 * 2 + i % 2, sums[i])

    a, b = (
        random(i, *shape).astype(HALVES[kind]) for i, shape in enumerate([(rows, inner), (inner, columns)])
    )
    c = np.zeros((rows, columns), np.float32)
    function = device_function("tested", 64, [("a", kind), ("b", kind), ("c", "float32")], [], body)
    run(function, 1, [a.reshape(-1), b.reshape(-1), c.reshape(-1)])
    np.testing.assert_allclose(c, a.astype(float) @ b.astype(float), rtol=1e-5, atol=1e-5)


def test_a_product_in_tf32() -> None:
    def body(k: Kernel) -> None:
        group, quad = k.lane // 4, k.lane % 4
        left, right, sums = k.registers(4, "uint32"), k.registers(2, "uint32"), k.registers(4)
        for i in range(4):
            element = k["a"][(group + i % 2 * 8) * 8 + quad + i // 2 * 4]
            left.put(i, k.value(instructions.round_tf32, element))
            sums.put(i, T.float32(1))
        for i in range(2):
            right.put(i, k.value(instructions.round_tf32, k["b"][(quad + i * 4) * 8 + group]))
        k.call(instructions.mma_m16n8k8_tf32, sums.pointer(0), left.pointer(0), right.pointer(0))
        for i in range(4):
            k["c"].put((group + i // 2 * 8) * 8 + quad * 2 + i % 2, sums[i])

    a, b, c = random(0, 16, 8), random(1, 8, 8), np.zeros((16, 8), np.float32)
    one_warp(body, [("a", "float32"), ("b", "float32"), ("c", "float32")], [a, b, c])
    error = np.abs(c - (1 + a.astype(float) @ b.astype(float)))
    # ten bits of mantissa: off by far more than float32 would be, and by no more than it may
    assert 1e-6 < error.max() < 8 * 2**-11 * 2 * np.abs(a).max() * np.abs(b).max()


@pytest.mark.parametrize("selector", [0, 1])
@both_halves
def test_a_sparse_product(kind: str, selector: int) -> None:
    """A[16, 32] with two nonzeros of every four times B[32, 8]; other threads' metadata is ignored."""

    def body(k: Kernel) -> None:
        group, quad = k.lane // 4, k.lane % 4
        left, right, sums = k.registers(4, "uint32"), k.registers(4, "uint32"), k.registers(4)
        stored = k.view("a", "uint32")
        for i in range(4):
            left.put(i, stored[(group + i % 2 * 8) * 8 + quad + i // 2 * 4])
            low = (quad * 2 + i * 8) * 8 + group
            words = [T.cast(T.reinterpret("uint16", k["b"][low + 8 * e]), "uint32") for e in range(2)]
            right.put(i, words[0] | words[1] << T.uint32(16))
            sums.put(i, T.float32(0))
        mma = instructions.mma_sp_m16n8k32(kind, selector)
        k.call(mma, sums.pointer(0), left.pointer(0), right.pointer(0), k["metadata"][k.lane])
        for i in range(4):
            k["c"].put((group + i // 2 * 8) * 8 + quad * 2 + i % 2, sums[i])

    indices = two_of_four(2)
    metadata = sparse_metadata(indices)
    metadata[np.arange(WARP) % 4 // 2 != selector] = 0xDEADBEEF
    stored, b = random(0, 16, 16).astype(HALVES[kind]), random(1, 32, 8).astype(HALVES[kind])
    dense = np.zeros((16, 32))
    for row in range(16):
        for i in range(16):
            dense[row, i // 2 * 4 + indices[row, i]] = stored[row, i]
    c = np.zeros((16, 8), np.float32)
    pointers = [("a", kind), ("b", kind), ("metadata", "uint32"), ("c", "float32")]
    one_warp(body, pointers, [stored, b, metadata, c])
    np.testing.assert_allclose(c, dense @ b.astype(float), rtol=1e-5, atol=1e-5)


def two_of_four(seed: int, *shape: int) -> Any:
    """Random places of two nonzeros among every four, ``[..., 16, 16]``."""
    keys = np.random.default_rng(seed).random((*shape, 16, 8, 4))
    return np.sort(keys.argsort(axis=-1)[..., :2], axis=-1).reshape(*shape, 16, 16)


def test_sparse_metadata() -> None:
    """It comes back, and one register is what the manual's figure has in it."""
    indices = two_of_four(5, 3)
    for selector in (0, 1):
        np.testing.assert_array_equal(sparse_indices(sparse_metadata(indices), selector), indices)
    indices = np.tile([0, 1], (16, 8))
    indices[1, 8:12] = [2, 3, 1, 3]  # columns 16 to 23 of row 1
    indices[9, 14:] = [0, 2]  # columns 28 to 31 of row 9
    words = sparse_metadata(indices)
    # all pairs 0, 1: 0b0100; thread 5 has row 1 in its low and row 9 in its high half, columns 16 to 31
    assert set(np.delete(words, [5, 7])) == {0x44444444}
    assert words[5] == words[7] == 0x8444_44DE
    with pytest.raises(ValueError, match="in order"):
        sparse_metadata(np.zeros((16, 16), np.int64))
    with pytest.raises(InterpreterError, match="increasing order"):
        sparse_indices(np.zeros(WARP, np.uint32), 0)


# -- the compiler


def every_instruction(k: Kernel) -> None:
    """Calls all instructions; what is computed makes no sense."""
    words, floats, shared = k.registers(16, "uint32"), k.registers(16), k.shared(1024, "float16")
    for name in [n for n in vars(instructions) if n.startswith("ldmatrix_x")]:
        k.call(getattr(instructions, name), words.pointer(0), shared.pointer(k.lane * 8))
    for kind in HALVES:
        operands = floats.pointer(0), words.pointer(0), words.pointer(4)
        k.call(instructions.mma_m16n8k16(kind), *operands)
        for selector in (0, 1):
            k.call(instructions.mma_sp_m16n8k32(kind, selector), *operands, words[3])
        words.put(2, k.value(instructions.pack(kind), floats[0], floats[1]))
        k.call(instructions.unpack(kind), floats.pointer(2), words[2])
    k.call(instructions.mma_m16n8k8_tf32, *operands)
    words.put(0, k.value(instructions.round_tf32, floats[0]))
    for copy in (instructions.cp_async_4, instructions.cp_async_8, instructions.cp_async_16):
        k.call(copy, shared.pointer(8 * k.thread), k["x"].pointer(8 * k.thread), k.thread)
    k.call(instructions.cp_async_commit)
    for pending in range(8):
        k.call(instructions.cp_async_wait(pending))
    k.call(instructions.syncwarp)
    for name in ("down", "xor", "from"):
        floats.put(0, k.value(getattr(instructions, f"shuffle_{name}"), floats[0], 3))
        words.put(0, k.value(getattr(instructions, f"shuffle_{name}_u32"), words[0], 3))
    words.put(1, k.value(instructions.ballot, k.thread))
    floats.put(1, T.cast(k.value(instructions.popc, words[1]), "float32"))
    floats.put(2, instructions.warp_sum(k, floats[2]) + instructions.warp_max(k, floats[3]))
    k.call(instructions.load_once, words.pointer(4), k["x"].pointer(0))
    k.call(instructions.atomic_add, k["y"].pointer(0), floats[0])
    floats.put(5, k.value(instructions.exp2, floats[3]) + k.value(instructions.tanh, floats[1]))
    for i in range(16):
        k["y"].put(k.block * 16 + i, floats[i] + T.cast(words[i], "float32"))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_compiler_takes_every_instruction(
    arch: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find("nvcc") is None:
        pytest.skip("no nvcc")
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path))
    function = device_function("every", 64, [("x", "float16"), ("y", "float32")], [], every_instruction)
    assert kernel_cubin(function, target_named(arch)).startswith(b"\x7fELF")
