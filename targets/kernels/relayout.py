"""relayout: row-major to token panels and back, as transposes of square blocks in registers."""

from __future__ import annotations

from typing import Any

from sparsec.ir.dims import Size
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.target import Target


def _interleaved(a: Any, b: Any, lanes: int) -> tuple[Any, Any]:
    from tvm.script.ir_builder import tirx as T

    mixed = [i // 2 + (i % 2) * lanes for i in range(2 * lanes)]
    return T.Shuffle([a, b], mixed[:lanes]), T.Shuffle([a, b], mixed[lanes:])


def _transposed(k: Kernel, rows: list[Any]) -> list[Any]:
    """Transpose lanes x lanes values by log2(lanes) perfect shuffles of the rows."""
    lanes = len(rows)
    half = lanes // 2
    for stage in range(lanes.bit_length() - 1):
        mixed = [v for i in range(half) for v in _interleaved(rows[i], rows[i + half], lanes)]
        rows = [k.hold(v, lanes, stage * lanes + i) for i, v in enumerate(mixed)]
    return rows


def emit(features: int, tokens: Size, panel: int, to_panels: bool, target: Target, name: str) -> Any:
    """Copy ``x[tokens, features]`` to panels (unused lanes become 0) or back; a panel is a tile."""
    from tvm.script.ir_builder import tirx as T

    lanes = target.lanes

    def plain_at(token: Any, feature: Any) -> Any:
        return token * features + feature

    def blocks(k: Kernel, tile: Any, lane: Any) -> None:
        """Whole square blocks of one group of lanes."""
        token = k.bind(tile * panel + lane)
        with k.loop(features // lanes) as block:
            feature = k.bind(block * lanes)
            base = k.bind(tile * (features * panel) + feature * panel + lane)
            plain = [k.bind(plain_at(token + i, feature)) for i in range(lanes)]
            source = plain if to_panels else [base + i * panel for i in range(lanes)]
            goal = [base + i * panel for i in range(lanes)] if to_panels else plain
            rows = [k.bind(k.vector(k["x"], s)) for s in source]
            for where, value in zip(goal, _transposed(k, rows), strict=True):
                k.put(k["y"], where, value)

    def singles(k: Kernel, tile: Any, lane: Any, first: Any, count: Any) -> None:
        """One lane, features from ``first`` on."""
        token = k.bind(tile * panel + lane)
        with k.loop(first, features) as feature:
            inside = k.bind(tile * (features * panel) + feature * panel + lane)
            if to_panels:
                value = T.if_then_else(token < count, k["x"][plain_at(token, feature)], T.float32(0))
                k.assign(k["y"], inside, value)
            else:
                with k.when(token < count):
                    k.assign(k["y"], plain_at(token, feature), k["x"][inside])

    def body(k: Kernel) -> None:
        count = k.constant(tokens) if isinstance(tokens, int) else k.sizes["tokens"]
        whole = features // lanes * lanes
        with k.tiles() as tile, k.loop(panel // lanes) as group:
            lane0 = k.bind(group * lanes)
            full = tile * panel + lane0 + lanes <= count
            with T.If(full):
                with T.Then():
                    blocks(k, tile, lane0)
                    if features % lanes:
                        with k.loop(lanes) as i:
                            singles(k, tile, k.bind(lane0 + i), k.constant(whole), count)
                with T.Else(), k.loop(lanes) as i:
                    singles(k, tile, k.bind(lane0 + i), k.constant(0), count)

    return prim_func(name, lanes, [("x", "float32"), ("y", "float32")], ("tokens",), body)
