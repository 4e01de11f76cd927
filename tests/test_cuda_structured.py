"""Networks pruned in blocks and by V:N:M, compiled for a GPU: which kernels they get, what they compute."""

from __future__ import annotations

from typing import Any

import pytest
from cuda_models import driver, loaded
from cuda_programs import check, names_of
from fake_cuda.driver import FakeDriver
from graph_build import Build, random_inputs
from test_cuda_bsr_spmm import blocks
from test_cuda_nm_gather import shared

from sparsec.ir.graph import Graph
from sparsec.targets.cuda import gpus

__all__ = ["driver", "loaded"]

#: tokens, and the width of every layer
TOKENS, WIDTH = 300, 512


def network(weight: Any) -> Graph:
    """relu(x W^T + bias) + x: one layer with all of its epilogue."""
    b = Build()
    x = b.input(TOKENS, WIDTH)
    product = b.apply("add", b.matmul(x, b.const(weight.T.copy() / 16)), b.random(WIDTH))
    return b.graph(b.apply("add", b.apply("max", product, b.const(0.0)), x))


WEIGHTS = {
    "blocks of 64": (blocks(WIDTH, WIDTH, (64, 64), 0.2), "bsr_spmm"),
    "blocks of 32": (blocks(WIDTH, WIDTH, (32, 32), 0.2), "bsr_spmm"),
    "3 of 16 that 32 outputs share": (shared(WIDTH, WIDTH, 32, 3, 16), "nm_gather"),
    "3 of 4 of 16 that 16 outputs share": (shared(WIDTH, WIDTH, 16, 4, 16, 3), "nm_gather"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_layer_gets_the_kernel_of_its_zeros(
    driver: FakeDriver, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so small a layer gains less than predictions have to promise
    monkeypatch.setattr("sparsec.passes.choose_format._CERTAIN", 1.0)
    weight, kernel = WEIGHTS[name]
    graph = network(weight)
    calls = check(driver, graph, [random_inputs(graph)], "float16", gpus.SM90A)
    assert kernel in names_of(calls)
