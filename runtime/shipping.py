"""Model files compressed with Zstandard, for shipping: smaller to send, but not to be mapped.

Loading one expands it to a temporary file first.  ``zstandard`` is imported only for such files.
"""

from __future__ import annotations

import os
import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import file_digest
from importlib import import_module
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from sparsec.errors import ArtifactError
from sparsec.runtime.files import PREFIX, replacing

#: how the names of compressed files end; what a file is, its first bytes say
SUFFIX = ".zst"
#: RFC 8878, section 3.1.1
_FRAME = b"\x28\xb5\x2f\xfd"
#: of Zstandard's 22 levels; values of weights hardly compress, so higher ones only take longer
LEVEL = 10
#: compressed bytes expanded at a time: four may become 128 KB
_PART = 1 << 10
#: a file's magic and, after version and count of sections, its size
_BEGINNING = struct.Struct("<8sIIQ")
_MAGIC = b"SPARSEC\n"


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as Zstandard frames do; False where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_FRAME)) == _FRAME
    except OSError:
        return False


def compress(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Write a model file compressed, with a checksum of its own, replacing ``path`` in one step.

    Raises:
        ArtifactError: ``source`` cannot be read, is no model file or is compressed already; ``path``
            cannot be written; or the package ``zstandard`` is missing.
    """
    zstandard = _zstandard(path)
    with _reading(source) as file, replacing(path) as to:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(_MAGIC))
        if start != _MAGIC:
            already = start.startswith(_FRAME)
            told = "it is compressed already" if already else "not a sparsec file"
            raise ArtifactError(f"{os.fspath(source)}: {told}")
        file.seek(0)
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        compressor.copy_stream(file, to, size=size)


def write_compressed(data: bytes, path: str | os.PathLike[str]) -> None:
    """Write a model file's bytes compressed; errors as :func:`compress`."""
    compressor = _zstandard(path).ZstdCompressor(level=LEVEL, write_checksum=True)
    with replacing(path) as to:
        to.write(compressor.compress(data))


def decompress(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Write a compressed model file as it was, replacing ``path`` in one step.

    Raises:
        ArtifactError: ``source`` cannot be read, is damaged, or is not compressed; ``path`` cannot
            be written; or the package ``zstandard`` is missing.
    """
    if not is_compressed(source):
        with _reading(source):
            raise ArtifactError(f"{os.fspath(source)}: it is not compressed")
    with replacing(path) as to:
        _expand(source, to)


@contextmanager
def expanded(path: str | os.PathLike[str], sha256: str | None, quiet: bool = False) -> Iterator[Path]:
    """A temporary file with what a compressed one holds; whoever maps it keeps its contents.

    ``sha256`` is what the compressed file must have; it is compared before anything is expanded.
    Unless ``quiet``, a warning says how to expand it once and for all.

    Raises:
        ArtifactError: as :func:`decompress`, or the file is another one.
    """
    if sha256 is not None:
        check_digest(path, sha256)
    if not quiet:
        warnings.warn(
            f"{os.fspath(path)} is compressed and expanded anew whenever it is loaded, shared with no other "
            "process; `sparsec decompress` does it once",
            stacklevel=5,
        )
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}expanded-") as folder:
        whole = Path(folder) / "model.sparsec"
        decompress(path, whole)
        yield whole


def digest_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        ArtifactError: it cannot be read.
    """
    with _reading(path) as file:
        return file_digest(file, "sha256").hexdigest()


def check_digest(path: str | os.PathLike[str], sha256: str) -> None:
    """Nothing, if a file has this SHA-256.

    Raises:
        ArtifactError: it has another one, or cannot be read.
    """
    found = digest_of(path)
    if found != sha256.lower():
        raise ArtifactError(
            f"{os.fspath(path)}: the file is not the one that was asked for: its SHA-256 is {found}, "
            f"not {sha256}"
        )


def _expand(source: str | os.PathLike[str], to: BinaryIO) -> None:
    """No more than the file's own header announces: a small frame may expand without end."""
    name, zstandard = os.fspath(source), _zstandard(source)
    expander = zstandard.ZstdDecompressor().decompressobj()
    written, limit = 0, _BEGINNING.size
    with _reading(source) as file:
        while part := file.read(_PART):
            try:
                chunk = expander.decompress(part)
            except (zstandard.ZstdError, EOFError) as error:
                raise ArtifactError(f"{name}: the file is damaged: {error}; copy it again") from error
            if chunk and not written:
                limit = _announced(source, chunk)
            written += len(chunk)
            if written > limit or expander.unused_data:
                raise ArtifactError(f"{name}: it holds more than a model file; it is damaged")
            to.write(chunk)
    if written < limit or not expander.eof:
        raise ArtifactError(f"{name}: the file is truncated; copy it again")


def _announced(source: str | os.PathLike[str], chunk: bytes) -> int:
    if len(chunk) < _BEGINNING.size or not chunk.startswith(_MAGIC):
        raise ArtifactError(f"{os.fspath(source)}: what is compressed in it is no sparsec file")
    *_, size = _BEGINNING.unpack_from(chunk)
    return int(size)


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[BufferedReader]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except FileNotFoundError:
            raise ArtifactError(f"{os.fspath(path)}: no such file") from None
        except OSError as error:
            raise ArtifactError(f"{os.fspath(path)}: cannot be opened: {error.strerror}") from error
        yield file


def _zstandard(path: str | os.PathLike[str]) -> Any:
    try:
        return import_module("zstandard")
    except ImportError as error:
        raise ArtifactError(
            f"{os.fspath(path)}: compressed files need the package zstandard: pip install sparsec[ship]"
        ) from error
