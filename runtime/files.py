"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sparsec.errors import ArtifactError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to that becomes ``path`` when the block ends without an exception.

    Raises:
        ArtifactError: the folder or the file cannot be written; ``path`` is then untouched.
    """
    try:
        with _temporary_beside(Path(path)) as file:
            yield file
    except OSError as error:
        raise ArtifactError(f"{os.fspath(path)}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _temporary_beside(path: Path) -> Iterator[BinaryIO]:
    descriptor, temporary = tempfile.mkstemp(prefix=".sparsec-", dir=path.absolute().parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
