"""meanings: what instructions do to the interpreter's machine (their CUDA text is in instructions)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from sparsec.targets.cuda.interpreter import fragments
from sparsec.targets.cuda.interpreter.machine import WARP, Machine
from sparsec.targets.cuda.interpreter.memory import InterpreterError, Pointer, Values

Meaning = Callable[..., Any]
_LANE = np.arange(WARP)
FLOATS: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def load_matrices(count: int, transposed: bool) -> Meaning:
    """ldmatrix: lane 8 i + j supplies row j of matrix i; a lane's register i gets two elements of it."""

    def meaning(machine: Machine, to: Pointer, source: Pointer) -> None:
        machine.whole_warps()
        with machine.only((np.arange(machine.shape[1]) % WARP < 8 * count)[None, :]):
            rows = source.bytes(16, collective=True).view(np.uint16)
        matrices = machine.by_warp(rows)[:, :, : 8 * count].reshape(*_warps(machine), count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(-1, -2)
        pairs = matrices.reshape(*_warps(machine), count, WARP, 2).swapaxes(2, 3)
        to.put_registers(machine.by_thread(np.ascontiguousarray(pairs).view(np.uint32)[..., 0]))

    return meaning


def _warps(machine: Machine) -> tuple[int, int]:
    return machine.shape[0], machine.shape[1] // WARP


def multiply(kind: str) -> Meaning:
    """mma.m16n8k16 of halves: ``d[16, 8] += a[16, 16] @ b[16, 8]`` in float32."""

    def meaning(machine: Machine, d: Pointer, a: Pointer, b: Pointer) -> None:
        left = fragments.a_of_halves(_held(machine, a, 4), FLOATS[kind])
        right = fragments.b_of_halves(_held(machine, b, 2), FLOATS[kind])
        _accumulate(machine, d, left @ right)

    return meaning


def multiply_tf32(machine: Machine, d: Pointer, a: Pointer, b: Pointer) -> None:
    """mma.m16n8k8 of float32 cut to ten bits of mantissa."""
    left, right = fragments.a_of_tf32(_held(machine, a, 4)), fragments.b_of_tf32(_held(machine, b, 2))
    _accumulate(machine, d, left @ right)


def multiply_sparse(kind: str, selector: int) -> Meaning:
    """mma.sp.m16n8k32: ``d[16, 8] += a[16, 32] @ b[32, 8]``, half of a's elements zero and not stored."""

    def meaning(machine: Machine, d: Pointer, a: Pointer, b: Pointer, metadata: Values) -> None:
        words = machine.by_warp(metadata.astype(np.uint32))
        # warps that are not active may hold anything
        words = np.where(machine.whole_warps()[..., None], words, np.uint32(0x44444444))
        indices = fragments.sparse_indices(words, selector)
        left = fragments.expanded(fragments.a_of_halves(_held(machine, a, 4), FLOATS[kind]), indices)
        right = fragments.b_of_halves(_held(machine, b, 4), FLOATS[kind])
        _accumulate(machine, d, left @ right)

    return meaning


def _held(machine: Machine, pointer: Pointer, count: int) -> Values:
    return machine.by_warp(pointer.registers(count, np.uint32))


def _accumulate(machine: Machine, d: Pointer, product: Values) -> None:
    d.put_registers(d.registers(4, np.float32) + machine.by_thread(fragments.d_of(product)))


def copy_later(nbytes: int) -> Meaning:
    """cp.async: bytes arrive when their group is waited for; zeros, and no read, where not ``valid``."""

    def meaning(machine: Machine, to: Pointer, source: Pointer, valid: Values) -> None:
        data = np.zeros((*machine.shape, nbytes), np.uint8)
        wanted = valid != 0
        with machine.only(wanted):
            if machine.any_active():
                data = np.where(wanted[..., None], source.bytes(nbytes), data)
        machine.copy_later(to, data)

    return meaning


def commit(machine: Machine) -> None:
    """cp.async.commit_group."""
    machine.commit_copies()


def wait(pending: int) -> Meaning:
    """cp.async.wait_group."""
    return lambda machine: machine.wait_copies(pending)


def sync_warp(machine: Machine) -> None:
    """__syncwarp."""
    machine.sync_warp()


def shuffle_down(machine: Machine, value: Values, distance: Values) -> Values:
    """__shfl_down_sync: the value of the lane ``distance`` further on, one's own where there is none."""
    return _shuffled(machine, value, lambda lane: np.where(lane + _by(machine, distance) < WARP,
                                                          lane + _by(machine, distance), lane))  # fmt: skip


def shuffle_xor(machine: Machine, value: Values, mask: Values) -> Values:
    """__shfl_xor_sync."""
    return _shuffled(machine, value, lambda lane: lane ^ _by(machine, mask))


def shuffle_from(machine: Machine, value: Values, source: Values) -> Values:
    """__shfl_sync: the value of lane ``source``."""
    return _shuffled(machine, value, lambda lane: _by(machine, source) + 0 * lane)


def _by(machine: Machine, value: Values) -> Values:
    return machine.by_warp(value).astype(np.int64)


def _shuffled(machine: Machine, value: Values, source: Callable[[Values], Values]) -> Values:
    lanes = machine.by_warp(value)
    return machine.by_thread(np.take_along_axis(lanes, source(_LANE) % WARP, axis=2))


def ballot(machine: Machine, predicate: Values) -> Values:
    """__ballot_sync: bit i is set where lane i's predicate holds."""
    bits = (machine.by_warp(predicate) != 0).astype(np.uint64) << _LANE.astype(np.uint64)
    word = bits.sum(axis=2, dtype=np.uint64).astype(np.uint32)[..., None]
    return machine.by_thread(np.broadcast_to(word, (*word.shape[:2], WARP)))


def population(machine: Machine, value: Values) -> Values:
    """__popc."""
    return np.bitwise_count(value.astype(np.uint32)).astype(np.int32)


def pack(kind: str) -> Meaning:
    """Two float32 to one register of two halves, the first lower."""

    def meaning(machine: Machine, low: Values, high: Values) -> Values:
        pairs = np.stack(np.broadcast_arrays(low, high), axis=-1).astype(FLOATS[kind])
        return np.ascontiguousarray(pairs).view(np.uint32)[..., 0]

    return meaning


def unpack(kind: str) -> Meaning:
    """One register of two halves to two float32."""

    def meaning(machine: Machine, to: Pointer, word: Values) -> None:
        pairs = np.ascontiguousarray(word.astype(np.uint32)[..., None]).view(FLOATS[kind])
        to.put_registers(pairs.astype(np.float32))

    return meaning


def load_once(machine: Machine, to: Pointer, source: Pointer) -> None:
    """ld.global.nc.v4: sixteen bytes of read-only memory to four registers."""
    to.put_registers(source.bytes(16).view(np.uint32))


def store_quad(machine: Machine, to: Pointer, source: Pointer) -> None:
    """st.global.v4: four registers to sixteen bytes of memory."""
    to.store(source.registers(4, np.float32), lanes=4)


def round_tf32(machine: Machine, value: Values) -> Values:
    """cvt.rna.tf32: to ten bits of mantissa, ties away from zero."""
    bits = np.ascontiguousarray(value.astype(np.float32)).view(np.uint32)
    return (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def atomic_add(machine: Machine, to: Pointer, value: Values) -> None:
    """atomicAdd, thread after thread; accesses of shared memory by it are not checked for hazards."""
    if to.dtype != np.float32:
        raise InterpreterError(f"atomic_add adds float32, the pointer is of {to.dtype}")
    to.add(value)


def elementwise(function: Callable[..., Any]) -> Meaning:
    """A function of float32 numbers."""
    return lambda machine, *values: np.asarray(function(*values), dtype=np.float32)


def expand_halves(machine: Machine, to: Pointer, source: Pointer, word: Values, first: Values) -> None:
    """Four halves: the next from memory where their bit is set, zero elsewhere."""
    rank, halves = np.zeros(machine.shape, np.int64), []
    for i in range(4):
        bit = first.astype(np.uint32) << np.uint32(i)
        taken = np.broadcast_to((word.astype(np.uint32) & bit) != 0, machine.shape)
        with machine.only(taken):
            halves.append(np.where(taken, source.load(rank, np.uint16), np.uint16(0)).astype(np.uint32))
        rank = rank + taken
    pairs = [halves[i] | halves[i + 1] << np.uint32(16) for i in (0, 2)]
    to.put_registers(np.stack(pairs, axis=-1).astype(np.uint32))
