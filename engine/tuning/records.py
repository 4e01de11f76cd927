"""records: what was measured, one JSON object a line, in a file that merges by concatenation.

A line is written whole under a lock and ends in a newline; whatever a killed process, a full disk or an
editor left behind that is no record is passed over, counted, and never overwritten.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from sparsec.errors import ConfigError

#: settings of a kernel as sorted pairs
Config: TypeAlias = tuple[tuple[str, int], ...]

_TEXTS = ("machine", "target", "problem", "pattern")
#: raised when records of older kernels say nothing about today's
VERSION = 1


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured: a layer as its kernel sees it, what its zeros look like, and where it runs.

    Texts made by :mod:`sparsec.tuning.tasks`; layers of equal tasks share their records.
    """

    machine: str
    target: str
    threads: int
    problem: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Record:
    """One trial: ``microseconds`` a run of the layer, None where ``status`` is not "ok" but why not."""

    task: Task
    kernel: str
    config: Config
    microseconds: float | None
    status: str = "ok"

    @property
    def line(self) -> str:
        """The record as JSON, without the newline."""
        about = {"version": VERSION, **asdict(self.task), "kernel": self.kernel, "config": dict(self.config)}
        return json.dumps({**about, "microseconds": self.microseconds, "status": self.status})

    @classmethod
    def of(cls, line: str) -> Record | None:
        """The record of a line, None if it is none or of another version."""
        try:
            found = json.loads(line)
            if found["version"] != VERSION:
                return None
            machine, target, problem, pattern = (_text(found[name]) for name in _TEXTS)
            task = Task(machine, target, int(found["threads"]), problem, pattern)
            config = tuple(sorted((_text(k), int(v)) for k, v in found["config"].items()))
            time = found["microseconds"]
            known = None if time is None else float(time)
            if known is not None and not 0 < known < float("inf"):
                return None
            return cls(task, _text(found["kernel"]), config, known, _text(found["status"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


@dataclass(slots=True)
class Records:
    """Records by task; ``damaged`` lines were passed over."""

    by_task: dict[Task, list[Record]] = field(default_factory=dict)
    damaged: int = 0

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Records:
        """All records of some files; a file that does not exist has none.

        Raises:
            ConfigError: a file cannot be read.
        """
        found = cls()
        for path in paths:
            for line in _lines(path):
                found.take(line)
        return found

    def take(self, line: str) -> None:
        """Add the record of a line."""
        record = Record.of(line)
        if record is not None:
            self.add(record)
        elif line.strip():
            self.damaged += 1

    def add(self, record: Record) -> None:
        """Add one."""
        self.by_task.setdefault(record.task, []).append(record)

    def __len__(self) -> int:
        return sum(map(len, self.by_task.values()))

    def times(self, task: Task) -> Mapping[tuple[str, Config], float]:
        """For each kernel and configuration that ran, the median of its microseconds."""
        found: dict[tuple[str, Config], list[float]] = {}
        for record in self.by_task.get(task, ()):
            if record.microseconds is not None and record.status == "ok":
                found.setdefault((record.kernel, record.config), []).append(record.microseconds)
        return {key: median(times) for key, times in found.items()}

    def tried(self, task: Task) -> set[tuple[str, Config]]:
        """What was tried, failures included."""
        return {(record.kernel, record.config) for record in self.by_task.get(task, ())}


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8", errors="replace").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{path}: records cannot be read: {error.strerror}") from error


def append(path: Path, record: Record) -> None:
    """Write a record behind the others; safe beside other processes that do.

    Raises:
        ConfigError: it cannot be written, for instance since the disk is full; the file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        # what a killed process left of a line must not swallow this one
        broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        _write_whole(descriptor, ("\n" * broken + record.line + "\n").encode(), size)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        os.close(descriptor)


def _write_whole(descriptor: int, data: bytes, size: int) -> None:
    """All of it or nothing: a disk may be full in the middle of a line."""
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: records cannot be written: {error.strerror}; choose another file with --records"
    )
