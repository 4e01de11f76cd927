"""Small graphs that every pass is tried on, and the passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from corpus_attention import ATTENTION
from corpus_images import IMAGES
from graph_build import BATCH, LENGTH, Build

from sparsec.ir.attributes import RecurrentAttrs
from sparsec.ir.graph import Graph
from sparsec.passes.assign_layouts import assign_layouts
from sparsec.passes.choose_format import choose_format
from sparsec.passes.fold_convolution import fold_convolution
from sparsec.passes.fuse_attention import fuse_attention
from sparsec.passes.fuse_elementwise import fuse_elementwise
from sparsec.passes.fuse_norms import fuse_norms
from sparsec.passes.infer_patterns import infer_patterns
from sparsec.passes.pack import pack
from sparsec.passes.pack_recurrent import pack_recurrent
from sparsec.passes.simplify import simplify
from sparsec.pipeline import Pass
from sparsec.targets.x86 import AVX2

#: Every pass that keeps a graph's meaning.
PASSES: tuple[Pass, ...] = (
    simplify, fuse_attention, fuse_norms, fuse_elementwise, fold_convolution, infer_patterns, assign_layouts,
    choose_format, pack_recurrent, pack,
)  # fmt: skip

TARGET = AVX2

#: What has to run before a pass that works on laid out layers.
BEFORE: Mapping[Pass, tuple[Pass, ...]] = {
    choose_format: (assign_layouts,),
    pack: (infer_patterns, assign_layouts, choose_format),
}


def mlp_relu() -> Graph:
    b = Build()
    h = b.apply("max", b.linear(b.input(BATCH, 12), 16), b.const(0.0))
    return b.graph(b.linear(h, 5))


def mlp_gelu() -> Graph:
    b = Build()
    return b.graph(b.linear(b.gelu(b.linear(b.input(BATCH, LENGTH, 8), 24)), 8))


def mlp_silu_clip_residual() -> Graph:
    b = Build()
    x = b.input(7, 8)
    h = b.linear(x, 8)
    h = b.apply("mul", h, b.apply("sigmoid", h))
    clipped = b.apply("min", b.apply("max", b.linear(h, 8), -1.0), b.const([6.0]))
    return b.graph(b.apply("add", x, clipped))


def two_matmuls_added() -> Graph:
    b = Build()
    x = b.input(BATCH, 8)
    return b.graph(b.apply("max", b.apply("add", b.linear(x, 4), b.linear(x, 4, bias=False)), 0.0))


def residual_depends_on_product() -> Graph:
    """The tensor added back comes from the product through a softmax: fusing it would be a cycle."""
    b = Build()
    y = b.linear(b.input(BATCH, 8), 8, bias=False)
    return b.graph(b.apply("add", y, b.softmax(y)))


def gate_after_activation() -> Graph:
    """Only the activation fits an epilogue: the gate is one number per row."""
    b = Build()
    x = b.input(BATCH, 8)
    gate = b.apply("sigmoid", b.reduce("mean", x, 1, keepdims=True))
    return b.graph(b.apply("mul", b.apply("tanh", b.linear(x, 6)), gate))


def product_is_output() -> Graph:
    b = Build()
    y = b.linear(b.input(BATCH, 8), 6, bias=False)
    return b.graph(y, b.apply("exp", y))


def value_used_twice() -> Graph:
    b = Build()
    h = b.apply("max", b.linear(b.input(BATCH, 8), 8), 0.0)
    return b.graph(b.apply("add", b.linear(h, 8), h), b.softmax(h))


def reshape_between() -> Graph:
    """As torch flattens: [B, L, K] -> [B*L, K] -> matmul -> [B, L, M] -> bias."""
    b = Build()
    x = b.input(BATCH, LENGTH, 8)
    y = b.matmul(b.reshape(x, BATCH * LENGTH, 8), b.random(8, 6))
    y = b.apply("max", b.apply("add", b.reshape(y, BATCH, LENGTH, 6), b.random(6)), 0.0)
    return b.graph(b.apply("add", y, b.layer_norm(b.linear(x, 6))))


def layer_norm() -> Graph:
    b = Build()
    return b.graph(b.layer_norm(b.apply("add", b.input(BATCH, 3, 8), b.input(BATCH, 3, 8))))


def layer_norm_by_hand() -> Graph:
    b = Build()
    x = b.input(BATCH, LENGTH, 8)
    centred = b.apply("sub", x, b.reduce("mean", x, 2, keepdims=True))
    variance = b.reduce("mean", b.apply("pow", centred, b.const(2.0)), 2, keepdims=True)
    scaled = b.apply("div", centred, b.apply("sqrt", b.apply("add", variance, b.const(1e-5))))
    return b.graph(b.apply("add", b.apply("mul", scaled, b.random(8)), b.random(8)))


def rms_norm() -> Graph:
    """As Llama is exported, between two layers, and read by two more."""
    b = Build()
    x = b.linear(b.input(BATCH, LENGTH, 8), 6)
    square = b.reduce("mean", b.apply("pow", x, b.const(2.0)), 2, keepdims=True)
    scaled = b.apply("mul", x, b.apply("rsqrt", b.apply("add", square, b.const(1e-6))))
    y = b.apply("mul", b.random(6), scaled)
    return b.graph(b.apply("mul", b.linear(y, 8), b.apply("sigmoid", b.linear(y, 8))))


def rms_norm_divided() -> Graph:
    """No gamma; the root's reciprocal is a node of its own, and the mean square an output too."""
    b = Build()
    x = b.input(BATCH, 3, 7)
    square = b.reduce("mean", b.apply("mul", x, x), 2, keepdims=True)
    root = b.apply("sqrt", b.apply("add", b.const(1e-3), square))
    return b.graph(b.apply("add", b.apply("mul", b.apply("div", 1.0, root), x), b.random(7)), square)


