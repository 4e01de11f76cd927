"""attention_fma: attention by multiply-adds in float32, for heads of any width and any dtype.

A block has up to 32 queries of a head and meets the keys, and then their values, in tiles of as many, as
float32 in shared memory; half a warp has a few queries for itself.  Each of its 16 lanes makes the
scores of every sixteenth key, four features at a time: six 128-bit reads for 32 multiply-adds.
The weights go through shared memory, since every lane needs them all for its share of the output's features.
Keys lie an odd number of 16 bytes apart, so that lanes meet no bank twice.
"""

from __future__ import annotations

from typing import Any

from sparsec.targets.cuda import expressions, instructions
from sparsec.targets.cuda.builder import Array, Kernel, device_function, int64
from sparsec.targets.cuda.parts.attention_shape import LOWEST, SIZES, Job, Shape, mask_terms
from sparsec.targets.cuda.tir import T

#: threads of a block, and those that share a query
THREADS, TEAM = 128, 16
#: numbers of a 128-bit read
LANES = 4


def block_of_queries(shape: Shape, limit: int) -> int:
    """Queries of a block: as many as two blocks' shared memory holds; 0: not even eight of one block's."""
    for block in (32, 16, 8):
        floats = block * _pitch(shape.depth) + _staged(shape, block) + block * (_keys(block) + LANES)
        if 4 * floats <= (limit if block == 8 else limit // 2):
            return block
    return 0


def _keys(block: int) -> int:
    """Keys of a tile."""
    return max(block, TEAM)


def _pitch(width: int) -> int:
    """Distance of rows read across: an odd number of vectors."""
    return (-(-width // LANES) | 1) * LANES


def _value_pitch(width: int) -> int:
    """Features of an output in whole vectors of all lanes."""
    return -(-width // (LANES * TEAM)) * LANES * TEAM


def _staged(shape: Shape, block: int) -> int:
    return _keys(block) * max(_pitch(shape.depth), _value_pitch(shape.value_depth))


def emit(shape: Shape, block: int, name: str) -> Any:
    """The TIR function; sizes: :data:`SIZES`; blocks: batch x heads x blocks of queries."""
    return device_function(name, THREADS, shape.pointers, SIZES, lambda k: _Writer(k, shape, block).body())


class _Writer:
    """Emits the kernel."""

    def __init__(self, k: Kernel, shape: Shape, block: int) -> None:
        self.k, self.shape, self.block = k, shape, block
        self.job = Job.of(k, shape, block)
        self.rows, self.keys = block // (THREADS // TEAM), _keys(block) // TEAM
        self.pitch, self.value_pitch = _pitch(shape.depth), _value_pitch(shape.value_depth)
        self.vectors = self.value_pitch // (LANES * TEAM)
        self.queries = k.shared(block * self.pitch, "float32")
        self.staged = k.shared(_staged(shape, block), "float32")
        self.weight_pitch = _keys(block) + LANES
        self.weights = k.shared(block * self.weight_pitch, "float32")
        self.lane = k.bind(k.thread % TEAM)
        #: the first of the thread's queries in the block
        self.own = k.bind(k.thread // TEAM * self.rows)

    def body(self) -> None:
        k, s, job = self.k, self.shape, self.job
        starts = [
            job.start(k, length, s.heads, width)
            for length, width in (("queries", s.depth), ("keys", s.depth), ("keys", s.value_depth))
        ]
        count = _keys(self.block)
        self._stage("q", starts[0], job.first, job.queries, self.block, s.depth, self.queries, self.pitch)
        tops, totals = self._filled(self.rows, LOWEST), self._filled(self.rows, 0.0)
        out = self._filled(self.rows * self.vectors * LANES, 0.0)
        with k.loop(k.bind(T.truncdiv(job.keys + (count - 1), count)), dtype="int32") as tile:
            first = k.bind(tile * count)
            k.sync()
            self._stage("k", starts[1], first, job.keys, count, s.depth, self.staged, self.pitch)
            k.sync()
            scores = self._scores()
            self._soften(scores, first, tops, totals, out)
            k.sync()
            self._stage("v", starts[2], first, job.keys, count, s.value_depth, self.staged, self.value_pitch)
            k.sync()
            self._add_values(out)
        self._finish(totals, out)

    def _filled(self, count: int, value: float) -> Array:
        registers = self.k.registers(count)
        for i in range(count):
            registers.put(i, expressions.constant(value))
        return registers

    def _stage(
        self, name: str, start: Any, first: Any, limit: Any, rows: int, width: int, to: Array, pitch: int
    ) -> None:
        """Rows of an operand from ``first`` on as float32; zeros beside and after them."""
        k = self.k
        lanes = LANES if width % LANES == 0 else 1
        filled = pitch if name == "v" else -(-width // LANES) * LANES
        across = filled // lanes
        whole = k.registers(lanes)
        with k.loop(-(-rows * across // THREADS)) as turn:
            at = k.bind(turn * THREADS + k.thread)
            row, element = k.bind(at // across), k.bind(at % across * lanes)
            for i in range(lanes):
                whole.put(i, expressions.constant(0))
            with k.when(T.And(first + row < limit, element < width)):
                place = k.bind(start + int64(first + row) * (self.shape.heads * width) + int64(element))
                for i, value in enumerate(expressions.load(k, k[name], place, lanes)):
                    whole.put(i, value)
            with k.when(row < rows):
                to.put(k.bind(row * pitch + element), whole.vector(0, lanes), lanes)

    def _scores(self) -> Array:
        """The products of the thread's queries with its keys."""
        k, scores = self.k, self._filled(self.rows * self.keys, 0.0)
        qs, ks = k.registers(self.rows * LANES), k.registers(self.keys * LANES)
        with k.loop(-(-self.shape.depth // LANES)) as d:
            for row in range(self.rows):
                at = k.bind((self.own + row) * self.pitch + d * LANES)
                qs.put(row * LANES, self.queries.vector(at, LANES), LANES)
            for key in range(self.keys):
                at = k.bind((self.lane + key * TEAM) * self.pitch + d * LANES)
                ks.put(key * LANES, self.staged.vector(at, LANES), LANES)
            for row in range(self.rows):
                for key in range(self.keys):
                    at = row * self.keys + key
                    for i in range(LANES):
                        scores.put(at, scores[at] + qs[row * LANES + i] * ks[key * LANES + i])
        return scores

    def _soften(self, scores: Array, first: Any, tops: Array, totals: Array, out: Array) -> None:
        """Weights beside the largest score so far to shared memory; what is made already is weighed anew."""
        k, s, job = self.k, self.shape, self.job
        before, inside = (expressions.constant(f) for f in s.factors)
        for row in range(self.rows):
            start = job.mask_start(k, s, job.first + self.own + row) if s.mask else None
            top = tops[row]
            for i in range(self.keys):
                key, at = k.bind(first + self.lane + i * TEAM), row * self.keys + i
                score = scores[at] * before
                if start is not None:
                    score = score + mask_terms(k, s, job, start, key, 1)[0]
                scores.put(at, T.Select(key < job.keys, score, expressions.constant(float("-inf"))))
                top = T.max(top, scores[at])
            top = k.bind(top)
            for distance in (8, 4, 2, 1):
                top = k.bind(T.max(top, k.value(instructions.shuffle_xor, top, distance)))
            again = k.bind(T.exp2((tops[row] - top) * inside))
            total = totals[row] * again
            for i in range(self.keys):
                weight = k.bind(T.exp2((scores[row * self.keys + i] - top) * inside))
                self.weights.put((self.own + row) * self.weight_pitch + self.lane + i * TEAM, weight)
                total = total + weight
            totals.put(row, total)
            tops.put(row, top)
            for i in range(self.vectors * LANES):
                at = row * self.vectors * LANES + i
                out.put(at, out[at] * again)

    def _add_values(self, out: Array) -> None:
        """Add a tile's values, weighted."""
        k = self.k
        ps, vs = k.registers(self.rows * LANES), k.registers(LANES)
        with k.loop(_keys(self.block) // LANES) as part:
            for row in range(self.rows):
                at = k.bind((self.own + row) * self.weight_pitch + part * LANES)
                ps.put(row * LANES, self.weights.vector(at, LANES), LANES)
            for key in range(LANES):
                line = k.bind((part * LANES + key) * self.value_pitch + self.lane * LANES)
                for vector in range(self.vectors):
                    vs.put(0, self.staged.vector(line + vector * LANES * TEAM, LANES), LANES)
                    for row in range(self.rows):
                        for i in range(LANES):
                            at = (row * self.vectors + vector) * LANES + i
                            out.put(at, out[at] + ps[row * LANES + key] * vs[i])

    def _finish(self, totals: Array, out: Array) -> None:
        """Divide by the sums of the weights, and store."""
        k, s, job = self.k, self.shape, self.job
        width = s.value_depth
        lanes = LANES if width % LANES == 0 else 1
        start = job.start(k, "queries", s.heads, width)
        for row in range(self.rows):
            total = totals[row]
            for distance in (8, 4, 2, 1):
                total = k.bind(total + k.value(instructions.shuffle_xor, total, distance))
            share = k.bind(expressions.constant(1) / total)
            query = k.bind(job.first + self.own + row)
            line = k.bind(start + int64(query) * (s.heads * width))
            for vector in range(self.vectors):
                for first in range(0, LANES, lanes):
                    feature = k.bind((self.lane + vector * TEAM) * LANES + first)
                    at = (row * self.vectors + vector) * LANES + first
                    with k.when(T.And(query < job.queries, feature < width)):
                        values = [out[at + i] * share for i in range(lanes)]
                        expressions.store_whole(k, k["y"], k.bind(line + int64(feature)), values)
