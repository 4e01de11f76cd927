"""Times sparsec and the dense engines on every real model of the shared data folder, on one thread.

    python benchmarks/models_table.py                    all models, 30 rounds
    python benchmarks/models_table.py --only mnist_burn --rounds 5

Engines take turns as in run.py.  sparsec's outputs are checked against onnxruntime without
optimisations, whose roundings a quantised model's author meant.  Results go to
``benchmarks/results/models-<cpu>.json`` and to a table beside it; where a dense engine wins, the
table says which steps of the program cost most.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from engines import DENSE, ENGINES, READERS, Bound, Engine, Shapes, Task
from machine import described, slug
from models_markdown import SHARE, SLACK, markdown, verdict
from process import as_numbers
from run import RESULTS
from workloads import SHARED_DATA, Absent, Arrays

import sparsec
from sparsec.bench.compare import TOLERANCE, difference
from sparsec.bench.measure import interleaved, pin_to_one_core, spelled
from sparsec.errors import Unsupported
from sparsec.frontends.from_onnx import input_shapes

#: integer inputs are bytes or token numbers; all of these models accept 0 to 99
HIGHEST = 100


@dataclass(frozen=True)
class Model:
    """A file under the shared data folder; ``shapes`` for what batch 1 leaves open.

    An ``image`` has values of 0 to 255.
    """

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    image: bool = False

    @property
    def path(self) -> Path:
        """Where it is."""
        found = SHARED_DATA / f"{self.name}.onnx"
        return found if found.is_file() else SHARED_DATA / self.name / "model.onnx"

    @property
    def short(self) -> str:
        """Its own name, without the folder's."""
        return self.name.partition("/")[2]


_ENCODER = (("embeddings", (1, 128, 384)), ("attention_mask", (1, 128)))

MODELS: tuple[Model, ...] = (
    *(Model(f"models/{name}") for name in (
        "basic_pitch", "dtln_1", "dtln_2", "fastestdet",
    )),
    # instance normalisation amplifies what rounding leaves of noise around 0: there no two engines agree
    Model("models/fns_candy", image=True),
    *(Model(f"models/{name}") for name in (
        "gonnx_ndm", "magika_standard_v3_3",
        "micro_kws_m_fp32", "micro_kws_m_qdq", "mjx_g1", "mjx_go1", "mjx_leap", "mnist_burn", "mnist_cntk",
        "mnist_onnx2c_pytorch", "nanodet_m_320",
    )),
    Model("models/ppocr_v2_cls", (("x", (1, 3, 48, 192)),)),
    *(Model(f"models/{name}") for name in (
        "resnet_cifar_resnet20", "resnet_cifar_resnet32", "ultraface_rfb320_simplified", "ultraface_slim320",
    )),
    *(Model(f"pruned/{name}") for name in (
        "distiller_ssl_channel_regularized_resnet20_finetuned", "distiller_ssl_dense",
        "dns_lenet5_original", "dns_lenet5_sparse",
    )),
    Model("minilm/enc_sgpt_u50", _ENCODER),
    Model("minilm/enc_sgpt_u80", _ENCODER),
)  # fmt: skip


def shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    """Every input's shape, batch 1 where the file leaves it open."""
    return input_shapes(model.path) | dict(model.shapes)


def inputs_of(session: Any, shapes: Shapes, image: bool = False) -> Arrays:
    """Seeded inputs: normal numbers or the bytes of an image, ones for masks, small integers."""
    random = np.random.default_rng(0)
    made: Arrays = {}
    for port in session.get_inputs():
        shape = (shapes or {})[port.name]
        if "mask" in port.name:
            made[port.name] = np.ones(shape, np.float32)
        elif image:
            made[port.name] = random.integers(0, 256, shape).astype(np.float32)
        elif port.type == "tensor(float)":
            made[port.name] = random.standard_normal(shape).astype(np.float32)
        else:
            kind = re.sub(r"tensor\((.*)\)", r"\1", port.type)
            made[port.name] = random.integers(0, HIGHEST, shape).astype(kind)
    return made


def reference_session(path: Path) -> onnxruntime.InferenceSession:
    """onnxruntime as the file says, without optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def for_dense(path: Path, folder: Path) -> Path:
    """The model without weights among its inputs, where old exporters list them and engines fold fewer."""
    model = onnx.load(path)
    weights = {i.name for i in model.graph.initializer}
    inputs = [port for port in model.graph.input if port.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, folder / path.name)
    return folder / path.name


def compiled(path: Path, shapes: Shapes) -> sparsec.Program:
    """As a user has it: saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.sparsec"
        sparsec.compile(path, shapes=shapes, threads=1).save(file)
        return sparsec.load(file, threads=1)


