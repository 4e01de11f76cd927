"""Every error sparsec raises on purpose.  Messages say what is wrong and what to do next."""

from __future__ import annotations

from collections.abc import Sequence


class SparsecError(Exception):
    """Base class: catch this to catch everything sparsec refuses."""


class ModelError(SparsecError, ValueError):
    """The model file or object cannot be read as a model."""


class Unsupported(SparsecError):
    """The model uses operators sparsec cannot run; ``operators`` lists (operator, node name)."""

    def __init__(self, message: str, operators: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.operators = tuple(operators)


class IRError(SparsecError):
    """A graph breaks a rule of the IR: a defect of a frontend or a pass."""


class BuildError(SparsecError):
    """Generating or linking machine code failed."""


class ArtifactError(SparsecError):
    """A ``.sparsec`` file is damaged, of another version, or made for another CPU."""


class InputError(SparsecError, ValueError):
    """A program was called with a wrong name, shape or dtype."""


class ConfigError(SparsecError, ValueError):
    """An option or a ``SPARSEC_*`` variable has a value that means nothing."""
