"""Channels that go: which, and that the graph computes the same without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graph_build import BATCH, Array, Build, random_inputs

from sparsec.ir.attributes import AttentionAttrs, Removed
from sparsec.ir.graph import Graph, Node, Op
from sparsec.ir.verify import verify
from sparsec.passes.remove_channels import GPU_MULTIPLE, remove_channels
from sparsec.reference.evaluate import evaluate
from sparsec.targets.named import target_named
from sparsec.targets.x86 import AVX2

SIZE = 48


def removed(graph: Graph, target: Any = AVX2) -> Graph:
    """The graph after the pass, which computes the same and leaves nothing for a second time."""
    after = verify(remove_channels(graph, target))
    inputs = random_inputs(graph)
    wanted, found = (evaluate(g, inputs, dtype=np.float64) for g in (graph, after))
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5 * np.abs(array).max(initial=1))
    assert remove_channels(after, target) is after
    return after


def weights(graph: Graph) -> list[tuple[int, ...]]:
    """The shapes of all layers' weights."""
    return [graph.consts[n.args[1]].shape for n in layers(graph)]


def layers(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op in (Op.MATMUL, Op.CONV2D) and n.args[1] in graph.consts]


def without(weight: Array, outputs: Any = (), axis: int = 0) -> Array:
    """A weight some of whose lines are zero."""
    weight = weight.copy()
    np.moveaxis(weight, axis, 0)[list(outputs)] = 0
    return weight