def almost_norms() -> Graph:
    """Another axis, another numerator, nothing added: no norms."""
    b = Build()
    x, other = b.input(BATCH, 6, 6), b.input(BATCH, 6, 6)

    def root(axis: int, epsilon: float | None) -> str:
        square = b.reduce("mean", b.apply("mul", x, x), axis, keepdims=True)
        return b.apply("sqrt", square if epsilon is None else b.apply("add", square, b.const(epsilon)))

    return b.graph(
        b.apply("div", x, root(1, 1e-5)), b.apply("div", other, root(2, 1e-5)),
        b.apply("div", b.apply("add", x, other), root(2, 0.5)),
    )  # fmt: skip


def diamond() -> Graph:
    b = Build()
    a = b.apply("exp", b.apply("mul", b.input(BATCH, 6), 0.3))
    return b.graph(b.apply("sub", b.apply("mul", a, 2.0), b.apply("div", 1.0, a)), b.apply("abs", a))


def broadcasting() -> Graph:
    b = Build()
    total = b.apply("add", b.input(4, 1, 6), b.input(5, 1))
    return b.graph(b.apply("mul", b.apply("max", total, 0.0), b.input(4, 5, 6)))


def constants_fold() -> Graph:
    b = Build()
    w = b.transpose(b.random(6, 8), 1, 0)
    scale = b.apply("div", b.random(6), b.apply("sqrt", b.apply("add", b.apply("abs", b.random(6)), 1e-3)))
    folded = b.apply("mul", b.apply("add", b.matmul(b.input(BATCH, 8), w), b.const(np.zeros(6))), scale)
    return b.graph(b.apply("mul", b.apply("add", folded, b.const(0.0)), b.const([[1.0]])))


def equal_values_merge() -> Graph:
    b = Build()
    x = b.input(BATCH, 8)
    left, right = (b.apply("add", b.apply("tanh", x), b.const(np.arange(8.0))) for _ in range(2))
    return b.graph(b.apply("mul", left, right), b.apply("sub", right, left))


def moves_that_cancel() -> Graph:
    b = Build()
    x = b.input(BATCH, 1, 6)
    y = b.transpose(b.transpose(x, 1, 2, 0), 2, 0, 1)
    z = b.reshape(b.reshape(b.transpose(x, 0, 2, 1), 1, BATCH, 6), BATCH, 1, 6)
    return b.graph(b.apply("add", y, z), b.reshape(x, BATCH, 1, 6))


def weight_with_leading_one() -> Graph:
    b = Build()
    return b.graph(b.matmul(b.input(3, 4, 8), b.random(1, 8, 6)), b.matmul(b.input(5, 3), b.random(2, 3, 4)))


def comparisons() -> Graph:
    b = Build()
    x = b.input(BATCH, 6)
    small = b.apply("less", x, b.const(0.1), dtype="bool")
    whole = b.apply("floor", b.apply("mul", x, 10.0), dtype="int64")
    even = b.apply("equal", b.apply("mul", whole, 2.0, dtype="int64"), 4.0, dtype="bool")
    return b.graph(b.apply("where", small, b.apply("neg", x), b.apply("where", even, x, 0.25)))


