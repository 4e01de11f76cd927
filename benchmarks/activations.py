"""What skipping zero activations gains on MLPs of one token, and what it costs where nothing is zero.

    python benchmarks/activations.py                 trains, prunes and times; about ten minutes
    python benchmarks/activations.py --folder DIR    keeps the networks there, or takes them from there

784-1024-1024-10 in three variants, each with 0, 50, 80 and 90 % of its weights removed:

- *sparse*: learns MNIST with an L1 penalty on its activations after ReLU, pruned by magnitude and
  trained on with its zeros held; timed on test images;
- *half*: ReLU, random weights and normal inputs, so that about half of the activations are zero;
- *none*: the same with a leaky ReLU, so that none is.

Timed in turns on one thread, batch 1, over sixteen inputs: sparsec compiled without samples, with
samples (other inputs than the timed ones), and onnxruntime.  Outputs are checked in the same run.
Results go to ``benchmarks/results/activations-<cpu>.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from machine import described, slug
from networks import exported
from table import machine_line
from torch import nn
from workloads import SHARED_DATA

import sparsec
from sparsec.bench.compare import difference
from sparsec.bench.measure import Timing, interleaved, pin_to_one_core, spelled

RESULTS = Path(__file__).parent / "results"
WIDTHS = (784, 1024, 1024, 10)
VARIANTS, PERCENTS = ("sparse", "half", "none"), (0, 50, 80, 90)
#: inputs that are timed, and inputs the compiler sees
TIMED, SAMPLES = 16, 64
#: largest difference from onnxruntime, as a share of the largest output
TOLERANCE = 1e-4
#: images learnt from, passes over them before pruning and after, and the weight of the L1 penalty
IMAGES, EPOCHS, AFTER, PENALTY = 20000, 4, 2, 0.15


@dataclass(frozen=True)
class Network:
    """A written network with the inputs that are timed, those the compiler sees, and its accuracy."""

    path: Path
    timed: list[np.ndarray]
    samples: list[dict[str, np.ndarray]]
    accuracy: float | None = None


def mlp(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between them."""
    first, second, third, last = WIDTHS
    return nn.Sequential(
        nn.Linear(first, second), activation(), nn.Linear(second, third), activation(), nn.Linear(third, last)
    )