def drawn(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def filters(b: Build, x: str, outputs: int, dead: Any = (), size: int = 3, bias: Any = None) -> str:
    """A padded convolution whose ``dead`` filters are zero, its bias, and ReLU."""
    weight = without(drawn(outputs, int(str(b.shape(x)[1])), size, size), dead)
    y = b.conv(x, b.const(weight), padding=(size // 2,) * 4)
    bias = drawn(outputs) if bias is None else bias
    return b.apply("max", b.apply("add", y, b.const(np.reshape(bias, (-1, 1, 1)))), 0.0)


def neurons(b: Build, x: str, outputs: int, dead: Any = ()) -> str:
    """A linear layer whose ``dead`` outputs are zero, its bias, and ReLU."""
    weight = without(drawn(int(str(b.shape(x)[-1])), outputs), dead, axis=1)
    y = b.apply("add", b.matmul(x, b.const(weight)), b.const(drawn(outputs)))
    return b.apply("max", y, 0.0)


HALF = range(0, SIZE, 2)


def test_neurons() -> None:
    """A filter of zeros makes its bias, which goes into the next layer's."""
    b = Build()
    h = neurons(b, neurons(b, b.input(BATCH, 7), SIZE, HALF), SIZE, HALF)
    after = removed(b.graph(neurons(b, h, 5)))
    assert weights(after) == [(7, 24), (24, 24), (24, 5)]
    gone = tuple(HALF)
    found = [n.attrs.removed for n in layers(after)]
    assert found == [Removed(gone), Removed(gone, gone), Removed((), gone)]


def test_inputs_that_nobody_reads() -> None:
    """A neuron whose column in the next layer is zero goes, whatever its own weights."""
    b = Build()
    h = neurons(b, b.input(BATCH, 7), SIZE)
    y = b.matmul(h, b.const(without(drawn(SIZE, 5), HALF)))
    assert weights(removed(b.graph(y))) == [(7, 24), (24, 5)]


def test_one_goes_after_the_other() -> None:
    """What only fed a neuron that went goes too."""
    b = Build()
    first = neurons(b, b.input(BATCH, 7), SIZE)
    weight = drawn(SIZE, SIZE)
    weight[1::2, 1::2] = 0  # odd inputs feed even outputs only, which nobody reads
    second = b.apply("tanh", b.matmul(first, b.const(weight)))
    y = b.matmul(second, b.const(without(drawn(SIZE, 5), HALF)))
    assert weights(removed(b.graph(y))) == [(7, 24), (24, 24), (24, 5)]


def test_filters_without_bias() -> None:
    b = Build()
    x = filters(b, b.input(1, 3, 8, 8), SIZE, HALF, bias=np.where(np.arange(SIZE) % 2, drawn(SIZE), -1))
    after = removed(b.graph(filters(b, x, 5)))
    assert weights(after) == [(24, 3, 3, 3), (5, 24, 3, 3)]


def test_constants_beside_padding_share_one_channel() -> None:
    """Borders see zeros instead of the number, so one channel of it must stay."""
    b = Build()
    x = filters(b, b.input(BATCH, 3, 8, 8), SIZE, HALF, bias=np.full(SIZE, 0.5))
    assert weights(removed(b.graph(filters(b, x, 5)))) == [(25, 3, 3, 3), (5, 25, 3, 3)]
    b = Build()
    x = filters(b, b.input(BATCH, 3, 8, 8), SIZE, HALF, bias=np.full(SIZE, 0.5))
    assert weights(removed(b.graph(filters(b, x, 5, size=1)))) == [(24, 3, 3, 3), (5, 24, 1, 1)]


def test_batch_normalisation_of_scale_zero() -> None:
    """Network slimming (Liu et al. 2017) leaves filters as they are and zeroes what scales them."""
    b = Build()
    scale = np.where(np.arange(SIZE) % 2, 1.5, 0).reshape(-1, 1, 1)
    x = b.conv(b.input(BATCH, 3, 6, 6), b.const(drawn(SIZE, 3, 3, 3)))
    x = b.apply("max", b.apply("add", b.apply("mul", x, b.const(scale)), b.const(-scale)), 0.0)
    assert weights(removed(b.graph(filters(b, x, 5)))) == [(24, 3, 3, 3), (5, 24, 3, 3)]


NEGATIVE = np.full(SIZE, -1.0)


def test_residuals_lose_what_both_sides_lose() -> None:
    b = Build()
    x = filters(b, b.input(BATCH, 3, 8, 8), SIZE, range(32), bias=np.where(np.arange(SIZE) < 32, -1, 1))
    weight = without(drawn(SIZE, SIZE, 3, 3), range(16, SIZE))
    y = b.apply("add", x, b.conv(x, b.const(weight), padding=(1,) * 4))
    # 0..15 live in the branch, 32..47 in x, 16..31 in neither
    assert weights(removed(b.graph(filters(b, y, 5))))[-1] == (5, 32, 3, 3)


def test_channels_pass_through_what_keeps_them() -> None:
    """Depthwise filters, pools, resampling, cuts, joins and the way into a linear layer."""
    b = Build()
    x = filters(b, b.input(1, 3, 8, 8), SIZE, HALF, bias=NEGATIVE)
    x = b.conv(x, b.random(SIZE, 1, 3, 3), padding=(1,) * 4, groups=SIZE)
    x = b.resize(b.pool("mean", x, 2, 2), 8, 8)
    both = b.concat(1, b.channels(x, 24, SIZE), filters(b, x, 8))
    flat = b.reshape(b.pool("max", both, 4, 4), 1, 32 * 4)
    after = removed(b.graph(neurons(b, flat, 5)))
    assert weights(after) == [(24, 3, 3, 3), (24, 1, 3, 3), (8, 24, 3, 3), (20 * 4, 5)]
    assert layers(after)[1].attrs.groups == 24


def test_gates_and_means() -> None:
    """Squeeze and excitation: the mean of a dead channel is zero, and zero times any gate."""
    b = Build()
    x = filters(b, b.input(BATCH, 3, 6, 6), SIZE, HALF, bias=NEGATIVE)
    gate = filters(b, b.reduce("mean", x, 2, 3, keepdims=True), 16, size=1)
    gate = b.apply("sigmoid", b.conv(gate, b.const(drawn(SIZE, 16, 1, 1))))
    after = removed(b.graph(filters(b, b.apply("mul", x, gate), 5)))
    assert [shape[:2] for shape in weights(after)] == [(24, 3), (16, 24), (24, 16), (5, 24)]


def test_axes_split_and_moved() -> None:
    """From a linear layer to images and back, channels last between."""
    b = Build()
    dead = [i for i in range(SIZE * 4) if i // 4 % 2]
    h = b.matmul(b.input(BATCH, 7), b.const(without(drawn(7, SIZE * 4), dead, axis=1)))
    x = filters(b, b.reshape(h, BATCH, SIZE, 2, 2), SIZE, HALF, bias=NEGATIVE)
    tokens = b.transpose(b.reshape(x, BATCH, SIZE, 4), 0, 2, 1)
    after = removed(b.graph(neurons(b, tokens, 5)))
    assert weights(after) == [(7, 96), (24, 24, 3, 3), (24, 5)]


def test_transposed_convolutions_and_shuffled_channels() -> None:
    """Phases of a transposed convolution become pixels; halves of the channels alternate."""
    b = Build()
    x = filters(b, b.input(BATCH, 3, 4, 4), SIZE, HALF, bias=NEGATIVE)
    dead = b.const(without(drawn(SIZE, SIZE, 2, 2), HALF))
    phases = [b.conv(x, dead, padding=(1, 1, 0, 0)) for _ in range(4)]
    x = b.reshape(b.concat(1, *phases), BATCH, 2, 2, SIZE, 4, 4)
    x = b.reshape(b.transpose(x, 0, 3, 4, 1, 5, 2), BATCH, SIZE, 8, 8)
    after = removed(b.graph(filters(b, x, 5)))
    assert weights(after) == [(24, 3, 3, 3), *[(24, 24, 2, 2)] * 4, (5, 24, 3, 3)]
    b = Build()
    pairs = [c for c in range(SIZE) if c % 24 < 12]
    x = b.reshape(filters(b, b.input(BATCH, 3, 4, 4), SIZE, pairs, bias=NEGATIVE), BATCH, 2, 24, 4, 4)
    x = b.reshape(b.transpose(x, 0, 2, 1, 3, 4), BATCH, SIZE, 4, 4)
    assert weights(removed(b.graph(filters(b, x, 5)))) == [(24, 3, 3, 3), (5, 24, 3, 3)]


@pytest.mark.parametrize("by", ["values", "readers", "one feature"])
def test_attention_loses_whole_heads(by: str) -> None:
    """A head goes if its values are one number each, or nobody reads it; a single feature stays."""
    heads, width = 6, 8
    size, gone = heads * width, [*range(8), *range(24, 32)]
    b = Build()
    x = b.input(BATCH, 5, 12)
    dead = {"values": gone, "readers": [], "one feature": [3]}[by]
    q, k = (b.apply("add", b.matmul(x, b.random(12, size)), b.random(size)) for _ in range(2))
    v = b.apply("add", b.matmul(x, b.const(without(drawn(12, size), dead, axis=1))), b.random(size))
    mask = b.input(BATCH, 1, 1, 5)
    y = b.add(Op.ATTENTION, (q, k, v, mask), (BATCH, 5, size), AttentionAttrs(heads, width**-0.5))
    after = removed(b.graph(b.matmul(y, b.const(without(drawn(size, 4), gone if by == "readers" else [])))))
    [attention] = [n for n in after.nodes if n.op is Op.ATTENTION]
    left = 6 if by == "one feature" else 4
    assert attention.attrs == AttentionAttrs(left, width**-0.5)
    assert weights(after) == [(12, left * width)] * 3 + [(left * width, 4)]


@pytest.mark.parametrize("reader", ["output", "softmax", "layer_norm", "matmul", "mean of all"])
def test_channels_that_others_read_stay(reader: str) -> None:
    b = Build()
    x = neurons(b, b.input(6, 7), SIZE, HALF)
    y = neurons(b, x, 5)
    others = {
        "output": lambda: x,
        "softmax": lambda: b.softmax(x),
        "layer_norm": lambda: b.layer_norm(x),
        "matmul": lambda: b.matmul(x, b.transpose(x, 1, 0)),
        "mean of all": lambda: b.reduce("mean", x, 1),
    }
    assert weights(removed(b.graph(y, others[reader]())))[0] == (7, SIZE)


def test_grouped_convolutions_stay() -> None:
    b = Build()
    x = filters(b, b.input(BATCH, 3, 6, 6), SIZE, HALF, bias=NEGATIVE)
    y = b.conv(x, b.random(SIZE, SIZE // 4, 3, 3), groups=4)
    assert weights(removed(b.graph(y))) == [(SIZE, 3, 3, 3), (SIZE, 12, 3, 3)]


def test_not_all_and_not_a_few() -> None:
    """One channel stays where none is needed, and all where next to none would go."""
    b = Build()
    after = removed(b.graph(b.matmul(neurons(b, b.input(4, 7), SIZE, range(SIZE)), b.const(drawn(SIZE, 5)))))
    assert weights(after) == [(7, 1), (1, 5)]
    b = Build()
    graph = b.graph(neurons(b, neurons(b, b.input(4, 7), SIZE, [3, 5]), 5))
    assert weights(removed(graph)) == [(7, SIZE), (SIZE, 5)]


def test_a_few_of_many_that_were_joined_go() -> None:
    """What a layer loses counts, not what that is of a concat."""
    b = Build()
    x = b.input(BATCH, 3, 6, 6)
    parts = [filters(b, x, 128), filters(b, x, 8, range(4), bias=np.full(8, -1.0))]
    assert weights(removed(b.graph(filters(b, b.concat(1, *parts), 5))))[1:] == [(4, 3, 3, 3), (5, 132, 3, 3)]


def test_gpus_keep_multiples() -> None:
    b = Build()
    graph = b.graph(neurons(b, neurons(b, b.input(BATCH, 8), SIZE, range(27)), 8))
    assert weights(removed(graph))[0] == (8, 21)
    left = weights(removed(graph, target_named("sm_80")))[0][1]
    assert left == 24 and left % GPU_MULTIPLE == 0


def in_groups(rows: int, columns: int) -> Array:
    """2:4 along the inputs; a weight as a matmul stores it."""
    weight = drawn(rows, columns)
    order = np.argsort(abs(weight.reshape(rows // 4, 4, columns)), axis=1)
    np.put_along_axis(weight.reshape(rows // 4, 4, columns), order[:, :2], 0, axis=1)
    return weight


def test_structure_is_kept() -> None:
    """Of a 2:4 weight whole groups go, of blocks whole blocks, though single channels could."""
    size = 128
    b = Build()
    weight = in_groups(size, 64)
    weight[: size // 2] = 0
    weight[[81, 90, 105]] = 0
    h = neurons(b, b.input(BATCH, 7), size)
    assert weights(removed(b.graph(b.matmul(h, b.const(weight))))) == [(7, 64), (64, 64)]
    b = Build()
    blocks = np.kron(np.random.default_rng(0).random((size // 4, 16)) < 0.3, np.ones((4, 4), bool))
    weight = np.where(blocks, drawn(size, 64), 0).astype(np.float32)
    weight[: size // 2] = 0
    weight[65] = 0
    h = neurons(b, b.input(BATCH, 7), size)
    found = weights(removed(b.graph(b.matmul(h, b.const(weight)))))
    assert found[0][1] % 4 == 0 and found[0][1] <= 64


def random_network(seed: int) -> Graph:
    """Layers, sums, joins and pools over images, many of their filters zero."""
    b = Build(seed)
    pick = b.rng.integers

    def layer(x: str, outputs: int) -> str:
        dead = np.flatnonzero(b.rng.random(outputs) < 0.5)
        bias = np.where(b.rng.random(outputs) < 0.5, 0, drawn(outputs))
        return filters(b, x, outputs, dead, int(b.rng.choice([1, 3])), bias)

    images = [layer(b.input(BATCH, 3, 8, 8), 24)]
    makers: tuple[Callable[[str, str], str], ...] = (
        lambda x, y: layer(x, 24), lambda x, y: b.apply("add", x, layer(y, 24)),
        lambda x, y: b.apply("mul", x, b.apply("sigmoid", y)),
        lambda x, y: b.conv(x, b.random(24, 1, 3, 3, zeros=0.3), padding=(1,) * 4, groups=24),
        lambda x, y: b.concat(1, b.channels(x, 4, 16), b.channels(y, 0, 12)),
        lambda x, y: b.resize(b.pool(str(b.rng.choice(["max", "mean"])), x, 2, 2), 8, 8),
        lambda x, y: b.pad(b.pool("max", x, 3, 1), (0, 0, 1, 1), (0, 0, 1, 1), float(pick(2))),
        lambda x, y: b.apply("max", b.apply("mul", x, b.random(24, 1, 1, zeros=0.4)), y),
    )  # fmt: skip
    for _ in range(6):
        x, y = (images[int(i)] for i in pick(max(0, len(images) - 3), len(images), 2))
        images.append(makers[int(pick(len(makers)))](x, y))
    last = images[-1] if pick(2) else b.pool("mean", images[-1], 8, 8)
    flat = b.reshape(last, BATCH, int(np.prod(np.array(b.shape(last)[1:], int))))
    return b.graph(neurons(b, flat, 5))


def test_random_networks() -> None:
    before, after = 0, 0
    for seed in range(40):
        graph = random_network(seed)
        before += sum(map(np.prod, weights(graph)))
        after += sum(map(np.prod, weights(removed(graph))))
    assert after < 0.7 * before


def test_nothing_to_do_is_nothing_done() -> None:
    b = Build()
    graph = b.graph(neurons(b, filters(b, b.input(BATCH, 3, 6, 6), 8), 5))
    assert remove_channels(graph, AVX2) is graph
    nodes = [replace(n, origin="x") for n in graph.nodes]
    assert remove_channels(replace(graph, nodes=tuple(nodes)), AVX2).nodes[0].origin == "x"
