"""csr_conv for CUDA: lines, packing, results through the interpreter, and machine code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conv_cases import LAYERS, Layer, layer
from cuda_convs import check_convolution, convolution
from cuda_layers import DTYPES, EPILOGUES
from kernel_cases import skewed, unstructured
from sass import TARGETS, needs_sass, sass

from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import csr_conv, dense_conv
from sparsec.targets.cuda.parts import conv_rows
from sparsec.targets.cuda.parts.lines import Line
from sparsec.targets.geometry import Geometry
from sparsec.targets.target import Packing, Target

#: rows, channels and positions that nothing divides, three images
MIXED = layer(45, 13, (6, 7), (3, 3), padding=(1, 1, 1, 1), images=3)


def _weight(a: Layer, density: float = 0.3) -> Any:
    return unstructured(a.rows, a.inner, density)


def _check(a: Layer, weight: Any, dtype: str, config: Mapping[str, int], **more: Any) -> None:
    check_convolution(csr_conv, convolution(a, weight, dtype, **more), config)


@pytest.mark.parametrize("name", [n for n in LAYERS if LAYERS[n].geometry.groups == 1])
def test_windows(name: str) -> None:
    """Every kind of window, in floats and halves, with images known and of the run in turn."""
    number, a = list(LAYERS).index(name), LAYERS[name]
    for dtype in ("float32", ("float16", "bfloat16")[number % 2]):
        one = convolution(a, _weight(a), dtype, run_time=number % 3 == 1)
        config = csr_conv.space(one.problem, infer(_weight(a)), gpus.SM80)[0]
        check_convolution(csr_conv, one, config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide, high, channels", [(1, 1, 13), (2, 4, 5), (4, 2, 3), (8, 1, 1), (1, 16, 7)])
def test_tiles_and_blocks_of_channels(dtype: str, wide: int, high: int, channels: int) -> None:
    config = {"wide": wide, "high": high, "channels": channels}
    _check(MIXED, _weight(MIXED), dtype, config, epilogue="bias_relu")


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_epilogues(dtype: str, epilogue: str) -> None:
    _check(MIXED, _weight(MIXED), dtype, {"wide": 2, "high": 1, "channels": 7}, epilogue=epilogue)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pixels", [(4, 6), (3, 2), (3, 3)], ids=str)
def test_points(dtype: str, pixels: tuple[int, int]) -> None:
    """Rows of positions that copies of 16 bytes, of 4 and of one half take, with images side by side."""
    a = layer(19, 40, pixels, images=5)
    flat = a.geometry.height * a.geometry.width
    a = Layer(a.rows, replace(a.geometry, height=1, width=flat, out_height=1, out_width=flat))
    config = {"wide": 1, "high": 2, "channels": 16}
    _check(a, _weight(a), dtype, config, epilogue="bias_gelu_residual")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_empty_full_and_uneven_weights(dtype: str) -> None:
    config = {"wide": 1, "high": 2, "channels": 5}
    _check(MIXED, np.zeros((MIXED.rows, MIXED.inner), np.float32), dtype, config, epilogue="bias_relu")
    _check(MIXED, _weight(MIXED, 1.0), dtype, config)
    _check(MIXED, skewed(MIXED.rows, MIXED.inner), dtype, config)


def test_padding_is_shared() -> None:
    """3x3 over 7x7 takes 8x8 numbers an image; without padding, or with strides, nothing is shared."""
    same = Geometry(4, 7, 7, 7, 7, (3, 3), padding=(1, 1))
    assert Line(same, 64, 4, "float32").per_image == 64
    assert Line(replace(same, out_height=5, out_width=5, padding=(0, 0)), 64, 4, "float32").per_image == 49
    strided = Line(replace(same, out_height=4, out_width=4, strides=(2, 2)), 64, 4, "float32")
    assert strided.per_image == 25 and len(strided.phases) == 4


def test_rows_are_dealt_evenly() -> None:
    counts = np.random.default_rng(0).integers(0, 100, 250)
    dealt = conv_rows.deal(counts, 32, 8)
    assert sorted(dealt[dealt >= 0].tolist()) == list(range(250))
    sums = np.where(dealt >= 0, counts[dealt], 0).sum(axis=1)
    assert sums.max() - sums.min() <= counts.max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_predicted_bytes(dtype: str) -> None:
    a = layer(128, 96, (14, 14), (3, 3), padding=(1, 1, 1, 1))
    weight = _weight(a, 0.1)
    one = convolution(a, weight, dtype)
    for config in csr_conv.space(one.problem, infer(weight), gpus.SM90A):
        packed = csr_conv.pack(one.weight, one.problem, config, gpus.SM90A).nbytes
        assert csr_conv.nbytes(one.problem, infer(weight), config, gpus.SM90A) == pytest.approx(
            packed, rel=0.03
        )
        assert packed < weight.size * np.dtype(DTYPES[dtype]).itemsize


def test_where_it_pays() -> None:
    """In float32 from four fifths on; in halves tensor cores are ahead of it at nine tenths."""
    a = layer(256, 256, (14, 14), (3, 3), padding=(1, 1, 1, 1), images=32)
    for dtype, density, ahead in (("float32", 0.1, True), ("float32", 0.6, False), ("float16", 0.1, False)):
        problem, pattern = convolution(a, _weight(a, density), dtype).problem, infer(_weight(a, density))
        sparse, dense = (
            min(
                kernel.predict(problem, pattern, c, gpus.SM90A)
                for c in kernel.space(problem, pattern, gpus.SM90A)
            )
            for kernel in (csr_conv, dense_conv)
        )
        assert (sparse < dense) == ahead


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
@pytest.mark.parametrize("dtype, reads", [("float32", 1), ("float16", 2)])
def test_code(dtype: str, reads: int, target: Target) -> None:
    """Values four at a time; a read of shared memory for one multiply-add, or for two of halves."""
    a = layer(128, 128, (28, 28), (3, 3), padding=(1, 1, 1, 1))
    config = {"wide": 4, "high": 4, "channels": 26}
    packing = Packing({}, 0, tuple(sorted(config.items())))
    problem = convolution(a, _weight(a), dtype).problem
    code = sass(csr_conv.emit(problem, packing, target, "kernel"), target)
    products = code.count(r"FFMA")
    assert products >= 4 * 4 * 4 * reads
    assert products / reads <= code.count(r"LDS\b") <= products / reads + 8
    assert code.count(r"LDG\.E\.128" if dtype == "float32" else r"LDG\.E\.64") >= 4
    assert (code.count(r"LDGSTS") > 0) == (dtype == "float32")
    assert code.local_accesses == 0 and code.registers <= 128
