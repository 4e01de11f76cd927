"""foreign: programs compiled for another processor, which can be looked at and saved."""

from __future__ import annotations

import json
from typing import Any, NoReturn, cast

from sparsec.errors import ArtifactError
from sparsec.runtime import Program, _executor
from sparsec.runtime.artifact import manifest_of

#: threads a program may have, as the executor says
_MOST_THREADS = 256


class Foreign(bytes):
    """A model file in the place of the executor's ``Model``; running it raises why it was not loaded."""

    inputs: tuple[tuple[str, str, tuple[int | str, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int | str, ...]], ...]

    def __new__(cls, data: bytes, why: ArtifactError) -> Foreign:
        made = super().__new__(cls, data)
        made._about, made._why, made._threads = manifest_of(data), why, 1
        made.inputs, made.outputs = (
            tuple((port["name"], port["dtype"], tuple(port["shape"])) for port in made._about[side])
            for side in ("inputs", "outputs")
        )
        return made

    _about: dict[str, Any]
    _why: ArtifactError
    _threads: int

    @property
    def isa(self) -> str:
        """The most capable instruction set it has code for."""
        return str(self._about["isas"][0]["name"])

    @property
    def device(self) -> str:
        """Where it would run; code for GPUs names their kind where other code names features."""
        features = self._about["isas"][0]["features"]
        return "cuda" if features and str(features[0]).startswith("sm_") else "cpu"

    @property
    def threads(self) -> int:
        """Kept for whoever asks."""
        return self._threads

    @threads.setter
    def threads(self, count: int) -> None:
        if not 1 <= count <= _MOST_THREADS:
            raise ValueError(count)
        self._threads = count

    def manifest(self) -> bytes:
        """The manifest, JSON."""
        return json.dumps(self._about).encode()

    def run(self, *_: Any) -> NoReturn:
        """Refuses."""
        raise ArtifactError(str(self._why))

    prepare = profile = run


def foreign_program(data: bytes, why: ArtifactError, threads: int | None) -> Program:
    """A program of which everything works but running: that raises ``why`` loading it failed."""
    return Program(cast(_executor.Model, Foreign(data, why)), threads)
