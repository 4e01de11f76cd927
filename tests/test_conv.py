"""The x86 kernels that convolve, on this machine, against float64 NumPy on fresh inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conv_cases import LAYERS, Layer, conv_configs, convolve, layer, make_conv_case, problem_of
from kernel_cases import AVX2, AVX512, EPILOGUES, SPLIT, has_features, unstructured
from kernel_harness import Case, check_case, run_case

from sparsec.pattern import infer
from sparsec.targets.build import module_of
from sparsec.targets.kernels import conv_plans, csr_conv, dense_conv
from sparsec.targets.target import Target


def _tier(target: Target) -> Any:
    missing = not has_features(target)
    reason = f"{target.name} not run: this machine lacks {' or '.join(target.features)}"
    return pytest.param(target, id=target.name, marks=pytest.mark.skipif(missing, reason=reason))


#: each kernel with the density of the weights it is tried on
DENSITIES = {dense_conv: 1.0, csr_conv: 0.3}

kernels = pytest.mark.parametrize("kernel", DENSITIES, ids=lambda k: k.name)
tiers = pytest.mark.parametrize("target", [_tier(AVX2), _tier(SPLIT), _tier(AVX512)])
layers = pytest.mark.parametrize("name", LAYERS)
#: wider than tall, several blocks of channels, rows that no micro-tile divides
MIXED = layer(23, 11, (9, 19), (3, 3), padding=(1, 1, 1, 1), images=2)
POINTS = layer(23, 70, (6, 9), images=2)


def _weight(kernel: ModuleType, a: Layer) -> Any:
    return unstructured(a.rows, a.inner, DENSITIES[kernel])


def _cases(kernel: ModuleType, a: Layer, target: Target, epilogue: str = "none", known: bool = True) -> Any:
    """One case per configuration, none for what the kernel does not run."""
    weight = _weight(kernel, a)
    found = conv_configs(kernel, a, weight, target)
    return [make_conv_case(kernel, a, weight, target, c, epilogue, known) for c in found]


def _small(target: Target) -> Target:
    """Caches so small that little layers are cut into many blocks and tiles."""
    return replace(target, l1=2048, l2=1 << 16)


@tiers
@kernels
@layers
def test_layer(kernel: ModuleType, name: str, target: Target) -> None:
    found = _cases(kernel, LAYERS[name], target)
    assert found or LAYERS[name].geometry.groups > 1
    # the second AVX2 tier differs in the length of vectors only
    for case in found[: 1 if target is SPLIT else None]:
        check_case(case)


@tiers
@kernels
@pytest.mark.parametrize("a", [MIXED, POINTS, LAYERS["strided"]], ids=["mixed", "points", "strided"])
def test_layer_cut_into_blocks_and_tiles(kernel: ModuleType, a: Layer, target: Target) -> None:
    for case in _cases(kernel, a, _small(target), "residual")[:2]:
        assert case.config["channels"] < a.geometry.channels
        check_case(case)


@tiers
@kernels
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogue(kernel: ModuleType, epilogue: str, target: Target) -> None:
    for a in (LAYERS["odd"], LAYERS["points"]):
        for case in _cases(kernel, a, target, epilogue)[:1]:
            check_case(case)


@tiers
@kernels
@pytest.mark.parametrize("count", [1, 3])
def test_images_known_at_run_time(kernel: ModuleType, count: int, target: Target) -> None:
    for name in ("odd", "points", "grouped"):
        geometry = replace(LAYERS[name].geometry, images=count)
        for case in _cases(kernel, Layer(LAYERS[name].rows, geometry), target, known=False)[:2]:
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
    weight = _weight(dense_conv, a)
    for one, config in _kinds(a, target).values():
        check_case(make_conv_case(dense_conv, a, weight, one, config, "bias"))


def _kinds(a: Layer, target: Target) -> dict[Any, tuple[Target, Mapping[str, int]]]:
    """A configuration of every kind: how tiles are cut, whether one block holds all channels."""
    found: dict[Any, tuple[Target, Mapping[str, int]]] = {}
    for one in (_small(target), target):
        for config in conv_plans.candidates(problem_of(a), one):
            kind = [config[key] for key in ("flow", "across", "direct")]
            whole = config["rows"] == 1, config["columns"] == a.geometry.out_width
            found.setdefault((*kind, *whole, config["channels"] < a.geometry.channels), (one, config))
    return found


def test_dense_conv_offers_the_tile_it_predicts_fastest() -> None:
    for a in LAYERS.values():
        problem, pattern = problem_of(a), infer(_weight(dense_conv, a))
        offered = dense_conv.space(problem, pattern, AVX2)
        cycles = [dense_conv.predict(problem, pattern, c, AVX2) for c in offered]
        assert cycles == sorted(cycles) and min(cycles) > 0


def test_dense_conv_keeps_every_weight() -> None:
    a = LAYERS["grouped"]
    problem, weight = problem_of(a), _weight(dense_conv, a)
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
