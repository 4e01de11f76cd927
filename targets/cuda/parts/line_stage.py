"""line_stage: input channels from memory to a block's shared memory, laid out as a line (see lines).

Which elements a thread copies, and whether they are padding, is worked out once; then each channel
costs a thread an addition and a copy.  Copies of 4 to 16 bytes are asynchronous; single halves, which those
cannot move, go through registers, four channels at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsec.targets.cuda import instructions
from sparsec.targets.cuda.builder import Array, Kernel, int64, integer
from sparsec.targets.cuda.parts.lines import Line
from sparsec.targets.cuda.parts.positions import divided, inside, unravel
from sparsec.targets.cuda.tir import T

#: channels whose halves are in registers at one time
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class _Element:
    """What a thread copies of each channel: from ``source``, if ``valid``, to ``target``; int32.

    ``present``: whether there is something to copy at all, None if for all threads.
    """

    source: Any
    valid: Any
    target: Any
    present: Any


class LineStage:
    """Copies blocks of channels of a block's part of the line, ``buffers`` of which are held.

    ``first`` is the block's first number and ``images`` how many there are, both int64.
    """

    def __init__(self, k: Kernel, line: Line, first: Any, images: Any, buffers: int) -> None:
        self._k, self._line, self._images = k, line, images
        self.array = k.shared(buffers * line.elements, line.dtype)
        self._units = line.length // line.vector
        #: channels that are copied at one time, by threads side by side
        self._beside = max(1, k.threads // self._units)
        self._image, _ = divided(k, first, line.per_image, "int64")
        self._channel, unit = self._share()
        self._elements = [
            self._element(first, phase, k.bind(unit + turn * k.threads), turn)
            for turn in range(-(-self._units // k.threads))
            for phase in range(len(line.phases))
        ]

    @property
    def asynchronous(self) -> bool:
        """Whether copies have to be committed and awaited."""
        return self._line.vector * self._line.size >= 4

    def commit(self) -> None:
        """What was copied since is one group of copies."""
        if self.asynchronous:
            self._k.call(instructions.cp_async_commit)

    def wait(self, left: int) -> None:
        """Until no more than ``left`` groups are under way."""
        if self.asynchronous:
            self._k.call(instructions.cp_async_wait(left))

    def buffer(self, number: Any) -> Any:
        """Where a buffer begins, in elements."""
        return self._k.bind(number * self._line.elements)

    def copy(self, number: Any, block: Any) -> None:
        """Copy the ``block``-th channels (int32) to buffer ``number``."""
        k, line, g = self._k, self._line, self._line.geometry
        plane = g.height * g.width
        turns = -(-line.channels // self._beside)
        channel = k.bind(block * line.channels)
        x = k.bind((self._image * g.channels + int64(channel)) * plane)
        left = k.bind(T.min(g.channels - channel, line.channels))
        start = self.buffer(number)
        if self.asynchronous:
            with k.loop(turns) as turn:
                at = k.bind(turn * self._beside + self._channel)
                with k.when(self._copied(at, left)):
                    self._copy(k.bind(x + int64(at) * plane), k.bind(start + at * self._pitch))
            return
        with k.loop(-(-turns // _AT_ONCE)) as turn:
            self._copy_halves(k.bind(turn * _AT_ONCE), left, x, start)

    @property
    def _pitch(self) -> int:
        return len(self._line.phases) * self._line.length

    def _share(self) -> tuple[Any, Any]:
        """The thread's channel of those copied side by side, and its unit of the channel."""
        if self._beside == 1:
            return 0, self._k.thread
        return divided(self._k, self._k.thread, self._units)

    def _copied(self, channel: Any, left: Any) -> Any:
        """Whether a channel is there, and the thread one of those that copy."""
        here = channel < left
        return T.And(here, self._channel < self._beside) if self._beside > 1 else here

    def _element(self, first: Any, phase: int, unit: Any, turn: int) -> _Element:
        k, line, g = self._k, self._line, self._line.geometry
        begin = k.bind(unit * line.vector)
        image, row, column = unravel(k, first, begin, [line.height, line.pitch])
        a, b = line.phases[phase]
        y = k.bind(row * g.strides[0] + (a - g.padding[0]))
        x = k.bind(column * g.strides[1] + (b - g.padding[1]))
        valid = T.And(T.And(inside(y, g.height), inside(x, g.width)), image < self._images)
        beyond = T.cast(image - self._image, "int32") * (g.channels * g.height * g.width)
        present = unit < self._units if (turn + 1) * k.threads > self._units and self._beside == 1 else None
        source = k.bind(beyond + y * g.width + x)
        return _Element(source, k.bind(valid), k.bind(begin + phase * line.length), present)

    def _copy(self, x: Any, start: Any) -> None:
        k, line = self._k, self._line
        bytes_moved = line.vector * line.size
        copy = {4: instructions.cp_async_4, 8: instructions.cp_async_8, 16: instructions.cp_async_16}[
            bytes_moved
        ]
        for e in self._elements:
            to, source = self.array.pointer(start + e.target), k["x"].pointer(x + int64(e.source))
            if e.present is None:
                k.call(copy, to, source, T.cast(e.valid, "int32"))
                continue
            with k.when(e.present):
                k.call(copy, to, source, T.cast(e.valid, "int32"))

    def _copy_halves(self, turn: Any, left: Any, x: Any, start: Any) -> None:
        k, line, g = self._k, self._line, self._line.geometry
        values = k.registers(_AT_ONCE * len(self._elements), "uint16")
        array, words = k.view("x", "uint16"), k.shared_at(self.array.start * line.size, "uint16")
        channels = [k.bind((turn + i) * self._beside + self._channel) for i in range(_AT_ONCE)]
        copied = [k.bind(self._copied(channel, left)) for channel in channels]
        for i, channel in enumerate(channels):
            plane = k.bind(x + int64(channel) * (g.height * g.width))
            for j, e in enumerate(self._elements):
                valid = T.And(copied[i], e.valid)
                valid = valid if e.present is None else T.And(valid, e.present)
                value = T.if_then_else(valid, array[plane + int64(e.source)], integer(0, "uint16"))
                values.put(i * len(self._elements) + j, value)
        for i, channel in enumerate(channels):
            with k.when(copied[i]):
                to = k.bind(start + channel * self._pitch)
                for j, e in enumerate(self._elements):
                    value = values[i * len(self._elements) + j]
                    self._put_half(words, k.bind(to + e.target), value, e.present)

    def _put_half(self, words: Array, at: Any, value: Any, present: Any) -> None:
        k, line = self._k, self._line

        def put() -> None:
            words.put(at, value)
            if line.copies == 2:
                # one element on: a channel's first goes to the end of what precedes it, which nothing reads
                words.put(at + (line.second - 1), value)

        if present is None:
            put()
            return
        with k.when(present):
            put()
