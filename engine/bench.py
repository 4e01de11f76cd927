"""``sparsec bench``: a program beside onnxruntime on the same file, as text or data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.measure import Timing, spelled


def onnxruntime_session(model: Path, threads: int) -> Any:
    """A session on the same file, or None where there is no onnxruntime or no ONNX file."""
    if model.suffix == ".sparsec":
        return None
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def difference(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference of any output, as a share of its largest number; infinite for NaN."""
    return max((_apart(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _apart(a: Any, b: Any) -> float:
    scale = float(np.abs(b).max(initial=0)) or 1.0
    share = float(np.abs(np.subtract(a, b, dtype=np.float64)).max(initial=0)) / scale
    return share if np.isfinite(share) else float("inf")


def as_json(timings: Mapping[str, Timing], apart: float | None, threads: int, rounds: int) -> dict[str, Any]:
    """Microseconds of every engine, and how far the outputs are apart."""
    engines = {
        name: {"median_us": t.median * 1e6, "q1_us": t.low * 1e6, "q3_us": t.high * 1e6}
        for name, t in timings.items()
    }
    return {"threads": threads, "rounds": rounds, "engines": engines, "difference": apart}


def show(timings: Mapping[str, Timing], apart: float | None, threads: int) -> None:
    """Print a line for every engine, and how they compare."""
    for name, t in timings.items():
        print(f"{name:<12} {spelled(t.median):>9}  (quartiles {spelled(t.low)} to {spelled(t.high)})")
    if "onnxruntime" in timings and apart is not None:
        ratio = timings["onnxruntime"].median / timings["sparsec"].median
        print(f"{ratio:.2f}x onnxruntime's speed on {threads} thread{'s' if threads > 1 else ''}; "
              f"outputs differ by {apart:.1e} of their scale")  # fmt: skip
    else:
        print("not compared: that takes an .onnx file and onnxruntime installed")
