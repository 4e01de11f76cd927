"""octets: products of few tokens on tensor cores, a weight's rows by eights as the right operand.

``mma.m16n8k16`` makes ``D[16 tokens, 8 features]``: with the weight as operand B a warp is busy with only
eight features, so that small layers too have blocks for all multiprocessors, and neighbours in D are
neighbours in y.

Sums do not depend on the order of K. In a step of :data:`STEP` inputs, lane ``4 g + c`` holds the eight
inputs from ``8 c`` on of the octet's row g, and of tokens g and g + 8: one 128-bit access each. The first
four are its share of one instruction's K, the others of a second's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsec.targets.cuda import expressions, instructions
from sparsec.targets.cuda.builder import Array, Kernel, int64
from sparsec.targets.cuda.parts.linear_tiles import tokens_of
from sparsec.targets.cuda.tir import tirx
from sparsec.targets.target import Problem

#: rows of the weight in an octet, tokens of a slab, inputs of a step
OCTET, SLAB, STEP = 8, 16, 32
#: words of a slab's operand in a step: two instructions' four registers
WORDS = 8
ACCUMULATORS = 4


@dataclass(frozen=True, slots=True)
class Octets:
    """How a block makes ``tokens`` x ``rows`` of y.

    A warp has ``octets`` octets of features; ``high`` warps lie beside each other over features, and ``deep``
    of them share the inputs of each, whose sums are added at the end in a fixed order.
    """

    tokens: int
    octets: int
    high: int
    deep: int

    @property
    def slabs(self) -> int:
        """Slabs of 16 tokens."""
        return -(-self.tokens // SLAB)

    @property
    def rows(self) -> int:
        """Output features of a block."""
        return OCTET * self.octets * self.high

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.high * self.deep

    @property
    def pitch(self) -> int:
        """Floats from one token's sums to the next's: eight tokens' pairs lie in different banks."""
        return self.rows + (8 - self.rows) % 16

    @property
    def sum_bytes(self) -> int:
        """Bytes of shared memory for the sums of all warps."""
        return 4 * self.deep * self.slabs * SLAB * self.pitch


def zeros(k: Kernel, shape: Octets) -> Array:
    """The warp's accumulators, cleared: four for each slab and octet."""
    count = shape.slabs * shape.octets * ACCUMULATORS
    found = k.registers(count)
    for i in range(count):
        found.put(i, expressions.constant(0))
    return found


#: ``read(words, first)`` reads a slab's operand of the step that begins at an input: WORDS words
Operand = Callable[[Array, Any], None]


def from_memory(k: Kernel, problem: Problem, shape: Octets) -> Operand:
    """The only slab's tokens, read where they are, row-major; zeros beyond the last token and K.

    K must be a multiple of 8.
    """
    x, tokens = k.view("x", "uint32"), tokens_of(k, problem)
    token = k.bind(int64(k.lane // 4))
    column = k.bind(k.lane % 4 * 8)
    halves = range(-(-shape.tokens // 8))
    starts = [k.bind((token + 8 * i) * (problem.inner // 2)) for i in halves]
    present = [k.bind(token + 8 * i < tokens) for i in halves]

    def read(words: Array, first: Any) -> None:
        at = k.bind(int64(first + column))
        for i in range(2):
            four = k.registers(4, "uint32")
            for word in range(4):
                four.put(word, tirx.IntImm("uint32", 0))
            if i in halves:
                with k.when(tirx.all(present[i], at < problem.inner)):
                    four.put(0, x.vector(starts[i] + at // 2, 4), 4)
            place_words(words, i, four)

    return read


def place_words(words: Array, half: int, four: Array) -> None:
    """Put four words of a slab's first or second eight tokens where the two instructions have them."""
    for i in range(4):
        words.put(half + i // 2 * 4 + i % 2 * 2, four[i])


def multiply(
    k: Kernel, shape: Octets, dtype: str, sums: Array, place: tuple[int, int], words: Array, weight: Array
) -> None:
    """Add a step's products of a slab and an octet; ``weight`` has four words of each octet."""
    slab, octet = place
    for part in range(2):
        k.call(
            instructions.mma_m16n8k16(dtype), sums.pointer((slab * shape.octets + octet) * ACCUMULATORS),
            words.pointer(part * 4), weight.pointer(4 * octet + 2 * part),
        )  # fmt: skip


def deliver(
    k: Kernel, problem: Problem, shape: Octets, accumulators: Array, first: tuple[Any, Any], memory: int
) -> None:
    """Add the warps' sums, run the epilogue and store.

    Args:
        k: the kernel.
        problem: the layer.
        shape: of the block.
        accumulators: of :func:`zeros`.
        first: the block's first token and output feature, int64.
        memory: the byte of shared memory where ``shape.sum_bytes`` may be used once all threads are here.
    """
    sums = k.shared_at(memory, "float32")
    tall, pitch = shape.slabs * SLAB, shape.pitch
    k.sync()
    start = k.bind(
        (k.warp // shape.high * tall + k.lane // 4) * pitch
        + k.warp % shape.high * (shape.octets * OCTET) + k.lane % 4 * 2
    )  # fmt: skip
    for slab in range(shape.slabs):
        for octet in range(shape.octets):
            for half in range(2):
                base = (slab * shape.octets + octet) * ACCUMULATORS + 2 * half
                place = start + (slab * SLAB + half * 8) * pitch + octet * OCTET
                sums.put(place, accumulators.vector(base, 2), 2)
    k.sync()
    _store(k, problem, shape, sums, first)


def _store(k: Kernel, problem: Problem, shape: Octets, sums: Array, first: tuple[Any, Any]) -> None:
    tokens, tall = tokens_of(k, problem), shape.slabs * SLAB
    count = shape.tokens * shape.rows
    with k.loop(-(-count // shape.threads)) as turn:
        at = k.bind(turn * shape.threads + k.thread)
        line, column = k.bind(at // shape.rows), k.bind(at % shape.rows)
        token, row = k.bind(first[0] + int64(line)), k.bind(first[1] + int64(column))
        with k.when(tirx.all(at < count, token < tokens, row < problem.rows)):
            total = sums[line * shape.pitch + column]
            for deep in range(1, shape.deep):
                total = total + sums[(deep * tall + line) * shape.pitch + column]
            offset = k.bind(token * problem.rows + row)
            values = expressions.finish(k, problem, [k.bind(total)], row, offset)
            expressions.store(k, k["y"], offset, values)


def block_place(k: Kernel, problem: Problem, shape: Octets) -> tuple[Any, Any]:
    """The block's first token and output feature, int64; blocks of one time read the same tokens."""
    high = -(-problem.rows // shape.rows)
    return k.bind(k.block // high * shape.tokens), k.bind(k.block % high * shape.rows)
