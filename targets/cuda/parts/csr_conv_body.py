"""csr_conv_body: the code of csr_conv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import WARP, Array, Kernel, int64, integer
from sparsec.targets.cuda.parts.conv_rows import STEP
from sparsec.targets.cuda.parts.conv_tiles import images_of
from sparsec.targets.cuda.parts.line_stage import LineStage
from sparsec.targets.cuda.parts.lines import Line
from sparsec.targets.cuda.parts.positions import divided, unravel
from sparsec.targets.cuda.tir import T
from sparsec.targets.target import Problem


def body(k: Kernel, problem: Problem, line: Line, high: int, chunks: int) -> None:
    """A tile of the line, for ``high`` rows of each of the warps; ``chunks`` blocks make all rows."""
    tile, chunk = divided(k, k.block, chunks, "int64")
    first = k.bind(tile * line.count)
    images = images_of(k, problem)
    stage = LineStage(k, line, first, images, min(2, line.blocks))
    cell = k.bind(T.cast(chunk, "int32") * (k.threads // WARP) + k.warp)
    rows = _Rows(k, problem, line, high, cell, stage.array)
    rows.begin()
    stage.copy(0, integer(0, "int32"))
    stage.commit()
    if line.blocks == 1:
        stage.wait(0)
        k.sync()
        rows.add(integer(0, "int32"), integer(0, "int32"))
    else:
        with k.loop(line.blocks) as block:
            with k.when(block + 1 < line.blocks):
                stage.copy((block + 1) % 2, block + 1)
            stage.commit()
            stage.wait(1)
            k.sync()
            rows.add(block, stage.buffer(block % 2))
            # what is written next has been read by all
            k.sync()
    rows.finish(first, images)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where neighbouring results of a thread go: the element of y that row 0's would, if ``valid``, or 0."""

    offset: Any
    valid: Any


class _Rows:
    """The rows of a warp: accumulators [row][read][neighbour], and the step that is next."""

    def __init__(self, k: Kernel, problem: Problem, line: Line, high: int, cell: Any, x: Array) -> None:
        self._k, self._problem, self._line, self._high, self._cell = k, problem, line, high, cell
        self._wide = line.count // (WARP * line.neighbours)
        self._x = x if line.neighbours == 1 else k.words(x)
        self._total = k.registers(high * line.count // WARP)
        self._values, self._ahead = k.registers(STEP), k.registers(STEP)
        self._places, self._places_ahead = k.registers(STEP // 2, "uint32"), k.registers(STEP // 2, "uint32")

    def begin(self) -> None:
        """No products yet."""
        for i in range(self._high * self._line.count // WARP):
            self._total.put(i, expressions.constant(0))

    def add(self, block: Any, buffer: Any) -> None:
        """The products of a block of channels, held from element ``buffer`` on."""
        k, high = self._k, self._high
        run = k.bind((self._cell * self._line.blocks + block) * high)
        starts = [k.bind(k["starts"][run + i]) for i in range(high + 1)]
        here = k.bind(buffer // self._line.neighbours + k.lane)
        self._read(self._values, self._places, starts[0])
        for i in range(high):
            with k.loop(starts[i], starts[i + 1]) as step:
                # the last step of a row reads the first of the next
                self._read(self._ahead, self._places_ahead, step + 1)
                for nonzero in range(STEP):
                    self._multiply(i, nonzero, here)
                self._values.put(0, self._ahead.vector(0, STEP), STEP)
                self._places.put(0, self._places_ahead.vector(0, STEP // 2), STEP // 2)

    def _read(self, values: Array, places: Array, step: Any) -> None:
        """A step's nonzeros."""
        k = self._k
        numbers = k["values"].vector(step * STEP, STEP)
        values.put(0, numbers if self._line.neighbours == 1 else T.cast(numbers, f"float32x{STEP}"), STEP)
        places.put(0, k.view("places", "uint32").vector(step * (STEP // 2), STEP // 2), STEP // 2)

    def _multiply(self, row: int, nonzero: int, here: Any) -> None:
        k, weight, pair = self._k, self._values[nonzero], self._places[nonzero // 2]
        place = pair >> integer(16, "uint32") if nonzero % 2 else pair & integer(0xFFFF, "uint32")
        at = k.bind(here + T.cast(place, "int32"))
        each = self._line.neighbours
        for i in range(self._wide):
            word = k.bind(self._x[at + i * WARP])
            slot = (row * self._wide + i) * each
            for j, x in enumerate(numbers_of(k, word, self._problem.dtype)):
                self._total.put(slot + j, self._total[slot + j] + weight * x)

    def finish(self, first: Any, images: Any) -> None:
        """Epilogue and stores."""
        k, high = self._k, self._high
        together = self._together
        places = self._destinations(first, images, together)
        for i in range(high):
            number = k.bind(k["rows"][self._cell * high + i])
            # what is not valid is computed too, somewhere valid: without branches reads run together
            row = k.bind(T.max(number, 0))
            for j, place in enumerate(places):
                slot = i * self._line.count // WARP + j * together
                at = k.bind(place.offset + int64(row) * self._line.geometry.positions)
                values = [self._total[slot + e] for e in range(together)]
                values = expressions.finish(k, self._problem, values, row, at)
                with k.when(T.And(place.valid, number >= 0)):
                    expressions.store(k, k["y"], at, values)

    @property
    def _together(self) -> int:
        """Neighbours that are stored at once: a thread's, if they are so in y, at an even place."""
        line = self._line
        return line.neighbours if line.vector >= line.neighbours and line.vector > 1 else 1

    def _destinations(self, first: Any, images: Any, together: int) -> list[_Place]:
        """Of all results of a row, in the order of accumulators."""
        k, line, g = self._k, self._line, self._line.geometry
        found = []
        for i in range(self._wide):
            for e in range(0, line.neighbours, together):
                number = k.bind((k.lane + i * WARP) * line.neighbours + e)
                image, y, x = unravel(k, first, number, [line.height, line.pitch])
                valid = T.And(T.And(y < g.out_height, x < g.out_width), image < images)
                place = int64(y * g.out_width + x)
                offset = image * (self._problem.rows * g.positions) + place
                valid = k.bind(valid)
                found.append(_Place(k.bind(T.Select(valid, offset, integer(0))), valid))
        return found


def numbers_of(k: Kernel, word: Any, dtype: str) -> list[Any]:
    """The one or two floats of a word of shared memory, as float32."""
    if dtype == "float32":
        return [word]
    if dtype == "bfloat16":
        high = word & integer(0xFFFF0000, "uint32")
        return [
            k.bind(T.reinterpret("float32", word << integer(16, "uint32"))),
            k.bind(T.reinterpret("float32", high)),
        ]
    pair = k.registers(2)
    pair.put(0, T.cast(T.reinterpret("float16x2", word), "float32x2"), 2)
    return [pair[0], pair[1]]
