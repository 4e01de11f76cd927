"""What moves, joins, cuts, reduces and resamples tensors: kernels and whole programs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest

pytest.importorskip("tvm")

from corpus import TARGET
from graph_build import BATCH, LENGTH, Array, Build
from kernel_cases import AVX2, SPLIT, has_features
from kernel_harness import check_case
from move_cases import concat_case, pad_case, reduce_case, resize_case, slice_case, transpose_case

from sparsec.compiler import artifact
from sparsec.ir.attributes import ConcatAttrs, ElementwiseAttrs, PadAttrs, ResizeAttrs, SliceAttrs
from sparsec.ir.dims import Size, value
from sparsec.ir.expr import Arg, call
from sparsec.ir.graph import Graph, Op
from sparsec.planning.sharing import Sharing
from sparsec.reference.evaluate import evaluate
from sparsec.runtime import Program
from sparsec.targets.calls import Context
from sparsec.targets.kernels import boxes, reduce
from sparsec.targets.lowering import lower
from sparsec.targets.sizes import Sizes
from sparsec.targets.target import Target

pytestmark = pytest.mark.skipif(not has_features(AVX2), reason="this machine has no AVX2")

RNG = np.random.default_rng(53)
tiers = pytest.mark.parametrize("target", [AVX2, SPLIT], ids=lambda t: t.name)
knowing = pytest.mark.parametrize("known", [True, False], ids=["known", "open"])


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEC_CACHE", str(tmp_path_factory.getbasetemp() / "move-kernels"))
        yield


@tiers
@knowing
@pytest.mark.parametrize("shape", [(2, 3, 5), (9, 2, 33), (3, 17, 4), (2, 8, 16), (70, 130), (1, 1, 1)])
def test_every_permutation(shape: tuple[int, ...], known: bool, target: Target) -> None:
    for order in permutations(range(len(shape))):
        check_case(transpose_case(shape, order, known, target))


@tiers
def test_blocks_of_a_large_transpose(target: Target) -> None:
    for shape in ((150, 340), (16, 1000), (1000, 12), (257, 3), (300, 512)):
        check_case(transpose_case(shape, (1, 0), True, target))


@tiers
@knowing
def test_joins(known: bool, target: Target) -> None:
    check_case(concat_case([(1, 1)] * 40, 0, known, target))
    check_case(concat_case([(2, 9001), (2, 5), (2, 64)], 1, known, target))
    check_case(concat_case([(7, 3, 2), (1, 3, 2)], 0, known, target))
    if known:
        check_case(concat_case([(2, 5, 0), (2, 5, 3)], 2, known, target))


@tiers
@knowing
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_steps_read_nothing_past_the_end(step: int, known: bool, target: Target) -> None:
    for length in (1, 15, 16, 33, 64, 130):
        check_case(slice_case((3, length), np.s_[0::1, step % length :: step], known, target))


@tiers
@knowing
def test_pads(known: bool, target: Target) -> None:
    check_case(pad_case((9,), (0,), (7000,), known, target))
    check_case(pad_case((2, 3, 5, 7), (0, 2, 0, 0), (0, 1, 0, 0), known, target))
    check_case(pad_case((2, 3, 5), (0, 0, 0), (0, 0, 0), known, target))
    if known:
        check_case(pad_case((3, 0, 4), (0, 2, 1), (0, 1, 0), known, target))


@tiers
@knowing
@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min"])
def test_reductions(kind: str, known: bool, target: Target) -> None:
    for shape, axes in (
        ((5, 7), (0, 1)), ((2, 3, 4, 5), (0, 2)), ((1, 16, 56, 56), (2, 3)), ((2, 9, 3, 600), (1, 3)),
        ((2, 300, 100), (1,)), ((9, 33, 16), (2,)), ((1, 10), (0,)), ((20, 49), (1,)), ((3, 5, 64), (1,)),
    ):  # fmt: skip
        check_case(reduce_case(shape, axes, kind, known, target))


@tiers
@pytest.mark.parametrize("shape", [(50000,), (50000, 2), (3, 50000)])
def test_the_mean_of_many_is_accurate(shape: tuple[int, ...], target: Target) -> None:
    axis = int(np.argmax(shape))
    check_case(reduce_case(shape, (axis,), "mean", True, target))


@tiers
@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
def test_resizes(coordinates: str, target: Target) -> None:
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        check_case(
            resize_case((1, 2, 9, 11), (20, 33), ResizeAttrs("nearest", coordinates, rounding), target)
        )
    for shape, out in (((1, 1, 28, 28), (224, 224)), ((1, 2, 64, 90), (33, 20)), ((1, 1, 9, 200), (3, 16))):
        check_case(resize_case(shape, out, ResizeAttrs("linear", coordinates), target))


def test_neighbouring_axes_become_one() -> None:
    (shuffle,) = boxes.transposed((BATCH, 2, 58, 40, 40), (0, 2, 1, 3, 4))
    assert [str(a.size) for a in shuffle.axes] == ["batch", "58", "2", "1600"]
    (whole,) = boxes.transposed((1, BATCH, 1, 7), (1, 0, 2, 3))
    assert [str(a.size) for a in whole.axes] == ["7*batch"]
    (cut,) = boxes.sliced((1, 116, 40, 40), (1, 58, 40, 40), (0, 58, 0, 0), (1,) * 4)
    assert cut.axes == (boxes.Axis(58 * 1600, 1, 1),) and cut.read == 58 * 1600
    pooled = reduce.merged((BATCH, 64, 7, 7), (2, 3), "mean")
    assert len(pooled.kept) == len(pooled.reduced) == 1 and pooled.rows


def run(graph: Graph, **sizes: int) -> None:
    """The compiled graph agrees with the oracle on random inputs."""
    program = Program.from_bytes(artifact(graph, TARGET))
    inputs = {n.name: argument(n.type.dtype, n.type.shape, sizes) for n in graph.inputs}
    want = evaluate(graph, inputs)
    for key, got in zip(graph.output_names, program.run(None, inputs), strict=True):
        np.testing.assert_allclose(
            got.astype(float), want[key].astype(float), rtol=2e-6, atol=1e-4, err_msg=key
        )


def argument(dtype: str, shape: tuple[Size, ...], sizes: dict[str, int]) -> Array:
    drawn = RNG.standard_normal([value(s, sizes) for s in shape]) * 50
    return (drawn > 0 if dtype == "bool" else drawn).astype(dtype)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_program_with_an_open_batch(batch: int) -> None:
    b = Build()
    x = b.input(BATCH, 12, 9, 10)
    left, right = b.channels(x, 0, 5), b.channels(x, 5, 12)
    joined = b.concat(1, right, left)
    large = b.resize(joined, 18, 20, "nearest", "asymmetric", "floor")
    smooth = b.pad(b.resize(joined, 21, 13), (0, 0, 1, 0), (0, 0, 0, 2), 1.5)
    shuffled = b.transpose(b.reshape(joined, BATCH, 3, 4, 90), 0, 2, 1, 3)
    last = b.transpose(large, 0, 2, 3, 1)
    pooled = b.reduce("mean", smooth, 2, 3)
    run(b.graph(joined, large, smooth, shuffled, last, pooled), batch=batch)


def test_open_lengths_are_joined_and_cut() -> None:
    b = Build()
    x, z = b.input(BATCH, LENGTH, 6), b.input(BATCH, 4, 6)
    y = b.concat(1, z, x)
    tail = b.cut(y, (0, 2, 1), (1, 1, 2), (BATCH, LENGTH + 2, 3))
    graph = b.graph(y, tail, b.transpose(y, 2, 1, 0), b.reduce("max", y, 1), b.reduce("sum", tail, 0, 2))
    for batch, length in ((1, 1), (2, 0), (3, 40)):
        run(graph, batch=batch, length=length)


@pytest.mark.parametrize("dtype", ["int64", "float64", "int32", "float16", "int8", "bool"])
def test_other_dtypes(dtype: str) -> None:
    b = Build()
    x, z = b.input(BATCH, 3, 5, 7, dtype=dtype), b.input(BATCH, 2, 5, 7, dtype=dtype)
    y = b.add(Op.CONCAT, (x, z), (BATCH, 5, 5, 7), ConcatAttrs(1), dtype)
    cut = b.add(Op.SLICE, (y,), (BATCH, 2, 5, 3), SliceAttrs((0, 1, 0, 1), (1, 2, 1, 2)), dtype)
    padded = b.add(Op.PAD, (x,), (BATCH, 3, 7, 8), PadAttrs((0, 0, 2, 0), 1.0), dtype)
    zeros = b.add(Op.PAD, (x,), (BATCH, 3, 7, 8), PadAttrs((0, 0, 2, 0)), dtype)
    run(b.graph(y, cut, padded, zeros, b.transpose(y, 0, 2, 3, 1)), batch=2)


@pytest.mark.parametrize("attrs", [ResizeAttrs("nearest"), ResizeAttrs("linear", "align_corners")])
def test_doubles_are_resized(attrs: ResizeAttrs) -> None:
    b = Build()
    x = b.input(BATCH, 3, 5, 7, dtype="float64")
    run(b.graph(b.add(Op.RESIZE, (x,), (BATCH, 3, 11, 4), attrs, "float64")), batch=2)


def test_a_value_joined_with_itself_and_with_nothing() -> None:
    b = Build()
    x, nothing = b.input(2, 3, dtype="float32"), b.const(np.zeros((2, 0), np.float32))
    run(b.graph(b.concat(1, x, nothing, x), b.concat(0, x, x)))


def steps(graph: Graph) -> list[str]:
    """The operations that cost a step."""
    context = Context(graph.node_map(), Sizes(), TARGET)
    nothing = (Op.INPUT, Op.CONST, Op.RESHAPE, Op.ITEM)
    calls = [(n, call) for n in graph.nodes if n.op not in nothing for call in lower(n, context)]
    sharing = Sharing(graph, context, calls)
    sharing.run()
    return [str(n.op) for n, _ in sharing.calls]


@pytest.mark.parametrize("channels", [16, 5])
def test_slices_are_read_and_parts_written_in_place(channels: int) -> None:
    """At any address: five channels of 7 x 7 are no multiple of 64 bytes."""
    b = Build()
    x = b.apply("exp", b.input(1, 2 * channels, 7, 7))
    halves = b.channels(x, 0, channels), b.channels(x, channels, 2 * channels)
    left, right = (b.apply("tanh", h) for h in halves)
    inner = b.concat(1, right, b.reshape(b.apply("abs", left), 1, channels, 7, 7))
    whole = b.concat(1, left, inner, b.channels(inner, channels, channels + 3))
    graph = b.graph(b.apply("sqrt", b.apply("abs", whole)))
    assert steps(graph).count("slice") == 0 and steps(graph).count("concat") == 1
    run(graph)


def test_a_concat_may_be_an_output_and_its_parts_too() -> None:
    b = Build()
    x = b.input(1, 4, 3)
    first, second, third = (b.apply(f, x) for f in ("exp", "tanh", "abs"))
    joined = b.concat(1, first, second, x, third, third)
    last = b.channels(joined, 2, 5)
    graph = b.graph(joined, second, b.reshape(last, 9), b.apply("neg", b.channels(joined, 4, 9)))
    assert sorted(steps(graph)) == ["concat", *["elementwise"] * 4, "slice"]
    run(graph)


def test_what_several_concats_join() -> None:
    """As dense blocks do: only one of them can be where a part is made."""
    b = Build()
    parts = [b.apply("tanh", b.input(1, 3, 5))]
    for _ in range(4):
        parts.append(b.reduce("mean", b.concat(1, *parts), 1, keepdims=True))
    run(b.graph(b.apply("exp", b.concat(1, *parts))))


def test_parts_of_open_lengths_share_memory() -> None:
    b = Build()
    x, z = b.apply("exp", b.input(BATCH, 6)), b.apply("tanh", b.input(LENGTH, 6))
    joined = b.concat(0, x, z, x)
    tail = b.cut(joined, (1, 0), (1, 1), (2 * BATCH + LENGTH - 1, 6))
    graph = b.graph(b.apply("abs", joined), b.reduce("sum", tail, 1))
    assert steps(graph).count("slice") == 0
    for batch, length in ((1, 1), (2, 0), (3, 40)):
        run(graph, batch=batch, length=length)


@pytest.mark.parametrize("size", [3, 16])
def test_carried_operators_keep_their_alignment(size: int) -> None:
    """They are compiled for addresses that are multiples of 64."""
    b = Build()
    x = b.input(3, size, dtype="float16")
    wide = b.add(Op.ELEMENTWISE, (x,), (3, size), ElementwiseAttrs(call("exp", Arg(0))))
    joined = b.concat(0, b.apply("exp", b.input(1, size)), wide)
    row = b.cut(joined, (1, 0), (1, 1), (2, size))
    attrs = ElementwiseAttrs(call("tanh", Arg(0)))
    narrow = b.add(Op.ELEMENTWISE, (row,), (2, size), attrs, "float16")
    graph = b.graph(narrow, b.apply("neg", joined))
    assert ("slice" in steps(graph)) == ("concat" in steps(graph)) == (size % 16 != 0)
    program = Program.from_bytes(artifact(graph, TARGET))
    inputs = {n.name: RNG.standard_normal(n.type.shape).astype(n.type.dtype) for n in graph.inputs}  # type: ignore[arg-type]
    want = evaluate(graph, inputs)
    for key, got in zip(graph.output_names, program.run(None, inputs), strict=True):
        np.testing.assert_allclose(got.astype(float), want[key].astype(float), rtol=2e-3, atol=2e-3)
