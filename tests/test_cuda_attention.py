"""CUDA attention, interpreted, against the reference in double precision; its machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from device_runs import DTYPES, assert_right, calls_of, functions, graph_of, random_inputs
from sass import TARGETS, needs_nvcc, needs_sass, sass

from sparsec.errors import Unsupported
from sparsec.ir.attributes import AttentionAttrs
from sparsec.ir.dims import symbol
from sparsec.ir.graph import Graph, Op
from sparsec.ir.types import Type
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.build import kernel_cubin

HALVES = ("float16", "bfloat16")
#: weights are rounded before they are multiplied
TOLERANCE = {"float32": 4e-6, "float16": 2.5e-3, "bfloat16": 1.6e-2}
LOWEST = -3.4028234663852886e38


def attention(
    batch: Any, queries: Any, keys: Any, heads: int, depth: int, dtype: str, *,
    value_depth: int | None = None, mask: tuple[Any, ...] | Any | None = None,
    scale: float | None = None, mask_dtype: str = "",
) -> Graph:  # fmt: skip
    values = depth if value_depth is None else value_depth
    given: dict[str, Any] = {
        "q": Type((batch, queries, heads * depth), dtype), "k": Type((batch, keys, heads * depth), dtype),
        "v": Type((batch, keys, heads * values), dtype),
    }  # fmt: skip
    if mask is not None:
        given["mask"] = Type(mask, mask_dtype or dtype) if isinstance(mask, tuple) else mask
    attrs = AttentionAttrs(heads, depth**-0.5 if scale is None else scale)
    return graph_of(Op.ATTENTION, given, Type((batch, queries, heads * values), dtype), attrs)


def check(graph: Graph, inputs: Any = None, bindings: Any = None, times: float = 1.0) -> None:
    assert_right(graph, inputs, bindings, times * TOLERANCE[graph.nodes[-1].type.dtype])


def kernel_of(graph: Graph) -> int:
    """Threads of the kernel, which tell its tiling."""
    ((_, call),) = calls_of(graph)[0]
    return int(call.threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [32, 64, 128])
def test_usual_heads(depth: int, dtype: str) -> None:
    check(attention(1, 70, 130, 2, depth, dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("depth,value_depth", [(8, 8), (40, 40), (80, 80), (96, 96), (64, 32), (24, 128)])
def test_other_heads_on_tensor_cores(depth: int, value_depth: int, dtype: str) -> None:
    check(attention(1, 20, 65, 2, depth, dtype, value_depth=value_depth))


@pytest.mark.parametrize("depth", [32, 64, 128])
def test_many_queries(depth: int) -> None:
    """Blocks of 128 queries, of which the last has a few."""
    graph = attention(1, symbol("n"), 70, 1, depth, "float16")
    assert kernel_of(graph) == (256 if depth == 128 else 128)
    check(graph, bindings={"n": 130})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("depth,value_depth", [(1, 1), (5, 7), (20, 20), (300, 160)])
def test_any_width(depth: int, value_depth: int, dtype: str) -> None:
    check(attention(1, 9, 35, 2, depth, dtype, value_depth=value_depth))


def test_very_wide_heads() -> None:
    check(attention(1, 5, 18, 1, 1024, "float32", value_depth=700))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("queries,keys", [(1, 1), (1, 200), (64, 64), (65, 63), (3, 128)])
def test_lengths(queries: int, keys: int, dtype: str) -> None:
    check(attention(2, queries, keys, 1, 16, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 1, 1), (1, 3, 1), (2, 3, 18), (1, 1, 18), (18,), ()])
def test_masks(axes: tuple[int, ...], dtype: str) -> None:
    for keys in (70, 67):
        check(attention(2, 18, keys, 3, 16, dtype, mask=(*axes, keys)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("never", [-np.inf, LOWEST])
def test_masks_that_hide_keys(never: float, dtype: str) -> None:
    """A whole tile hidden, a row hidden: lowest numbers weigh all alike then, infinities leave no number."""
    mask = np.zeros((1, 1, 40, 150), np.float32)
    mask[..., :80] = never
    mask[:, :, 7] = never
    check(attention(1, 40, 150, 2, 64, dtype, mask=mask))


def test_scores_far_apart() -> None:
    """The largest score changes from tile to tile, by more than powers of two reach."""
    for dtype in DTYPES:
        graph = attention(1, 16, 200, 1, 64, dtype, scale=1.0)
        feeds = random_inputs(graph)
        feeds["k"] = (feeds["k"] * np.linspace(0, 8, 200)[:, None]).astype(feeds["k"].dtype)
        # an error of a large score is one of its weight
        check(graph, feeds, times=4)


@pytest.mark.parametrize("scale", [-0.2, 0.0])
def test_scales(scale: float) -> None:
    for dtype in DTYPES:
        check(attention(1, 20, 70, 1, 64, dtype, scale=scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths_that_the_run_tells(dtype: str) -> None:
    b, q, s = symbol("b"), symbol("q"), symbol("s")
    graph = attention(b, q, s, 2, 64, dtype, mask=(b, 1, 1, s))
    for bound in ({"b": 1, "q": 5, "s": 131}, {"b": 2, "q": 140, "s": 64}):
        check(graph, bindings=bound)


def test_operands_of_several_dtypes() -> None:
    check(attention(1, 20, 30, 2, 64, "float16", mask=(1, 1, 20, 30), mask_dtype="float32"))


def test_refusals() -> None:
    with pytest.raises(Unsupported, match="a mask of shape"):
        calls_of(attention(1, 20, 30, 2, 64, "float16", mask=(20, 1)))
    with pytest.raises(Unsupported, match="too wide"):
        calls_of(attention(1, 20, 30, 1, 4096, "float32"))


@needs_nvcc
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_compiles(target: Any) -> None:
    for graph in (attention(1, 20, 30, 2, 40, "bfloat16"), attention(1, 9, 9, 1, 33, "float32", mask=(9, 9))):
        for function in functions(graph, target):
            assert kernel_cubin(function, target)[:4] == b"\x7fELF"


@needs_sass
@pytest.mark.parametrize("depth,mask", [(64, None), (64, (8, 1, 1, 512)), (64, (512, 512)), (128, None)])
def test_machine_code(depth: int, mask: tuple[int, ...] | None) -> None:
    """Tensor cores, asynchronous copies, transposing reads, nothing spilled, one power of two a score."""
    (function,) = functions(attention(8, 512, 512, 16, depth, "float16", mask=mask), gpus.SM90A)
    code = sass(function, gpus.SM90A)
    # of 16 queries a warp
    slabs = 2 if int(function.attrs["sparsec_threads"]) == 128 else 1
    assert code.count(r"HMMA\.16816\.F32") == slabs * (8 * depth // 16 + 4 * depth // 8)
    assert code.count(r"LDSM\.16\.M88") > 0 and code.count(r"LDSM\.16\.MT88") == 4 * depth // 16
    assert code.count("LDGSTS") > 0
    # once for every score of a thread, and for each of its rows
    assert code.count(r"MUFU\.EX2") == slabs * (32 + 2)
    assert code.local_accesses == 0
    assert code.registers * int(function.attrs["sparsec_threads"]) <= 65536
