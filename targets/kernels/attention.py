"""attention: softmax(q k^T * scale + mask) v for one head and one block of queries a tile.

Queries lie along the vector lanes from end to end, so scores, softmax and output need no
shuffle and no sum across lanes; only one block's scores exist at a time, in scratch.  Each
operand may be stored row-major or in token panels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsec.ir.dims import Size
from sparsec.targets.kernels import math
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.target import Target

#: the lowest number: where a mask adds it to every key, all keys weigh alike
_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel is generated for.

    ``mask`` says for batch, heads and queries whether the mask has entries of its own.
    """

    heads: int
    depth: int
    value_depth: int
    scale: float
    queries: Size
    keys: Size
    panels: tuple[int, int, int, int]
    mask: tuple[bool, bool, bool] | None = None


def block_of_queries(shape: Shape, target: Target) -> int:
    """Queries a tile: four vectors, fewer for short sequences."""
    most = 4 * target.lanes
    if isinstance(shape.queries, int):
        while most > target.lanes and most // 2 >= shape.queries:
            most //= 2
    return most


def emit(shape: Shape, target: Target, name: str) -> Any:
    """The TIR function; sizes: queries, keys, blocks of queries; tiles: batch x heads x blocks."""
    block = block_of_queries(shape, target)
    pointers = [("q", "float32"), ("k", "float32"), ("v", "float32")]
    if shape.mask is not None:
        pointers.append(("mask", "float32"))
    writer = _Writer(shape, target, block, block // target.lanes, 4 if target.registers >= 32 else 2)
    return prim_func(
        name, target.lanes, [*pointers, ("y", "float32")], ("queries", "keys", "blocks"), writer.body
    )


def _address(panel: int, features: int, token: Any, feature: Any) -> Any:
    from tvm.script.ir_builder import tirx as T

    if not panel:
        return token * features + feature
    # panels are powers of two
    lane = T.bitwise_and(token, panel - 1)
    return (token - lane) * features + feature * panel + lane


@dataclass(slots=True)
class _Writer:
    """Emits one tile: scratch holds the queries [depth][block], then the scores [keys][block]."""

    shape: Shape
    target: Target
    block: int
    vectors: int
    rows: int

    def body(self, k: Kernel) -> None:
        from tvm.script.ir_builder import tirx as T

        s = self.shape
        queries = k.constant(s.queries) if isinstance(s.queries, int) else k.sizes["queries"]
        keys = k.constant(s.keys) if isinstance(s.keys, int) else k.sizes["keys"]
        acc = k.registers(self.rows * self.vectors)
        top, total = k.registers(self.vectors), k.registers(self.vectors)
        with k.tiles() as tile:
            line, first = T.truncdiv(tile, k.sizes["blocks"]), T.truncmod(tile, k.sizes["blocks"])
            first = k.bind(first * self.block)
            head = k.bind(T.truncmod(line, k.constant(s.heads)))
            batch = k.bind(T.truncdiv(line, k.constant(s.heads)))
            self.load_queries(k, batch * queries, queries, first, head)
            for v in range(self.vectors):
                k.assign(top, v, k.splat(_LOWEST))
                k.assign(total, v, k.splat(0.0))
            self.scores(k, acc, top, batch, keys, queries, first, head)
            self.exponentials(k, top, total, keys)
            self.values(k, acc, total, batch, keys, queries, first, head)

    @property
    def scores_at(self) -> int:
        return self.shape.depth * self.block

    def load_queries(self, k: Kernel, token0: Any, queries: Any, first: Any, head: Any) -> None:
        from tvm.script.ir_builder import tirx as T

        s = self.shape
        with k.loop(self.block) as c:
            token = k.bind(token0 + T.min(first + c, queries - 1))
            with k.loop(s.depth) as d:
                where = _address(s.panels[0], s.heads * s.depth, token, head * s.depth + d)
                k.assign(k.scratch, d * self.block + c, k["q"][where] * T.float32(s.scale))

    def in_rows(self, k: Kernel, count: Any, work: Callable[[Any, int], None]) -> None:
        """``work(start, height)`` over rows, several at a time, then one at a time."""
        from tvm.script.ir_builder import tirx as T

        whole = k.bind(T.truncdiv(count, k.constant(self.rows)))
        with k.loop(whole) as i:
            work(k.bind(i * self.rows), self.rows)
        with k.loop(whole * self.rows, count) as i:
            work(i, 1)

    def scores(
        self, k: Kernel, acc: Any, top: Any, batch: Any, keys: Any, queries: Any, first: Any, head: Any
    ) -> None:
        from tvm.script.ir_builder import tirx as T

        s = self.shape
        line = self.mask_line(k, batch, head)

        def some(key: Any, height: int) -> None:
            for i in range(height * self.vectors):
                k.assign(acc, i, k.splat(0.0))
            tokens = [k.bind(batch * keys + key + r) for r in range(height)]
            features = s.heads * s.depth
            starts = [k.bind(_address(s.panels[1], features, t, head * s.depth)) for t in tokens]
            with k.loop(s.depth) as d:
                qs = [k.bind(k.vector(k.scratch, d * self.block + v * k.lanes)) for v in range(self.vectors)]
                for r in range(height):
                    w = k.bind(k.splat(k["k"][starts[r] + d * (s.panels[1] or 1)]))
                    for v in range(self.vectors):
                        k.assign(acc, r * self.vectors + v, acc[r * self.vectors + v] + w * qs[v])
            for r in range(height):
                for v in range(self.vectors):
                    score = k.bind(
                        acc[r * self.vectors + v] + self.mask(k, line, queries, keys, first, key + r, v)
                    )
                    k.put(k.scratch, self.scores_at + (key + r) * self.block + v * k.lanes, score)
                    k.assign(top, v, T.max(top[v], score))

        self.in_rows(k, keys, some)

    def mask_line(self, k: Kernel, batch: Any, head: Any) -> Any:
        """Which of the mask's pages [queries][keys] is read."""
        has_batch, has_head, _ = self.shape.mask or (False, False, False)
        page = batch if has_batch else k.constant(0)
        return k.bind(page * self.shape.heads + head if has_head else page)

    def mask(self, k: Kernel, page: Any, queries: Any, keys: Any, first: Any, key: Any, v: int) -> Any:
        from tvm.script.ir_builder import tirx as T

        s = self.shape
        if s.mask is None:
            return k.splat(0.0)
        if not s.mask[2]:
            return k.splat(k["mask"][page * keys + key])
        at = [T.min(first + v * k.lanes + i, queries - 1) for i in range(k.lanes)]
        return T.Shuffle([k["mask"][(page * queries + q) * keys + key] for q in at], list(range(k.lanes)))

    def exponentials(self, k: Kernel, top: Any, total: Any, keys: Any) -> None:
        with k.loop(keys) as key:
            for v in range(self.vectors):
                where = k.bind(self.scores_at + key * self.block + v * k.lanes)
                e = math.exp(k.hold(k.vector(k.scratch, where) - top[v], k.lanes, v))
                k.put(k.scratch, where, e)
                k.assign(total, v, total[v] + k.vector(k.scratch, where))

    def values(
        self, k: Kernel, acc: Any, total: Any, batch: Any, keys: Any, queries: Any, first: Any, head: Any
    ) -> None:
        s = self.shape
        for v in range(self.vectors):
            k.assign(total, v, k.splat(1.0) / total[v])

        def some(d: Any, height: int) -> None:
            for i in range(height * self.vectors):
                k.assign(acc, i, k.splat(0.0))
            features = s.heads * s.value_depth
            with k.loop(keys) as key:
                token = k.bind(batch * keys + key)
                start = k.bind(_address(s.panels[2], features, token, head * s.value_depth + d))
                line = k.bind(self.scores_at + key * self.block)
                ps = [k.bind(k.vector(k.scratch, line + v * k.lanes)) for v in range(self.vectors)]
                for r in range(height):
                    w = k.bind(k.splat(k["v"][start + r * (s.panels[2] or 1)]))
                    for v in range(self.vectors):
                        k.assign(acc, r * self.vectors + v, acc[r * self.vectors + v] + w * ps[v])
            for r in range(height):
                # the queries are used up: their scratch serves as the way out
                for v in range(self.vectors):
                    k.put(k.scratch, v * k.lanes, acc[r * self.vectors + v] * total[v])
                self.store(k, batch * queries, queries, first, head * s.value_depth + d + r)

        self.in_rows(k, k.constant(s.value_depth), some)

    def store(self, k: Kernel, token0: Any, queries: Any, first: Any, feature: Any) -> None:
        from tvm.script.ir_builder import tirx as T

        s = self.shape
        features = s.heads * s.value_depth
        count = k.bind(T.min(queries - first, k.constant(self.block)))
        panel = s.panels[3]
        start = k.bind(_address(panel, features, token0 + first, feature))

        def singles() -> None:
            with k.loop(count) as c:
                where = _address(panel, features, token0 + first + c, feature)
                k.assign(k["y"], where, k.scratch[c])

        if panel != self.block:
            singles()
            return
        with T.If(T.And(count == self.block, (token0 + first) % panel == 0)):
            with T.Then():
                for v in range(self.vectors):
                    k.put(k["y"], start + v * k.lanes, k.vector(k.scratch, v * k.lanes))
            with T.Else():
                singles()
