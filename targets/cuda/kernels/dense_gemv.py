"""dense_gemv: dense weights times one to sixteen columns; reading the weight is the work.

Halves go through tensor cores (see octets), not for their rate but because sixteen tokens take as few
instructions as one: 8 rows x 32 inputs are one 128-bit load a lane and two multiply instructions, where
plain multiply-adds of 16 tokens would take longer than the bytes (a multiprocessor of an H200 gets 16 bytes
a cycle from memory, and has 128 lanes: sixteen instructions a half). The weight is stored in the order it
is read, a warp's load 512 bytes side by side; each lane has four loads on their way at a time, which over
32 warps is 64 KB a multiprocessor, three times what memory's latency asks.

float32: a warp has four rows; a lane multiplies four inputs by all columns, whose numbers serve the four
rows, and shuffles add the lanes' sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda import cost, expressions, instructions
from sparsec.targets.cuda.builder import Kernel, device_function, int64
from sparsec.targets.cuda.parts.octets import (
    OCTET,
    STEP,
    WORDS,
    Octets,
    block_place,
    deliver,
    from_memory,
    multiply,
    zeros,
)  # fmt: skip
from sparsec.targets.cuda.tir import tirx
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "dense_gemv"
format = "dense"

#: columns from which on tiles of tokens are for dense_gemm
MOST_COLUMNS = 16
#: steps of 32 inputs whose loads a warp issues together
STEPS = 4
#: float32: rows of a warp, inputs of a lane's load, inputs of a warp's step
FLOAT_ROWS, _FOUR, _FLOAT_STEP = 4, 4, 128


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """One to sixteen columns whose rows begin at multiples of 16 bytes."""
    few = problem.columns is not None and 1 <= problem.columns <= MOST_COLUMNS
    return problem.conv is None and few and problem.inner * cost.item_bytes(problem) % 16 == 0


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """More warps share a row where there are few rows."""
    if problem.dtype == "float32":
        return ({"octets": 0, "high": 1, "deep": 8},)
    few = (problem.columns or 1) <= 8
    best = {"octets": 1 if few else 2, "high": 1, "deep": 8}
    blocks = problem.rows / (OCTET * best["octets"])
    if blocks < 2 * cost.gpu_of(target).multiprocessors:
        tall = {"octets": 2, "high": 2, "deep": 8}
        short = {**best, "octets": 1, "deep": 16}
        return (short, best) if few else (tall, short)
    # rows of one block share the tokens in L1
    wide = {"octets": 2, "high": 2 if few else 4, "deep": 4}
    return (best, wide) if few else (wide, best)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch: the weight's bytes."""
    columns, item = problem.columns or 1, cost.item_bytes(problem)
    rows = _rows(config)
    blocks = -(-problem.rows // rows)
    x_bytes = columns * problem.inner * item
    lanes = problem.rows * problem.inner
    # multiply-adds of float32; for halves some twelve instructions for 256 weights
    operations = lanes * (2 + 2.2 * columns) if problem.dtype == "float32" else lanes * 12 / 8
    return cost.kernel_cycles(
        target, operations=operations, rate=cost.gpu_of(target).flops / 2 * 0.8, blocks=blocks,
        resident=4, memory_bytes=nbytes(problem, pattern, config, target) + x_bytes,
        l2_bytes=nbytes(problem, pattern, config, target) + blocks * x_bytes,
    )  # fmt: skip


def _rows(config: Mapping[str, int]) -> int:
    """Rows of a block."""
    octets = config["octets"]
    return OCTET * octets * config["high"] if octets else FLOAT_ROWS


def _shape(problem: Problem, config: Mapping[str, int]) -> Octets:
    return Octets(problem.columns or 1, config["octets"], config["high"], config["deep"])


def _padded(problem: Problem, config: Mapping[str, int]) -> tuple[int, int]:
    """Rows and inputs as stored: whole blocks, and steps of a warp."""
    rows, inner = _rows(config), STEP * STEPS if config["octets"] else _FLOAT_STEP
    return -(-problem.rows // rows) * rows, -(-problem.inner // inner) * inner


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every weight, and zeros to whole steps."""
    rows, inner = _padded(problem, config)
    return rows * inner * cost.item_bytes(problem)


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """``weight[M, K]`` padded; for halves as [M / 8][K / 32][8][32]."""
    rows, inner = _padded(problem, config)
    padded = np.zeros((rows, inner), weight.dtype)
    padded[: problem.rows, : problem.inner] = weight
    if config["octets"]:
        padded = padded.reshape(rows // OCTET, OCTET, inner // STEP, STEP).transpose(0, 2, 1, 3)
    values = np.ascontiguousarray(padded).reshape(-1)
    return Packing({"values": values}, 0, tuple(sorted(config.items())))


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A block for so many rows."""
    return sizes.of(-(-problem.rows // _rows(dict(packing.config))))


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    config = dict(packing.config)
    body = _halves if config["octets"] else _floats
    dtype = problem.dtype
    pointers = [("x", dtype), ("values", dtype), *expressions.extra_pointers(problem), ("y", dtype)]
    threads = 32 * config["high"] * config["deep"]
    return device_function(name, threads, pointers, [], lambda k: body(k, problem, config))


def _halves(k: Kernel, problem: Problem, config: Mapping[str, int]) -> None:
    shape = _shape(problem, config)
    _, inner = _padded(problem, config)
    turns, steps = inner // (STEP * STEPS), inner // STEP
    memory = k.shared(shape.sum_bytes, "uint8").start
    token, row = block_place(k, problem, shape)
    read = from_memory(k, problem, shape)
    accumulators = zeros(k, shape)
    values = k.view("values", "uint32")
    octet = row // OCTET + int64(k.warp % shape.high * shape.octets)
    # words of an octet's step: 8 rows x 16
    starts = [k.bind((octet + o) * (steps * 128) + int64(k.lane * 4)) for o in range(shape.octets)]
    deep = k.bind(k.warp // shape.high)
    with k.loop((turns - deep + (shape.deep - 1)) // shape.deep) as turn:
        first = k.bind((turn * shape.deep + deep) * STEPS)
        weights = [k.registers(4 * shape.octets, "uint32") for _ in range(STEPS)]
        words = [k.registers(WORDS, "uint32") for _ in range(STEPS)]
        for step in range(STEPS):
            for o in range(shape.octets):
                source = values.pointer(starts[o] + int64(first + step) * 128)
                k.call(instructions.load_once, weights[step].pointer(4 * o), source)
            read(words[step], (first + step) * STEP)
        for step in range(STEPS):
            for o in range(shape.octets):
                multiply(k, shape, problem.dtype, accumulators, (0, o), words[step], weights[step])
    deliver(k, problem, shape, accumulators, (token, row), memory)


def _floats(k: Kernel, problem: Problem, config: Mapping[str, int]) -> None:
    columns, deep = problem.columns or 1, config["deep"]
    _, inner = _padded(problem, config)
    sums = k.shared(deep * FLOAT_ROWS * columns, "float32")
    row = k.bind(k.block * FLOAT_ROWS)
    accumulators = k.registers(FLOAT_ROWS * columns)
    for i in range(FLOAT_ROWS * columns):
        accumulators.put(i, expressions.constant(0))
    turns = inner // _FLOAT_STEP
    with k.loop((turns - k.warp + (deep - 1)) // deep) as turn:
        at = k.bind(int64(((turn * deep + k.warp) * 32 + k.lane) * _FOUR))
        weights = [expressions.load(k, k["values"], (row + r) * inner + at, _FOUR) for r in range(FLOAT_ROWS)]
        with k.when(at < problem.inner):
            for n in range(columns):
                x = expressions.load(k, k["x"], n * problem.inner + at, _FOUR)
                for r in range(FLOAT_ROWS):
                    total = accumulators[r * columns + n]
                    for i in range(_FOUR):
                        total = total + weights[r][i] * x[i]
                    accumulators.put(r * columns + n, total)
    for i in range(FLOAT_ROWS * columns):
        total = k.bind(instructions.warp_sum(k, accumulators[i]))
        with k.when(k.lane == 0):
            sums.put(k.warp * (FLOAT_ROWS * columns) + i, total)
    k.sync()
    _store_floats(k, problem, sums, row, deep)


def _store_floats(k: Kernel, problem: Problem, sums: Any, first: Any, deep: int) -> None:
    columns = problem.columns or 1
    count = FLOAT_ROWS * columns
    row, column = k.bind(first + int64(k.thread // columns)), k.bind(int64(k.thread % columns))
    with k.when(tirx.all(k.thread < count, row < problem.rows)):
        total = sums[k.thread]
        for d in range(1, deep):
            total = total + sums[d * count + k.thread]
        offset = k.bind(column * problem.rows + row)
        values = expressions.finish(k, problem, [k.bind(total)], row, offset)
        expressions.store(k, k["y"], offset, values)
