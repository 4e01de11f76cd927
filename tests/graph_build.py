"""Graphs written node by node, and inputs for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

Array: TypeAlias = NDArray[Any]
#: (top, left, bottom, right)
Padding: TypeAlias = tuple[int, int, int, int]

BATCH, LENGTH = symbol("batch"), symbol("length")


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


def random_inputs(graph: Graph, seed: int = 1, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Standard normal arrays for a graph's inputs; symbols take small sizes unless given."""
    rng = np.random.default_rng(seed)
    chosen = {"batch": 3, "length": 5, **(sizes or {})}
    shapes = {n.name: tuple(value(s, chosen) for s in n.type.shape) for n in graph.inputs}
    return {n.name: rng.standard_normal(shapes[n.name]).astype(n.type.dtype) for n in graph.inputs}
