"""Sparse convolutions whose vectors hold one position of many images: batches, maps, tiles, choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from conv_cases import Layer, conv_configs, kinds, layer, make_conv_case, problem_of, suited, weight_of
from corpus import TARGET
from graph_build import Build
from kernel_cases import AVX2, EPILOGUES, SPLIT, has_features, unstructured
from kernel_harness import Case, check_case, run_case

from sparsec.compiler import artifact
from sparsec.reference.evaluate import evaluate
from sparsec.runtime import Program
from sparsec.sparsity.pattern import infer
from sparsec.targets import x86
from sparsec.targets.kernels import bsr_conv, csr_conv, nm_conv
from sparsec.targets.target import Target

pytestmark = pytest.mark.skipif(not has_features(AVX2), reason="this machine lacks AVX2")

kernels = pytest.mark.parametrize("kernel", [csr_conv, bsr_conv, nm_conv], ids=lambda k: k.name)

#: batches of one group of images and of several, the last of which starts early
BATCHES: Mapping[str, Layer] = {
    "two_by_two": layer(20, 8, (2, 2), (3, 3), padding=(1, 1, 1, 1), images=9),
    "four_by_four": layer(13, 8, (4, 4), (3, 3), padding=(1, 1, 1, 1), images=16),
    "seven_by_seven": layer(9, 6, (7, 7), (3, 3), padding=(1, 1, 1, 1), images=21),
    "one_position": layer(6, 4, (1, 1), images=16),
    "three_positions": layer(9, 4, (1, 3), images=17),
    "points": layer(9, 25, (1, 49), images=17),
    "strided": layer(9, 5, (5, 5), (3, 3), (2, 2), (1, 1, 1, 1), images=8),
    "strided_point": layer(9, 5, (14, 14), strides=(2, 2), images=16),
    "stride_beyond_kernel": layer(6, 4, (11, 13), (2, 2), (3, 4), images=8),
    "uneven_strides": layer(5, 3, (9, 11), (3, 4), (1, 3), (1, 0, 1, 2), images=9),
    "dilated": layer(6, 4, (10, 9), (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2), images=16),
    "dilated_strided_three": layer(6, 3, (13, 12), (3, 2), (2, 3), (3, 1, 2, 0), (3, 2), images=9),
    "long_rows": layer(6, 3, (2, 70), (1, 5), padding=(0, 2, 0, 2), images=9),
    "kernel_beyond_map": layer(5, 3, (3, 4), (5, 5), padding=(2, 2, 2, 2), images=21),
    "padding_beyond_kernel": layer(4, 2, (4, 5), (3, 3), padding=(4, 4, 4, 4), images=16),
}


def _cases(kernel: ModuleType, a: Layer, target: Target, epilogue: str = "none") -> list[Case]:
    """One case per kind of tile whose lanes hold images."""
    a = suited(kernel, a)
    weight = weight_of(kernel, a)
    found = kinds(a, [c for c in conv_configs(kernel, a, weight, target) if c["images"]])
    return [make_conv_case(kernel, a, weight, target, c, epilogue) for c in found]


def _small(target: Target) -> Target:
    """Caches so small that little layers are cut into many blocks and tiles."""
    return replace(target, l1=2048, l2=1 << 16)


@kernels
@pytest.mark.parametrize("name", BATCHES)
def test_batch(kernel: ModuleType, name: str) -> None:
    found = _cases(kernel, BATCHES[name], AVX2, "bias")
    assert found
    for case in found[: None if kernel is csr_conv else 1]:
        check_case(case)


@pytest.mark.parametrize("name", ["four_by_four", "strided_point", "seven_by_seven", "dilated"])
def test_sixteen_lanes(name: str) -> None:
    for case in _cases(csr_conv, BATCHES[name], SPLIT, "residual")[:2]:
        check_case(case)


@kernels
@pytest.mark.parametrize("name", ["seven_by_seven", "points"])
def test_batch_cut_into_blocks_and_tiles(kernel: ModuleType, name: str) -> None:
    found = _cases(kernel, BATCHES[name], _small(AVX2), "residual")
    assert any(case.config["channels"] < BATCHES[name].geometry.channels for case in found)
    for case in found[:2]:
        check_case(case)


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogue(epilogue: str) -> None:
    check_case(_cases(csr_conv, BATCHES["strided"], AVX2, epilogue)[0])
    check_case(_cases(csr_conv, BATCHES["three_positions"], AVX2, epilogue)[0])


def test_nothing_is_written_for_no_tiles() -> None:
    case = _cases(csr_conv, BATCHES["four_by_four"], AVX2)[0]
    assert np.isnan(run_case(case, [(0, 0), (case.tiles, case.tiles)])).all()


def test_infinities_stay_in_their_image() -> None:
    case = _cases(csr_conv, BATCHES["seven_by_seven"], AVX2)[0]
    clean = run_case(case)
    x = case.inputs[0].copy()
    x[11] = np.inf
    found = run_case(replace(case, inputs=(x, *case.inputs[1:])))
    others = [i for i in range(len(x)) if i != 11]
    assert found[others].tobytes() == clean[others].tobytes() and not np.isfinite(found[11]).any()


@kernels
@pytest.mark.parametrize("count", [None, 1, 7])
def test_needs_an_image_for_every_lane(kernel: ModuleType, count: int | None) -> None:
    a = suited(kernel, layer(16, 16, (4, 4), (3, 3), padding=(1, 1, 1, 1)))
    weight = weight_of(kernel, a)
    problem = problem_of(Layer(a.rows, replace(a.geometry, images=count)), known=count is not None)
    found = kernel.space(problem, infer(weight), AVX2)
    assert found and not any(c["images"] for c in found)


def test_equal_code_means_equal_numbers_of_images() -> None:
    """Settings stand for the code of a layer, whose problem may differ in the number of images."""
    settings = set()
    for count in (16, 21):
        a = layer(16, 16, (4, 4), (3, 3), padding=(1, 1, 1, 1), images=count)
        weight = unstructured(a.rows, a.inner, 0.1)
        config = next(c for c in conv_configs(csr_conv, a, weight, AVX2) if c["images"])
        settings.add(csr_conv.pack(weight, problem_of(a), config, AVX2).config)
    assert len(settings) == 2


def _chosen(a: Layer, target: Target) -> bool:
    problem, pattern = problem_of(a), infer(unstructured(a.rows, a.inner, 0.1))
    best = min(
        csr_conv.space(problem, pattern, target), key=lambda c: csr_conv.predict(problem, pattern, c, target)
    )
    return bool(best["images"])


@pytest.mark.parametrize("target", [x86.AVX2, x86.AVX512], ids=["8", "16"])
def test_chosen_for_small_maps_only(target: Target) -> None:
    around: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "images": 16}
    assert _chosen(layer(64, 64, (2, 2), **around), target)
    assert _chosen(layer(64, 64, (4, 4), **around), target)
    assert _chosen(layer(512, 512, (7, 7), **around), target)
    assert not _chosen(layer(64, 64, (28, 28), **around), target)
    assert not _chosen(layer(256, 256, (1, 196), images=16), target)


def test_programs_of_two_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Layers that differ in their images only, compiled and run as one program."""
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path))
    b = Build()
    inputs = [b.input(count, 32, 4, 4) for count in (16, 21, 3)]
    weight = b.random(24, 32, 3, 3, zeros=0.9)
    layers = [b.conv(x, weight, padding=(1, 1, 1, 1)) for x in inputs]
    shape = layer(24, 32, (4, 4), (3, 3), padding=(1, 1, 1, 1), images=16)
    assert _chosen(shape, TARGET)
    graph = b.graph(*[b.apply("max", b.apply("add", y, b.random(24, 1, 1)), b.const(0.0)) for y in layers])
    random = np.random.default_rng(3)
    feeds = {
        x: random.standard_normal((n, 32, 4, 4), np.float32) for x, n in zip(inputs, (16, 21, 3), strict=True)
    }
    want = evaluate(graph, feeds)
    found = Program.from_bytes(artifact(graph, TARGET)).run(None, feeds)
    for name, got in zip(graph.output_names, found, strict=True):
        np.testing.assert_allclose(got, want[name], rtol=1e-5, atol=1e-5)
