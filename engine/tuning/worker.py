"""worker: builds and measures trials in a process of its own, so that a crash or a hang costs one trial.

Speaks pickled messages, each behind its length, on its standard input and output; what else a library
prints goes to standard error.

    python -m sparsec.tuning.worker
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from sparsec.bench.measure import pin_to_one_core
from sparsec.errors import SparsecError
from sparsec.runtime import Program
from sparsec.tuning.records import Config
from sparsec.tuning.tasks import feeds_of, program_bytes

if TYPE_CHECKING:
    from sparsec.ir.graph import Graph
    from sparsec.ir.types import Array
    from sparsec.targets.target import Target

#: runs of both programs a trial takes, in turns
TURNS = 5
#: seconds a turn lasts at least
TURN = 0.004
#: largest difference of two kernels' results, relative to the largest result
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Work:
    """A layer to measure trials of; ``graph`` as :func:`sparsec.tuning.tasks.alone` makes it."""

    graph: Graph
    node: str
    target: Mapping[str, Any]
    #: kernel and settings that every trial is compared with
    default: tuple[str, Config]
    #: the share of x that is not zero, where calibration samples said so
    active: float | None = None
    #: where to measure: None here, else see sparsec.tuning.remote
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds of the trial and of the default, measured in turns; or why there are none."""

    seconds: float | None
    default: float | None
    status: str = "ok"


def packed_target(target: Target) -> dict[str, Any]:
    """A target as plain data: its kernels are modules, which the other side has too."""
    return {f.name: getattr(target, f.name) for f in fields(target) if f.name != "kernels"}


def _target(described: Mapping[str, Any]) -> Target:
    from sparsec.targets.x86 import AVX2

    return replace(AVX2, **described)


class Bench:
    """A layer's default program, and what trials are held against."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._target = _target(work.target)
        if self._target.threads == 1 and not work.remote:
            pin_to_one_core()
        self._default = self._build(*work.default)

    def _build(self, kernel: str, config: Config) -> bytes:
        return program_bytes(self._work.graph, self._work.node, kernel, config, self._target)

    def measure(self, kernel: str, config: Config) -> Answer:
        """Build a trial and time it beside the default."""
        trial = self._default if (kernel, config) == self._work.default else self._build(kernel, config)
        settings = self._work.node, self._target.threads, self._work.active
        if self._work.remote:
            from sparsec.tuning.remote import measure

            return measure(self._work.remote, self._default, trial, *settings)
        return compare(self._default, trial, *settings)


def compare(default: bytes, trial: bytes, node: str, threads: int, active: float | None = None) -> Answer:
    """Time one step of two programs in turns, and hold the second's results against the first's."""
    programs = [Program.from_bytes(data, threads=threads) for data in (default, trial)]
    feeds = feeds_of(programs[0], active)
    wanted, found = (program.run(None, feeds) for program in programs)
    if not _agree(wanted, found):
        return Answer(None, None, "wrong results")
    # the first runs touched all memory; these say how many fill a turn
    repeats = [max(1, round(TURN / max(_step(p, node, feeds, 1), 1e-7))) for p in programs]
    times = [[_step(p, node, feeds, min(n, 1000)) for p, n in zip(programs, repeats, strict=True)]
             for _ in range(TURNS)]  # fmt: skip
    default_seconds, seconds = (float(np.median(column)) for column in zip(*times, strict=True))
    return Answer(seconds, default_seconds)


def _step(program: Program, node: str, feeds: dict[str, Array], repeats: int) -> float:
    """Median seconds of the steps that compute a node."""
    steps = program.profile(feeds, repeats=repeats)
    return sum(s.nanoseconds for s in steps if s.node == node) / 1e9


def _agree(wanted: list[Array], found: list[Array]) -> bool:
    """Whether two kernels computed the same, but for the order of sums."""
    pairs = zip(wanted, found, strict=True)
    return all(float(np.abs(w - f).max(initial=0)) <= TOLERANCE * max(1e-30, float(np.abs(w).max(initial=0)))
               for w, f in pairs)  # fmt: skip


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer until the input ends."""
    bench: Bench | None = None
    while (message := receive(source)) is not None:
        try:
            answer = Answer(None, None)
            if isinstance(message, Work):
                bench = None
                bench = Bench(message)
            elif bench is None:
                answer = Answer(None, None, "failed: no layer to measure")
            else:
                answer = bench.measure(*message)
        except SparsecError as error:
            answer = Answer(None, None, f"refused: {_first_line(error)}")
        except Exception as error:  # whatever TVM raises
            answer = Answer(None, None, f"failed: {type(error).__name__}: {_first_line(error)}")
        send(sink, answer)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def send(sink: IO[bytes], message: Any) -> None:
    """Write one message."""
    data = pickle.dumps(message)
    sink.write(struct.pack("<Q", len(data)) + data)
    sink.flush()


def receive(source: IO[bytes]) -> Any:
    """Read one message, None at the end."""
    head = source.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    data = source.read(length)
    return pickle.loads(data) if len(data) == length else None


def main() -> None:
    """Standard output is for answers alone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    # pickled classes belong to the module's own name, not to __main__
    from sparsec.tuning import worker

    worker.main()
