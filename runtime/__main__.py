"""``python -m sparsec.runtime``: where the C library lies, and running a model without its compiler."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from sparsec.runtime.program import Program

FOLDER = Path(__file__).absolute().parent
INCLUDE, LIB = FOLDER / "include", FOLDER / "lib"

#: option -> (what it prints, its help)
PLACES: Mapping[str, tuple[str, str]] = {
    "includedir": (str(INCLUDE), "the folder of sparsec.h"),
    "libdir": (str(LIB), "the folder of libsparsec.so"),
    "cmakedir": (str(LIB / "cmake" / "sparsec"), "for cmake -Dsparsec_DIR=..."),
    "pkgconfigdir": (str(LIB / "pkgconfig"), "for PKG_CONFIG_PATH"),
    "example": (str(FOLDER / "example.c"), "an example in C"),
    "cflags": (f"-I{INCLUDE}", "flags for a compiler"),
    "libs": (f"-L{LIB} -Wl,-rpath,{LIB} -lsparsec", "flags for a linker"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["run"]:
        return run(given[1:], "python -m sparsec.runtime run")
    parser = argparse.ArgumentParser(
        prog="python -m sparsec.runtime",
        description="Where the C library lies, for the compilers of programs that use it.",
        epilog="python -m sparsec.runtime run MODEL runs a model.",
    )
    for name, (_, meaning) in PLACES.items():
        parser.add_argument(f"--{name}", dest="asked", action="append_const", const=name, help=meaning)
    asked = parser.parse_args(given).asked
    if not asked:
        parser.print_help(sys.stderr)
        return 2
    print(" ".join(PLACES[name][0] for name in asked))
    return 0


def run(arguments: Sequence[str] | None = None, name: str = "sparsec-run") -> int:
    """Describe a model, run it on arrays of a file or on random ones, and time it."""
    from sparsec import feeds
    from sparsec.errors import SparsecError
    from sparsec.runtime.program import Program

    parser = argparse.ArgumentParser(prog=name, description=run.__doc__)
    parser.add_argument("model", help="a .sparsec file")
    parser.add_argument("--input", help=".npz or .npy to read")
    parser.add_argument("--output", help=".npz or .npy to write")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=LENGTH", type=_size,
                        help="of an open dimension; 1 unless given")  # fmt: skip
    parser.add_argument("--threads", type=int, help="default: SPARSEC_THREADS, else 1")
    parser.add_argument("--repeats", type=_positive, default=20, help="timed runs; default 20")
    given = parser.parse_args(arguments)
    try:
        program = Program.load(given.model, threads=given.threads)
        if given.input is None:
            arrays = feeds.random(program.inputs, dict(given.size))
        else:
            arrays = feeds.read(given.input, program.inputs)
        prepared = program.prepare(arrays)
        times = _times(prepared, given.repeats)
        outputs = dict(zip((o.name for o in program.outputs), prepared.outputs, strict=True))
        if given.output is not None:
            feeds.write(given.output, outputs)
    except SparsecError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print("\n".join(_described(given.model, program, outputs, times)))
    return 0


def _size(text: str) -> tuple[str, int]:
    name, _, length = text.partition("=")
    if not name or not length.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LENGTH")
    return name, int(length)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of runs")
    return int(text)


def _times(call: Any, repeats: int) -> list[float]:
    """Seconds of each of so many calls, in ascending order, after one that is not timed."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)


def _described(
    path: str, program: Program, outputs: Mapping[str, np.ndarray[Any, Any]], times: Sequence[float]
) -> list[str]:
    lines = [f"{path}: {Path(path).stat().st_size / 1e6:.2f} MB, code for {program.isa}"]
    lines += [f"  in   {port}" for port in program.inputs]
    lines += [f"  out  {port}" for port in program.outputs]
    low, middle, high = (1e6 * t for t in (times[0], median(times), times[-1]))
    lines.append(
        f"{middle:.1f} us a run on {program.threads} thread(s): "
        f"median of {len(times)}, from {low:.1f} to {high:.1f}"
    )
    return lines + [_line(name, y) for name, y in outputs.items()]


def _line(name: str, array: np.ndarray[Any, Any]) -> str:
    text = f"  {name}: {array.dtype}{list(array.shape)}"
    if not array.size or array.dtype.kind not in "fiu":
        return text
    return f"{text}  min {array.min():.6g}  mean {array.mean():.6g}  max {array.max():.6g}"


if __name__ == "__main__":
    sys.exit(main())
