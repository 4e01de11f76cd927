"""All there is to do on a machine with a GPU, in under ten minutes: ``python benchmarks/cuda_all.py``.

Tests (``pytest -m cuda``), NVIDIA's compute-sanitizer over a few of them, then the benchmark in the time that
is left.  Runs what ``cuda_build.py`` left in build/cuda; exits with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: tests under the sanitizer, which makes them ten to a hundred times slower: one of each kind of kernel
CHECKED = (
    "nm_spmm and 64x64x3 or bsr_spmm and 16 or csr_spmm and 61 or bitmask and 5 or csr_conv_3x3 "
    "or attention_float16"
)
#: seconds for the tests and for each tool
LIMITS = {"tests": 150, "memcheck": 60, "racecheck": 60}


def tested(command: Sequence[str], seconds: float) -> dict[str, object]:
    """How a run of pytest ended: its last line, and whether it passed."""
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [*command, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", "tests"],
            cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False, env=_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"passed": False, "told": f"not done after {seconds:.0f} s"}
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    lines = [
        line for line in done.stdout.splitlines() if re.search(r"\d+ (passed|failed|skipped|error)", line)
    ]
    took = round(time.monotonic() - begin, 1)
    return {
        "passed": done.returncode == 0,
        "told": lines[-1] if lines else done.stderr[-300:],
        "seconds": took,
    }


def _environment() -> dict[str, str]:
    chosen = {"PYTEST_ADDOPTS": os.environ.get("SPARSEC_CUDA_TESTS", "")}
    return os.environ | chosen


def sanitized(tool: str) -> dict[str, object]:
    """A few tests under one tool of compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"passed": True, "told": "not checked: no compute-sanitizer here"}
    os.environ["SPARSEC_CUDA_TESTS"] = f'-k "{CHECKED}"'
    command = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    try:
        return tested(command, LIMITS[tool])
    finally:
        del os.environ["SPARSEC_CUDA_TESTS"]


def main() -> int:
    """Tests, sanitizer, benchmark."""
    parser = argparse.ArgumentParser(description="Test, check and time sparsec's CUDA programs.")
    parser.add_argument(
        "--out", type=Path, help="the results' file; default benchmarks/results/cuda-<gpu>.json"
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it (9.5)")
    arguments = parser.parse_args()
    begin = time.monotonic()
    checks: dict[str, dict[str, object]] = {"tests": tested([], LIMITS["tests"])}
    for tool in ("memcheck", "racecheck"):
        checks[tool] = sanitized(tool)
    print(json.dumps(checks, indent=1), flush=True)
    left = arguments.minutes - (time.monotonic() - begin) / 60
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import cuda_run

    status = cuda_run.measure(ROOT / "build" / "cuda", arguments.out, left - 0.7, checks=checks)
    return status or int(not all(check["passed"] for check in checks.values()))


if __name__ == "__main__":
    sys.exit(main())
