"""What ``make demo`` shows: a pruned network compiled, checked, explained and timed.

The network reads handwritten digits (see train_digits.py); the 360 images it never saw while
training lie beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from rich.console import Console

import sparsec
from sparsec.explain import bytes_text, render
from sparsec.measure import interleaved, pin_to_one_core, spelled

MODELS = Path(__file__).parent / "models"
BATCHES = (1, 32, 360)
#: what the network scores on these images, and what it may at least score once compiled
ACCURACY = 0.97


def images() -> tuple[np.ndarray, np.ndarray]:
    """Pixels as the network wants them, and labels."""
    with np.load(MODELS / "digits.npz") as data:
        return data["pixels"].astype(np.float32) / 16, data["labels"]


def session(path: Path) -> onnxruntime.InferenceSession:
    """onnxruntime on one thread, like the compiled program."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(program: sparsec.Program, reference: onnxruntime.InferenceSession) -> str:
    """Both engines on all images: the accuracies in a sentence.

    Raises:
        SystemExit: the compiled network is wrong.
    """
    pixels, labels = images()
    ours = program.run(None, {"pixels": pixels})[0]
    theirs = reference.run(None, {"pixels": pixels})[0]
    accuracy, expected = (float((scores.argmax(axis=1) == labels).mean()) for scores in (ours, theirs))
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if accuracy < ACCURACY or difference > 1e-4:
        raise SystemExit(f"wrong results: accuracy {accuracy:.2%}, difference {difference:.1e}")
    return (
        f"{len(labels)} images held out: accuracy {accuracy:.2%}, onnxruntime {expected:.2%}; "
        f"scores differ by {difference:.1e} of their scale"
    )


def time_both(program: sparsec.Program, reference: onnxruntime.InferenceSession) -> list[str]:
    """A line for each batch size: both engines' medians, taken in turns."""
    pixels, _ = images()
    lines = []
    for batch in BATCHES:
        feeds = {"pixels": np.ascontiguousarray(pixels[:batch])}
        took = interleaved(
            {
                "sparsec": lambda feeds=feeds: program.run(None, feeds),
                "onnxruntime": lambda feeds=feeds: reference.run(None, feeds),
            },
            rounds=15,
        )
        ours, theirs = took["sparsec"].median, took["onnxruntime"].median
        lines.append(
            f"batch {batch:>3}: sparsec {spelled(ours):>8}, onnxruntime {spelled(theirs):>8}: "
            f"{theirs / ours:.1f}x as fast"
        )
    return lines


def main() -> None:
    path = MODELS / "digits.onnx"
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "digits.sparsec"
        sparsec.compile(path, threads=1).save(compiled)
        size = f"{bytes_text(path.stat().st_size)} as ONNX, {bytes_text(compiled.stat().st_size)} compiled"
        program = sparsec.load(compiled, threads=1)
        pin_to_one_core()
        reference = session(path)
        console.print(f"[bold]{path.name}[/bold]: {size}")
        render(program.report, console)
        console.print(check(program, reference))
        console.print("one thread, medians of 15 turns:")
        for line in time_both(program, reference):
            console.print(line)


if __name__ == "__main__":
    main()
