"""Predicts how fast sparse kernels are on ARM cores, without one: LLVM's tables of cycles.

    python benchmarks/arm_static.py                      every problem, about 20 minutes of one core; --jobs 2
    python benchmarks/arm_static.py --only conv1x1_56 --cores neoverse-n1
    python benchmarks/arm_static.py --llvm-mca PATH      another llvm-mca than the first one found

Each kernel is compiled for the core and run under qemu-user, which tells every instruction that some of its
tiles execute.  llvm-mca says how many cycles these take, loads that hit L1 and branches that are foreseen;
conditional branches that are not are counted in the trace (arm_trace.Trace.unforeseen) and cost what
:data:`CORES` says.  So a layer's prediction holds all it does: staging, loops' ends, accumulators, storing.
At one token, where every weight is used once, the bytes of the weights count too (targets.cost.overlapped).

Needs Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user and llvm-22.  Results:
``benchmarks/results/arm-static.json`` and ``.md``; docs/arm.md tells how to read them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mca
import numpy as np
from arm_layers import LAYERS, ROWS, Row, case_of, pruned
from arm_table import markdown
from arm_trace import Trace, lanes_of, missing, traced
from kernel_harness import Case

from sparsec.errors import ConfigError
from sparsec.targets import arm
from sparsec.targets.cost import overlapped, stream_cycles
from sparsec.targets.target import Target

RESULTS = Path(__file__).parent / "results"
#: vector multiply-adds that a trace should hold; stretches of it that llvm-mca sees, instructions of each
TRACED, STRETCHES, STRETCH = 250_000, 20, 1500


@dataclass(frozen=True)
class Core:
    """A core, as llvm-mca calls it, the target its code is for, and cycles that a wrong guess costs it."""

    name: str
    mca: str
    target: Target
    mispredict: int


#: LLVM has no tables of Cortex-A76's own; it takes Cortex-A57's. Neoverse N1 is the same core for servers.
CORES = (
    Core("Cortex-A55", "cortex-a55", arm.DOT, 8),
    Core("Cortex-A76", "cortex-a76", arm.CORTEX_A76, 11),
    Core("Neoverse N1", "neoverse-n1", arm.NEOVERSE_N1, 11),
    Core("Neoverse V1", "neoverse-v1", arm.NEOVERSE_V1, 11),
)


def traced_tiles(tiles: int, vectors: float) -> tuple[int, int]:
    """Tiles from the middle whose vector multiply-adds, of so many in all, are enough for a trace."""
    count = min(tiles, max(1, round(TRACED * tiles / vectors)))
    first = (tiles - count) // 2
    return first, first + count


def predicted(case: Case, products: float, core: Core, tool: str) -> dict[str, Any]:
    """The hot loop's and the whole layer's cycles; ``products`` are nonzeros times columns."""
    tiles = traced_tiles(case.tiles, products / core.target.lanes)
    with tempfile.TemporaryDirectory() as folder:
        trace = traced(case, tiles, Path(folder), objdump_beside(tool))
    share = (tiles[1] - tiles[0]) / case.tiles
    # columns that a nonzero serves in one visit of the hot loop
    columns = case.config["vectors"] * core.target.lanes if products_by_vectors(case) else len(case.inputs[0])
    useful = products * share / trace.multiply_adds
    layer = layer_of(trace, share, core, tool)
    if products_by_vectors(case):
        layer["streamed"] = 0
    else:
        layer |= streamed(layer["cycles"], sum(a.nbytes for a in case.inputs[1:]), core.target)
    return {
        "config": dict(case.config),
        "loop": loop_of(trace.hot, useful, columns, core.mca, tool),
        "layer": layer,
    }


def streamed(cycles: float, nbytes: int, target: Target) -> dict[str, float]:
    """Cycles where weights are used once, so that they come from beyond the caches while it computes."""
    stream = stream_cycles(nbytes, target)
    return {"computed": cycles, "streamed": round(stream), "cycles": round(overlapped(cycles, stream))}


def products_by_vectors(case: Case) -> bool:
    """Whether a weight meets a vector of columns, not one column."""
    return bool(case.inputs[0].ndim != 2)


def loop_of(body: Sequence[str], useful: float, columns: int, core: str, tool: str) -> dict[str, float]:
    """The hot loop: cycles of a turn, of a multiply-add instruction, and of a nonzero for some columns.

    ``useful``: the share of multiply-adds that are a nonzero's, not padding's.
    """
    instructions = sum(lanes_of(text) > 0 for text in body)
    nonzeros = useful * sum(map(lanes_of, body)) / columns
    cycles = mca.loop_cycles(body, core, tool)
    return {
        "cycles": round(cycles, 2),
        "instructions": len(body),
        "multiply_adds": instructions,
        "cycles_per_multiply_add": round(cycles / instructions, 3),
        "cycles_per_nonzero": round(cycles / nonzeros, 3),
        "columns": columns,
    }


def layer_of(trace: Trace, share: float, core: Core, tool: str) -> dict[str, float]:
    """Cycles of a whole layer of which so large a share was traced."""
    stretches = trace.stretches(STRETCHES, STRETCH)
    per_instruction = mca.stretch_cycles(stretches, core.mca, tool) / sum(map(len, stretches))
    straight = per_instruction * trace.instructions / share
    waited = trace.unforeseen * core.mispredict / share
    return {
        "cycles": round(straight + waited),
        "mispredicted": round(waited),
        "instructions": round(trace.instructions / share),
        "multiply_adds": round(trace.vector_multiply_adds / share),
    }


def objdump_beside(tool: str) -> str:
    """The llvm-objdump that came with an llvm-mca."""
    return str(Path(tool).with_name(Path(tool).name.replace("mca", "objdump")))


@dataclass(frozen=True)
class Task:
    """One prediction: a layer, the number of its row (None: dense), a sparsity, the number of a core."""

    name: str
    row: int | None
    sparsity: float
    core: int


def tasks(layers: Collection[str], cores: Collection[str]) -> Iterator[Task]:
    """Every prediction for these layers and cores."""
    for number, core in enumerate(CORES):
        for name in layers if core.mca in cores else ():
            yield Task(name, None, 0.0, number)
            for index, row in enumerate(ROWS):
                for sparsity in row.sparsities if row.layer == name else ():
                    yield Task(name, index, sparsity, number)


def result(tool: str, task: Task) -> dict[str, Any] | None:
    """A prediction as it is written down; None where the kernel does not take the layer."""
    one, core = LAYERS[task.name], CORES[task.core]
    dense = Row(task.name, one.dense, "dense", pruned)
    row = dense if task.row is None else ROWS[task.row]
    weight = row.prune(*one.shape, task.sparsity)
    case = case_of(row.kernel, one, weight, core.target)
    if case is None:
        return None
    found = predicted(case, int(np.count_nonzero(weight)) * one.columns, core, tool)
    about = {"name": task.name, "about": one.about, "kernel": row.kernel.name, "pattern": row.pattern}
    return {**about, "sparsity": task.sparsity, "core": core.name, "target": core.target.name, **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict what was asked for; writes results where that was everything."""
    options = _parser().parse_args(arguments)
    try:
        tool = mca.find(options.llvm_mca)
        if reason := missing(objdump_beside(tool)):
            raise ConfigError(reason)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{tool}: LLVM {mca.version(tool)}")
    found = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for entry in pool.map(partial(result, tool), tasks(options.only, options.cores)):
            if entry:
                found.append(entry)
                print(_line(entry), flush=True)
    everything = {"llvm": mca.version(tool), "cores": [c.name for c in CORES], "layers": found}
    if set(options.only) == set(LAYERS) and len(set(options.cores)) == len(CORES):
        (RESULTS / "arm-static.json").write_text(json.dumps(everything, indent=1) + "\n")
        (RESULTS / "arm-static.md").write_text(markdown(everything))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--llvm-mca", metavar="PATH", help="llvm-mca 22; else the first of its names found")
    parser.add_argument("--only", nargs="+", choices=list(LAYERS), default=list(LAYERS), metavar="LAYER")
    names = [c.mca for c in CORES]
    parser.add_argument("--cores", nargs="+", choices=names, default=names, metavar="CORE")
    parser.add_argument("--jobs", type=int, default=1, help="predictions at a time")
    return parser


def _line(entry: Mapping[str, Any]) -> str:
    loop, layer = entry["loop"], entry["layer"]
    return (
        f"{entry['core']:12} {entry['name']:11} {entry['kernel']:11} {entry['pattern']:12} "
        f"{entry['sparsity']:5.1%} {layer['cycles']:>11,} cycles, a multiply-add "
        f"{layer['cycles'] / layer['multiply_adds']:.2f} (hot loop {loop['cycles_per_multiply_add']:.2f})"
    )


if __name__ == "__main__":
    sys.exit(main())
