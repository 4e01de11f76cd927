"""What ``make demo`` shows: a pruned network compiled, checked, explained and timed.

A small convolutional network reads handwritten digits (see train_digits.py); the 360 images it
never saw while training lie beside it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from rich.console import Console
from rich.text import Text

import sparsec
from sparsec.bench.measure import interleaved, pin_to_one_core, spelled
from sparsec.explain.text import bytes_text, has_colours, render
from sparsec.sparsity.picture import in_colours, in_shades

MODEL = Path(__file__).parent / "models" / "digits.onnx"
BATCHES = (1, 32, 360)
#: what the network scores on these images, and what it may at least score once compiled
ACCURACY = 0.98
#: images that are shown
SHOWN = 8


def images() -> tuple[np.ndarray, np.ndarray]:
    """Pixels as the network wants them, and labels."""
    with np.load(MODEL.with_suffix(".npz")) as data:
        return data["pixels"].astype(np.float32) / 16, data["labels"]


def session(path: Path) -> onnxruntime.InferenceSession:
    """onnxruntime on one thread, like the compiled program."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def read(program: sparsec.Program, console: Console) -> None:
    """Show some images, and what the compiled network takes them for."""
    pixels, _ = images()
    shown = pixels[:SHOWN].reshape(SHOWN, 8, 8)
    said = program.run(None, {"pixels": pixels[:SHOWN]})[0].argmax(axis=1)
    gaps = np.pad(shown, ((0, 0), (0, 0), (0, 2)))
    row = gaps.transpose(1, 0, 2).reshape(8, -1)
    # lines of characters are twice as tall as wide
    drawn = in_colours(row) if has_colours(console) else Text("\n".join(in_shades(row[::2])))
    console.print(drawn)
    console.print("".join(f"{f'a {digit}':^10}" for digit in said), "", sep="\n")


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
    if accuracy < ACCURACY or not difference <= 1e-4:
        raise SystemExit(f"wrong results: accuracy {accuracy:.2%}, difference {difference:.1e}")
    return (
        f"{len(labels)} images held out: accuracy {accuracy:.2%}, onnxruntime {expected:.2%}; "
        f"scores differ by {difference:.1e} of their scale"
    )


def zeros(program: sparsec.Program) -> float:
    """Share of zeros in the weights."""
    layers = program.report["layers"]
    sizes = [float(np.prod(layer["shape"])) for layer in layers]
    kept = sum(size * layer["sparsity"] for size, layer in zip(sizes, layers, strict=True))
    return float(kept / sum(sizes))


def time_both(reference: onnxruntime.InferenceSession, batch: int, console: Console) -> float:
    """How many times as fast as onnxruntime, medians of turns; sparsec compiled for just this batch."""
    pixels, _ = images()
    feeds = {"pixels": np.ascontiguousarray(pixels[:batch])}
    program = sparsec.compile(MODEL, shapes={"pixels": (batch, 64)}, threads=1)
    took = interleaved(
        {"sparsec": lambda: program.run(None, feeds), "onnxruntime": lambda: reference.run(None, feeds)},
        rounds=15,
    )
    ours, theirs = took["sparsec"].median, took["onnxruntime"].median
    console.print(
        f"  batch {batch:>3}: sparsec {spelled(ours):>8}, onnxruntime {spelled(theirs):>8}: "
        f"{theirs / ours:.1f}x as fast"
    )
    return theirs / ours


def main() -> None:
    console = Console() if sys.stdout.isatty() else Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "digits.sparsec"
        sparsec.compile(MODEL, threads=1).save(compiled)
        sizes = f"{bytes_text(MODEL.stat().st_size)} as ONNX, {bytes_text(compiled.stat().st_size)} compiled"
        program = sparsec.load(compiled, threads=1)
    pin_to_one_core()  # before onnxruntime starts threads
    reference = session(MODEL)
    console.print(f"[bold]{MODEL.name}[/bold]: {sizes}", "", sep="\n")
    render(program.report, console, pictures=True)
    console.print()
    read(program, console)
    console.print(check(program, reference))
    console.print("one thread, medians of 15 turns, each compiled for its batch:")
    gains = [time_both(reference, batch, console) for batch in BATCHES]
    console.print(
        f"[bold]{zeros(program):.1%} of the weights are zero; sparsec skips them and is "
        f"{min(gains):.1f} to {max(gains):.1f} times as fast as onnxruntime[/bold]"
    )


if __name__ == "__main__":
    main()
