"""Is ``explain --prune`` right?  Ten layers: predicted from dense weights, then really pruned and timed.

    python benchmarks/what_if.py             # a table
    python benchmarks/what_if.py --write     # also benchmarks/results/what-if-<cpu>.json

The prediction sees a model file with dense weights and the words of ``--prune`` and ``--pattern``;
what is timed is another file, whose weights were pruned before it was written.  Layers take turns on
one core; a turn is the median of several runs, and the least of the turns counts, since nothing
makes a kernel faster than it is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import sparsec
from sparsec.bench.measure import pin_to_one_core, spelled
from sparsec.explain.summary import times_of
from sparsec.explain.what_if import analysed, as_if_pruned
from sparsec.feeds import random
from sparsec.frontends import import_model
from sparsec.sparsity.prune import pruning_of
from sparsec.targets.x86 import native

RESULTS = Path(__file__).parent / "results"
#: how far a prediction may be off
TOLERANCE = 0.15
#: runs of a turn
REPEATS = 15

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Layer:
    """Weights [outputs, inputs], or [outputs, inputs, high, wide] for images of ``size`` squared.

    ``prune`` and ``pattern`` as the options of ``sparsec explain``.
    """

    weight: tuple[int, ...]
    size: int
    prune: str | None
    pattern: str

    @property
    def about(self) -> str:
        """As a table says it."""
        shape = "x".join(map(str, self.weight))
        where = f"{self.size} tokens" if len(self.weight) == 2 else f"{self.size}x{self.size} image"
        return f"{shape}, {where}, {self.prune or ''} {self.pattern}".replace("  ", " ")


LAYERS = (
    Layer((3072, 768), 1, "90%", "unstructured"),
    Layer((768, 3072), 1, "80%", "unstructured"),
    Layer((3072, 768), 32, "90%", "unstructured"),
    Layer((768, 3072), 32, "90%", "16x1"),
    Layer((3072, 768), 128, "95%", "unstructured"),
    Layer((768, 3072), 128, "80%", "4x1"),
    Layer((768, 768), 128, None, "2:4"),
    Layer((128, 128, 3, 3), 28, "90%", "unstructured"),
    Layer((256, 256, 3, 3), 14, "90%", "16x1"),
    Layer((512, 256, 1, 1), 28, "80%", "unstructured"),
)


def written(layer: Layer, weight: Array, path: Path) -> Path:
    """A model of one layer as a file."""
    if len(layer.weight) == 2:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        array, x, y = weight.T, [layer.size, layer.weight[1]], [layer.size, layer.weight[0]]
    else:
        edge = layer.weight[2] // 2
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[edge] * 4)
        array = weight
        x, y = ([1, n, layer.size, layer.size] for n in (layer.weight[1], layer.weight[0]))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x), ("y", y))]
    tensor = numpy_helper.from_array(np.ascontiguousarray(array), "w")
    graph = helper.make_graph([node], "layer", ports[:1], ports[1:], [tensor])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def predicted(layer: Layer, weight: Array, folder: Path) -> dict[str, Any]:
    """What the dense model's report says of it when pruned: kernel, and microseconds with and without."""
    graph, target = import_model(written(layer, weight, folder / "dense.onnx")), native()
    [now] = analysed(graph, target)["layers"]
    pruning = pruning_of(layer.prune, layer.pattern)
    [then] = analysed(as_if_pruned(graph, target, pruning), target)["layers"]
    return {"kernel": then["kernel"], "predicted_us": times_of(then).predicted,
            "dense_us": times_of(now).predicted}  # fmt: skip


def really_pruned(layer: Layer, weight: Array, folder: Path) -> sparsec.Program:
    """The program of a file whose weights were pruned."""
    # a convolution's inputs are grouped by taps, channels innermost
    matrix = weight if weight.ndim == 2 else weight.transpose(0, 2, 3, 1)
    rows = matrix.reshape(len(matrix), -1)
    kept = (rows * pruning_of(layer.prune, layer.pattern).mask(rows)).reshape(matrix.shape)
    pruned = kept if weight.ndim == 2 else kept.transpose(0, 3, 1, 2)
    return sparsec.compile(written(layer, pruned, folder / "pruned.onnx"), threads=1)


def layer_microseconds(program: sparsec.Program, feeds: dict[str, Any]) -> float:
    """One turn: the median of the step that has the weight."""
    steps = program.profile(feeds, repeats=REPEATS)
    [of_layer] = [s for s, about in zip(steps, program.report["steps"], strict=True) if "layer" in about]
    return of_layer.nanoseconds / 1e3


def measured(layers: Sequence[Layer], rounds: int) -> list[dict[str, Any]]:
    """Rows of the table."""
    generator = np.random.default_rng(0)
    rows, programs = [], []
    with tempfile.TemporaryDirectory() as name:
        for layer in layers:
            weight = generator.standard_normal(layer.weight).astype(np.float32)
            rows.append({"layer": layer.about, **asdict(layer), **predicted(layer, weight, Path(name))})
            programs.append(really_pruned(layer, weight, Path(name)))
    feeds = [random(program.inputs) for program in programs]
    pin_to_one_core()
    turns = [
        [layer_microseconds(p, x) for p, x in zip(programs, feeds, strict=True)] for _ in range(rounds)
    ]  # fmt: skip
    for row, program, *times in zip(rows, programs, *turns, strict=True):
        row["compiled_kernel"] = program.report["layers"][0]["kernel"]
        row["measured_us"] = min(times)
        row["off"] = row["predicted_us"] / row["measured_us"] - 1
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("layer", "kernel", "predicted", "measured", "off"):
        table.add_column(heading, justify="left" if heading in ("layer", "kernel") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["layer"], row["compiled_kernel"], spelled(row["predicted_us"] * 1e-6),
            spelled(row["measured_us"] * 1e-6), f"{100 * row['off']:+.1f} %",
        )  # fmt: skip
    Console(width=100).print(table)
    within = sum(abs(row["off"]) <= TOLERANCE for row in rows)
    print(f"{within} of {len(rows)} within {TOLERANCE:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns each layer gets")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/what-if-<cpu>.json")
    arguments = parser.parse_args()
    rows = measured(LAYERS, arguments.rounds)
    show(rows)
    if arguments.write:
        described = machine.described()
        result = {
            "machine": described,
            "sparsec": sparsec_version(),
            "rounds": arguments.rounds,
            "rows": rows,
        }
        path = RESULTS / f"what-if-{machine.slug(described)}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


def sparsec_version() -> str:
    """The version installed."""
    from importlib.metadata import version

    return version("sparsec")


if __name__ == "__main__":
    main()
