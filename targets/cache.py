"""cache: compiled code by what it was compiled from, in files that several processes share.

A record is a digest of its key and its bytes, then the bytes.  It is written under another name
first, so nobody reads a half; one that was damaged, cut, or moved is built again and replaced.  A
cache that cannot be read or written costs only time.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from sparsec.config import settings
from sparsec.runtime.files import remove_stale, whole

_DIGEST = 32
_RECORD = re.compile(r"[0-9a-f]{40}\.bin")


def cached(key: str, make: Callable[[], bytes]) -> bytes:
    """What ``make`` returns, remembered; ``key`` names everything it depends on."""
    folder = settings().cache
    if folder is None:
        return make()
    path = folder / f"{sha256(key.encode()).hexdigest()[:40]}.bin"
    found = _read(path, key)
    if found is None:
        start = time.perf_counter()
        found = make()
        if settings().debug >= 3:
            print(f"build {key[:70]}: {1e3 * (time.perf_counter() - start):.0f} ms", file=sys.stderr)
        _write(path, key, found)
    return found


def tidy() -> None:
    """Remove what killed processes left, and the least recently used records over the limit."""
    chosen = settings()
    if chosen.cache is None:
        return
    remove_stale(chosen.cache)
    records = sorted(_records(chosen.cache))
    excess = sum(size for _, size, _ in records) - chosen.cache_bytes
    for _, size, path in records:
        if excess <= 0:
            return
        excess -= size
        with suppress(OSError):
            os.unlink(path)


def _digest(key: str, body: bytes) -> bytes:
    return sha256(sha256(key.encode()).digest() + body).digest()


def _read(path: Path, key: str) -> bytes | None:
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, body = stored[:_DIGEST], stored[_DIGEST:]
    if _digest(key, body) != digest:
        return None
    with suppress(OSError):
        os.utime(path)  # the time of last use, where the folder may be written
    return body


def _write(path: Path, key: str, body: bytes) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path, durable=False) as file:
            file.write(_digest(key, body) + body)


def _records(folder: Path) -> list[tuple[float, int, str]]:
    """Last use, bytes and path of every record."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _RECORD.fullmatch(entry.name):
                with suppress(OSError):  # another process removes them too
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, entry.path))
    return found
