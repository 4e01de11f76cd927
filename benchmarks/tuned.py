"""What tuning gains: whole models compiled before and after, in turns, with what it measured.

    python benchmarks/tuned.py                                      BERT-base and ResNet-50, 20 minutes each
    python benchmarks/tuned.py --minutes 5 --only bert_u90

Tunes from nothing, in a cache of its own.  The untuned and the tuned program then run in turns on one
thread, on fresh inputs; their outputs are held against onnxruntime's.  Results:
``benchmarks/results/tuned-<cpu>.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from machine import described, slug
from table import machine_line
from workloads import WORKLOADS, Workload

import sparsec
from sparsec.bench.compare import difference
from sparsec.bench.measure import interleaved, pin_to_one_core, spelled

RESULTS = Path(__file__).parent / "results"
MODELS = ("bert_u90", "resnet50_u90")
#: largest difference from onnxruntime, as a share of the largest output
TOLERANCE = 1e-3


def main(arguments: Sequence[str] | None = None) -> int:
    """1 where outputs differ or a tuned program is slower by more than 2 %."""
    options = _parser().parse_args(arguments)
    about = described()
    path = RESULTS / f"tuned-{slug(about)}.json"
    rows = {r["workload"]: r for r in json.loads(path.read_text())["tuned"]} if path.is_file() else {}
    for workload in (w for w in WORKLOADS if w.name in options.only):
        rows[workload.name] = _row(workload, options.minutes, options.rounds)
        print(_line(rows[workload.name]), flush=True)
        _write(path, {"machine": about, "tuned": list(rows.values())})
    return int(any(row["difference"] > TOLERANCE or row["gain"] < 0.98 for row in rows.values()))


def _row(workload: Workload, minutes: float, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPARSEC_CACHE"] = str(Path(folder) / "cache")
        model = workload.write(Path(folder))
        untuned = sparsec.compile(model, shapes=workload.shapes, records=False)
        start = time.monotonic()
        outcome = sparsec.tune(model, minutes=minutes, shapes=workload.shapes, progress=_tell)
        spent = time.monotonic() - start
        tuned = sparsec.compile(model, shapes=workload.shapes)
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        feeds = workload.inputs(np.random.default_rng())
        wanted = session.run(None, feeds)
    pin_to_one_core()
    calls = {"untuned": untuned.prepare(feeds), "tuned": tuned.prepare(feeds)}
    times = interleaved(calls, rounds, turn=0.05)
    changed = sum(
        a["kernel"] != b["kernel"] or a["config"] != b["config"]
        for a, b in zip(untuned.report["layers"], tuned.report["layers"], strict=True)
    )
    return {
        "workload": workload.name, "about": workload.about, "minutes": round(spent / 60, 2),
        "trials": outcome.trials, "layers": len(tuned.report["layers"]), "changed": changed,
        "untuned_seconds": times["untuned"].median, "tuned_seconds": times["tuned"].median,
        "gain": times["untuned"].median / times["tuned"].median,
        "difference": difference(tuned.run(None, feeds), wanted),
    }  # fmt: skip


def _tell(text: str, done: int, share: float) -> None:
    if done % 50 == 0:
        print(f"{done} trials, {share:.0%}: {text}", file=sys.stderr, flush=True)


def _line(row: dict[str, Any]) -> str:
    cells = (
        row["about"], f"{row['minutes']:.1f}", row["trials"], f"{row['changed']} of {row['layers']}",
        spelled(row["untuned_seconds"]), spelled(row["tuned_seconds"]), f"{row['gain']:.2f}x",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def _write(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n")
    heads = "| model | minutes | trials | layers changed | untuned | tuned | gain |"
    lines = [heads, "| --- |" + " ---: |" * 6, *map(_line, results["tuned"])]
    path.with_suffix(".md").write_text(f"{machine_line(results['machine'])}\n\n" + "\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="of tuning each (default 20)")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each program (default 30)")
    parser.add_argument("--only", nargs="+", default=MODELS, metavar="NAME", help="workloads")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
