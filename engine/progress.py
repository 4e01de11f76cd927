"""How long work reports how far it is, without knowing who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeAlias, TypeVar

#: Called with what is being done, how many parts of it are done, and how many there are; a stage
#: begins at 0.  It runs in the thread that works, so it should return soon.
Progress: TypeAlias = Callable[[str, int, int], None]

T_co = TypeVar("T_co", covariant=True)


class Several(Sized, Iterable[T_co], Protocol[T_co]):
    """What can be counted before it is gone through."""


def counted(parts: Several[T_co], stage: str, progress: Progress | None) -> Iterator[T_co]:
    """The parts in order; ``progress`` hears of each when the next is asked for."""
    if progress is None:
        yield from parts
        return
    for done, part in enumerate(parts):
        progress(stage, done, len(parts))
        yield part
    progress(stage, len(parts), len(parts))
