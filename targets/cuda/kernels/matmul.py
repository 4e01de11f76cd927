"""matmul: the product of two tensors that are both computed at run time (or of a constant that is no layer).

``y[batch, i, :] = a[batch, i, :] @ b[batch, :, :]``, row-major, batches broadcast as in NumPy.  A block makes
a tile, on tensor cores for values of two bytes, by multiply-adds for float32; rows of b are lines of K, which
transposing reads turn.  Every size may be known only at run time; copies are 16 bytes where rows of a and b
are known to be a multiple of that, single elements where they are odd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from sparsec.errors import Unsupported
from sparsec.ir.attributes import MatmulAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Node
from sparsec.targets.calls import Call, Context, known
from sparsec.targets.cuda import expressions, leftover
from sparsec.targets.cuda.builder import Kernel, device_function, int64, integer
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.cost import gpu_of, kernel_cycles
from sparsec.targets.cuda.kernels.elementwise import FLOATS
from sparsec.targets.cuda.parts import float_tiles
from sparsec.targets.cuda.parts.float_tiles import FloatTiling
from sparsec.targets.cuda.parts.linear_tiles import mma_rate, vector_of
from sparsec.targets.cuda.parts.mma_epilogue import Store, deliver
from sparsec.targets.cuda.parts.mma_tiles import (
    Place,
    Reader,
    Source,
    Staged,
    Tiling,
    copier,
    multiplier,
    pipeline,
    zeros,
)  # fmt: skip
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.kernels.elementwise import merge
from sparsec.targets.lowering import as_matrices

#: tiles of rows x columns, the largest first
TILINGS = (
    Tiling(128, 128, 32, 2, 2, 4), Tiling(64, 64, 64, 2, 2, 3), Tiling(32, 32, 64, 2, 2, 4),
    Tiling(16, 64, 64, 1, 4, 4),
)  # fmt: skip
FLOAT_TILINGS = (
    FloatTiling(128, 128, 16, 8, 8, 3), FloatTiling(64, 64, 16, 8, 4, 4), FloatTiling(32, 32, 32, 4, 4, 3),
    FloatTiling(16, 64, 32, 4, 4, 3),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel is generated for.

    ``inner`` and ``columns`` are None where the run tells them; ``batch`` tells of each merged batch
    axis whether a and b have it.
    """

    inner: int | None
    columns: int | None
    batch: tuple[tuple[bool, bool], ...]
    dtype: str

    @property
    def vectors(self) -> tuple[int, int]:
        """Neighbours that copies of a and b move."""
        most = 4 if self.dtype == "float32" else 8
        a, b = (1 if size is None else vector_of(size, most) for size in (self.inner, self.columns))
        return a, b

    @property
    def sizes(self) -> list[str]:
        """The kernel's sizes."""
        return ["rows", "inner", "columns", *(f"batch{i}" for i in range(len(self.batch)))]


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The call for a matmul node that no layer's kernel was chosen for.

    Raises:
        Unsupported: it has an epilogue.
    """
    a, b, y = as_matrices(*(context.type(v) for v in (*n.args[:2], n.name)))
    if cast(MatmulAttrs, n.attrs).epilogue is not None:
        raise Unsupported(f"{n.name} (matmul {a} x {b}): a fused run-time product has no kernel")
    if len({a.dtype, b.dtype, y.dtype}) > 1 or y.dtype not in FLOATS:
        return leftover.calls(n, context)
    merged = merge(y.shape[:-2], [a.shape[:-2], b.shape[:-2]])
    reads = tuple(zip(*merged.reads, strict=True))
    batches, rows, inner, columns = product(merged.axes), a.shape[-2], a.shape[-1], b.shape[-1]
    shape = Shape(_if_known(inner), _if_known(columns), reads, y.dtype)
    tiling = choose(shape, batches, rows, columns, gpu_of(context.target).multiprocessors)
    sizes = context.sizes
    tiles = sizes.multiply(
        sizes.ceil_divide(sizes.of(rows), tiling.rows), sizes.ceil_divide(sizes.of(columns), tiling.columns)
    )
    cycles = _predict(context, tiling, batches, rows, inner, columns)
    return (
        device_call(
            context, "matmul", (shape, tiling), lambda name: emit(shape, tiling, name), (*n.args[:2], n.name),
            tuple(sizes.of(s) for s in (rows, inner, columns, *merged.axes)),
            sizes.multiply(sizes.of(batches), tiles), cycles,
        ),
    )  # fmt: skip


def _if_known(size: Size) -> int | None:
    return size if isinstance(size, int) else None


def choose(
    shape: Shape, batches: Size, rows: Size, columns: Size, multiprocessors: int
) -> Tiling | FloatTiling:
    """The largest tile that gives every multiprocessor one, and is not mostly padding."""
    tilings: tuple[Tiling | FloatTiling, ...] = FLOAT_TILINGS if shape.dtype == "float32" else TILINGS
    large, middle, small, flat = tilings
    down, across = known(rows, 256), known(columns, 256)
    for tiling in (large, middle):
        fits = down > tiling.rows // 2 and across > tiling.columns // 2
        blocks = known(batches, 1) * -(-down // tiling.rows) * -(-across // tiling.columns)
        if fits and blocks >= multiprocessors:
            return tiling
    return flat if down <= flat.rows else small


def _predict(
    context: Context, tiling: Tiling | FloatTiling, batches: Size, rows: Size, inner: Size, columns: Size
) -> float:
    target, gpu = context.target, gpu_of(context.target)
    b, m, depth, n = known(batches, 1), known(rows), known(inner), known(columns)
    blocks = b * -(-m // tiling.rows) * -(-n // tiling.columns)
    halves = isinstance(tiling, Tiling)
    rate = (
        mma_rate(target, tiling.warp_rows, tiling.warp_columns)
        if isinstance(tiling, Tiling)
        else gpu.flops / 2
    )
    return kernel_cycles(
        target, operations=2.0 * blocks * tiling.rows * tiling.columns * depth, rate=rate, blocks=blocks,
        memory_bytes=(2.0 if halves else 4.0) * b * (m * depth + depth * n + m * n),
    )  # fmt: skip


def emit(shape: Shape, tiling: Tiling | FloatTiling, name: str) -> Any:
    """The TIR function; blocks: tiles of all batches."""
    pointers = [(n, shape.dtype) for n in ("a", "b", "y")]
    body = _halves if isinstance(tiling, Tiling) else _floats
    return device_function(
        name, tiling.threads, pointers, shape.sizes, lambda k: body(k, _Job(k, shape, tiling))
    )


class _Job:
    """The tile that a block makes: where its operands are."""

    def __init__(self, k: Kernel, shape: Shape, tiling: Any) -> None:
        self.k, self.shape, self.tiling = k, shape, tiling
        self.rows = k.sizes["rows"]
        self.inner, self.columns = (
            k.sizes[name] if size is None else integer(size)
            for name, size in (("inner", shape.inner), ("columns", shape.columns))
        )
        across = k.bind(T.truncdiv(self.columns + (tiling.columns - 1), integer(tiling.columns)))
        down = k.bind(T.truncdiv(self.rows + (tiling.rows - 1), integer(tiling.rows)))
        line = k.bind(T.truncdiv(k.block, across))
        self.column = k.bind(T.truncmod(k.block, across) * tiling.columns)
        self.row = k.bind(T.truncmod(line, down) * tiling.rows)
        batch = k.bind(T.truncdiv(line, down))
        self.steps = k.bind(
            T.cast(T.truncdiv(self.inner + (tiling.depth - 1), integer(tiling.depth)), "int32")
        )
        own = self._batches(batch)
        self.a = k.bind(own[0] * (self.rows * self.inner) + self.row * self.inner)
        self.b = k.bind(own[1] * (self.inner * self.columns) + self.column)
        self.y = k.bind(batch * (self.rows * self.columns) + self.row * self.columns + self.column)

    def _batches(self, batch: Any) -> list[Any]:
        """Which matrix of a, and of b, a batch reads."""
        k = self.k
        places: list[Any] = []
        for i in reversed(range(1, len(self.shape.batch))):
            places.insert(0, k.bind(T.truncmod(batch, k.sizes[f"batch{i}"])))
            batch = k.bind(T.truncdiv(batch, k.sizes[f"batch{i}"]))
        places.insert(0, batch)
        found = []
        for operand in range(2):
            index: Any = integer(0)
            for i, (place, has) in enumerate(zip(places, self.shape.batch, strict=True)):
                if has[operand]:
                    index = index * k.sizes[f"batch{i}"] + place
            found.append(k.bind(index))
        return found

    def left(self, line: Any, element: Any) -> Reader:
        """The :data:`Source` of tiles of a: lines are its rows."""
        k, depth = self.k, self.tiling.depth
        start = k.bind(self.a + int64(line) * self.inner + int64(element))
        inside = k.bind(self.row + int64(line) < self.rows)

        def read(step: Any) -> Place:
            at = k.bind(int64(step) * depth)
            return Place(k["a"], start + at, tirx.all(inside, at + int64(element) < self.inner))

        return read

    def right(self, line: Any, element: Any) -> Reader:
        """The :data:`Source` of tiles of b: lines are its rows, of K."""
        k, depth = self.k, self.tiling.depth
        start = k.bind(self.b + int64(line) * self.columns + int64(element))
        inside = k.bind(self.column + int64(element) < self.columns)

        def read(step: Any) -> Place:
            at = k.bind(int64(step) * depth)
            return Place(k["b"], start + at * self.columns, tirx.all(inside, at + int64(line) < self.inner))

        return read

    def fetch(self, a: Staged, b: Staged) -> Callable[[Any, Any], None]:
        """What issues the copies of a step."""
        sources: tuple[Source, Source] = (self.left, self.right)
        copies = [
            copier(self.k, tile, source, vector)
            for tile, source, vector in zip((a, b), sources, self.shape.vectors, strict=True)
        ]

        def fetch(stage: Any, step: Any) -> None:
            for copy in copies:
                copy(stage, step)

        return fetch

    @property
    def store(self) -> Store:
        """What stores neighbours of the tile."""
        k = self.k

        def store(line: Any, first: Any, values: list[Any]) -> None:
            there = (self.row + int64(line) < self.rows, self.column + int64(first) < self.columns)
            with k.when(tirx.all(*there)):
                at = k.bind(self.y + int64(line) * self.columns + int64(first))
                expressions.store_whole(k, k["y"], at, values)

        return store


def _halves(k: Kernel, job: _Job) -> None:
    tiling, dtype = cast(Tiling, job.tiling), job.shape.dtype
    a = Staged(k, tiling.rows, tiling.depth, tiling.stages, dtype)
    b = Staged(k, tiling.depth, tiling.columns, tiling.stages, dtype)
    accumulators = zeros(k, tiling)
    multiply = multiplier(k, tiling, (a, False), (b, True), accumulators)
    pipeline(k, tiling.stages, job.steps, job.fetch(a, b), multiply)
    deliver(k, tiling, accumulators, job.store, job.shape.vectors[1])


def _floats(k: Kernel, job: _Job) -> None:
    tiling = cast(FloatTiling, job.tiling)
    a, b = float_tiles.staged(k, tiling)
    accumulators = float_tiles.zeros(k, tiling)
    multiply = float_tiles.multiplier(k, tiling, a, b, accumulators)
    pipeline(k, tiling.stages, job.steps, job.fetch(a, b), multiply)
    float_tiles.deliver(k, tiling, accumulators, job.store, job.shape.vectors[1])
