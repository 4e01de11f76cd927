"""bitmask_gemv: sparse weights times one to sixteen columns, at the rate that memory brings them.

Two ways of saying where nonzeros are, as a configuration's ``gaps`` tells:

* 0: a bit for every element (see mask_stream), decoded for tensor cores, which sixteen columns cost no more
  than one.  Halves only.  At half zeros 1.125 bytes an element against 2.
* 1: a byte for every nonzero (see gap_runs).  A mask of ten bits a nonzero takes more decoding than the
  memory gives time for at nine zeros in ten; a byte takes as little memory and a third of the instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sparsec.sparsity.pattern import Pattern
from sparsec.targets.cuda import cost, expressions, instructions
from sparsec.targets.cuda.builder import Kernel, device_function
from sparsec.targets.cuda.parts import gap_runs, mask_stream
from sparsec.targets.cuda.parts.gap_runs import Split
from sparsec.targets.cuda.parts.mask_stream import CHUNK, Runs
from sparsec.targets.cuda.parts.octets import (
    OCTET,
    STEP,
    WORDS,
    Octets,
    block_place,
    deliver,
    from_memory,
    zeros,
)  # fmt: skip
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Packing, Problem, Target

name = "bitmask_gemv"
format = "bitmask"

#: columns from which on tiles of tokens are for bitmask_spmm
MOST_COLUMNS = 16
#: runs of a warp that are on their way to shared memory or there, at most, and the memory they should take
_STAGES, _WANTED_BYTES = 4, 96 * 1024


def accepts(problem: Problem, pattern: Pattern, target: Target) -> bool:
    """One to sixteen columns: for masks of rows that begin at 16 bytes, for gaps that fit shared memory."""
    few = problem.columns is not None and 1 <= problem.columns <= MOST_COLUMNS
    return problem.conv is None and few and (_masks(problem) or _gaps(problem))


def _masks(problem: Problem) -> bool:
    return problem.dtype != "float32" and problem.inner % 8 == 0


def _gaps(problem: Problem) -> bool:
    fits = gap_runs.x_bytes(problem) <= gap_runs.MOST_BYTES
    return fits and problem.inner < 1 << 16


def space(problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
    """Masks or gaps, whichever is predicted faster first; fewer rows a block where there are few."""
    slots = cost.gpu_of(target).multiprocessors
    found: list[dict[str, int]] = []
    if _masks(problem):
        few = problem.rows < 2 * OCTET * slots
        found.append({"gaps": 0, "octets": 1, "high": 1, "deep": 16 if few else 8})
        found.append({"gaps": 0, "octets": 2, "high": 1 if few else 2, "deep": 8 if few else 4})
        found.append({"gaps": 0, "octets": 2, "high": 4, "deep": 2 if few else 4})
    if _gaps(problem):
        high = next((h for h in (4, 2) if problem.rows >= 1.5 * OCTET * h * slots), 1)
        found.append({"gaps": 1, "octets": 1, "high": high, "deep": 8 if high == 1 else 4})
    return tuple(sorted(found, key=lambda config: predict(problem, pattern, config, target)))


def _shape(problem: Problem, config: Mapping[str, int]) -> Octets:
    return Octets(problem.columns or 1, config["octets"], config["high"], config["deep"])


def _split(problem: Problem, pattern: Pattern, config: Mapping[str, int]) -> Split:
    """As expected: gaps of two bytes where a row's nonzeros are so few that some gap takes them."""
    density = max(pattern.density, 1e-9)
    wide = pattern.nonzeros * (1 - density) ** 255 > 0.5
    return Split(config["high"], config["deep"], 2 if wide else 1)


def _rows(config: Mapping[str, int]) -> int:
    return OCTET * config["octets"] * config["high"]


