"""Elementary functions of generated code against float64, as vectors and as single numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from kernel_cases import AVX2, AVX512, has_features
from kernel_harness import call, fenced, guarded, guards_hold
from scipy import special

from sparsec.ir import expr
from sparsec.ir.expr import FUNCTIONS, Arg, Expr
from sparsec.targets.build import module_of
from sparsec.targets.kernels import math
from sparsec.targets.kernels.builder import Kernel, prim_func
from sparsec.targets.target import Target

EPSILON = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)

pytestmark = pytest.mark.skipif(not has_features(AVX2), reason="this machine has no AVX2")


def _function(expression: Expr, lanes: int, name: str) -> Any:
    """TIR: ``y[i] = expression(a[i], b[i], c[i])``, tiles of 16 elements."""

    def body(k: Kernel) -> None:
        with k.tiles() as tile, k.loop(16 // lanes) as i:
            at = k.bind(tile * 16 + i * lanes)
            k.put(k["y"], at, math.emit(k, expression, lambda n: k.vector(k["abc"[n]], at), k.splat(0.0)))

    return prim_func(name, lanes, [(n, "float32") for n in "abcy"], (), body)


@cache
def _module(function: str, lanes: int, target: Target = AVX2) -> Any:
    expression = expr.call(function, *(Arg(i) for i in range(FUNCTIONS[function])))
    return module_of(_function(expression, lanes, f"{function}_{lanes}"), target)


def _apply(function: str, lanes: int, *operands: Any) -> Any:
    """The function of float32 arrays, by generated code."""
    size = operands[0].size
    padded = [fenced(np.pad(o.astype(np.float32), (0, -size % 16), mode="edge")) for o in operands]
    y, whole = guarded(padded[0].shape)
    buffers = (padded * 3)[:3] if len(padded) == 1 else [*padded, padded[0]][:3]
    call(_module(function, lanes)[f"{function}_{lanes}"], [*buffers, y], (), (0, y.size // 16))
    assert guards_hold(whole)
    return y[:size]


@cache
def _every_kind() -> Any:
    """A million float32: all magnitudes and signs, zeros, denormals, infinities and NaNs."""
    bits = np.arange(0, 1 << 32, 4099, dtype=np.uint64).astype(np.uint32)
    positive = np.array([0.0, 1e-45, TINY, 1.0, 3.4028235e38, np.inf, np.nan], np.float32)
    return np.concatenate([bits.view(np.float32), positive, -positive])


def _grid(low: float, high: float) -> Any:
    return np.concatenate([np.linspace(low, high, 400_001).astype(np.float32), _every_kind()])


def _error(found: Any, right: Any, relative: float, absolute: float) -> Any:
    """How many times the allowed error the worst element is off; NaNs and infinities must agree."""
    with np.errstate(over="ignore"):
        rounded = right.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    assert np.isfinite(found[finite]).all()
    off = np.abs(found[finite].astype(np.float64) - right[finite])
    return (off / (relative * np.abs(right[finite]) + absolute)).max()


#: function -> (float64 reference, range sampled densely, relative error in epsilons, absolute error)
ACCURACY: dict[str, tuple[Callable[..., Any], tuple[float, float], float, float]] = {
    # results below the smallest normal number come out as zero
    "exp": (np.exp, (-105.0, 90.0), 2.0, 1.2 * TINY),
    "log": (np.log, (0.0, 4.0), 2.0, TINY),
    "sigmoid": (special.expit, (-100.0, 100.0), 3.0, 1.2 * TINY),
    "tanh": (np.tanh, (-12.0, 12.0), 4.0, 5e-7),
    "erf": (special.erf, (-6.0, 6.0), 4.0, 5e-7),
}


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("function", ACCURACY)
def test_polynomials_are_as_accurate_as_stated(function: str, lanes: int) -> None:
    reference, (low, high), epsilons, absolute = ACCURACY[function]
    x = _grid(low, high)
    with np.errstate(all="ignore"):
        right = reference(x.astype(np.float64))
    assert _error(_apply(function, lanes, x), right, epsilons * EPSILON, absolute) <= 1


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize(
    ("function", "x", "right"),
    [
        ("exp", [np.inf, -np.inf, 0.0, -0.0], [np.inf, 0.0, 1.0, 1.0]),
        ("log", [np.inf, 0.0, -0.0, 1.0, -1.0, -np.inf], [np.inf, -np.inf, -np.inf, 0.0, np.nan, np.nan]),
        ("sigmoid", [np.inf, -np.inf, 0.0], [1.0, 0.0, 0.5]),
        ("tanh", [0.0], [0.0]),
        ("erf", [0.0], [0.0]),
        ("sign", [3.0, -0.5, 0.0, -0.0, np.inf], [1.0, -1.0, 0.0, 0.0, 1.0]),
        ("round", [0.5, 1.5, 2.5, -0.5, -1.5], [0.0, 2.0, 2.0, -0.0, -2.0]),
    ],
)
def test_exact_values(function: str, x: list[float], right: list[float], lanes: int) -> None:
    np.testing.assert_array_equal(_apply(function, lanes, np.array(x)), np.array(right, np.float32))


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("function", [*ACCURACY, "max", "min", "abs", "sqrt", "add"])
def test_nan_comes_through(function: str, lanes: int) -> None:
    """In the first operand: a literal, as in relu, is always the second."""
    operands = [np.array([np.nan, -np.nan])] + [np.ones(2)] * (FUNCTIONS[function] - 1)
    assert np.isnan(_apply(function, lanes, *operands)).all()


@pytest.mark.parametrize("lanes", [1, 8])
def test_tanh_and_erf_saturate(lanes: int) -> None:
    x = np.array([np.inf, 50.0, -50.0, -np.inf])
    for function in ("tanh", "erf"):
        found = _apply(function, lanes, x)
        np.testing.assert_allclose(found, np.sign(x), atol=5e-7)
        assert (np.abs(found) <= 1 + EPSILON).all()


#: function -> NumPy on float64; compared exactly after rounding unless named below
PLAIN: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum,
    "min": np.minimum, "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "rsqrt": lambda a: 1 / np.sqrt(a),
    "floor": np.floor, "ceil": np.ceil, "round": np.rint, "sign": np.sign, "pow": np.power, "sin": np.sin,
    "cos": np.cos, "less": np.less, "less_equal": np.less_equal, "equal": np.equal, "where": np.where,
}  # fmt: skip


def _operands(function: str) -> list[Any]:
    random = np.random.default_rng(11)
    # quarters, so that equal numbers, halves and zeros occur
    a, b, c = (np.round(random.standard_normal((3, 1003)) * 8) / 4).astype(np.float32)
    if function in ("sqrt", "rsqrt", "pow"):
        a = np.abs(a) + np.float32(0.25)
    if function == "div":
        b = np.where(b == 0, np.float32(1), b)
    return [a, b, c][: FUNCTIONS[function]]


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("function", PLAIN)
def test_plain_functions_agree_with_numpy(function: str, lanes: int) -> None:
    operands = _operands(function)
    right = PLAIN[function](*(o.astype(np.float64) for o in operands))
    loose = 4 * EPSILON if function in ("pow", "sin", "cos", "rsqrt") else 0.0
    np.testing.assert_allclose(
        _apply(function, lanes, *operands), right.astype(np.float32), rtol=loose, atol=loose
    )


def test_every_function_of_the_vocabulary_is_tested() -> None:
    assert set(FUNCTIONS) == set(math.EMIT) == set(PLAIN) | set(ACCURACY)


#: what TVM or LLVM would call
_LIBRARY = re.compile(
    r"\b(exp2?|exp10|expm1|log2?|log10|log1p|tanh|erf|pow|sin|cos|sqrt|fabs|fmod|floor|ceil|rint|nearbyint|round)"
    r"f?\b"
)


def _library_names(function: str, lanes: int, target: Target) -> set[str]:
    text = _module(function, lanes, target).mod.inspect_source("s")
    return {m[0] for m in _LIBRARY.finditer(text)}


@pytest.mark.parametrize("target", [AVX2, AVX512], ids=lambda t: t.name)
@pytest.mark.parametrize("function", sorted(set(FUNCTIONS) - {"pow", "sin", "cos"}))
def test_vector_code_calls_no_library(function: str, target: Any) -> None:
    assert not _library_names(function, target.lanes, target)


def test_a_library_call_would_be_seen() -> None:
    assert _library_names("pow", 8, AVX2) == {"powf"}
