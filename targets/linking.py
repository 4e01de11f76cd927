"""linking: kernels of one program as one piece of code, for whichever kind of machine."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.targets import build
from sparsec.targets.cuda import build as cuda_build
from sparsec.targets.target import Target


def link(objects: Sequence[bytes], target: Target) -> bytes:
    """A shared object for a processor, a cubin for a GPU; same inputs, same bytes.

    Raises:
        BuildError: a compiler or linker is missing, or failed.
    """
    return cuda_build.link(objects, target) if target.gpu else build.link(objects, target)