def measure(model: Model, engines: Sequence[Engine], rounds: int) -> dict[str, Any]:
    """One row.

    Raises:
        Absent: the file is not here.
    """
    if not model.path.is_file():
        raise Absent("the shared data folder is not beside this clone")
    shapes = shapes_of(model)
    row: dict[str, Any] = {"model": model.short, "rounds": rounds}
    row["shapes"] = {name: list(shape) for name, shape in shapes.items()}
    try:
        program = compiled(model.path, shapes)
    except Unsupported as refused:
        return row | {"refused": sorted({operator for operator, _ in refused.operators}) or [str(refused)]}
    session = reference_session(model.path)
    feeds = inputs_of(session, shapes, model.image)
    prepared = program.prepare(feeds)
    bound = {"sparsec": Bound(prepared, lambda: [np.array(y) for y in prepared.outputs])}
    with tempfile.TemporaryDirectory() as folder:
        dense_path = for_dense(model.path, Path(folder))
        bound |= {e.name: e.bind(Task(dense_path, feeds, shapes)) for e in engines}
    row["differences"] = _differences(bound, session.run(None, feeds))
    if row["differences"]["sparsec"] > TOLERANCE:
        return row
    timings = interleaved({name: one.call for name, one in bound.items()}, rounds)
    dense = min((n for n in timings if n in DENSE), key=lambda n: timings[n].median)
    ours, theirs = timings["sparsec"].median, timings[dense].median
    return row | {
        "engines": {name: as_numbers(t) for name, t in timings.items()},
        "versions": {e.name: e.version for e in ENGINES if e.name in timings},
        "zeros": _zeros(program.report["layers"]), "best_dense": dense, "ratio": round(theirs / ours, 3),
        "kept": ours <= theirs / SHARE or ours <= theirs + SLACK,
        "costs": step_costs(program, feeds, repeats=max(3, min(30, int(0.2 / ours)))),
    }  # fmt: skip


def _differences(bound: dict[str, Bound], wanted: list[np.ndarray]) -> dict[str, float]:
    found = {}
    for name, one in bound.items():
        one.call()
        found[name] = difference(one.outputs(), wanted)
    return found


def _zeros(layers: Iterable[dict[str, Any]]) -> float:
    """Share of zeros in all weights."""
    sizes = [(float(np.prod(layer["shape"])), float(layer["sparsity"])) for layer in layers]
    total = sum(size for size, _ in sizes)
    return round(sum(size * zeros for size, zeros in sizes) / total, 4) if total else 0.0


def step_costs(program: sparsec.Program, feeds: Arrays, repeats: int) -> list[dict[str, Any]]:
    """The kinds of steps by their share of a run, dearest first."""
    spent: dict[str, list[int]] = {}
    for step in program.profile(feeds, repeats=repeats):
        spent.setdefault(step.kernel.rpartition("_")[0] or step.kernel, []).append(step.nanoseconds)
    total = sum(map(sum, spent.values())) or 1
    dearest = sorted(spent.items(), key=lambda item: -sum(item[1]))
    return [
        {"kind": kind, "steps": len(times), "us": round(sum(times) / 1e3, 2),
         "share": round(sum(times) / total, 3)}
        for kind, times in dearest
    ]  # fmt: skip


def merge(path: Path, machine: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """New rows over those of the same model in the file."""
    old = json.loads(path.read_text())["models"] if path.is_file() else []
    kept = {r["model"]: r for r in old} | {r["model"]: r for r in rows}
    order = {m.short: i for i, m in enumerate(MODELS)}
    return {"machine": machine, "models": sorted(kept.values(), key=lambda r: order.get(r["model"], 99))}


def _line(row: dict[str, Any]) -> str:
    if "engines" not in row:
        return f"{row['model']:<32} {verdict(row)}"
    times = "  ".join(f"{n} {spelled(t['median_us'] / 1e6)}" for n, t in row["engines"].items())
    return f"{row['model']:<32} {times}  {row['ratio']:.2f}x  {verdict(row)}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this model; may be repeated")
    parser.add_argument("--rounds", type=int, default=30, help="turns each engine gets")
    parser.add_argument("--output", type=Path, help="the JSON file to update (default: by the CPU's name)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    known = {m.short: m for m in MODELS}
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        raise SystemExit(f"no model {', '.join(unknown)}; there are {', '.join(known)}")
    pin_to_one_core()  # before any engine starts a thread
    engines = [e for e in ENGINES if e.installed and e.name in READERS]
    machine = described()
    path: Path = options.output or RESULTS / f"models-{slug(machine)}.json"
    rows = []
    for name in options.only or known:
        try:
            rows.append(measure(known[name], engines, options.rounds))
        except Absent as reason:
            print(f"{name:<32} skipped: {reason}", file=sys.stderr)
        else:
            print(_line(rows[-1]), flush=True)
    if rows:
        results = merge(path, machine, rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(results))
        print(f"written to {path} and {path.with_suffix('.md').name}")
    if any("engines" not in row and "refused" not in row for row in rows):
        raise SystemExit("wrong results")


if __name__ == "__main__":
    main()
