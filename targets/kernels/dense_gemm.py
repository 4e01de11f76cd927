"""dense_gemm: dense weights times token panels.

The block kernel with no index: micro-tiles of MR rows by NV vectors, K cut into blocks whose
tile of X stays in L2, partial sums resting in Y between blocks (the loop order of Goto and van
de Geijn 2008, with the panel already packed).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cost import epilogue_cycles, stream_cycles
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.kernels.epilogue import extra_pointers, finish
from sparsec.targets.kernels.panel_visits import run_time_sizes
from sparsec.targets.target import Packing, Problem, Target

name = "dense_gemm"
format = "dense"


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """Any weight, on token panels."""
    return problem.panel > 0 and problem.panel % target.lanes == 0


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """The tallest tile the registers hold beside its X vectors and a broadcast."""
    available = problem.panel // target.lanes
    vectors = next(v for v in (4 if target.registers >= 32 else 2, 2, 1) if available % v == 0)
    height = min((target.registers - vectors - 2) // vectors, 12, problem.rows)
    # a quarter of L2: the tile of X is read in order, so the prefetcher brings it to L1 in time
    block = min(problem.inner, max(64, target.l2 // 4 // (problem.panel * 4)))
    return ({"height": height, "vectors": vectors, "block": block},)


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one run on one core: multiply-adds, accumulators in and out, W from L2 or L3."""
    panels = -(-(problem.columns or problem.panel) // problem.panel)
    height, vectors = config["height"], config["vectors"]
    tiles = -(-problem.rows // height)
    parts = problem.panel // (vectors * target.lanes)
    blocks = -(-problem.inner // config["block"])
    per_step = max(height * vectors, vectors + height) / 2
    visits = tiles * parts * blocks * (6 + height * vectors)
    weight_bytes = problem.rows * problem.inner * 4
    stream = stream_cycles(weight_bytes, target)
    compute = tiles * parts * problem.inner * per_step * 1.05 + visits
    vectors_out = problem.rows * problem.panel / target.lanes
    return panels * (max(compute, stream) + 0.15 * stream + vectors_out * epilogue_cycles(problem))


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Every weight."""
    return 4 * problem.rows * problem.inner


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """``weight[M, K]`` as [ceil(M/height)][K][height], the last tile padded with zeros."""
    height = config["height"]
    tiles = -(-problem.rows // height)
    padded = np.zeros((tiles * height, problem.inner), np.float32)
    padded[: problem.rows] = weight
    packed = np.ascontiguousarray(padded.reshape(tiles, height, -1).transpose(0, 2, 1))
    # enough units of work for a few threads, each with several row tiles
    chunks = max(1, min(8, problem.rows // (height * 4)))
    settings = {**config, "chunks": chunks}
    return Packing({"values": packed.reshape(-1)}, chunks, tuple(sorted(settings.items())))


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    from tvm.script.ir_builder import tirx as T

    config = dict(packing.config)
    height, vectors, block = config["height"], config["vectors"], config["block"]
    chunks, panel = config["chunks"], problem.panel
    whole, left = divmod(problem.rows, height)
    per_chunk = -(-max(whole, 1) // chunks)
    blocks = -(-problem.inner // block)
    parts = panel // (vectors * target.lanes)

    def micro(
        k: Kernel, acc: Any, x: Any, y: Any, tile: Any, start: int, depth: int, rows: int, state: Any
    ) -> None:
        first, last, parts, vectors = state
        row0 = k.bind(k.cast64(tile) * height) if not isinstance(tile, int) else tile * height
        with k.loop(parts) as part:
            lane0 = k.bind(part * (vectors * k.lanes))
            at = [(r, v) for r in range(rows) for v in range(vectors)]
            for r, v in at:
                where = y + (row0 + r) * panel + lane0 + v * k.lanes
                k.assign(acc, r * vectors + v, k.splat(0.0) if first else k.vector(k["y"], where))
            with k.loop(depth) as j:
                line = k.bind(x + j * panel + lane0)
                xs = [k.bind(k.vector(k["x"], line + v * k.lanes)) for v in range(vectors)]
                base = k.bind((k.cast64(tile) * problem.inner + start + j) * height)
                for r in range(rows):
                    w = k.bind(k.splat(k["values"][base + r]))
                    for v in range(vectors):
                        k.assign(acc, r * vectors + v, acc[r * vectors + v] + w * xs[v])
            for r, v in at:
                where = y + (row0 + r) * panel + lane0 + v * k.lanes
                value = acc[r * vectors + v]
                k.put(k["y"], where, finish(k, problem, value, row0 + r, where) if last else value)

    def body(k: Kernel) -> None:
        acc = k.registers(height * vectors)
        with k.tiles() as work:
            panel_index, chunk = k.bind(work // chunks), k.bind(work % chunks)
            if problem.columns is not None:
                nest(k, acc, panel_index, chunk, parts, vectors)
                return
            # a last panel of few tokens, or a single token, computes one vector of them
            with T.If(k.sizes["tokens"] - panel_index * panel <= k.lanes):
                with T.Then():
                    nest(k, acc, panel_index, chunk, 1, 1)
                with T.Else():
                    nest(k, acc, panel_index, chunk, parts, vectors)

    def nest(k: Kernel, acc: Any, panel_index: Any, chunk: Any, parts: int, vectors: int) -> None:
        x = k.bind(panel_index * (problem.inner * panel))
        y = k.bind(panel_index * (problem.rows * panel))
        low = k.bind(chunk * per_chunk)
        high = k.bind(T.min(low + per_chunk, whole))
        for b in range(blocks):
            depth = min(block, problem.inner - b * block)
            state = (b == 0, b == blocks - 1, parts, vectors)
            here = x + b * block * panel
            with k.loop(low, high) as tile:
                micro(k, acc, here, y, tile, b * block, depth, height, state)
            if left:
                with k.when(chunk == chunks - 1):
                    micro(k, acc, here, y, whole, b * block, depth, left, state)

    pointers = [("x", "float32"), ("values", "float32"), *extra_pointers(problem), ("y", "float32")]
    return prim_func(name, target.lanes, pointers, run_time_sizes(problem), body)
