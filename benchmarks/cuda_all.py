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
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: tests under the sanitizer, which makes them ten to a hundred times slower: one of each kind of kernel
CHECKED = (
    "nm_spmm_2of4_64x64x3_float16", "bsr_spmm_b16x16_75_128x192x70_float16", "csr_spmm_u90_61x67x3_float32",
    "bitmask_gemv_u60_128x512x9_float16", "csr_conv_3x3_1_float16", "attention_float16",
)  # fmt: skip
#: seconds for the tests and for each tool
LIMITS = {"tests": 150, "memcheck": 60, "racecheck": 60}


def tested(command: Sequence[str], seconds: float, chosen: Sequence[str] = ()) -> dict[str, object]:
    """How a run of pytest ended: its last line, and whether tests passed and none failed."""
    begin = time.monotonic()
    select = ["-k", " or ".join(chosen)] if chosen else []
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", "tests", *select]
    running = subprocess.Popen(
        [*command, *pytest], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        told, _ = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # its children too: they would go on using the GPU
        os.killpg(running.pid, signal.SIGKILL)
        told, _ = running.communicate()
        print(told[-6000:], flush=True)
        return {"passed": False, "told": f"not done after {seconds:.0f} s"}
    print(told[-6000:], flush=True)
    lines = [line for line in told.splitlines() if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    last = lines[-1] if lines else told[-300:]
    passed = running.returncode == 0 and "passed" in last
    return {"passed": passed, "told": last, "seconds": round(time.monotonic() - begin, 1)}


def sanitized(tool: str) -> dict[str, object]:
    """A few tests under one tool of compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"passed": True, "told": "not checked: no compute-sanitizer here"}
    options = [
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        "--target-processes",
        "all",
        "--report-api-errors",
        "no",
    ]
    return tested([program, *options], LIMITS[tool], CHECKED)


def ready() -> None:
    """Ends the program where there is nothing to run, or nothing to run it on."""
    if not any((ROOT / "build" / "cuda").glob("*.program")):
        raise SystemExit(
            "build/cuda has no programs: run `make cuda-programs` where sparsec is installed, and bring "
            "that folder here"
        )
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here")


def main() -> int:
    """Tests, sanitizer, benchmark."""
    parser = argparse.ArgumentParser(description="Test, check and time sparsec's CUDA programs.")
    parser.add_argument(
        "--out", type=Path, help="the results' file; default benchmarks/results/cuda-<gpu>.json"
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it (9.5)")
    arguments = parser.parse_args()
    ready()
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
