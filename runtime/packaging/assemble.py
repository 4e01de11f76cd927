"""Builds sparsec-runtime by setuptools from a tree of the few files of the repository that it needs.

The tree has the folders that the repository has, so both distributions share one setup.py.  An sdist
is that tree; from within one, setuptools builds it as it is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from setuptools import build_meta

Settings: TypeAlias = Mapping[str, Any] | None

#: of the repository's root
FILES = (
    "LICENSE", "setup.py", "engine/__init__.py", "engine/config.py", "engine/errors.py", "engine/feeds.py",
    "engine/py.typed",
)  # fmt: skip
#: of the folder runtime, for the tree's root
PROJECT = ("pyproject.toml", "packaging/assemble.py")
UNWANTED = ("__pycache__", "*.so", "*.o", "build", "*.egg-info", "packaging", "pyproject.toml")


def _assemble(root: Path, tree: Path) -> None:
    shutil.copytree(root / "runtime", tree / "runtime", ignore=shutil.ignore_patterns(*UNWANTED))
    for file in FILES:
        (tree / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(root / file, tree / file)
    for file in PROJECT:
        (tree / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(root / "runtime" / file, tree / file)
    folders = ("engine", "packaging", "runtime")
    (tree / "MANIFEST.in").write_text("".join(f"graft {f}\n" for f in folders), encoding="utf-8")


@contextmanager
def _inside() -> Iterator[None]:
    """Within, the current folder is the root of the tree."""
    start = Path.cwd()
    if (start / "engine").is_dir():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "sparsec-runtime"
        _assemble(start.parent, tree)
        os.chdir(tree)
        try:
            yield
        finally:
            os.chdir(start)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Nothing beside setuptools."""
    return []


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """Nothing beside setuptools."""
    return []


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    """As setuptools does."""
    folder = os.path.abspath(metadata_directory)
    with _inside():
        return build_meta.prepare_metadata_for_build_wheel(folder, config_settings)


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """As setuptools does."""
    folder = os.path.abspath(wheel_directory)
    with _inside():
        return build_meta.build_wheel(folder, config_settings)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """As setuptools does."""
    folder = os.path.abspath(sdist_directory)
    with _inside():
        return build_meta.build_sdist(folder, config_settings)
