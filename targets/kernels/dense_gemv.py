"""dense_gemv: dense weights times one to four columns; reading the weights is the work.

Weights are stored as they are read: bands of rows, in each band all inputs, lanes of rows side
by side, so that the whole product is one stream of multiply-adds with memory operands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cost import epilogue_cycles, stream_cycles
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish_across
from sparsec.targets.target import Packing, Problem, Target

name = "dense_gemv"
format = "dense"


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """One to four columns in plain layout."""
    fits = problem.columns is not None and 1 <= problem.columns <= 4
    return problem.conv is None and problem.panel == 0 and fits


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """As many vectors of rows a band as keep eight accumulators busy."""
    columns = problem.columns or 1
    vectors = max(1, min(8 // columns, -(-problem.rows // target.lanes)))
    return ({"vectors": vectors},)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run: the weights' bytes at the rate of the cache that holds them."""
    stream = stream_cycles(nbytes(problem, pattern, config, target), target)
    columns = problem.columns or 1
    compute = problem.rows * problem.inner / target.lanes * max(0.6, columns / 2)
    out = problem.rows * columns / target.lanes * (2 + epilogue_cycles(problem))
    return max(stream, compute) + out + 40


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every weight."""
    return 4 * problem.rows * problem.inner


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """``weight[M, K]`` as [bands][K][vectors * lanes], the last band padded with zeros."""
    wide = config["vectors"] * target.lanes
    bands = -(-problem.rows // wide)
    padded = np.zeros((bands * wide, problem.inner), np.float32)
    padded[: problem.rows] = weight
    packed = np.ascontiguousarray(padded.reshape(bands, wide, -1).transpose(0, 2, 1)).reshape(-1)
    return Packing({"values": packed}, bands, tuple(sorted({**config, "chunks": bands}.items())))


def scratch_floats(problem: Problem, packing: Packing, target: Target) -> int:
    """Room for one band of results, where it is cut off at the last row."""
    return 8 * target.lanes * 4


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    lanes, columns = target.lanes, problem.columns or 1
    vectors = dict(packing.config)["vectors"]
    wide = vectors * lanes
    whole = problem.rows // wide

    def accumulate(k: Kernel, acc: Any, band: Any) -> None:
        for i in range(columns * vectors):
            k.assign(acc, i, k.splat(0.0))
        with k.loop(problem.inner) as j:
            line = k.bind((band * problem.inner + j) * wide)
            weights = [k.bind(k.vector(k["values"], line + v * lanes)) for v in range(vectors)]
            for n in range(columns):
                x = k.bind(k.splat(k["x"][n * problem.inner + j]))
                for v in range(vectors):
                    k.assign(acc, n * vectors + v, acc[n * vectors + v] + x * weights[v])

    def store_whole(k: Kernel, acc: Any, band: Any) -> None:
        for n in range(columns):
            for v in range(vectors):
                row = k.bind(band * wide + v * lanes)
                where = n * problem.rows + row
                k.put(k["y"], where, finish_across(k, problem, acc[n * vectors + v], row, where, lanes))

    def store_part(k: Kernel, acc: Any) -> None:
        row0 = whole * wide
        for n in range(columns):
            for v in range(vectors):
                k.put(k.scratch, v * lanes, acc[n * vectors + v])
            with k.loop(problem.rows - row0) as i:
                value = k.bind(k.scratch[i])
                where = n * problem.rows + row0 + i
                k.assign(k["y"], where, finish_across(k, problem, value, row0 + i, where, 1))

    def body(k: Kernel) -> None:
        acc = k.registers(columns * vectors)
        with k.tiles() as band:
            accumulate(k, acc, band)
            if whole:
                with k.when(band < whole):
                    store_whole(k, acc, band)
            if problem.rows % wide:
                with k.when(band == whole):
                    store_part(k, acc)

    pointers = [("x", "float32"), ("values", "float32"), *extra_pointers(problem), ("y", "float32")]
    return prim_func(name, lanes, pointers, (), body)
