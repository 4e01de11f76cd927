"""Small graphs that every pass is tried on, and the passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.attributes import (
    Attrs,
    ConcatAttrs,
    ConstAttrs,
    ConvAttrs,
    ElementwiseAttrs,
    ItemAttrs,
    LayerNormAttrs,
    MatmulAttrs,
    PadAttrs,
    PoolAttrs,
    RecurrentAttrs,
    ReduceAttrs,
    ResizeAttrs,
    SliceAttrs,
    SoftmaxAttrs,
    TransposeAttrs,
)
from sparsec.ir.dims import Size, symbol, value
from sparsec.ir.expr import Arg, Expr, Scalar, call
from sparsec.ir.graph import Graph, Node, Op, outputs_of
from sparsec.ir.types import Type
from sparsec.ir.verify import verify
from sparsec.ir.verify_windows import positions
from sparsec.passes.algebra import broadcast
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

Array: TypeAlias = NDArray[Any]
#: (top, left, bottom, right)
Padding: TypeAlias = tuple[int, int, int, int]

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


class Build:
    """Writes a graph node by node; every method returns the new value's name."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: dict[str, Node] = {}
        self.consts: dict[str, Array] = {}

    def add(
        self,
        op: Op,
        args: Sequence[str],
        shape: Sequence[Size],
        attrs: Attrs = None,
        dtype: str = "float32",
    ) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes[name] = Node(name, op, tuple(args), Type(tuple(shape), dtype), attrs)
        return name

    def shape(self, name: str) -> tuple[Size, ...]:
        return self.nodes[name].type.shape

    def input(self, *shape: Size, dtype: str = "float32") -> str:
        return self.add(Op.INPUT, (), shape, dtype=dtype)

    def const(self, array: Any) -> str:
        found = np.asarray(array)
        found = found.astype(np.float32) if found.dtype == np.float64 else found
        name = self.add(Op.CONST, (), found.shape, ConstAttrs(), str(found.dtype))
        self.consts[name] = found
        return name

    def random(self, *shape: int, zeros: float = 0.0) -> str:
        drawn = self.rng.standard_normal(shape)
        return self.const(drawn * (self.rng.random(shape) >= zeros))

    def elementwise(self, e: Expr, *args: str, dtype: str = "float32") -> str:
        shape = broadcast(self.shape(a) for a in args)
        assert shape is not None
        return self.add(Op.ELEMENTWISE, args, shape, ElementwiseAttrs(e), dtype)

    def apply(self, function: str, *operands: str | float, dtype: str = "float32") -> str:
        args = [o for o in operands if isinstance(o, str)]
        places = [Arg(args.index(o)) if isinstance(o, str) else Scalar(float(o)) for o in operands]
        return self.elementwise(call(function, *places), *dict.fromkeys(args), dtype=dtype)

    def matmul(self, x: str, w: str) -> str:
        left, right = self.shape(x), self.shape(w)
        leading = left[:-1] if len(right) == 2 else (*right[: max(0, len(right) - len(left))], *left[:-1])
        return self.add(Op.MATMUL, (x, w), (*leading, right[-1]), MatmulAttrs())

    def linear(self, x: str, outputs: int, bias: bool = True, zeros: float = 0.8) -> str:
        width = self.shape(x)[-1]
        assert isinstance(width, int)
        y = self.matmul(x, self.random(width, outputs, zeros=zeros))
        return self.apply("add", y, self.random(outputs)) if bias else y

    def reshape(self, x: str, *shape: Size) -> str:
        return self.add(Op.RESHAPE, (x,), shape, dtype=self.nodes[x].type.dtype)

    def transpose(self, x: str, *axes: int) -> str:
        shape = [self.shape(x)[a] for a in axes]
        return self.add(Op.TRANSPOSE, (x,), shape, TransposeAttrs(axes), self.nodes[x].type.dtype)

    def softmax(self, x: str) -> str:
        return self.add(Op.SOFTMAX, (x,), self.shape(x), SoftmaxAttrs(len(self.shape(x)) - 1))

    def layer_norm(self, x: str) -> str:
        width = self.shape(x)[-1]
        assert isinstance(width, int)
        return self.add(
            Op.LAYER_NORM, (x, self.random(width), self.random(width)), self.shape(x), LayerNormAttrs(1e-5)
        )

    def reduce(self, kind: str, x: str, *axes: int, keepdims: bool = False) -> str:
        shape = [1 if i in axes else s for i, s in enumerate(self.shape(x)) if keepdims or i not in axes]
        return self.add(Op.REDUCE, (x,), shape, ReduceAttrs(kind, axes, keepdims))

    def conv(
        self, x: str, w: str, strides: tuple[int, int] = (1, 1), padding: Padding = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1), groups: int = 1,
    ) -> str:  # fmt: skip
        attrs = ConvAttrs(strides, padding, dilation, groups)
        spatial = self._windows(x, self.shape(w)[2:], strides, padding, dilation)
        return self.add(Op.CONV2D, (x, w), (self.shape(x)[0], self.shape(w)[0], *spatial), attrs)

    def layer2d(self, x: str, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> str:
        """A convolution that keeps the size, with a bias."""
        channels, around = self.shape(x)[1], size // 2
        assert isinstance(channels, int)
        w = self.random(outputs, channels // groups, size, size, zeros=0.6)
        y = self.conv(x, w, (stride, stride), (around,) * 4, groups=groups)
        return self.apply("add", y, self.random(1, outputs, 1, 1))

    def pool(
        self, kind: str, x: str, size: int, stride: int, around: int = 0, count_padding: bool = False
    ) -> str:
        attrs = PoolAttrs(kind, (size, size), (stride, stride), (around,) * 4, (1, 1), count_padding)
        spatial = self._windows(x, (size, size), (stride, stride), (around,) * 4, (1, 1))
        return self.add(Op.POOL, (x,), (*self.shape(x)[:2], *spatial), attrs)

    def _windows(
        self, x: str, kernel: Any, strides: Any, padding: Padding, dilation: tuple[int, int]
    ) -> list[int]:
        extents: Any = self.shape(x)[2:]
        return [positions(extents[a], kernel[a], strides[a], dilation[a], *padding[a::2]) for a in (0, 1)]

    def resize(self, x: str, height: int, width: int, *method: str) -> str:
        return self.add(
            Op.RESIZE, (x,), (*self.shape(x)[:2], height, width), ResizeAttrs(*method or ("linear",))
        )

    def concat(self, axis: int, *parts: str) -> str:
        shape = list(self.shape(parts[0]))
        for other in parts[1:]:
            shape[axis] = shape[axis] + self.shape(other)[axis]
        return self.add(Op.CONCAT, parts, shape, ConcatAttrs(axis))

    def cut(self, x: str, begin: Sequence[int], step: Sequence[int], shape: Sequence[Size]) -> str:
        return self.add(Op.SLICE, (x,), shape, SliceAttrs(tuple(begin), tuple(step)))

    def channels(self, x: str, first: int, last: int) -> str:
        """Channels from first up to, not including, last."""
        shape = self.shape(x)
        begin = [first if axis == 1 else 0 for axis in range(len(shape))]
        return self.cut(x, begin, [1] * len(shape), (shape[0], last - first, *shape[2:]))

    def pad(self, x: str, before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> str:
        shape = [s + b + a for s, b, a in zip(self.shape(x), before, after, strict=True)]
        return self.add(Op.PAD, (x,), shape, PadAttrs(tuple(before), fill))

    def recurrent(self, x: str, attrs: RecurrentAttrs, *states: str) -> list[str]:
        """The items of a layer whose x (T, B, G * H) counts all gates."""
        steps, batch, columns = self.shape(x)
        assert isinstance(columns, int)
        hidden = columns // {"lstm": 4, "gru": 3, "rnn": 1}[attrs.kind]
        biases = (self.random(hidden),) if attrs.reset_after else ()
        args = (x, self.random(hidden, columns, zeros=0.5), *states, *biases)
        y = self.add(Op.RECURRENT, args, (steps, batch, hidden), attrs)
        kinds = outputs_of(self.nodes[y])
        return [self.add(Op.ITEM, (y,), t.shape, ItemAttrs(i)) for i, t in enumerate(kinds)]

    def gelu(self, x: str) -> str:
        """As exporters spell it: the argument is read twice."""
        inner = self.apply(
            "add", self.apply("erf", self.apply("div", x, self.const(2**0.5))), self.const(1.0)
        )
        return self.apply("mul", self.apply("mul", x, inner), self.const(np.full((1, 1), 0.5)))

    def graph(self, *results: str) -> Graph:
        names = tuple(f"out{i}" for i in range(len(results)))
        return verify(Graph(tuple(self.nodes.values()), results, names, self.consts))


BATCH, LENGTH = symbol("batch"), symbol("length")
#: How [B, L, H, D] becomes q, k^T and v.
SPLIT = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))


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


def _heads(b: Build, x: str, heads: int, *axes: int) -> str:
    *leading, width = b.shape(x)
    assert isinstance(width, int)
    return b.transpose(b.reshape(x, *leading, heads, width // heads), *axes)


def attention_exported() -> Graph:
    """BERT as exported: scores times a number plus a mask."""
    b = Build()
    x, mask = b.input(BATCH, LENGTH, 12), b.input(BATCH, LENGTH)
    mask = b.apply("mul", b.apply("sub", 1.0, b.reshape(mask, BATCH, 1, 1, LENGTH)), b.const(-100.0))
    q, k, v = (
        _heads(b, b.linear(x, 12, zeros=0), 3, *axes) for axes in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    )
    scores = b.apply("add", b.apply("mul", b.matmul(q, k), b.const(0.5)), mask)
    mixed = b.transpose(b.matmul(b.softmax(scores), v), 0, 2, 1, 3)
    return b.graph(b.apply("add", x, b.linear(b.reshape(mixed, BATCH, LENGTH, 12), 12)))


def attention_scaled_operands() -> Graph:
    """torch's decomposition: q and k each times the root of the scale, k transposed twice."""
    b = Build()
    x, other = b.input(BATCH, 5, 8), b.input(BATCH, LENGTH, 8)
    q = b.apply("mul", _heads(b, b.linear(x, 8), 2, 0, 2, 1, 3), b.const(0.7))
    k = b.transpose(_heads(b, b.linear(other, 8), 2, 0, 2, 1, 3), 0, 1, 3, 2)
    v = _heads(b, b.linear(other, 8), 2, 0, 2, 1, 3)
    mixed = b.matmul(b.softmax(b.matmul(q, b.apply("mul", k, b.const(0.7)))), v)
    return b.graph(b.reshape(b.transpose(mixed, 0, 2, 1, 3), BATCH * 5, 8))


def attention_merged_batch() -> Graph:
    """Batch and heads in one axis, as torch.bmm wants them; q divided before its heads are split."""
    b = Build()
    x = b.input(BATCH, LENGTH, 8)
    q = b.apply("div", b.linear(x, 8), b.const(2.0))
    q, k, v = (_heads(b, a, 2, 0, 2, 1, 3) for a in (q, b.linear(x, 8), b.linear(x, 8)))
    q, k, v = (b.reshape(a, BATCH * 2, LENGTH, 4) for a in (q, k, v))
    mixed = b.matmul(b.softmax(b.matmul(q, b.transpose(k, 0, 2, 1))), v)
    mixed = b.transpose(b.reshape(mixed, BATCH, 2, LENGTH, 4), 0, 2, 1, 3)
    return b.graph(b.reshape(mixed, BATCH, LENGTH, 8))


def attention_without_batch() -> Graph:
    b = Build()
    x, mask = b.input(LENGTH, 8), b.input(LENGTH, LENGTH)
    q, k, v = (_heads(b, b.linear(x, 8), 2, *axes) for axes in ((1, 0, 2), (1, 2, 0), (1, 0, 2)))
    scores = b.apply("add", b.apply("div", b.matmul(q, k), b.const(2.0)), mask)
    mixed = b.transpose(b.matmul(b.softmax(scores), v), 1, 0, 2)
    return b.graph(b.reshape(mixed, LENGTH, 8))


def attention_one_position() -> Graph:
    """A static length of 1: simplify turns its transposes into reshapes."""
    b = Build()
    x = b.input(2, 1, 8)
    q, k, v = (_heads(b, b.linear(x, 8), 2, *axes) for axes in SPLIT)
    mixed = b.transpose(b.matmul(b.softmax(b.matmul(q, k)), v), 0, 2, 1, 3)
    return b.graph(b.reshape(mixed, 2, 1, 8))


def attention_length_first() -> Graph:
    """torch.nn.MultiheadAttention: [L, B, E], batch and heads merged for the scores."""
    b = Build()
    x = b.transpose(b.input(BATCH, LENGTH, 8), 1, 0, 2)
    q, k, v = (b.reshape(b.linear(x, 8), LENGTH, BATCH * 2, 4) for _ in range(3))
    q, k, v = (b.reshape(b.transpose(a, 1, 0, 2), BATCH, 2, LENGTH, 4) for a in (q, k, v))
    scores = b.apply("mul", b.matmul(q, b.transpose(k, 0, 1, 3, 2)), b.const(0.5))
    mixed = b.transpose(b.matmul(b.softmax(scores), v), 2, 0, 1, 3)
    y = b.linear(b.reshape(mixed, LENGTH * BATCH, 8), 8)
    return b.graph(b.transpose(b.reshape(y, LENGTH, BATCH, 8), 1, 0, 2))


def attention_mask_per_head() -> Graph:
    """A mask that differs from head to head, as relative positions make it."""
    b = Build()
    x, mask = b.input(BATCH, 5, 8), b.input(1, 2, 5, 5)
    q, k, v = (_heads(b, x, 2, *axes) for axes in SPLIT)
    mixed = b.matmul(b.softmax(b.apply("add", b.matmul(q, k), mask)), v)
    return b.graph(b.reshape(b.transpose(mixed, 0, 2, 1, 3), BATCH, 5, 8))


def attention_masked_fill() -> Graph:
    """Scores replaced by a low number where a mask says so, after a bias was added."""
    b = Build()
    x, bias, hidden = b.input(BATCH, 9, 8), b.input(2, 9, 9), b.input(BATCH, 1, 1, 9)
    q, k, v = (_heads(b, x, 2, *axes) for axes in SPLIT)
    scores = b.apply("add", b.apply("mul", b.matmul(q, k), 0.5), bias)
    scores = b.apply("where", b.apply("less", hidden, 0.0), -1e9, scores)
    mixed = b.matmul(b.softmax(scores), v)
    return b.graph(b.reshape(b.transpose(mixed, 0, 2, 1, 3), BATCH, 9, 8))


def attention_shared_heads() -> Graph:
    """Rotated queries, and two heads' keys and values for four heads of queries."""
    b = Build()
    x, turn = b.input(BATCH, 9, 8), b.input(9, 2)
    q = b.apply("mul", _heads(b, b.linear(x, 8), 4, 0, 2, 1, 3), turn)
    k, v = (b.concat(1, *(2 * [_heads(b, b.linear(x, 4), 2, 0, 2, 1, 3)])) for _ in range(2))
    scores = b.apply("mul", b.matmul(q, b.transpose(k, 0, 1, 3, 2)), 0.5)
    mixed = b.matmul(b.softmax(scores), v)
    return b.graph(b.reshape(b.transpose(mixed, 0, 2, 1, 3), BATCH, 9, 8))


def attention_shows_weights() -> Graph:
    """The softmax is an output too, so it has to be computed anyway."""
    b = Build()
    x = b.input(BATCH, 5, 8)
    q, k, v = (_heads(b, x, 2, *axes) for axes in SPLIT)
    weights = b.softmax(b.matmul(q, k))
    return b.graph(b.reshape(b.transpose(b.matmul(weights, v), 0, 2, 1, 3), BATCH, 5, 8), weights)


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


def conv_batch_norm() -> Graph:
    """As importers spell a batch normalisation, then hard-swish, which reads it twice."""
    b = Build()
    y = b.conv(b.input(BATCH, 3, 9, 8), b.random(6, 3, 3, 3, zeros=0.5), padding=(1, 1, 1, 1))
    mean, gamma, beta = (b.random(1, 6, 1, 1) for _ in range(3))
    spread = b.apply("sqrt", b.apply("add", b.apply("abs", b.random(1, 6, 1, 1)), b.const(1e-3)))
    y = b.apply("add", b.apply("mul", b.apply("div", b.apply("sub", y, mean), spread), gamma), beta)
    gate = b.apply("min", b.apply("max", b.apply("add", y, b.const(3.0)), 0.0), 6.0)
    return b.graph(b.apply("div", b.apply("mul", y, gate), b.const(6.0)))


def conv_residual() -> Graph:
    b = Build()
    x = b.apply("max", b.layer2d(b.input(BATCH, 4, 7, 7), 8), 0.0)
    y = b.layer2d(b.apply("max", b.layer2d(x, 8), 0.0), 8, groups=8)
    short = b.pad(b.cut(x, (0,) * 4, (1, 1, 2, 2), (BATCH, 8, 4, 4)), (0, 2, 0, 0), (0, 2, 0, 0))
    deep = b.layer2d(b.apply("max", b.apply("add", x, y), 0.0), 12, stride=2)
    return b.graph(b.apply("max", b.apply("add", deep, short), 0.0))


def conv_scaled_input() -> Graph:
    """A shift reaches into the weight only where nothing is padded, a multiple always."""
    b = Build()
    x = b.input(2, 4, 6, 6)
    shifted = b.apply("mul", b.apply("sub", x, b.random(4, 1, 1)), b.random(4, 1, 1))
    left = b.conv(shifted, b.random(6, 2, 3, 3), groups=2)
    right = b.conv(b.apply("mul", x, b.random(1, 4, 1, 1)), b.random(3, 4, 3, 3), padding=(1, 1, 0, 0))
    other = b.conv(b.apply("add", x, b.const(0.5)), b.random(3, 4, 3, 3), padding=(1, 1, 1, 1))
    return b.graph(left, right, b.apply("mul", other, b.const(2.0)))


def conv_weight_shared() -> Graph:
    b = Build()
    x, w = b.input(BATCH, 3, 5, 5), b.random(4, 3, 1, 1)
    scaled = b.apply("mul", b.conv(x, w), b.random(4, 1, 1))
    return b.graph(b.apply("tanh", scaled), b.apply("add", b.conv(x, w, (2, 2)), b.random(4, 1, 1)))


def conv_padded_before() -> Graph:
    b = Build()
    x = b.pad(b.input(BATCH, 2, 6, 6), (0, 0, 1, 1), (0, 0, 2, 0))
    y = b.conv(x, b.random(4, 2, 3, 3), padding=(0, 1, 0, 1))
    ones = b.pad(b.input(BATCH, 2, 6, 6), (0, 0, 1, 1), (0, 0, 1, 1), 1.0)
    kept = b.conv(ones, b.random(4, 2, 2, 2))
    sequence = b.pad(b.input(BATCH, 2, 9), (0, 0, 3), (0, 0, 1))
    image = b.conv(b.reshape(sequence, BATCH, 2, 1, 13), b.random(3, 2, 1, 4))
    lowest = b.pool("max", b.pad(y, (0, 0, 1, 1), (0, 0, 1, 1), -np.inf), 3, 2)
    return b.graph(lowest, b.pool("mean", x, 3, 3), b.pool("mean", x, 3, 3, 1), kept, image)


def conv_sequence() -> Graph:
    """Convolved as images of height 1, shifted, activated and joined as sequences."""
    b = Build()
    x = b.input(BATCH, 4, 1, 11)
    left, right = (b.conv(x, b.random(6, 4, 1, 3), (1, 2)) for _ in range(2))
    y = b.apply("add", b.reshape(left, BATCH, 6, 5), b.random(1, 6, 1))
    y = b.apply("mul", y, b.apply("sigmoid", y))
    return b.graph(b.apply("add", b.reshape(right, BATCH, 6, 5), y))


def conv_gated() -> Graph:
    """A gate per image and channel is one per channel only where there is one image."""
    b = Build()

    def gated(x: str) -> str:
        gate = b.layer2d(b.reduce("mean", x, 2, 3, keepdims=True), 4, 1)
        y = b.layer2d(x, 4, 1)
        return b.apply("mul", y, b.apply("sigmoid", gate))

    return b.graph(gated(b.input(1, 4, 5, 5)), gated(b.input(BATCH, 4, 5, 5)))


def pyramid() -> Graph:
    b = Build()
    x = b.apply("max", b.layer2d(b.input(BATCH, 3, 8, 8), 4, stride=2), 0.0)
    small = b.layer2d(b.pool("max", x, 3, 2, 1), 4)
    large = b.apply("add", b.resize(small, 4, 4), x)
    mean = b.resize(b.pool("mean", x, 2, 2), 4, 4, "nearest", "asymmetric", "floor")
    return b.graph(b.concat(1, large, b.concat(1, mean, x)), b.resize(x, 4, 4))


def channel_shuffle() -> Graph:
    """ShuffleNet v2, as exported: joined, shuffled by a transpose, split by its first axis."""
    b = Build()
    x = b.concat(1, b.layer2d(b.input(1, 3, 4, 4), 3), b.input(1, 3, 4, 4))
    y = b.reshape(b.transpose(b.reshape(x, 3, 2, 16), 1, 0, 2), 2, 1, 3, 4, 4)
    parts = [b.cut(y, (part, 0, 0, 0, 0), (1,) * 5, (1, 1, 3, 4, 4)) for part in (0, 1)]
    left, right = (b.reshape(p, 1, 3, 4, 4) for p in parts)
    return b.graph(b.concat(1, left, b.layer2d(right, 3)))


def cuts_and_joins() -> Graph:
    b = Build()
    x, y = b.input(BATCH, 6, 5), b.input(BATCH, 4, 5)
    joined = b.concat(1, x, y)
    inside = b.channels(joined, 7, 9)
    across = b.channels(joined, 5, 8)
    twice = b.cut(b.cut(x, (0, 1, 0), (1, 2, 1), (BATCH, 3, 5)), (0, 1, 1), (1, 1, 3), (BATCH, 2, 2))
    whole = b.concat(1, b.channels(joined, 0, 6))
    padded = b.pad(b.pad(y, (0, 1, 0), (0, 0, 2)), (0, 0, 0), (0, 1, 1))
    fixed = b.cut(b.concat(0, b.random(2, 3), b.pad(b.random(1, 3), (1, 0), (0, 0))), (1, 0), (2, 2), (2, 2))
    return b.graph(inside, across, twice, whole, b.pad(padded, (0,) * 3, (0,) * 3), fixed)


CORPUS: tuple[Callable[[], Graph], ...] = (
    mlp_relu, mlp_gelu, mlp_silu_clip_residual, two_matmuls_added, residual_depends_on_product,
    gate_after_activation, product_is_output, value_used_twice, reshape_between, layer_norm,
    layer_norm_by_hand, rms_norm, rms_norm_divided, almost_norms,
    attention_exported, attention_scaled_operands, attention_merged_batch,
    attention_without_batch, attention_length_first, attention_one_position, attention_mask_per_head,
    attention_masked_fill, attention_shared_heads,
    attention_shows_weights, diamond, broadcasting, constants_fold, equal_values_merge,
    moves_that_cancel, weight_with_leading_one, comparisons, reductions, one_axis_and_none,
    empty_tensor, inputs_are_outputs, recurrent_layers, conv_batch_norm, conv_residual, conv_scaled_input,
    conv_weight_shared, conv_padded_before, conv_sequence, conv_gated, pyramid, channel_shuffle,
    cuts_and_joins,
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


def random_inputs(graph: Graph, seed: int = 1, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Standard normal arrays for a graph's inputs; symbols take small sizes unless given."""
    rng = np.random.default_rng(seed)
    chosen = {"batch": 3, "length": 5, **(sizes or {})}
    shapes = {n.name: tuple(value(s, chosen) for s in n.type.shape) for n in graph.inputs}
    return {n.name: rng.standard_normal(shapes[n.name]).astype(n.type.dtype) for n in graph.inputs}