def mnist(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels 0 to 1 [n, 784], and labels."""
    folder = SHARED_DATA / "datasets" / "mnist"
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"{kind}-{name}-ubyte.gz").read_bytes()), np.uint8, offset=at)
        for name, at in (("images-idx3", 16), ("labels-idx1", 8))
    )
    pixels = images.reshape(-1, WIDTHS[0]).astype(np.float32) / 255
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def masks_of(model: nn.Module, percent: int) -> list[torch.Tensor]:
    """Ones for the weights that stay, the largest of every linear layer."""
    found = []
    for layer in linear(model):
        weight = layer.weight.detach().abs()
        removed = weight.numel() * percent // 100
        mask = torch.ones(weight.numel())
        mask[weight.flatten().argsort()[:removed]] = 0
        found.append(mask.reshape(weight.shape))
    return found


def linear(model: nn.Module) -> list[nn.Linear]:
    """The layers with weights."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


@torch.no_grad()
def hold_zeros(model: nn.Module, masks: Sequence[torch.Tensor]) -> None:
    """Set what was removed to zero."""
    for layer, mask in zip(linear(model), masks, strict=True):
        layer.weight *= mask


def learn(model: nn.Sequential, masks: Sequence[torch.Tensor], epochs: int) -> None:
    """Cross entropy and an L1 penalty on what the hidden layers pass on."""
    images, labels = (part[:IMAGES] for part in mnist("train"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for at in torch.randperm(len(images)).split(128):
            value, penalty = images[at], torch.zeros(())
            for layer in model:
                value = layer(value)
                if isinstance(layer, nn.ReLU):
                    penalty = penalty + value.abs().mean()
            optimizer.zero_grad()
            (nn.functional.cross_entropy(value, labels[at]) + PENALTY * penalty).backward()
            optimizer.step()
            hold_zeros(model, masks)


def trained(folder: Path, percents: Sequence[int]) -> None:
    """Write the pruned networks that are not there yet, trained one from the other."""
    paths = {percent: folder / f"sparse_{percent}.onnx" for percent in PERCENTS}
    if all(paths[percent].is_file() for percent in percents):
        return
    torch.manual_seed(0)
    model = mlp()
    for percent in PERCENTS[: PERCENTS.index(max(percents)) + 1]:
        masks = masks_of(model, percent)
        hold_zeros(model, masks)
        learn(model, masks, AFTER if percent else EPOCHS)
        exported(model.eval(), {"x": (1, WIDTHS[0])}, paths[percent])


def accuracy(path: Path) -> float:
    """Share of the test images that onnxruntime names rightly."""
    images, labels = mnist("t10k")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    right = [
        session.run(None, {"x": x[None]})[0].argmax() == y
        for x, y in zip(images.numpy(), labels.numpy(), strict=True)
    ]
    return float(np.mean(right))


def network(variant: str, percent: int, folder: Path) -> Network:
    """One of the variants; the learning one takes the MNIST files of the shared data folder."""
    if variant == "sparse":
        trained(folder, [percent])
        path = folder / f"sparse_{percent}.onnx"
        timed, seen = mnist("t10k")[0][:TIMED], mnist("train")[0][-SAMPLES:]
        return Network(path, rows(timed.numpy()), named(seen.numpy()), accuracy(path))
    torch.manual_seed(percent)
    model = mlp(nn.ReLU if variant == "half" else nn.LeakyReLU)
    hold_zeros(model, masks_of(model, percent))
    path = exported(model.eval(), {"x": (1, WIDTHS[0])}, folder / f"{variant}_{percent}.onnx")
    drawn = np.random.default_rng(0).standard_normal((TIMED + SAMPLES, WIDTHS[0])).astype(np.float32)
    return Network(path, rows(drawn[:TIMED]), named(drawn[TIMED:]))


def rows(x: np.ndarray) -> list[np.ndarray]:
    """Inputs of one token."""
    return [np.ascontiguousarray(row[None]) for row in x]


def named(x: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The same as samples."""
    return [{"x": row} for row in rows(x)]


def program_calls(program: sparsec.Program, timed: list[np.ndarray]) -> tuple[Callable[[], None], list[Any]]:
    """A call that runs all inputs, and their outputs."""
    prepared = [program.prepare({"x": x}) for x in timed]

    def call() -> None:
        for one in prepared:
            one()

    call()
    return call, [np.array(one.outputs[0]) for one in prepared]


def session_calls(path: Path, timed: list[np.ndarray]) -> tuple[Callable[[], None], list[Any]]:
    """The same in onnxruntime, one session with bound inputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    bindings = []
    for x in timed:
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output(session.get_outputs()[0].name)
        bindings.append(binding)

    def call() -> None:
        for binding in bindings:
            session.run_with_iobinding(binding)

    call()
    return call, [binding.copy_outputs_to_cpu()[0] for binding in bindings]


def measure(variant: str, percent: int, folder: Path, rounds: int) -> dict[str, Any]:
    """One row.

    Raises:
        SystemExit: outputs are wrong.
    """
    one = network(variant, percent, folder)
    plain, calibrated = compiled(one.path, None), compiled(one.path, one.samples)
    bound = {
        "without samples": program_calls(plain, one.timed),
        "with samples": program_calls(calibrated, one.timed),
        "onnxruntime": session_calls(one.path, one.timed),
    }
    wanted = bound["onnxruntime"][1]
    apart = {name: difference(found, wanted) for name, (_, found) in bound.items() if name != "onnxruntime"}
    if max(apart.values()) > TOLERANCE:
        raise SystemExit(f"{variant} {percent} %: wrong results {apart}")
    timings = interleaved({name: call for name, (call, _) in bound.items()}, rounds)
    layers = calibrated.report["layers"]
    return {
        "variant": variant, "percent": percent, "rounds": rounds, "accuracy": one.accuracy,
        "activation_zeros": [layer["activation_zeros"] for layer in layers],
        "kernels": {"without samples": kernels(plain), "with samples": kernels(calibrated)},
        "engines": {name: numbers(t) for name, t in timings.items()}, "differences": apart,
        "versions": {"sparsec": sparsec_version(), "onnxruntime": onnxruntime.__version__},
        "ratio": round(timings["without samples"].median / timings["with samples"].median, 3),
    }  # fmt: skip


def compiled(path: Path, samples: list[dict[str, np.ndarray]] | None) -> sparsec.Program:
    """As a user has it: saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.sparsec"
        sparsec.compile(path, threads=1, calibrate=samples).save(file)
        return sparsec.load(file, threads=1)  # mapped: the file may go


def kernels(program: sparsec.Program) -> list[str]:
    """What runs each layer."""
    return [layer["kernel"] for layer in program.report["layers"]]


def sparsec_version() -> str:
    """The installed version."""
    from importlib.metadata import version

    return version("sparsec")


def numbers(t: Timing) -> dict[str, float]:
    """Microseconds of one input."""
    found = {"median_us": t.median, "q1_us": t.low, "q3_us": t.high}
    return {name: round(seconds * 1e6 / TIMED, 3) for name, seconds in found.items()}


def markdown(results: dict[str, Any]) -> str:
    """A row a network under a line about the machine."""
    found = results["rows"]
    versions = ", ".join(sorted({f"{name} {v}" for r in found for name, v in r["versions"].items()}))
    head = ("activations", "weights removed", "accuracy", "zero inputs of the layers", "without samples",
            "with samples", "onnxruntime", "gain by samples")  # fmt: skip
    lines = [head, ("---", *["---:"] * 7), *(cells(r) for r in found)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{machine_line(results['machine'])}\n\n"
        f"MLP 784-1024-1024-10, one thread, float32, batch 1, over {TIMED} inputs, median of "
        f"{found[0]['rounds']} interleaved rounds (quartiles in brackets), {versions}:\n\n{table}\n"
    )


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    times = []
    for one in row["engines"].values():
        median, low, high = (spelled(one[key] / 1e6) for key in ("median_us", "q1_us", "q3_us"))
        times.append(f"{median} ({low}-{high})")
    learnt = "" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
    zeros = ", ".join(f"{share:.0%}" for share in row["activation_zeros"])
    one, other = row["kernels"].values()
    gain = f"{row['ratio']:.2f}x" + (" (the same kernels)" if one == other else "")
    return (row["variant"], f"{row['percent']} %", learnt, zeros, *times, gain)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns each gets")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="may be repeated")
    parser.add_argument("--folder", type=Path, help="where networks are kept (default: nowhere)")
    parser.add_argument("--output", type=Path, help="the JSON file to write (default: by the CPU's name)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    pin_to_one_core()
    torch.set_num_threads(1)
    machine = described()
    path: Path = options.output or RESULTS / f"activations-{slug(machine)}.json"
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for variant in options.variant or VARIANTS:
            for percent in PERCENTS:
                found.append(measure(variant, percent, folder, options.rounds))
                print("  ".join(cells(found[-1])), flush=True)
    results = {"machine": machine, "rows": found}
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    print(f"written to {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
