"""mask_stream: weights as bit masks and nonzeros, decoded into the operands of tensor cores.

"Load as sparse, compute as dense": memory holds one bit an element and the nonzeros; between shared memory
and registers a weight becomes dense again, and tensor cores multiply by zeros that cost nothing to bring.
Flash-LLM (Xia et al. 2023) is the idea; masks counted by ``popc`` are those of SpInfer (Fan et al. 2025),
here in the order of operand B (see octets), so that decoded halves are where the multiply instruction has
them.

A *record* is an octet of rows by :data:`CHUNK` inputs: 32 mask words, then its nonzeros, padded to 16
bytes. It has eight tiles of 8 rows by 16 inputs, two to a step of 32. Nonzeros are in the order of tile,
lane and element; lane 4 g + c has of tile 2 s + h the four inputs from ``32 s + 8 c + 4 h`` on of row g.
The lower half of word 8 s + g is row g's mask in tile 2 s, the upper that in tile 2 s + 1, four bits a
lane. Records of a warp's octets lie together, a *run* for each chunk; ``starts`` are the runs' first
16-byte pieces.

To decode, each lane counts its word's bits, a scan over the warp tells where each half word's nonzeros
begin, and then a tile takes a shuffle (mask and beginning in one word), a count and four conditional loads,
which all lanes do from one stretch of at most 128 halves: neighbours, so few banks are met twice. That is
21 instructions for four elements of each lane, 5.3 an element, and 5 reads of shared memory a tile. A
record of 1024 takes 49 cycles of a multiprocessor's shared memory and 52 of its issue. At half zeros it has
1152 bytes, for which an H200's memory takes 72 cycles: memory is the limit. At nine zeros in ten it has 340
bytes, 21 cycles: there the decoder is, and other ways are faster for few tokens (gap_runs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Array, Kernel, int64
from sparsec.targets.cuda.cost import gpu_of
from sparsec.targets.cuda.parts.octets import OCTET, STEP, Octets, multiply
from sparsec.targets.cuda.tir import T, tirx
from sparsec.targets.target import Problem, Target

Weight: TypeAlias = NDArray[Any]
#: where an octet's nonzeros begin, and the lane's words of its even and odd tiles
Octet: TypeAlias = tuple[Any, Any, Any]

#: inputs of a record, and its elements, mask halves, and tiles
CHUNK = 128
_ELEMENTS, _MASK_HALVES, _TILES = OCTET * CHUNK, OCTET * CHUNK // 16, CHUNK // 16
#: halves of a 16-byte piece
PIECE = 8
#: pieces of a record without zeros
MOST_PIECES = (_MASK_HALVES + _ELEMENTS) // PIECE
#: elements that are packed at a time
_SLICE = 1 << 22


#: the parameters of the packed arrays
POINTERS = [("stream", "uint16"), ("starts", "int32")]


def _records(problem: Problem, shape: Octets) -> int:
    """Records of a weight whose rows are filled up to whole blocks."""
    return -(-problem.rows // shape.rows) * shape.rows // OCTET * -(-problem.inner // CHUNK)


def stored(problem: Problem, density: float, shape: Octets) -> float:
    """Expected bytes; on average half a piece of a record is padding."""
    record = 2.0 * (_MASK_HALVES + _ELEMENTS * density + PIECE / 2)
    return _records(problem, shape) * (record + 4 / shape.octets)


def decode_cycles(problem: Problem, shape: Octets, target: Target, operand_reads: float = 32) -> float:
    """Cycles of one multiprocessor for decoding all records and multiplying them by a tile of tokens.

    ``operand_reads``: how often a warp reads L1 or shared memory for a slab of 16 tokens of a chunk.
    """
    slabs, octets = shape.slabs, shape.octets
    issued = _TILES * 21 + 40 + slabs * (_TILES + 8 / octets)
    # reads of shared memory: halves, shuffles, and the tokens' operand
    reads = _TILES * 5 + 9 + slabs * operand_reads / octets
    multiplied = slabs * _TILES * 4096 / (0.6 * gpu_of(target).tensor_flops)
    return _records(problem, shape) * max(issued / 4, reads, multiplied)


def pack(weight: Weight, octets: int, high: int) -> tuple[Weight, Weight, int]:
    """``weight[M, K]`` as (stream uint16, starts int32, pieces of the longest run).

    ``octets`` of a warp; ``high`` warps' rows make a block's.
    """
    rows, inner = weight.shape
    tall, chunks = OCTET * octets, -(-inner // CHUNK)
    groups = -(-rows // (tall * high)) * high
    together = max(1, _SLICE // (tall * chunks * CHUNK))
    parts, sizes = [], []
    for first in range(0, groups, together):
        count = min(together, groups - first)
        some = np.zeros((count * tall, chunks * CHUNK), weight.dtype)
        given = weight[first * tall : (first + count) * tall]
        some[: len(given), :inner] = given
        stream, pieces = _packed(_ordered(some, octets, chunks))
        parts.append(stream)
        sizes.append(pieces.reshape(-1, octets).sum(axis=1))
    lengths = np.concatenate(sizes)
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return np.concatenate(parts), starts, int(lengths.max())


def _ordered(some: Weight, octets: int, chunks: int) -> Weight:
    """Rows as records ``[groups * chunks * octets, elements]`` in the order of their bits."""
    axes = some.reshape(-1, octets, OCTET, chunks, CHUNK // STEP, 4, 2, 4)
    # group, octet, row, chunk, step, lane % 4, half, element
    ordered = axes.transpose(0, 3, 1, 4, 6, 2, 5, 7)
    return np.ascontiguousarray(ordered).reshape(-1, _ELEMENTS)


def _packed(ordered: Weight) -> tuple[Weight, Weight]:
    """Records one after the other, uint16, and how many pieces each has."""
    used = ordered != 0
    counts = used.sum(axis=1)
    pieces = _MASK_HALVES // PIECE + -(-counts // PIECE)
    begins = (np.cumsum(pieces) - pieces) * PIECE
    stream = np.zeros(int(pieces.sum()) * PIECE, np.uint16)
    masks = np.packbits(used, axis=1, bitorder="little").view(np.uint16)
    masks = masks.reshape(-1, CHUNK // STEP, 2, OCTET).swapaxes(2, 3).reshape(-1, _MASK_HALVES)
    stream[begins[:, None] + np.arange(_MASK_HALVES)] = masks
    before = np.cumsum(counts) - counts
    places = np.repeat(begins + _MASK_HALVES - before, counts) + np.arange(counts.sum())
    stream[places] = ordered[used].view(np.uint16)
    return stream, pieces


@dataclass(frozen=True, slots=True)
class Runs:
    """The warps' way through their runs, ``stages`` of which each has in shared memory.

    Of the inputs' chunks, a warp takes every ``shape.deep``-th.  ``slots`` is shared memory, uint16;
    ``group`` the number of the warp's rows, int64; ``deep`` which of the chunks it begins with, int32.
    """

    k: Kernel
    shape: Octets
    chunks: int
    pieces: int
    stages: int
    slots: Array
    group: Any
    deep: Any

    @staticmethod
    def slot_halves(shape: Octets, pieces: int, stages: int) -> int:
        """Elements of shared memory that the runs of all warps take, and a piece that is read in vain."""
        return (shape.threads // 32 * stages * pieces + 1) * PIECE

    @property
    def steps(self) -> Any:
        """Chunks that the warp has, int32."""
        return self.k.bind((self.chunks - self.deep + (self.shape.deep - 1)) // self.shape.deep)

    def bounds(self, step: Any, kept: Array) -> None:
        """Keep the first and last piece of the warp's run in a step (none beyond the last), int32."""
        k = self.k
        chunk = k.bind(step * self.shape.deep + self.deep)
        run = k.bind(self.group * self.chunks + int64(chunk))
        kept.put(0, tirx.IntImm("int32", 0))
        kept.put(1, tirx.IntImm("int32", 0))
        with k.when(chunk < self.chunks):
            kept.put(0, k["starts"][run])
            kept.put(1, k["starts"][run + 1])

    def copy(self, stage: Any, kept: Array) -> None:
        """Issue the copies of a run."""
        k = self.k
        first, count = k.bind(kept[0]), k.bind(kept[1] - kept[0])
        slot = self._slot(stage)
        with k.loop((count + 31) // 32, dtype="int32") as turn:
            piece = k.bind(turn * 32 + k.lane)
            with k.when(piece < count):
                source = k["stream"].pointer(int64(first + piece) * PIECE)
                k.call(instructions.cp_async_16, self.slots.pointer(slot + piece * PIECE), source, 1)

    def _slot(self, stage: Any) -> Any:
        return self.k.bind((self.k.warp * self.stages + stage) * (self.pieces * PIECE))

    def multiply(
        self, stage: Any, dtype: str, sums: Array, operand: Callable[[Any, int], Array], unrolled: bool
    ) -> None:
        """Add a run's products; ``operand(step, slab)`` is the tokens' operand of each 32 of its inputs.

        ``unrolled`` writes the steps out: more code and registers, and operands may be registers.
        """
        k = self.k
        found = self._octets(stage)
        lowest = k.bind(tirx.IntImm("uint32", 1) << T.cast(k.lane % 4 * 4, "uint32"))
        steps = CHUNK // STEP
        if unrolled:
            for step in range(steps):
                self._step(found, lowest, step, dtype, sums, operand)
            return
        # the compiler would write the loop out too, and keep all steps' halves in registers
        with T.serial(0, steps, annotations={"disable_unroll": True}) as step:
            self._step(found, lowest, step, dtype, sums, operand)

    def _step(
        self, found: list[Octet], lowest: Any, step: Any, dtype: str, sums: Array,
        operand: Callable[[Any, int], Array],
    ) -> None:  # fmt: skip
        k, shape = self.k, self.shape
        weight = k.registers(4 * shape.octets, "uint32")
        source = k.bind(step * 8 + k.lane // 4)
        for octet, (base, *parts) in enumerate(found):
            for part, packed in enumerate(parts):
                self._tile(base, packed, source, lowest, weight.pointer(4 * octet + 2 * part))
        for slab in range(shape.slabs):
            words = operand(step, slab)
            for octet in range(shape.octets):
                multiply(k, shape, dtype, sums, (slab, octet), words, weight)

    def _octets(self, stage: Any) -> list[Octet]:
        """For each octet where its nonzeros begin, and the lane's words of even and of odd tiles.

        The lower half of such a word is the mask, the upper the number of nonzeros before.  Both tiles'
        numbers are added up over the lanes in one word.
        """
        k, words = self.k, self.k.words(self.slots)
        low, sixteen = tirx.IntImm("uint32", 0xFFFF), tirx.IntImm("uint32", 16)
        at, found = self._slot(stage), []
        for _ in range(self.shape.octets):
            word = k.bind(words[at // 2 + k.lane])
            counts = k.bind(self._count(word & low) | (self._count(word >> sixteen) << sixteen))
            until = counts
            for distance in (1, 2, 4, 8, 16):
                other = self._from(until, k.lane - distance)
                until = k.bind(until + T.Select(k.lane >= distance, other, tirx.IntImm("uint32", 0)))
            before = k.bind(until - counts)
            # of earlier steps, and up to this step's end
            earlier, whole = self._from(before, k.lane // 8 * 8), self._from(until, k.lane // 8 * 8 + 7)
            even = k.bind((before & low) + (earlier >> sixteen))
            odd = k.bind((whole & low) + (before >> sixteen))
            found.append((
                k.bind(at + _MASK_HALVES), k.bind((word & low) | (even << sixteen)),
                k.bind((word >> sixteen) | (odd << sixteen)),
            ))  # fmt: skip
            last = self._from(until, 31)
            total = T.cast((last & low) + (last >> sixteen), "int32")
            at = k.bind(at + _MASK_HALVES + (total + (PIECE - 1)) // PIECE * PIECE)
        return found

    def _count(self, word: Any) -> Any:
        return self.k.bind(T.cast(self.k.value(instructions.popc, word), "uint32"))

    def _from(self, value: Any, lane: Any) -> Any:
        return self.k.bind(self.k.value(instructions.shuffle_from_u32, value, lane))

    def _tile(self, base: Any, packed: Any, source: Any, lowest: Any, to: Any) -> None:
        """The lane's two words of a tile."""
        k = self.k
        word = self._from(packed, source)
        below = self._count(word & (lowest - tirx.IntImm("uint32", 1)))
        place = k.bind(base + T.cast((word >> tirx.IntImm("uint32", 16)) + below, "int32"))
        k.call(instructions.expand_halves, to, self.slots.pointer(place), word, lowest)
