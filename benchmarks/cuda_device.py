"""Programs of ``cuda_build.py`` where they run: their weights are made, their results checked."""

from __future__ import annotations

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import cuda_runtime  # noqa: F401  (makes sparsec importable from this checkout)
import numpy as np
import torch
from cuda_cases import Case, digest, weighted

from sparsec.runtime import Program
from sparsec.runtime.artifact import to_bytes

ROOT = Path(__file__).resolve().parents[1]
TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def carried_programs(folder: Path) -> dict[str, list[Any]]:
    """What was built, by case."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.program")):
        program = pickle.loads(path.read_bytes())
        found.setdefault(program.case, []).append(program)
    return found


def model_bytes(carried: Any, module: Any) -> bytes:
    """The model file: weights made here, packed as they were where it was compiled."""
    layers = weighted(module)
    for name, wanted in carried.digests.items():
        if digest(layers[name].weight) != wanted:
            raise ValueError(
                f"{carried.case}: {name} is not the weight that was compiled for: torch's seeds differ"
            )
    packed: dict[Any, Any] = {}
    arrays = []
    for constant in carried.constants:
        if isinstance(constant, np.ndarray):
            arrays.append(constant)
            continue
        if (constant.weight, constant.kernel) not in packed:
            kernel = import_module(f"sparsec.targets.cuda.kernels.{constant.kernel}")
            weight = np.moveaxis(layers[constant.weight].weight.detach().numpy(), 1, -1)
            matrix = weight.reshape(len(weight), -1).astype(np.dtype(constant.problem.dtype))
            made = kernel.pack(matrix, constant.problem, constant.config, carried.target)
            packed[constant.weight, constant.kernel] = made.arrays
        arrays.append(packed[constant.weight, constant.kernel][constant.label])
    return to_bytes(carried.plan, carried.code, arrays, {"target": "sm_90a"})


def inputs_of(case: Case, generator: Any) -> tuple[Any, ...]:
    """Fresh random inputs on the GPU."""
    return tuple(
        torch.randn(shape, generator=generator, device="cuda").to(TORCH[case.dtype]) for shape in case.inputs
    )


def expected(case: Case, module: Any, inputs: tuple[Any, ...]) -> Any:
    """The module's outputs in float64, its weights rounded as the program has them."""
    with torch.no_grad():
        rounded = {k: v.to(TORCH[case.dtype]).double() for k, v in module.state_dict().items()}
        return torch.func.functional_call(module.double(), rounded, tuple(x.double() for x in inputs))


def error_of(program: Program, case: Case, module: Any, generator: Any) -> float:
    """The largest difference, of the largest output.

    The same arrays three times, the output poisoned beforehand: launched, recorded as a graph, replayed.
    """
    inputs = inputs_of(case, generator)
    wanted = expected(case, module, inputs)
    output = torch.empty(wanted.shape, dtype=TORCH[case.dtype], device="cuda")
    feeds = dict(zip([port.name for port in program.inputs], inputs, strict=True))
    run = program.prepare(feeds, {program.outputs[0].name: output})
    worst = 0.0
    for _ in range(3):
        output.fill_(float("nan"))
        run()
        torch.cuda.synchronize()
        if not torch.isfinite(output).all():
            return float("inf")
        worst = max(worst, float((output.double() - wanted).abs().max() / wanted.abs().max()))
    return worst