def reductions() -> Graph:
    b = Build()
    x = b.input(BATCH, 3, 4)
    kinds = [b.reduce("sum", x, 0), b.reduce("max", x, 1, 2, keepdims=True), b.reduce("min", x, 2)]
    return b.graph(*kinds, b.reduce("mean", b.apply("mul", x, x), 1, 2))


def one_axis_and_none() -> Graph:
    b = Build()
    v, w = b.input(8), b.random(8, 6)
    y = b.apply("add", b.matmul(v, w), b.random(6))
    return b.graph(b.apply("max", y, 0.0), b.apply("mul", b.reduce("sum", y, 0), b.const(2.0)))


def empty_tensor() -> Graph:
    b = Build()
    return b.graph(b.apply("max", b.linear(b.input(0, 8), 6), 0.0), b.reduce("sum", b.input(4, 0), 1))


def inputs_are_outputs() -> Graph:
    b = Build()
    x = b.input(BATCH, 4)
    return b.graph(
        x, b.apply("mul", x, b.const(1.0)), b.random(3), b.apply("add", b.const(1.0), b.const(2.0))
    )


def recurrent_layers() -> Graph:
    """Two directions over one input, joined, then a layer whose last state alone is read."""
    b = Build()
    x, h = b.input(LENGTH, BATCH, 6), b.input(BATCH, 5)
    forth, _, c = b.recurrent(b.linear(x, 20), RecurrentAttrs("lstm"), h, b.const(np.zeros((1, 5))))
    back = b.recurrent(b.linear(x, 5), RecurrentAttrs("rnn", reverse=True), h)[0]
    gates = b.linear(b.concat(2, forth, back), 12)
    last = b.recurrent(gates, RecurrentAttrs("gru", reset_after=True), b.random(1, 4))[1]
    return b.graph(b.apply("tanh", b.linear(last, 3)), c)


CORPUS: tuple[Callable[[], Graph], ...] = (
    mlp_relu, mlp_gelu, mlp_silu_clip_residual, two_matmuls_added, residual_depends_on_product,
    gate_after_activation, product_is_output, value_used_twice, reshape_between, layer_norm,
    layer_norm_by_hand, rms_norm, rms_norm_divided, almost_norms, diamond, broadcasting, constants_fold,
    equal_values_merge, moves_that_cancel, weight_with_leading_one, comparisons, reductions,
    one_axis_and_none, empty_tensor, inputs_are_outputs, recurrent_layers, *ATTENTION, *IMAGES,
)  # fmt: skip


def random_graph(seed: int) -> Graph:
    """A random DAG of layers, elementwise functions, softmaxes and reshapes over [batch, 6]."""
    b = Build(seed)
    full = [b.input(BATCH, 6), b.input(BATCH, 6)]
    for _ in range(int(b.rng.integers(4, 14))):
        x, y = (full[int(i)] for i in b.rng.integers(max(0, len(full) - 4), len(full), 2))
        narrow = [b.random(6), b.const(0.5), b.random(1, 6), b.reduce("mean", x, 1, keepdims=True)]
        other = narrow[int(b.rng.integers(4))]
        makers: tuple[Callable[[], str], ...] = (
            lambda x=x: b.matmul(x, b.random(6, 6, zeros=0.5)),
            lambda x=x: b.matmul(x, b.random(6, 6)),
            lambda x=x, y=y: b.apply(str(b.rng.choice(["add", "sub", "max"])), x, y),
            lambda x=x, o=other: b.apply(str(b.rng.choice(["add", "min"])), x, o),
            lambda x=x: b.apply(str(b.rng.choice(["tanh", "neg", "sigmoid", "abs"])), x),
            lambda x=x: b.apply("mul", x, float(b.rng.choice([1.0, 0.5, -2.0]))),
            lambda x=x: b.softmax(x),
            lambda x=x: b.reshape(b.apply("max", b.reshape(x, BATCH, 1, 6), 0.0), BATCH, 6),
            lambda x=x: b.reshape(b.matmul(b.reshape(x, 1, BATCH, 6), b.random(6, 6)), BATCH, 6),
        )
        full.append(makers[int(b.rng.integers(len(makers)))]())
    return b.graph(*dict.fromkeys((full[-1], full[int(b.rng.integers(2, len(full)))])))
