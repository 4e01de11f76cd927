"""Types of the C extension."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

from numpy.typing import NDArray

_Port = tuple[str, str, tuple[int | str, ...]]
_Convert = Callable[[str, str, object], NDArray[Any]]

class Model:
    @property
    def inputs(self) -> tuple[_Port, ...]: ...
    @property
    def outputs(self) -> tuple[_Port, ...]: ...
    @property
    def isa(self) -> str: ...
    threads: int
    def manifest(self) -> bytes: ...
    def run(self, names: Sequence[str] | None, feeds: dict[str, Any], /) -> list[NDArray[Any]]: ...
    def prepare(self, feeds: dict[str, Any], outputs: dict[str, NDArray[Any]], /) -> Prepared: ...
    def profile(self, feeds: dict[str, Any], repeats: int, /) -> list[tuple[str, str, int, int]]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Prepared:
    @property
    def outputs(self) -> list[NDArray[Any]]: ...
    def __call__(self) -> None: ...

def load(
    path: str | PathLike[str], convert: _Convert, verify: bool, isa: str | None, sha256: str | None, /
) -> Model: ...
def from_bytes(
    data: bytes | bytearray | memoryview,
    convert: _Convert,
    verify: bool,
    isa: str | None,
    sha256: str | None,
    /,
) -> Model: ...
