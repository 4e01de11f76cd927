"""nm_conv for CUDA: results through the interpreter, and machine code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from conv_cases import Layer, layer
from cuda_convs import check_convolution, convolution
from cuda_layers import EPILOGUES
from kernel_cases import groups_of_inputs, unstructured
from sass import TARGETS, needs_sass, sass

from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import dense_conv, nm_conv
from sparsec.targets.target import Packing, Target

WINDOW = layer(128, 64, (4, 5), (3, 3), padding=(1, 1, 1, 1), images=2)
POINTS = layer(120, 132, (3, 4), images=3)
STRIDED = layer(64, 60, (7, 6), (3, 3), (2, 2), (1, 1, 1, 1))
#: channels that are no multiple of four: groups reach from tap to tap, so that x cannot lie along lines
ODD = layer(64, 27, (5, 4), (3, 2), padding=(1, 0, 1, 1))


def _weight(a: Layer) -> Any:
    return groups_of_inputs(a.rows, a.inner, 2, 4)


def _configurations(a: Layer) -> list[dict[str, int]]:
    return list(nm_conv.configurations(convolution(a, _weight(a), "float16").problem))


@pytest.mark.parametrize("config", _configurations(WINDOW), ids=str)
def test_every_tile(config: Mapping[str, int]) -> None:
    check_convolution(nm_conv, convolution(WINDOW, _weight(WINDOW), "float16", "bias_relu"), config)


@pytest.mark.parametrize("a", [POINTS, STRIDED, ODD], ids=["points", "strided", "odd"])
def test_windows(a: Layer) -> None:
    lines = set()
    for config in _configurations(a):
        if config["positions"] == 32:
            lines.add(config["line"])
            check_convolution(nm_conv, convolution(a, _weight(a), "bfloat16", run_time=True), config)
    assert lines == ({0, 1} if a is STRIDED else {0})


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(epilogue: str) -> None:
    for config in _configurations(STRIDED)[-2:]:
        check_convolution(nm_conv, convolution(STRIDED, _weight(STRIDED), "float16", epilogue), config)


def test_what_it_accepts() -> None:
    def accepted(a: Layer, weight: Any, dtype: str = "float16") -> bool:
        return nm_conv.accepts(convolution(a, weight, dtype).problem, infer(weight), gpus.SM80)

    assert accepted(WINDOW, _weight(WINDOW))
    assert not accepted(WINDOW, _weight(WINDOW), "float32")
    assert not accepted(WINDOW, unstructured(WINDOW.rows, WINDOW.inner, 0.5))
    few = layer(8, 16, (4, 5), (3, 3), padding=(1, 1, 1, 1))
    assert not accepted(few, _weight(few)), "padding to 64 rows would take more bytes than zeros save"
    grouped = layer(128, 128, (4, 5), groups=2)
    assert not accepted(grouped, groups_of_inputs(128, 64, 2, 4))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_predictions(target: Target) -> None:
    """Ahead of dense on ResNet-50's windows, behind twice as fast; bytes as packed."""
    a = layer(256, 256, (14, 14), (3, 3), padding=(1, 1, 1, 1), images=32)
    one, pattern = convolution(a, _weight(a), "float16"), infer(_weight(a))
    config = nm_conv.space(one.problem, pattern, target)[0]
    packed = nm_conv.pack(one.weight, one.problem, config, target).nbytes
    tables = 4 * a.geometry.taps * config["line"]
    assert packed == nm_conv.nbytes(one.problem, pattern, config, target) + tables
    cycles = nm_conv.predict(one.problem, pattern, config, target)
    dense = dense_conv.predict(
        one.problem, pattern, dense_conv.space(one.problem, pattern, target)[0], target
    )  # fmt: skip
    assert cycles < dense < 2 * cycles


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
@pytest.mark.parametrize("line", [0, 1])
def test_code(line: int, target: Target) -> None:
    a = layer(128, 128, (28, 28), (3, 3), padding=(1, 1, 1, 1)) if line else layer(128, 128, (28, 28))
    problem = convolution(a, _weight(a), "float16").problem
    config = {"rows": 128, "positions": 64, "depth": 64, "line": line}
    packing = Packing({}, 0, tuple(sorted(config.items())))
    code = sass(nm_conv.emit(problem, packing, target, "kernel"), target)
    assert code.count(r"HMMA\.SP\.16832\.F32") % 32 == 0 and code.count(r"HMMA\.SP") > 0
    assert code.count(r"LDSM") > 0 and code.count(r"LDGSTS\.E\.BYPASS\.128") > 0
    assert code.local_accesses == 0 and code.registers <= 192
