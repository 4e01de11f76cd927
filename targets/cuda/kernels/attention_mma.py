"""attention_mma: attention on tensor cores, for values of two bytes (FlashAttention-2, Dao 2023).

A block of warps has a head's next 64 or 128 queries, each warp 16 or 32 of them for itself, so that no
two warps have to agree on anything but the tiles they read.  Queries stay in registers as fragments; tiles
of 64 keys and their values go through shared memory, the next tile on its way there while this one
is worked on.  A warp multiplies its queries with the keys, m16n8k16 by m16n8k16, takes
powers of two of what its accumulators hold, and since accumulators lie in registers as fragments of a left
operand do, multiplies them, rounded, with the values: scores never leave the registers.

Sixteen queries a warp would read 256 bytes of shared memory for each multiply instruction, as much as
a multiprocessor delivers in the time that it takes; thirty-two read half as much, and leave
registers enough for heads of up to 64 features.  Wider heads have eight warps of 16 queries.  128 queries a
block read the keys and values half as often from L2 as 64, which are for when there is little to do.

Weights are summed before they are rounded to two bytes; the softmax and the output are float32 to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsec.ir.dims import Size
from sparsec.targets.cuda import expressions, instructions
from sparsec.targets.cuda.builder import Array, Kernel, device_function, int64
from sparsec.targets.cuda.parts import mma_tiles
from sparsec.targets.cuda.parts.attention_shape import LOWEST, SIZES, Job, Shape, mask_terms
from sparsec.targets.cuda.parts.mma_epilogue import deliver
from sparsec.targets.cuda.parts.mma_tiles import CHUNK, SLAB, Fragments, Place, Source, Staged
from sparsec.targets.cuda.tir import T

#: keys of a tile, and of one multiply instruction
KEYS, COLUMNS = 64, 8
#: features of the widest head
WIDEST = 128


@dataclass(frozen=True, slots=True)
class Tiling:
    """Warps of a block, and how many times 16 queries each has."""

    warps: int
    slabs: int

    @property
    def queries(self) -> int:
        """Queries of a block."""
        return SLAB * self.warps * self.slabs


def accepts(shape: Shape) -> bool:
    """Whether the kernel computes it: operands of one dtype of two bytes, rows of whole 16 bytes."""
    widths = (shape.depth, shape.value_depth)
    same = len({*shape.dtypes[:3], shape.dtypes[-1]}) == 1
    return same and shape.dtypes[0] != "float32" and all(w and w % CHUNK == 0 and w <= WIDEST for w in widths)


def tiling(shape: Shape, batch: int, queries: Size, multiprocessors: int) -> Tiling:
    """Blocks of 128 queries where they are many, else of 64."""
    if isinstance(queries, int):
        blocks = batch * shape.heads * -(-queries // 128)
        if queries <= 64 or blocks < multiprocessors:
            return Tiling(4, 1)
    # a mask of every query's own takes registers too
    narrow = max(shape.depth, shape.value_depth) <= 64 and not (shape.mask and shape.mask[2])
    return Tiling(4, 2) if narrow else Tiling(8, 1)


def emit(shape: Shape, tiling: Tiling, name: str) -> Any:
    """The TIR function; sizes: :data:`SIZES`; blocks: batch x heads x blocks of queries."""
    threads = 32 * tiling.warps
    return device_function(name, threads, shape.pointers, SIZES, lambda k: _Writer(k, shape, tiling).body())


def _padded(width: int) -> int:
    return -(-width // SLAB) * SLAB


class _Writer:
    """Emits the kernel.

    Accumulators are [slab][8 columns][4]: of the four, two are neighbours in row ``lane / 4``, two in
    the row eight further on.  A thread so has two rows of each slab: ``row`` counts them.
    """

    def __init__(self, k: Kernel, shape: Shape, tiling: Tiling) -> None:
        self.k, self.shape, self.tiling = k, shape, tiling
        self.job = Job.of(k, shape, tiling.queries)
        self.dtype = shape.dtypes[0]
        self.mma = instructions.mma_m16n8k16(self.dtype)
        self.rows = 2 * tiling.slabs
        self.halves = KEYS // COLUMNS
        self.outputs = _padded(shape.value_depth) // COLUMNS

    def body(self) -> None:
        k, s, job = self.k, self.shape, self.job
        wide, value_wide = _padded(s.depth), _padded(s.value_depth)
        staged = Staged(k, self.tiling.queries, wide, 1, self.dtype)
        keys, values = (Staged(k, KEYS, w, 2, self.dtype) for w in (wide, value_wide))
        copy_queries = mma_tiles.copier(
            k, staged, self._source("q", s.depth, "queries", job.queries, job.first)
        )
        copies = [
            mma_tiles.copier(k, keys, self._source("k", s.depth, "keys", job.keys)),
            mma_tiles.copier(k, values, self._source("v", s.value_depth, "keys", job.keys)),
        ]
        tiles = k.bind(T.truncdiv(job.keys + (KEYS - 1), KEYS))
        copy_queries(0, 0)
        self._fetch(copies, 0, 0)
        # zeros, if there is no second tile
        self._fetch(copies, 1, 1)
        k.call(instructions.cp_async_wait(1))
        k.sync()
        own = self._queries(staged)
        tops, totals = self._filled(self.rows, LOWEST), self._filled(self.rows, 0.0)
        out = self._filled(self.tiling.slabs * self.outputs * 4, 0.0)
        key_parts = Fragments(k, keys, 0, KEYS // SLAB, second=True)
        value_parts = Fragments(k, values, 0, value_wide // SLAB, second=True, across=True)
        with k.loop(tiles, dtype="int32") as tile:
            stage = k.bind(tile % 2)
            # the first two tiles are on their way
            with k.when(T.And(tile > 0, tile + 1 < tiles)):
                self._fetch(copies, 1 - stage, tile + 1)
            scores = self._scores(own, keys, key_parts, stage)
            self._adjust(scores, k.bind(tile * KEYS))
            self._soften(scores, tops, totals, out)
            self._add_values(scores, values, value_parts, stage, out)
            # the next tile is there, and nobody reads this one any more
            k.call(instructions.cp_async_wait(0))
            k.sync()
        self._finish(totals, out)

    def _filled(self, count: int, value: float) -> Array:
        registers = self.k.registers(count)
        for i in range(count):
            registers.put(i, expressions.constant(value))
        return registers

    def _source(self, name: str, width: int, length: str, limit: Any, first: Any = 0) -> Source:
        """Rows of the head: ``step`` counts tiles of keys; what lies beyond is zero."""
        k, pitch = self.k, self.shape.heads * width
        start = self.job.start(k, length, self.shape.heads, width)

        def source(line: Any, element: Any) -> Callable[[Any], Place]:
            row = k.bind(first + line)
            begin = k.bind(start + int64(row) * pitch + int64(element))

            def read(step: Any) -> Place:
                inside = row + step * KEYS < limit
                valid = inside if width % SLAB == 0 else T.And(inside, element < width)
                return Place(k[name], begin + int64(step) * (KEYS * pitch), valid)

            return read

        return source

    def _fetch(self, copies: list[Callable[[Any, Any], None]], stage: Any, tile: Any) -> None:
        for copy in copies:
            copy(stage, tile)
        self.k.call(instructions.cp_async_commit)

    def _queries(self, staged: Staged) -> Array:
        """The warp's queries as fragments: [16 features][slab][4]."""
        k, slabs = self.k, self.tiling.slabs
        parts = staged.width // SLAB
        own = k.registers(parts * slabs * 4, "uint32")
        fragments = Fragments(k, staged, k.bind(k.warp * (SLAB * slabs)), slabs, second=False)
        for part in range(parts):
            fragments.load(0, part, 0)
            for i in range(slabs * 4):
                own.put(part * slabs * 4 + i, fragments.words[i])
        return own

    def _scores(self, own: Array, keys: Staged, parts: Fragments, stage: Any) -> Array:
        """The products of the warp's queries with a tile's keys."""
        k, slabs = self.k, self.tiling.slabs
        scores = self._filled(slabs * self.halves * 4, 0.0)
        base = k.bind(stage * keys.size)
        for part in range(keys.width // SLAB):
            parts.load(base, part, part)
            for i in range(slabs):
                for j in range(self.halves):
                    to = scores.pointer((i * self.halves + j) * 4)
                    k.call(self.mma, to, own.pointer((part * slabs + i) * 4), parts.half(part, j))
        return scores

    def _adjust(self, scores: Array, first: Any) -> None:
        """Scale, mask, and nothing for keys beyond the last."""
        k, s, job = self.k, self.shape, self.job
        before, _ = s.factors
        inner = k.bind(k.lane % 4 * 2)
        factor = expressions.constant(before)
        shared = self._mask_row(0) if s.mask and not s.mask[2] else None
        starts = [self._mask_row(row) for row in range(self.rows)] if s.mask and s.mask[2] else []
        for j in range(self.halves):
            key = k.bind(first + j * COLUMNS + inner)
            terms = mask_terms(k, s, job, shared, key, 2) if shared is not None else None
            for row in range(self.rows):
                own = mask_terms(k, s, job, starts[row], key, 2) if starts else terms
                for e in range(2):
                    at = self._score(row, j, e)
                    if own:
                        scores.put(at, scores[at] * factor + own[e])
                    elif before != 1.0:
                        scores.put(at, scores[at] * factor)
        with k.when(first + KEYS > job.keys):
            for j in range(self.halves):
                for e in range(2):
                    there = k.bind(first + j * COLUMNS + inner + e < job.keys)
                    for row in range(self.rows):
                        at = self._score(row, j, e)
                        scores.put(at, T.Select(there, scores[at], expressions.constant(float("-inf"))))

    def _mask_row(self, row: int) -> Any:
        """Where the mask of a thread's row begins."""
        k = self.k
        slab = k.warp * (SLAB * self.tiling.slabs) + row // 2 * SLAB
        return self.job.mask_start(k, self.shape, self.job.first + slab + k.lane // 4 + row % 2 * 8)

    def _score(self, row: int, j: int, e: int) -> int:
        """The register of a thread's row and column."""
        return (row // 2 * self.halves + j) * 4 + row % 2 * 2 + e

    def _soften(self, scores: Array, tops: Array, totals: Array, out: Array) -> None:
        """Scores become weights beside the largest score so far; what is made already is weighed anew."""
        k = self.k
        factor = expressions.constant(self.shape.factors[1])
        for row in range(self.rows):
            places = [self._score(row, j, e) for j in range(self.halves) for e in range(2)]
            top = tops[row]
            for at in places:
                top = T.max(top, scores[at])
            top = k.bind(top)
            for distance in (1, 2):
                top = k.bind(T.max(top, k.value(instructions.shuffle_xor, top, distance)))
            again = k.bind(k.value(instructions.exp2, (tops[row] - top) * factor))
            shift = k.bind(top * factor)
            total = totals[row] * again
            for at in places:
                scores.put(at, k.value(instructions.exp2, scores[at] * factor - shift))
                total = total + scores[at]
            totals.put(row, total)
            tops.put(row, top)
            for j in range(self.outputs):
                for e in range(2):
                    at = (row // 2 * self.outputs + j) * 4 + row % 2 * 2 + e
                    out.put(at, out[at] * again)

    def _add_values(self, weights: Array, values: Staged, parts: Fragments, stage: Any, out: Array) -> None:
        """Add a tile's values, weighted."""
        k, slabs = self.k, self.tiling.slabs
        words = k.registers(4, "uint32")
        pack = instructions.pack(self.dtype)
        base = k.bind(stage * values.size)
        for part in range(KEYS // SLAB):
            parts.load(base, part, part)
            for i in range(slabs):
                # two neighbouring accumulators are the left fragment: rows 0 and 8 of columns 0, then of 8
                start = (i * self.halves + 2 * part) * 4
                for word in range(4):
                    low, high = (weights[start + 2 * word + e] for e in range(2))
                    words.put(word, k.value(pack, low, high))
                for j in range(self.outputs):
                    to = out.pointer((i * self.outputs + j) * 4)
                    k.call(self.mma, to, words.pointer(0), parts.half(part, j))

    def _finish(self, totals: Array, out: Array) -> None:
        """Divide by the sums of the weights, and store."""
        k, s, job = self.k, self.shape, self.job
        for row in range(self.rows):
            total = totals[row]
            for distance in (1, 2):
                total = k.bind(total + k.value(instructions.shuffle_xor, total, distance))
            share = k.bind(expressions.constant(1) / total)
            for j in range(self.outputs):
                for e in range(2):
                    at = (row // 2 * self.outputs + j) * 4 + row % 2 * 2 + e
                    out.put(at, out[at] * share)
        start = job.start(k, "queries", s.heads, s.value_depth)

        def store(line: Any, first: Any, values: list[Any]) -> None:
            query = k.bind(job.first + line)
            there = query < job.queries
            with k.when(there if s.value_depth % SLAB == 0 else T.And(there, first < s.value_depth)):
                at = start + int64(query) * (s.heads * s.value_depth) + int64(first)
                expressions.store(k, k["y"], k.bind(at), values)

        whole = mma_tiles.Tiling(
            self.tiling.queries, _padded(s.value_depth), SLAB, self.tiling.warps, 1, stages=1
        )
        deliver(k, whole, out, store)
