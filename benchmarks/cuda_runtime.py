"""Makes ``import sparsec`` work on a machine that has NumPy and torch but no sparsec: from this checkout.

A folder of links becomes the package, and the executor is the one that was carried there
(``build/cuda/_executor*.so``) or, where that does not load, is built by the C compiler at hand.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: folders of the repository by the names they have as packages
PACKAGES = {"engine": "", "passes": "passes", "runtime": "runtime", "targets": "targets"}


def _linked(folder: Path) -> None:
    """The package sparsec as links to this checkout."""
    for source, package in PACKAGES.items():
        target = folder / "sparsec" / package
        target.mkdir(parents=True, exist_ok=True)
        for entry in (ROOT / source).iterdir():
            if entry.name != "__pycache__" and not entry.name.endswith(".so"):
                (target / entry.name).symlink_to(entry)


def _executor(folder: Path) -> None:
    """The compiled half of the runtime."""
    place = folder / "sparsec" / "runtime" / "_executor.abi3.so"
    for carried in (ROOT / "build" / "cuda").glob("_executor*.so"):
        place.symlink_to(carried)
        loads = [sys.executable, "-c", "import sparsec.runtime._executor"]
        if subprocess.run(loads, env=_environment(folder), capture_output=True, check=False).returncode == 0:
            return
        place.unlink()
    sources = sorted(str(p) for p in (ROOT / "runtime" / "csrc").glob("*.c") if p.name != "shim.c")
    headers = sysconfig.get_paths()["include"]
    flags = ["-O2", "-std=c11", "-shared", "-fPIC", "-pthread", f"-I{headers}", "-DPy_LIMITED_API=0x030B0000"]
    subprocess.run(
        [os.environ.get("CC", "cc"), *flags, *sources, "-o", str(place), "-ldl", "-lm"], check=True
    )


def _environment(folder: Path) -> dict[str, str]:
    places = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


if importlib.util.find_spec("ml_dtypes") is None:
    raise SystemExit("bfloat16 weights are packed by the package ml_dtypes, which is missing: install it")
if importlib.util.find_spec("sparsec") is None:
    _folder = Path(tempfile.mkdtemp(prefix="sparsec_package_"))
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    _linked(_folder)
    _executor(_folder)
    sys.path.insert(0, str(_folder))
    os.environ.update(_environment(_folder))
