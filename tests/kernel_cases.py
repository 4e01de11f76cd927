"""Weights, epilogues and targets the kernel tests share, native and emulated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import erf, expit

from sparsec.ir import expr
from sparsec.ir.expr import Arg, Expr, Scalar, call
from sparsec.targets.kernels import (
    bitmask_gemv,
    bsr_spmm,
    csr_gemv,
    csr_spmm,
    dense_gemm,
    dense_gemv,
    hybrid_spmm,
    lookup_gemv,
    nm_spmm,
)
from sparsec.targets.target import Target

PANEL_KERNELS = (csr_spmm, bsr_spmm, nm_spmm, hybrid_spmm, dense_gemm)
VECTOR_KERNELS = (lookup_gemv, csr_gemv, bitmask_gemv, dense_gemv)

AVX2 = Target("avx2", "x86-64-v3", ("avx2", "fma"), 8, 16)
#: 16 lanes as on AVX-512, in code any AVX2 machine runs: LLVM splits each vector in two
SPLIT = Target("split", "x86-64-v3", ("avx2", "fma"), 16, 32)
AVX512 = Target("avx512", "x86-64-v4", ("avx512f", "avx512vl", "avx512bw", "avx512dq"), 16, 32)


def has_features(target: Target) -> bool:
    """Whether this machine runs code for the target."""
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return set(target.features) <= set(flags.split())


def small_caches(target: Target) -> Target:
    """The target with caches so small that little weights are cut into many blocks and tiles."""
    return replace(target, l1=4096, l2=4096)


def unstructured(rows: int, inner: int, density: float, seed: int = 1) -> Any:
    """Random float32 ``[rows, inner]``, each element kept with probability ``density``."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((rows, inner)).astype(np.float32)
    weight[random.random((rows, inner)) >= density] = 0
    return weight


def blocks_of_rows(rows: int, inner: int, density: float, height: int, seed: int = 2) -> Any:
    """Zeros in whole blocks of ``height`` x 1 (the last one cut off)."""
    kept = np.repeat(unstructured(-(-rows // height), inner, density, seed) != 0, height, axis=0)[:rows]
    return unstructured(rows, inner, 1.0, seed + 1) * kept


def groups_of_inputs(rows: int, inner: int, n: int, m: int, seed: int = 3) -> Any:
    """At most ``n`` nonzeros in every ``m`` neighbouring inputs."""
    random = np.random.default_rng(seed)
    wide = -(-inner // m) * m
    weight = random.standard_normal((rows, wide // m, m)).astype(np.float32)
    dropped = np.argsort(random.random(weight.shape), axis=2)[:, :, n:]
    np.put_along_axis(weight, dropped, 0, axis=2)
    return np.ascontiguousarray(weight.reshape(rows, wide)[:, :inner])


def skewed(rows: int, inner: int, seed: int = 4) -> Any:
    """Rows from empty to full, some columns dead."""
    random = np.random.default_rng(seed)
    share = (np.arange(rows) % 7 / 6.0)[:, None]
    weight = unstructured(rows, inner, 1.0, seed) * (random.random((rows, inner)) < share)
    weight[:, ::5] = 0
    return weight.astype(np.float32)


#: kinds of lines that hybrid_spmm runs apart
LINES = ("rows", "columns", "short")


def uneven(rows: int, inner: int, lines: Collection[str] = LINES, seed: int = 5) -> Any:
    """Full rows, columns full in the other rows, and rows of one nonzero or none; else 30 % nonzeros."""
    random = np.random.default_rng(seed)
    kind = random.permutation(np.arange(rows) % 10)
    share = np.full((rows, inner), 0.3)
    if "columns" in lines:
        share[:, ::3] = 0.95
    if "rows" in lines:
        share[kind < 3] = 0.95
    if "short" in lines:
        share[kind > 6] = 0
    weight = unstructured(rows, inner, 1.0, seed) * (random.random((rows, inner)) < share)
    single = np.flatnonzero(kind == 9) if "short" in lines else []
    weight[single, random.integers(0, inner, len(single))] = 1
    return weight.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Epilogue:
    """An expression, its extras' kinds, and the same in NumPy, float64."""

    expression: Expr | None
    extras: tuple[str, ...]
    reference: Callable[..., Any]


def _gelu(z: Any) -> Any:
    return 0.5 * z * (1 + erf(z / np.sqrt(2)))


_bias = call("add", Arg(0), Arg(1))
#: every function here changes by at most 1.2 times as much as its first operand does
EPILOGUES: Mapping[str, Epilogue] = {
    "none": Epilogue(None, (), lambda z: z),
    "bias": Epilogue(_bias, ("row",), lambda z, b: z + b),
    "bias_relu": Epilogue(expr.relu(_bias), ("row",), lambda z, b: np.maximum(z + b, 0)),
    "clip": Epilogue(expr.clip(Arg(0), -0.5, 0.75), (), lambda z: np.clip(z, -0.5, 0.75)),
    "gelu": Epilogue(expr.gelu(Arg(0)), (), _gelu),
    "silu": Epilogue(expr.silu(Arg(0)), (), lambda z: z * expit(z)),
    "sigmoid": Epilogue(call("sigmoid", Arg(0)), (), expit),
    "tanh": Epilogue(call("tanh", Arg(0)), (), np.tanh),
    "residual": Epilogue(_bias, ("full",), lambda z, r: z + r),
    "residual_first": Epilogue(call("sub", Arg(1), Arg(0)), ("full",), lambda z, r: r - z),
    "threshold": Epilogue(call("max", Arg(0), Arg(1)), ("one",), np.maximum),
    "all": Epilogue(
        call("add", expr.gelu(call("add", call("min", Arg(0), Arg(1)), Arg(2))), Arg(3)),
        ("one", "row", "full"),
        lambda z, s, b, r: _gelu(np.minimum(z, s) + b) + r,
    ),
    "leaky": Epilogue(
        call("where", call("less", Arg(0), Scalar(0.0)), call("mul", Arg(0), Scalar(0.1)), Arg(0)),
        (),
        lambda z: np.where(z < 0, 0.1 * z, z),
    ),
}  # fmt: skip
