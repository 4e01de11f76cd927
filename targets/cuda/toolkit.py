"""toolkit: where NVIDIA's compiler is, if it is."""

from __future__ import annotations

import importlib.util
import shutil
from functools import cache
from pathlib import Path

from sparsec.config import settings
from sparsec.errors import BuildError


def find(tool: str) -> str | None:
    """The path of a program of the CUDA toolkit (``nvcc``, ``nvlink``, ``nvdisasm``), None without one.

    Looked for in the folder ``SPARSEC_CUDA`` names, on the path, in /usr/local/cuda, and among the Python
    packages that NVIDIA ships its compiler as.
    """
    return _found(tool, settings().cuda)


@cache
def _found(tool: str, named: str) -> str | None:
    """The tool in the named folder, or, with an empty name, wherever it is."""
    if named:
        return shutil.which(tool, path=f"{named}/bin")
    found = shutil.which(tool)
    if found:
        return found
    for folder in [Path("/usr/local/cuda/bin"), *_package_folders()]:
        if (folder / tool).is_file():
            return str(folder / tool)
    return None


def _package_folders() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    return [folder for root in roots for folder in (*sorted(root.glob("cu*/bin")), root / "cuda_nvcc/bin")]


def nvcc() -> str:
    """The compiler.

    Raises:
        BuildError: there is none.
    """
    return _needed("nvcc")


def nvlink() -> str:
    """The linker.

    Raises:
        BuildError: there is none.
    """
    return _needed("nvlink")


def _needed(tool: str) -> str:
    found, named = find(tool), settings().cuda
    if found is None and named:
        raise BuildError(f"SPARSEC_CUDA={named} has no bin/{tool}: name the folder of the CUDA toolkit")
    if found is None:
        raise BuildError(
            f"no {tool} to compile CUDA kernels with: install the CUDA toolkit (12.5 or later), or name its "
            "folder in SPARSEC_CUDA; running a compiled model needs none"
        )
    return found
