"""The problems that choices.py measures: real pruned weights, and their shapes pruned in other ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matrices import Matrix, dlmc, skimcaffe

from sparsec import pipeline
from sparsec.compiler import ANALYSIS
from sparsec.frontends import import_model
from sparsec.targets.named import native
from sparsec.tuning.tasks import Layer, layers_of

COLUMNS = (1, 32, 256)
#: one shape in so many is also pruned in structured ways
STRUCTURED = 12


@dataclass(frozen=True)
class Problem:
    """A matrix and how many columns it is multiplied by."""

    matrix: Matrix
    columns: int

    @property
    def name(self) -> str:
        """What its result is found by."""
        return f"{self.matrix.group}/{self.matrix.name} x {self.columns}"


def problems() -> Iterator[Problem]:
    """All of them."""
    real = [*dlmc(), *skimcaffe()]
    made = [shaped for one in real[::STRUCTURED] for shaped in structured(one)]
    for matrix in [*real, *made]:
        for columns in COLUMNS:
            yield Problem(matrix, columns)


def structured(one: Matrix) -> Iterator[Matrix]:
    """The shape and sparsity of a matrix, its zeros in blocks, by N:M, in dead rows, or beside hub rows."""
    for kind, keep in KINDS.items():
        yield Matrix(kind, one.name, partial(_pruned, one, keep))


def _pruned(one: Matrix, keep: Callable[[Any, float, Any], Any]) -> Any:
    shape, density = one.make().shape, float(np.count_nonzero(one.make())) / one.make().size
    random = np.random.default_rng(5)
    weight = random.standard_normal(shape).astype(np.float32)
    return np.where(keep(np.zeros(shape, bool), density, random), weight, 0).astype(np.float32)


def _blocks(mask: Any, density: float, random: Any, high: int, wide: int) -> Any:
    rows, columns = (-(-size // block) for size, block in zip(mask.shape, (high, wide), strict=True))
    kept = random.random((rows, columns)) < density
    return np.kron(kept, np.ones((high, wide), bool))[: mask.shape[0], : mask.shape[1]]


def _groups(mask: Any, density: float, random: Any, m: int) -> Any:
    n = max(1, round(density * m))
    scores = random.random((mask.shape[0], -(-mask.shape[1] // m), m))
    kept = np.argsort(scores, axis=2) < n
    return kept.reshape(mask.shape[0], -1)[:, : mask.shape[1]]


def _dead(mask: Any, density: float, random: Any) -> Any:
    alive = random.random((mask.shape[0], 1)) < 0.5
    return alive & (random.random(mask.shape) < min(1.0, 2 * density))


def _hubs(mask: Any, density: float, random: Any) -> Any:
    hub = random.random((mask.shape[0], 1)) < density / 4
    return hub | (random.random(mask.shape) < 0.75 * density)


KINDS: Mapping[str, Callable[[Any, float, Any], Any]] = {
    "blocks 4x1": partial(_blocks, high=4, wide=1),
    "blocks 16x1": partial(_blocks, high=16, wide=1),
    "blocks 4x4": partial(_blocks, high=4, wide=4),
    "n:4": partial(_groups, m=4),
    "n:8": partial(_groups, m=8),
    "dead rows": _dead,
    "hub rows": _hubs,
}


def layer_of(problem: Problem) -> Layer:
    """The problem as the one layer of a model."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.ascontiguousarray(problem.matrix.make().T)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [problem.columns, size])
        for name, size in zip("xy", weight.shape, strict=True)
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    imported = import_model(helper.make_model(graph))
    [layer] = layers_of(pipeline.run(imported, native(), ANALYSIS), native(), "")
    return layer
