"""Compile what ``cuda_run.py`` runs on a machine with a GPU: ``python benchmarks/cuda_build.py``.

Writes build/cuda: for every program its plan and code, and how its weights are made from seeds, a few
megabytes in all.  Needs nvcc and no GPU.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda_carried import Carried, Packed
from cuda_cases import CASES, Case, digest, pruned, weighted
from cuda_small import SMALL

from sparsec import pipeline
from sparsec.compiler import PASSES
from sparsec.frontends import import_model
from sparsec.ir.graph import Choice, Graph, Node, with_nodes
from sparsec.passes.choose_format import candidates, choose_format
from sparsec.planning.planner import plan_program
from sparsec.runtime import _executor
from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda.gpus import SM90A
from sparsec.targets.cuda.kernels import KERNELS
from sparsec.targets.layers import is_layer, weight_matrix
from sparsec.targets.problem import problem_of
from sparsec.targets.target import Target

ROOT = Path(__file__).resolve().parents[1]
#: constants of no more bytes travel as they are
CARRIED_BYTES = 1 << 16


def built(case: Case, kernel: str) -> Carried:
    """One program of a case, with one kernel or, for "", the compiler's choice."""
    module = pruned(case)
    target = replace(SM90A, kernels=KERNELS, dtype=case.dtype, port_dtype=case.dtype)
    examples = tuple(torch.zeros(shape) for shape in case.inputs)
    graph = pipeline.run(import_model(module, None, example_inputs=examples), target, _passes(kernel))
    planned = plan_program(graph, target)
    plain = replace(target, kernels=())
    found = _recipes(graph, module)
    return Carried(
        case.name, kernel, planned.plan, planned.code, tuple(_constant(found, w) for w in planned.weights),
        {n: digest(m.weight) for n, m in weighted(module).items()}, plain,
        tuple(n.choice[0].kernel for n in graph.nodes if n.choice),
    )  # fmt: skip


def _passes(kernel: str) -> Any:
    """The compiler's passes, the choice being forced where a kernel is named."""
    if not kernel:
        return PASSES
    at = PASSES.index(choose_format)
    return (*PASSES[:at], Force(kernel), *PASSES[at:])


@dataclass(frozen=True)
class Force:
    """The pass: every layer gets one kernel, whatever it is predicted to take."""

    kernel: str

    def __call__(self, graph: Graph, target: Target) -> Graph:
        nodes = graph.node_map()
        layers = {n.name for n in graph.nodes if is_layer(nodes, n, target.dtypes) and not n.choice}
        if not layers:
            return graph
        return with_nodes(
            graph, [self._chosen(graph, n, target) if n.name in layers else n for n in graph.nodes]
        )

    def _chosen(self, graph: Graph, n: Node, target: Target) -> Node:
        nodes = graph.node_map()
        pattern = infer(weight_matrix(n, graph.consts[n.args[1]]))
        for candidate, kernel, config in candidates(problem_of(nodes, n), pattern, target):
            if kernel.name == self.kernel:
                settings = tuple(sorted(config.items()))
                return replace(
                    n, choice=(Choice(kernel.name, kernel.format, settings, candidates=(candidate,)),)
                )
        raise ValueError(f"{self.kernel} does not take the layer")


def _recipes(graph: Graph, module: Any) -> list[tuple[Any, Packed]]:
    """Every packed array and how it is made from the module's weights."""
    nodes = graph.node_map()
    sources = {}
    for name, layer in weighted(module).items():
        weight = layer.weight.detach().numpy()
        sources[_key(np.moveaxis(weight, 1, -1).reshape(len(weight), -1))] = name
    found = []
    for n in graph.nodes:
        if not n.choice or not n.choice[0].packed:
            continue
        matrix = weight_matrix(n, graph.consts[n.args[1]])
        source = sources.get(_key(matrix.astype(np.float32)))
        if source is None:
            continue
        problem, choice = problem_of(nodes, n), n.choice[0]
        for packed in choice.packed:
            recipe = Packed(source, choice.kernel, problem, dict(choice.config), packed.rsplit(".", 1)[1])
            found.append((graph.consts[packed], recipe))
    return found


def _key(matrix: Any) -> tuple[Any, ...]:
    """Tells weights apart whatever their dtype: where their zeros are, and the signs of the rest."""
    return matrix.shape, hash(np.sign(matrix).astype(np.int8).tobytes())


def _constant(found: list[tuple[Any, Packed]], array: Any) -> Any:
    if array.nbytes <= CARRIED_BYTES:
        return array
    for have, recipe in found:
        if have is array or (have.dtype == array.dtype and np.array_equal(have, array)):
            return recipe
    raise ValueError(f"a constant of {array.nbytes} bytes is no packed weight: it would have to travel")


def written(case: Case, kernel: str, folder: Path) -> bool:
    """Build one program and write it; whether that worked."""
    start = time.perf_counter()
    path = folder / f"{case.name}.{kernel or 'chosen'}.program"
    path.unlink(missing_ok=True)
    try:
        program = built(case, kernel)
    except Exception as problem:
        print(f"{case.name} {kernel}: {type(problem).__name__}: {problem}", file=sys.stderr)
        return False
    path.write_bytes(pickle.dumps(program))
    names, size = ", ".join(sorted(set(program.choices))), path.stat().st_size / 1e6
    print(f"{path.name}: {size:.2f} MB, {names}, {time.perf_counter() - start:.0f} s", flush=True)
    return True


def main() -> int:
    """Build all programs; 1 if one could not be."""
    parser = argparse.ArgumentParser(description="Compile the CUDA benchmark's programs.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "cuda", help="default build/cuda")
    parser.add_argument("--only", nargs="*", default=("",), help="how names of cases begin")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.only == ("",):
        for old in arguments.out.glob("*.program"):
            old.unlink()
    # the same file is the runtime on the other machine, if its C library is no older
    executor = Path(_executor.__file__)
    shutil.copyfile(executor, arguments.out / executor.name)
    chosen = [case for case in (*SMALL, *CASES) if case.name.startswith(tuple(arguments.only))]
    done = [written(case, kernel, arguments.out) for case in chosen for kernel in case.kernels or ("",)]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
