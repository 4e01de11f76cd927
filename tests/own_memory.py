"""What the kernel tells a process of itself: bytes it read, kilobytes of a mapped file by kind."""

from __future__ import annotations

import os


def bytes_read() -> int:
    """Bytes this process has read from files, since it started."""
    with open("/proc/self/io") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def mapping(path: str) -> dict[str, int]:
    """Kilobytes of a file's mappings by kind: Size, Rss, Pss, Private_Dirty ..."""
    found: dict[str, int] = {}
    inside = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            head = line.split()[0]
            if not head.endswith(":"):
                inside = line.rstrip().endswith(os.path.realpath(path))
            elif inside and line.endswith(" kB\n"):
                found[head[:-1]] = found.get(head[:-1], 0) + int(line.split()[1])
    return found
