"""Types of the C extension."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

from numpy.typing import NDArray

_Port = tuple[str, str, tuple[int | str, ...]]
_Convert = Callable[[str, str, object], NDArray[Any] | DeviceArray]
_Allocate = Callable[[int, tuple[int, ...]], DeviceArray]
_FindStream = Callable[[], int]

class DeviceArray:
    def __new__(
        cls,
        address: int,
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        owner: object,
        /,
    ) -> DeviceArray: ...

class Model:
    @property
    def inputs(self) -> tuple[_Port, ...]: ...
    @property
    def outputs(self) -> tuple[_Port, ...]: ...
    @property
    def isa(self) -> str: ...
    @property
    def device(self) -> str: ...
    threads: int
    def manifest(self) -> bytes: ...
    def run(
        self,
        names: Sequence[str] | None,
        feeds: dict[str, Any],
        allocate: _Allocate | None = ...,
        find_stream: _FindStream | None = ...,
        /,
    ) -> list[Any]: ...
    def prepare(
        self,
        feeds: dict[str, Any],
        outputs: dict[str, Any],
        allocate: _Allocate | None = ...,
        find_stream: _FindStream | None = ...,
        /,
    ) -> Prepared: ...
    def profile(
        self, feeds: dict[str, Any], repeats: int, find_stream: _FindStream | None = ..., /
    ) -> list[tuple[str, str, int, int]]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Prepared:
    @property
    def outputs(self) -> list[Any]: ...
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
