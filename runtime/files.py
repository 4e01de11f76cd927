"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sparsec.errors import ArtifactError, ConfigError

#: how the names begin that files have until they are whole
PREFIX = ".sparsec-"
#: and those of folders in which compilers work
FOLDER_PREFIX = ".sparsec-build-"
#: seconds after which such a file belongs to no one: its process was killed
STALE = 3600.0


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to that becomes ``path`` when the block ends without an exception.

    What killed processes left in the same folder an hour ago or earlier is removed.

    Raises:
        ArtifactError: the folder or the file cannot be written; ``path`` is then untouched.
    """
    try:
        with whole(Path(path)) as file:
            yield file
    except OSError as error:
        raise ArtifactError(f"{os.fspath(path)}: cannot be written: {error.strerror or error}") from error
    remove_stale(Path(path).absolute().parent)


@contextmanager
def whole(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """The same where OSError is no surprise; ``durable``: the bytes are on the disk before the name is."""
    descriptor, temporary = tempfile.mkstemp(prefix=PREFIX, dir=path.absolute().parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def remove_stale(folder: Path) -> None:
    """Remove files that were never finished; what cannot be looked at or removed stays."""
    for entry in _stale(folder, PREFIX):
        if entry.is_file(follow_symlinks=False):
            with suppress(OSError):
                os.unlink(entry.path)


def remove_stale_folders(base: Path) -> None:
    """Remove folders of compilers that were killed, those of this user."""
    for entry in _stale(base, FOLDER_PREFIX):
        if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
            shutil.rmtree(entry.path, ignore_errors=True)


def _stale(folder: Path, prefix: str) -> list[os.DirEntry[str]]:
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                with suppress(OSError):  # another process was faster
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
                        found.append(entry)
    return found


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def folder_of(path: Path) -> Path:
    """The folder a file is to be written to.

    Raises:
        ConfigError: there is none.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{path}: there is no folder {folder}")
    return folder
