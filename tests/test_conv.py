"""The x86 kernels that convolve, on this machine, against float64 NumPy on fresh inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conv_cases import (
    LAYERS,
    MIXED,
    POINTS,
    WEIGHTS,
    Layer,
    conv_configs,
    convolve,
    kinds,
    layer,
    make_conv_case,
    problem_of,
    runs,
    suited,
    weight_of,
)
from kernel_cases import (
    AVX2,
    AVX512,
    EPILOGUES,
    SPLIT,
    blocks_of_rows,
    groups_of_inputs,
    has_features,
    unstructured,
)
from kernel_harness import Case, check_case, run_case

from sparsec.sparsity.pattern import infer
from sparsec.targets.build import module_of
from sparsec.targets.kernels import bsr_conv, conv_plans, csr_conv, dense_conv, nm_conv
from sparsec.targets.target import Target


def _tier(target: Target) -> Any:
    missing = not has_features(target)
    reason = f"{target.name} not run: this machine lacks {' or '.join(target.features)}"
    return pytest.param(target, id=target.name, marks=pytest.mark.skipif(missing, reason=reason))


kernels = pytest.mark.parametrize("kernel", WEIGHTS, ids=lambda k: k.name)
tiers = pytest.mark.parametrize("target", [_tier(AVX2), _tier(SPLIT), _tier(AVX512)])
layers = pytest.mark.parametrize("name", LAYERS)
#: layers of few taps, and so of little code
SHORT = ("row", "points", "strided_point")
ROWS = layer(14, 8, (10, 37), (1, 3), padding=(0, 1, 0, 1), images=2)


def _cases(kernel: ModuleType, a: Layer, target: Target, epilogue: str = "none", known: bool = True) -> Any:
    """One case per kind of configuration, none for what the kernel does not run."""
    a = suited(kernel, a)
    weight = weight_of(kernel, a)
    found = kinds(a, conv_configs(kernel, a, weight, target))
    return [make_conv_case(kernel, a, weight, target, c, epilogue, known) for c in found]


def _small(target: Target) -> Target:
    """Caches so small that little layers are cut into many blocks and tiles."""
    return replace(target, l1=2048, l2=1 << 16)


def _some(kernel: ModuleType, target: Target, name: str) -> Any:
    """A few cases of a layer: which kinds they are differs from layer to layer."""
    found = _cases(kernel, LAYERS[name], target)
    number = list(LAYERS).index(name)
    # the second AVX2 tier differs in the length of vectors only; every tap of nm_conv is code of its own
    count = 2 if target is not SPLIT and kernel is not nm_conv else 1
    return [found[(number + i) % len(found)] for i in range(min(count, len(found)))]


@tiers
@kernels
@layers
def test_layer(kernel: ModuleType, name: str, target: Target) -> None:
    if target is SPLIT and kernel is nm_conv and name not in SHORT:
        return
    found = _some(kernel, target, name)
    assert bool(found) == runs(kernel, LAYERS[name])
    for case in found:
        check_case(case)


@tiers
@kernels
@pytest.mark.parametrize("a", [ROWS, POINTS], ids=["rows", "points"])
def test_every_kind_of_tile(kernel: ModuleType, a: Layer, target: Target) -> None:
    for case in _cases(kernel, a, target, "bias")[:: 3 if target is SPLIT else 1]:
        check_case(case)


@tiers
@kernels
@pytest.mark.parametrize("a", [MIXED, POINTS, LAYERS["strided"]], ids=["mixed", "points", "strided"])
def test_layer_cut_into_blocks_and_tiles(kernel: ModuleType, a: Layer, target: Target) -> None:
    for case in _cases(kernel, a, _small(target), "residual")[: 1 if target is SPLIT else 2]:
        assert case.config["channels"] < a.geometry.channels
        check_case(case)


@kernels
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogue(kernel: ModuleType, epilogue: str) -> None:
    if not has_features(AVX2):
        pytest.skip("this machine lacks AVX2")
    check_case(_cases(kernel, LAYERS["points" if kernel is nm_conv else "odd"], AVX2, epilogue)[0])


@tiers
@kernels
def test_images_known_at_run_time(kernel: ModuleType, target: Target) -> None:
    for name in ("row", "points", "grouped"):
        for count in (1, 3):
            geometry = replace(LAYERS[name].geometry, images=count)
            for case in _cases(kernel, Layer(LAYERS[name].rows, geometry), target, known=False)[:1]:
                check_case(case)


@kernels
def test_nothing_is_written_for_no_tiles(kernel: ModuleType) -> None:
    if not has_features(AVX2):
        pytest.skip("this machine lacks AVX2")
    case = _cases(kernel, LAYERS["odd"], AVX2)[0]
    assert np.isnan(run_case(case, [(0, 0), (case.tiles, case.tiles)])).all()


@kernels
@pytest.mark.parametrize("name", ["odd", "points", "strided"])
def test_compiles_for_512_bits(kernel: ModuleType, name: str) -> None:
    case = _cases(kernel, LAYERS[name], AVX512, "bias_relu")[0]
    assembly = module_of(case.emit("kernel_under_test"), AVX512).mod.inspect_source("s")
    assert "zmm" in assembly


@tiers
@pytest.mark.parametrize("a", [MIXED, POINTS, LAYERS["three_images"]], ids=["mixed", "points", "three"])
def test_every_kind_of_tile_of_dense_conv(a: Layer, target: Target) -> None:
    weight = weight_of(dense_conv, a)
    for one, config in _kinds(a, target):
        check_case(make_conv_case(dense_conv, a, weight, one, config, "bias"))


def _kinds(a: Layer, target: Target) -> list[tuple[Target, Mapping[str, int]]]:
    """A configuration of every kind, with small caches and large."""
    return [
        (one, config)
        for one in (_small(target), target)
        for config in kinds(a, conv_plans.candidates(problem_of(a), one))
    ]


def _offered(kernel: ModuleType, a: Layer, weight: Any) -> bool:
    return bool(conv_configs(kernel, a, weight, AVX2))


@pytest.mark.parametrize("kernel", [csr_conv, bsr_conv, nm_conv], ids=lambda k: k.name)
def test_sparse_kernels_refuse_groups(kernel: ModuleType) -> None:
    a = layer(16, 32, (9, 9), (3, 3), groups=2)
    assert not _offered(kernel, a, weight_of(kernel, a))


def test_bsr_conv_refuses_what_has_no_blocks() -> None:
    a = layer(16, 16, (9, 9), (3, 3))
    assert _offered(bsr_conv, a, blocks_of_rows(16, a.inner, 0.3, 4))
    low = layer(3, 16, (9, 9), (3, 3))
    assert not _offered(bsr_conv, low, blocks_of_rows(3, low.inner, 0.3, 4))
    assert not _offered(bsr_conv, a, unstructured(16, a.inner, 1.0))


def test_nm_conv_refuses_groups_that_span_taps() -> None:
    a, odd = layer(16, 16, (9, 9), (3, 3)), layer(16, 6, (9, 9), (2, 2))
    assert _offered(nm_conv, a, groups_of_inputs(16, a.inner, 2, 4))
    assert not _offered(nm_conv, odd, groups_of_inputs(16, odd.inner, 2, 4))
    assert not _offered(nm_conv, a, unstructured(16, a.inner, 0.8))
    large = layer(16, 16, (9, 9), (7, 7))
    assert not _offered(nm_conv, large, groups_of_inputs(16, large.inner, 2, 4))


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 8), (1, 8), (3, 4)])
def test_other_groups_along_the_channels(n: int, m: int) -> None:
    if not has_features(AVX2):
        pytest.skip("this machine lacks AVX2")
    a = layer(9, 24, (7, 10), (3, 3), padding=(1, 1, 1, 1))
    weight = groups_of_inputs(a.rows, a.inner, n, m)
    for config in conv_configs(nm_conv, a, weight, AVX2)[:2]:
        assert config["n"] / config["m"] <= n / m
        check_case(make_conv_case(nm_conv, a, weight, AVX2, config, "bias"))


@pytest.mark.parametrize("height", [2, 3, 4, 8])
def test_other_blocks_of_rows(height: int) -> None:
    if not has_features(AVX2):
        pytest.skip("this machine lacks AVX2")
    a = layer(21, 10, (7, 10), (3, 3), padding=(1, 1, 1, 1))
    weight = blocks_of_rows(a.rows, a.inner, 0.3, height)
    found = conv_configs(bsr_conv, a, weight, AVX2)
    assert found and all(c["shared"] for c in found)
    for config in kinds(a, found):
        check_case(make_conv_case(bsr_conv, a, weight, AVX2, config, "bias"))


def test_dense_conv_offers_the_tile_it_predicts_fastest() -> None:
    for a in LAYERS.values():
        problem, pattern = problem_of(a), infer(weight_of(dense_conv, a))
        offered = dense_conv.space(problem, pattern, AVX2)
        cycles = [dense_conv.predict(problem, pattern, c, AVX2) for c in offered]
        assert cycles == sorted(cycles) and min(cycles) > 0


def test_dense_conv_keeps_every_weight() -> None:
    a = LAYERS["grouped"]
    problem, weight = problem_of(a), weight_of(dense_conv, a)
    for config in conv_configs(dense_conv, a, weight, AVX2):
        packed = dense_conv.pack(weight, problem, config, AVX2)
        values = packed.arrays["values"]
        assert np.array_equal(np.sort(values[values != 0]), np.sort(weight[weight != 0]))
        assert dense_conv.nbytes(problem, infer(weight), config, AVX2) <= packed.nbytes


def test_oracle_agrees_with_another() -> None:
    torch = pytest.importorskip("torch")
    for a in (LAYERS["grouped"], LAYERS["dilated_strided_three"], LAYERS["same_at_the_end"]):
        g = a.geometry
        random = np.random.default_rng(5)
        x = random.standard_normal((g.images or 1, g.groups * g.channels, g.height, g.width))
        weight = random.standard_normal((a.rows, a.inner))
        taps = weight.reshape(a.rows, *g.kernel, g.channels).transpose(0, 3, 1, 2)
        (top, left), (dh, dw) = g.padding, g.dilation
        below = (g.out_height - 1) * g.strides[0] + (g.kernel[0] - 1) * dh + 1 - g.height - top
        right = (g.out_width - 1) * g.strides[1] + (g.kernel[1] - 1) * dw + 1 - g.width - left
        padded = torch.nn.functional.pad(torch.from_numpy(x), (left, max(0, right), top, max(0, below)))
        wanted = torch.nn.functional.conv2d(
            padded, torch.from_numpy(taps.copy()), stride=g.strides, dilation=g.dilation, groups=g.groups
        )
        found = wanted.numpy()[:, :, : g.out_height, : g.out_width]
        np.testing.assert_allclose(convolve(g, weight, x), found, rtol=1e-10, atol=1e-10)


def _labels(found: list[Case]) -> list[str]:
    return [case.label for case in found]


@kernels
def test_same_inputs_same_text(kernel: ModuleType) -> None:
    first, second = (_cases(kernel, LAYERS["strided"], AVX2) for _ in range(2))
    assert _labels(first) == _labels(second)
    for a, b in zip(first, second, strict=True):
        assert a.emit("k").script() == b.emit("k").script()