def predict(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
    """Cycles of one launch: bytes, or the multiprocessors' cycles of decoding."""
    item, columns = cost.item_bytes(problem), problem.columns or 1
    blocks = -(-problem.rows // _rows(config))
    if config["gaps"]:
        width = gap_runs.width_of(columns)
        # reads of shared memory that meet in banks, instructions, and x once a block
        reads = max(1, width * item / 4) * 3.4 / 32
        issued = (6.0 + width * (1 if item == 4 else 2)) / 128
        work = pattern.nonzeros * max(reads, issued) + blocks * problem.inner * columns * item / 48
    else:
        work = mask_stream.decode_cycles(problem, _shape(problem, config), target, 2 * columns)
    moved = nbytes(problem, pattern, config, target)
    x_bytes = columns * problem.inner * item
    return cost.kernel_cycles(
        target, operations=work, rate=0.8, blocks=blocks, resident=2, memory_bytes=moved + x_bytes,
        l2_bytes=moved + float(blocks) * x_bytes,
    )  # fmt: skip


def nbytes(problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
    """Nonzeros, and a bit for every element or a gap for every nonzero."""
    item = cost.item_bytes(problem)
    if config["gaps"]:
        return int(gap_runs.stored(problem.rows, pattern.nonzeros, _split(problem, pattern, config), item))
    return int(mask_stream.stored(problem, pattern.density, _shape(problem, config)))


def pack(weight: Any, problem: Problem, config: Mapping[str, int], target: Target) -> Packing:
    """Pack ``weight[M, K]``: arrays as gap_runs or mask_stream describe them."""
    if config["gaps"]:
        arrays, gap_bytes = gap_runs.pack(weight, Split(config["high"], config["deep"]))
        return Packing(arrays, 0, tuple(sorted({**config, "gap_bytes": gap_bytes}.items())))
    stream, starts, pieces = mask_stream.pack(weight, config["octets"], config["high"])
    stages = _WANTED_BYTES // (2 * Runs.slot_halves(_shape(problem, config), pieces, 1))
    learned = {**config, "pieces": pieces, "stages": max(2, min(_STAGES, stages))}
    return Packing({"stream": stream, "starts": starts}, 0, tuple(sorted(learned.items())))


def grid(problem: Problem, packing: Packing, sizes: Sizes, columns: int) -> int:
    """A block for so many rows."""
    return sizes.of(-(-problem.rows // _rows(dict(packing.config))))


def emit(problem: Problem, packing: Packing, target: Target, name: str) -> Any:
    """The TIR function."""
    config = dict(packing.config)
    threads = 32 * config["high"] * config["deep"]
    extras = expressions.extra_pointers(problem)
    if config["gaps"]:
        split = Split(config["high"], config["deep"], config["gap_bytes"])
        packed = gap_runs.pointers(problem.dtype, config["gap_bytes"])
        body = partial(gap_runs.emit, problem=problem, split=split)
    else:
        packed = mask_stream.POINTERS
        shape = _shape(problem, config)
        pieces, stages = config["pieces"], config["stages"]
        body = partial(_masked, problem=problem, shape=shape, pieces=pieces, stages=stages)
    pointers = [("x", problem.dtype), *packed, *extras, ("y", problem.dtype)]
    return device_function(name, threads, pointers, [], body)


def _masked(k: Kernel, problem: Problem, shape: Octets, pieces: int, stages: int) -> None:
    """Every warp by itself: its runs arrive while it decodes earlier ones."""
    token, row = block_place(k, problem, shape)
    halves = Runs.slot_halves(shape, pieces, stages)
    slots = k.shared(max(halves, shape.sum_bytes // 2), "uint16")
    group = k.bind(row // (OCTET * shape.octets) + k.warp % shape.high)
    deep = k.bind(k.warp // shape.high)
    runs = Runs(k, shape, -(-problem.inner // CHUNK), pieces, stages, slots, group, deep)
    read, sums = from_memory(k, problem, shape), zeros(k, shape)
    kept = k.registers(2, "int32")
    for step in range(stages - 1):
        runs.bounds(step, kept)
        runs.copy(step, kept)
        k.call(instructions.cp_async_commit)
    runs.bounds(stages - 1, kept)
    with k.loop(runs.steps) as step:
        words = [k.registers(WORDS, "uint32") for _ in range(CHUNK // STEP)]
        for i, some in enumerate(words):
            read(some, (step * shape.deep + deep) * CHUNK + i * STEP)
        k.call(instructions.cp_async_wait(stages - 2))
        # all lanes' pieces of this run are there, and all have done with the run whose place is next
        k.call(instructions.syncwarp)
        runs.copy((step + (stages - 1)) % stages, kept)
        k.call(instructions.cp_async_commit)
        runs.bounds(step + stages, kept)
        runs.multiply(step % stages, problem.dtype, sums, lambda step, slab: words[step], unrolled=True)
    k.call(instructions.cp_async_wait(0))
    deliver(k, problem, shape, sums, (token, row), slots.start)
