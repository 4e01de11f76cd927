"""Fuzz the reader of model files: ``python tests/fuzz/run.py --seconds 600``.

Builds load_model.c and the runtime's sources with clang's libFuzzer, AddressSanitizer and
UndefinedBehaviorSanitizer, and runs them on changed files.  What it learns stays in the folder
(build/fuzz), so the next run goes on from there; a file that breaks the reader is left in
``found/`` and the exit status is 1.  ``build/fuzz/load_model FILE`` reads one file again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "runtime" / "csrc"
SANITIZE = "-fsanitize=fuzzer,address,undefined"
FLAGS = ("-std=c11", "-g", "-Wall", "-Wextra", "-Werror", SANITIZE, "-fno-sanitize-recover=all")
STUBBED = ("mmap", "munmap", "mprotect")
MOST_BYTES = 16384

#: Sizes that a file may ask for but no test should get; leaks count as findings.  The limit of all memory is
#: the sanitizer's: libFuzzer's own goes by the highest mark, which a program inherits from who started it.
ASAN = (
    "allocator_may_return_null=1:max_allocation_size_mb=32:hard_rss_limit_mb=1024:quarantine_size_mb=16:"
    "detect_leaks=1"
)


def missing() -> str | None:
    """Why nothing can be fuzzed here, or None."""
    if not shutil.which("clang"):
        return "clang is not installed"
    command = ["clang", SANITIZE, "-x", "c", "-", "-o", os.devnull]
    target = "int LLVMFuzzerTestOneInput(const char *data, long size) { return data && size < 0; }"
    built = subprocess.run(command, input=target, capture_output=True, text=True, check=False)
    return None if built.returncode == 0 else "clang has no libFuzzer"


def sources() -> list[Path]:
    """The runtime but for Python and what the stubs stand for, and the fuzz target."""
    replaced = {"library.c", "shim.c", "cuda_driver.c"}
    runtime = [p for p in CSRC.glob("*.c") if p.name not in replaced and not p.name.startswith("python_")]
    return sorted(runtime) + sorted(HERE.glob("*.c"))


def build(
    folder: Path, changed: Mapping[str, str] | None = None, objects: Path | None = None, optimize: str = "-O1"
) -> Path:
    """The fuzz target, in ``folder``.

    Args:
        folder: where objects and the program go; made if absent.
        changed: other texts of some sources, by file name.
        objects: a folder built before, whose objects are taken for all unchanged sources.
        optimize: "-O0" builds faster, and runs slower.
    """
    folder.mkdir(parents=True, exist_ok=True)
    changed = changed or {}
    for name, text in changed.items():
        (folder / name).write_text(text, encoding="utf-8")
    taken = [p for p in sources() if objects and p.name not in changed]
    compiled = [folder / p.name if p.name in changed else p for p in sources() if p not in taken]
    defines = [f"-D{name}=checked_{name}" for name in STUBBED]
    flags = [*FLAGS, optimize, *defines, f"-I{CSRC}", f"-I{HERE}"]
    subprocess.run(["clang", *flags, "-c", *compiled], cwd=folder, check=True)
    linked = [folder / f"{p.stem}.o" for p in compiled]
    linked += [objects / f"{p.stem}.o" for p in taken if objects]
    program = folder / "load_model"
    subprocess.run(["clang", SANITIZE, *linked, "-o", program, "-pthread", "-ldl", "-lm"], check=True)
    return program


@dataclass(frozen=True)
class Outcome:
    """One run of the fuzzer."""

    status: int
    #: files tried, loaded, and bindings and runs of those; empty after a crash
    counts: Mapping[str, int]
    #: libFuzzer's own words
    text: str


def fuzz(program: Path, folder: Path, seconds: int, *options: str) -> Outcome:
    """Run the target on what lies in ``folder/corpus``, on the seeds, and on what it makes of them.

    Args:
        program: what :func:`build` made.
        folder: gets ``corpus`` (files that reached something new), ``seeds`` and ``found``.
        seconds: how long.
        options: more of libFuzzer's.
    """
    for name in ("corpus", "seeds", "found"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, HERE / "seeds.py", folder / "seeds"], check=True)
    limits = [
        f"-max_total_time={seconds}",
        f"-max_len={MOST_BYTES}",
        "-mutate_depth=2",
        "-timeout=10",
        "-rss_limit_mb=0",
    ]
    places = [f"-artifact_prefix={folder}/found/", folder / "corpus", folder / "seeds"]
    done = subprocess.run(
        [program, *limits, "-print_final_stats=1", *options, *places], capture_output=True, text=True,
        check=False, env=os.environ | {"ASAN_OPTIONS": ASAN, "UBSAN_OPTIONS": "print_stacktrace=1"},
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if "AddressSanitizer failed to allocate" not in line]
    last = re.search(r"files (\d+) loaded (\d+) bound (\d+) ran (\d+)", done.stderr)
    counts = zip(("files", "loaded", "bound", "ran"), map(int, last.groups()), strict=True) if last else ()
    return Outcome(done.returncode, dict(counts), "\n".join(lines))


def main() -> int:
    """Build, run, say what came of it."""
    parser = argparse.ArgumentParser(description="Fuzz the reader of model files.")
    parser.add_argument("--seconds", type=int, default=30, help="how long; default 30")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="default build/fuzz")
    arguments = parser.parse_args()
    reason = missing()
    if reason:
        print(f"not fuzzed: {reason}")
        return 2
    folder = arguments.folder.resolve()
    outcome = fuzz(build(folder), folder, arguments.seconds)
    print("\n".join(outcome.text.splitlines()[-40:]))
    return 1 if outcome.status else 0


if __name__ == "__main__":
    sys.exit(main())
