"""active_gemv, which skips zero inputs, against float64 NumPy; and when it is chosen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from active_cases import SHAPES, every_encoding, inputs_with_zeros, make_active_case
from kernel_cases import AVX2, AVX512, EPILOGUES, has_features, skewed, small_caches, unstructured
from kernel_harness import check_case, run_case

from sparsec.passes.choose_format import candidates
from sparsec.sparsity.pattern import infer
from sparsec.targets import x86
from sparsec.targets.kernels import active_gemv
from sparsec.targets.target import Problem, Target


def _tier(target: Target) -> Any:
    missing = not has_features(target)
    reason = f"{target.name} not run: this machine lacks {' or '.join(target.features)}"
    return pytest.param(target, id=target.name, marks=pytest.mark.skipif(missing, reason=reason))


tiers = pytest.mark.parametrize("target", [_tier(AVX2), _tier(AVX512)])


@tiers
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_all_shapes(columns: int, target: Target) -> None:
    for rows, inner, density, active in SHAPES[columns % 2 :: 2]:
        x = inputs_with_zeros(columns, inner, active, seed=columns)
        for case in every_encoding(unstructured(rows, inner, density), x, target, chunk=1 + rows // 3):
            check_case(case)
    for case in every_encoding(skewed(50, 83), inputs_with_zeros(columns, 83, 0.4), target):
        check_case(case)


@tiers
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogue(epilogue: str, target: Target) -> None:
    x = inputs_with_zeros(2, 40, 0.5)
    for case in every_encoding(unstructured(37, 40, 0.4), x, target, epilogue, chunk=20):
        check_case(case)


@tiers
def test_tall_weight_is_cut_into_tiles(target: Target) -> None:
    found = every_encoding(unstructured(2100, 40, 0.3), inputs_with_zeros(2, 40, 0.5), target)
    assert all(case.tiles > 1 for case in found)
    for case in found:
        check_case(case)


@tiers
@pytest.mark.parametrize("columns", [1, 3])
def test_no_input_is_zero_and_all_are(columns: int, target: Target) -> None:
    weight = unstructured(30, 50, 0.5)
    for x in (np.ones((columns, 50), np.float32), np.zeros((columns, 50), np.float32)):
        for case in every_encoding(weight, x, target, "bias"):
            check_case(case)


@tiers
@pytest.mark.parametrize("columns", [1, 2, 4])
def test_weights_of_zero_inputs_are_not_read(columns: int, target: Target) -> None:
    """Were they read, the NaN in them would show; -0.0 is zero."""
    x = inputs_with_zeros(columns, 43, 0.5)
    zero = ~(x != 0).any(axis=0)
    assert zero.any() and np.signbit(x[:, zero]).any()
    weight = unstructured(21, 43, 0.6)
    weight[:, zero] = np.nan
    for case in every_encoding(weight, x, target):
        assert np.isfinite(run_case(case)).all()


@tiers
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [3, 41])
def test_nan_and_infinity_are_active(value: float, place: int, target: Target) -> None:
    x = inputs_with_zeros(3, 43, 0.3)
    x[1, place] = value
    weight = np.abs(unstructured(21, 43, 1.0)) + 1
    for case in every_encoding(weight, x, target):
        y = run_case(case)
        np.testing.assert_array_equal(y[1], np.full(21, value))
        assert np.isfinite(y[[0, 2]]).all()


@tiers
def test_a_number_too_small_to_be_normal_is_active(target: Target) -> None:
    x = np.zeros((1, 20), np.float32)
    x[0, [5, 17]] = 1e-42
    weight = unstructured(9, 20, 1.0) * np.float32(1e30)
    for case in every_encoding(weight, x, target):
        y = run_case(case)
        assert np.abs(y - x @ weight.T).max() <= 1e-6 * np.abs(x @ weight.T).max()


@pytest.mark.parametrize("target", [AVX2, AVX512, small_caches(AVX2)], ids=["avx2", "avx512", "small"])
def test_predictions_grow_with_the_work(target: Target) -> None:
    def cycles(rows: int, columns: int, active: float, encoding: int) -> float:
        weight = unstructured(rows, 256, 0.2)
        problem, pattern = Problem(rows, 256, columns, 0, active=active), infer(weight)
        config = active_gemv.space(problem, pattern, target)[encoding]
        found = active_gemv.predict(problem, pattern, config, target)
        assert math.isfinite(found) and found > 0
        return found

    for encoding in (0, 1):
        assert cycles(512, 1, 0.5, encoding) > cycles(128, 1, 0.5, encoding)
        assert cycles(512, 1, 0.5, encoding) > cycles(512, 1, 0.1, encoding)
        assert cycles(512, 4, 0.5, encoding) > cycles(512, 1, 0.5, encoding)


def test_packing_is_deterministic_and_predicted() -> None:
    weight = unstructured(200, 90, 0.2)
    problem, pattern = Problem(200, 90, 1, 0, active=0.2), infer(weight)
    for config in active_gemv.space(problem, pattern, AVX2):
        one, two = (active_gemv.pack(weight, problem, config, AVX2) for _ in range(2))
        assert (one.tiles, one.config) == (two.tiles, two.config)
        assert all(a.tobytes() == two.arrays[n].tobytes() for n, a in one.arrays.items())
        size = active_gemv.nbytes(problem, pattern, config, AVX2)
        assert abs(one.nbytes - size) < 0.1 * size + 2100  # the table of orders


def test_code_depends_neither_on_the_weight_nor_on_the_samples() -> None:
    problem = Problem(40, 64, 2, 0, active=0.2)
    weight = unstructured(40, 64, 0.3)
    for config in active_gemv.space(problem, infer(weight), AVX2):
        packings = [active_gemv.pack(w, problem, config, AVX2) for w in (weight, np.roll(weight, 4) * 2)]
        texts = {active_gemv.emit(problem, p, AVX2, "kernel").script() for p in packings}
        other = replace(problem, active=0.7)
        assert texts == {active_gemv.emit(other, packings[0], AVX2, "kernel").script()}


def test_accepts_only_what_was_calibrated() -> None:
    pattern = infer(unstructured(40, 64, 0.3))
    problem = Problem(40, 64, 2, 0, active=0.2)
    assert active_gemv.accepts(problem, pattern, AVX2)
    refused = (
        replace(problem, active=None), replace(problem, active=1.0), replace(problem, columns=5),
        replace(problem, columns=None), replace(problem, panel=16),
    )  # fmt: skip
    assert not any(active_gemv.accepts(p, pattern, AVX2) for p in refused)


def best(density: float, active: float | None, columns: int = 1, rows: int = 1024) -> str:
    """The kernel that would run such a layer."""
    pattern = infer(unstructured(rows, 1024, density))
    return candidates(Problem(rows, 1024, columns, 0, active=active), pattern, x86.AVX2)[0][1].name


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.1])
@pytest.mark.parametrize("columns", [1, 4])
def test_chosen_where_it_wins_by_a_margin(density: float, columns: int) -> None:
    assert best(density, 0.15, columns) == "active_gemv"
    assert best(density, None, columns) == best(density, 0.95, columns) != "active_gemv"


def test_samples_change_no_other_prediction() -> None:
    pattern = infer(unstructured(512, 512, 0.2))
    with_samples, without = (
        {c.kernel: c for c, _, _ in candidates(Problem(512, 512, 1, 0, active=a), pattern, x86.AVX2)}
        for a in (0.5, None)
    )
    assert without == {name: c for name, c in with_samples.items() if name != "active_gemv"}


def test_a_configuration_of_one_row() -> None:
    x = inputs_with_zeros(4, 9, 0.5)
    for whole, chunk in ((0, 1), (1, 8)):
        check_case(make_active_case(unstructured(1, 9, 1.0), x, AVX2, {"chunk": chunk, "whole": whole}))
