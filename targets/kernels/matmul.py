"""matmul: two tensors that are both computed at run time (or a constant that is no layer).

Row-major ``y[batch, i, :] = a[batch, i, :] @ b[batch, :, :]`` with vectors along the last axis;
a tile is a band of four rows.
"""

from __future__ import annotations

from typing import Any

from sparsec.ir.dims import Size
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.target import Target

ROWS = 4


def emit(inner: Size, columns: Size, repeat: tuple[bool, bool], target: Target, name: str) -> Any:
    """The TIR function; sizes: rows, inner, columns; tiles: batch x ceil(rows / 4).

    ``repeat[i]``: operand i has no batch axes and serves every batch.
    """
    from tvm.script.ir_builder import tirx as T

    vectors = 2

    def body(k: Kernel) -> None:
        rows = k.sizes["rows"]
        depth = k.constant(inner) if isinstance(inner, int) else k.sizes["inner"]
        wide = k.constant(columns) if isinstance(columns, int) else k.sizes["columns"]
        acc, single = k.registers(ROWS * vectors), k.registers(ROWS, 1)
        bands = k.bind((rows + (ROWS - 1)) // ROWS)

        def product(
            a0: Any, b0: Any, y0: Any, start: Any, height: int, many: int, lanes: int, store: Any
        ) -> None:
            for i in range(height * many):
                k.assign(store, i, k.splat(0.0, lanes))
            with k.loop(depth) as d:
                line = k.bind(b0 + d * wide + start)
                bs = [k.bind(k.vector(k["b"], line + v * lanes, lanes)) for v in range(many)]
                for r in range(height):
                    a = k.bind(k.splat(k["a"][a0 + r * depth + d], lanes))
                    for v in range(many):
                        k.assign(store, r * many + v, store[r * many + v] + a * bs[v])
            for r in range(height):
                for v in range(many):
                    k.put(k["y"], y0 + r * wide + start + v * lanes, store[r * many + v], lanes)

        def band(a0: Any, b0: Any, y0: Any, height: int) -> None:
            step = vectors * k.lanes
            whole = k.bind(wide // step)
            with k.loop(whole) as i:
                product(a0, b0, y0, k.bind(i * step), height, vectors, k.lanes, acc)
            with k.loop(whole * step, wide) as j:
                product(a0, b0, y0, j, height, 1, 1, single)

        with k.tiles() as tile:
            batch, row = k.bind(tile // bands), k.bind(tile % bands * ROWS)
            left = k.bind(T.min(rows - row, k.constant(ROWS)))
            a = k.bind((k.constant(0) if repeat[0] else batch * (rows * depth)) + row * depth)
            b = k.bind(k.constant(0) if repeat[1] else batch * (depth * wide))
            y = k.bind(batch * (rows * wide) + row * wide)
            with T.If(left == ROWS):
                with T.Then():
                    band(a, b, y, ROWS)
                with T.Else(), k.loop(left) as r:
                    band(k.bind(a + r * depth), b, k.bind(y + r * wide), 1)

    return prim_func(
        name, target.lanes, [(n, "float32") for n in ("a", "b", "y")], ("rows", "inner", "columns"), body
    )
