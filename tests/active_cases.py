"""Inputs with zeros for active_gemv, native and emulated."""

from __future__ import annotations

from typing import Any

import numpy as np
from kernel_cases import EPILOGUES, skewed, unstructured
from kernel_harness import Case, rounding

from sparsec.sparsity.pattern import infer
from sparsec.targets.kernels import active_gemv
from sparsec.targets.target import Packing, Problem, Target

#: (rows, inputs, density of the weight, share of active inputs): one, primes, empty, full, tails
SHAPES = [
    (1, 1, 1.0, 1.0), (7, 13, 0.5, 0.5), (70, 101, 0.2, 0.3), (129, 67, 1.0, 0.1), (33, 64, 0.4, 1.0),
    (64, 40, 0.0, 0.5), (300, 96, 0.9, 0.0), (257, 31, 0.05, 0.6),
]  # fmt: skip


def inputs_with_zeros(columns: int, inner: int, active: float, seed: int = 0) -> Any:
    """``x[columns, inner]``: shared zeros, some zeros of one column only, and a few that are -0.0."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((columns, inner)).astype(np.float32)
    x[:, random.random(inner) >= active] = 0
    x[random.random(x.shape) < 0.2] = 0
    x[(x == 0) & (random.random(x.shape) < 0.3)] = -0.0
    return x


def make_active_case(
    weight: Any, x: Any, target: Target, config: dict[str, int], epilogue: str = "none", seed: int = 0
) -> Case:
    """One run on the given inputs."""
    (rows, inner), columns, ending = weight.shape, len(x), EPILOGUES[epilogue]
    problem = Problem(rows, inner, columns, 0, ending.expression, ending.extras, active=0.5)
    packing = active_gemv.pack(weight, problem, config, target)
    random = np.random.default_rng(seed)
    sizes = {"row": (rows,), "full": (columns, rows), "one": (1,)}
    extras = [random.standard_normal(sizes[kind]).astype(np.float32) for kind in ending.extras]
    known = Packing({}, packing.tiles, packing.config)
    product = x.astype(np.float64) @ weight.T.astype(np.float64)
    return Case(
        label=f"active_gemv {target.name} {rows}x{inner}x{columns} {epilogue} {config}",
        target=target,
        key=(active_gemv.name, problem, packing.config, target),
        emit=lambda name: active_gemv.emit(problem, known, target, name),
        inputs=(x, *packing.arrays.values(), *extras),
        shape=(columns, rows),
        tiles=packing.tiles,
        expected=ending.reference(product, *(e.astype(np.float64) for e in extras)),
        allowed=rounding(x, weight.T),
        scratch_floats=active_gemv.scratch_floats(problem, packing, target),
        config=dict(packing.config),
    )


def every_encoding(
    weight: Any, x: Any, target: Target, epilogue: str = "none", chunk: int | None = None
) -> list[Case]:
    """A case for each way to store the weight; ``chunk`` also cuts columns there."""
    problem = Problem(*weight.shape, len(x), 0, active=0.5)
    lanes = target.lanes
    configs = list(active_gemv.space(problem, infer(weight), target))
    configs += (
        [{"chunk": chunk, "whole": 0}, {"chunk": -(-chunk // lanes) * lanes, "whole": 1}] if chunk else []
    )
    return [make_active_case(weight, x, target, c, epilogue) for c in configs]


def active_cases(target: Target) -> list[Case]:
    """All shapes and numbers of columns, rows from empty to full, every epilogue."""
    cases = []
    for number, (rows, inner, density, active) in enumerate(SHAPES):
        x = inputs_with_zeros(1 + number % 4, inner, active)
        cases += every_encoding(unstructured(rows, inner, density), x, target, chunk=1 + rows // 3)
    cases += every_encoding(skewed(50, 80), inputs_with_zeros(3, 80, 0.4), target)
    for epilogue in EPILOGUES:
        cases += every_encoding(unstructured(37, 40, 0.4), inputs_with_zeros(2, 40, 0.5), target, epilogue)
    return cases
