"""Random small ONNX graphs, their inputs, and onnxruntime's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array: TypeAlias = NDArray[Any]

WIDTHS = (3, 8, 16, 24)
TOKENS = (1, 2, 3, 4, 5, 7, 8, 16, 31, 33, 64, 70)


def dense(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    """A weight [inputs, outputs] of standard normals over the root of the number of inputs."""
    drawn: Array = rng.standard_normal((inputs, outputs)).astype(np.float32)
    return drawn / np.float32(np.sqrt(inputs))


def unstructured(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    """Each weight zero on its own."""
    return dense(rng, inputs, outputs) * (rng.random((inputs, outputs)) < rng.choice([0.05, 0.2, 0.5]))


def blocks(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    """Zero in blocks of one input by several outputs."""
    height = int(rng.choice([2, 4, 8]))
    kept = np.repeat(rng.random((inputs, -(-outputs // height))) < 0.3, height, axis=1)
    return dense(rng, inputs, outputs) * kept[:, :outputs]


def n_of_m(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    """Two of every four inputs of an output."""
    kept = np.array([rng.permutation(4) < 2 for _ in range(outputs * -(-inputs // 4))])
    return dense(rng, inputs, outputs) * kept.reshape(outputs, -1)[:, :inputs].T


def hubs(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    """Nearly empty, but for one full row and one full column."""
    kept = rng.random((inputs, outputs)) < 0.1
    kept[int(rng.integers(inputs))] = True
    kept[:, int(rng.integers(outputs))] = True
    return dense(rng, inputs, outputs) * kept


def all_zero(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    """Nothing left."""
    return np.zeros((inputs, outputs), np.float32)


def dead(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    """Half the inputs unread and half the outputs constant."""
    kept = np.outer(rng.random(inputs) < 0.5, rng.random(outputs) < 0.5)
    return dense(rng, inputs, outputs) * kept


PATTERNS: tuple[Callable[[np.random.Generator, int, int], Array], ...] = (
    dense, unstructured, unstructured, unstructured, blocks, n_of_m, hubs, all_zero, dead,
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """Nodes in order with their weights; the last value is the output.

    ``batch`` is None for a symbolic number of tokens, ``tokens`` what it is run with.
    """

    nodes: tuple[onnx.NodeProto, ...]
    weights: Mapping[str, Array]
    inputs: Mapping[str, tuple[int | str, ...]]
    tokens: tuple[int, ...]

    def proto(self) -> onnx.ModelProto:
        """As ONNX; every value that no node reads is an output."""
        read = {i for n in self.nodes for i in n.input}
        made = [o for n in self.nodes for o in n.output if o not in read]
        used = [numpy_helper.from_array(a, k) for k, a in self.weights.items() if k in read]
        taken = [
            helper.make_tensor_value_info(k, TensorProto.FLOAT, s)
            for k, s in self.inputs.items()
            if k in read
        ]
        outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in made]
        graph = helper.make_graph(list(self.nodes), "fuzz", taken, outputs, used)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)

    def feeds(self, seed: int, tokens: int) -> dict[str, Array]:
        """Standard normals for every input."""
        rng = np.random.default_rng(seed)
        shapes = {k: [tokens if isinstance(d, str) else d for d in s] for k, s in self.inputs.items()}
        read = {i for n in self.nodes for i in n.input}
        return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items() if k in read}

    def without_last(self) -> Model:
        """The model one node shorter."""
        return replace(self, nodes=self.nodes[:-1])

    def __str__(self) -> str:
        lines = [f"{n.output[0]} = {n.op_type}({', '.join(n.input)})" for n in self.nodes]
        shapes = [f"{k}: {list(s)}" for k, s in self.inputs.items()]
        sizes = [f"{k}: {list(a.shape)} {np.mean(a == 0):.0%} zero" for k, a in self.weights.items()]
        return "\n".join([*shapes, f"tokens {self.tokens}", *sizes, *lines])


@dataclass
class _Writer:
    """Adds nodes over values whose last axis is known; the leading axes are always the input's."""

    rng: np.random.Generator
    leading: tuple[int | str, ...]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    #: value name -> its last axis
    widths: dict[str, int] = field(default_factory=dict)

    def input(self, width: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = (*self.leading, width)
        self.widths[name] = width
        return name

    def weight(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array, dtype)
        return name

    def add(self, op: str, args: Sequence[str], width: int, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(args), [name], name=f"{op}_{name}", **attributes))
        self.widths[name] = width
        return name

    def any(self) -> str:
        """A value, most likely a recent one."""
        names = list(self.widths)
        return names[int(self.rng.integers(max(0, len(names) - 4), len(names)))]

    def alike(self, x: str) -> str:
        """A value as wide as ``x``, maybe itself."""
        names = [n for n, w in self.widths.items() if w == self.widths[x]]
        return names[int(self.rng.integers(len(names)))]

    def layer(self) -> str:
        x = self.any()
        width = int(self.rng.choice(WIDTHS))
        pattern = PATTERNS[int(self.rng.integers(len(PATTERNS)))]
        w = pattern(self.rng, self.widths[x], width)
        bias = self.rng.standard_normal(width)
        if len(self.leading) == 1 and self.rng.random() < 0.4:
            return self.add("Gemm", (x, self.weight(w.T), self.weight(bias)), width, transB=1)
        y = self.add("MatMul", (x, self.weight(w)), width)
        return self.add("Add", (y, self.weight(bias)), width) if self.rng.random() < 0.6 else y

    def unary(self) -> str:
        x = self.any()
        op = str(self.rng.choice(["Relu", "Sigmoid", "Tanh", "Erf", "Neg", "Abs", "LeakyRelu", "Elu", "Exp"]))
        x = self.add("Tanh", (x,), self.widths[x]) if op == "Exp" else x
        return self.add(op, (x,), self.widths[x])

    def clip(self) -> str:
        x = self.any()
        return self.add("Clip", (x, self.weight(-0.5), self.weight(0.7)), self.widths[x])

    def gelu(self) -> str:
        x = self.any()
        width = self.widths[x]
        inner = self.add("Erf", (self.add("Div", (x, self.weight(2**0.5)), width),), width)
        inner = self.add("Add", (inner, self.weight(1.0)), width)
        return self.add("Mul", (self.add("Mul", (x, inner), width), self.weight(0.5)), width)

    def residual(self) -> str:
        x = self.any()
        op = str(self.rng.choice(["Add", "Add", "Sub", "Mul", "Max"]))
        return self.add(op, (x, self.alike(x)), self.widths[x])

    def by_constant(self) -> str:
        x = self.any()
        width = self.widths[x]
        constants = (self.rng.standard_normal(width), 1.5, self.rng.standard_normal((1, width)))
        op = str(self.rng.choice(["Add", "Mul", "Sub"]))
        pair = [x, self.weight(constants[int(self.rng.integers(3))])]
        return self.add(op, pair[:: int(self.rng.choice([1, -1]))], width)

    def gate(self) -> str:
        x = self.any()
        mean = self.add("ReduceMean", (x,), 1, axes=[len(self.leading)], keepdims=1)
        del self.widths[mean]
        return self.add("Mul", (x, mean), self.widths[x])

    def chosen(self) -> str:
        x = self.any()
        small = self.add("Less", (x, self.weight(0.1)), 0)
        del self.widths[small]
        return self.add("Where", (small, x, self.alike(x)), self.widths[x])

    def softmax(self) -> str:
        x = self.any()
        axis = -1 if self.rng.random() < 0.8 else len(self.leading) - 1
        return self.add("Softmax", (x,), self.widths[x], axis=axis)

    def layer_norm(self) -> str:
        x = self.any()
        gamma, beta = (self.weight(self.rng.standard_normal(self.widths[x])) for _ in range(2))
        return self.add("LayerNormalization", (x, gamma, beta), self.widths[x], epsilon=1e-5)

    def concat(self) -> str:
        x, y = self.any(), self.any()
        return self.add("Concat", (x, y), self.widths[x] + self.widths[y], axis=-1)

    def cut(self) -> str:
        x = self.any()
        width = max(1, self.widths[x] // 2)
        ends = [self.weight([v], np.int64) for v in (0, width, -1)]
        return self.add("Slice", (x, *ends), width)

    def split(self) -> str:
        x = self.any()
        width = self.widths[x]
        if width < 2:
            return x
        name = f"v{len(self.nodes)}"
        sizes = self.weight([1, width - 1], np.int64)
        self.nodes.append(
            helper.make_node("Split", [x, sizes], [f"{name}_0", name], name=f"Split_{name}", axis=-1)
        )
        self.widths[name] = width - 1
        return name

    def views(self) -> str:
        """There and back through a reshape, with a transpose and a function between."""
        x = self.any()
        width = self.widths[x]
        turned = self.add(
            "Transpose", (x,), width, perm=[*range(len(self.leading) - 1, -1, -1), len(self.leading)]
        )
        turned = self.add("Relu", (turned,), width)
        back = self.add(
            "Transpose", (turned,), width, perm=[*range(len(self.leading) - 1, -1, -1), len(self.leading)]
        )
        del self.widths[self.nodes[-2].output[0]], self.widths[self.nodes[-3].output[0]]
        flat = self.add("Reshape", (back, self.weight([-1, width], np.int64)), width)
        del self.widths[flat]
        flat = self.add("Sigmoid", (flat,), width)
        del self.widths[flat]
        shape = [d if isinstance(d, int) else -1 for d in self.leading]
        return self.add("Reshape", (flat, self.weight([*shape, width], np.int64)), width)


def random_model(seed: int) -> Model:
    """A few layers, functions and moves over [tokens, width] or [batch, tokens, width]."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice(TOKENS))
    symbolic = bool(rng.random() < 0.4)
    tokens: int | str = "tokens" if symbolic else size
    leading: tuple[int | str, ...] = (tokens,) if rng.random() < 0.6 else (tokens, int(rng.choice([1, 3])))
    w = _Writer(rng, leading)
    for _ in range(int(rng.integers(1, 3))):
        w.input(int(rng.choice(WIDTHS)))
    makers = (
        w.layer, w.layer, w.layer, w.layer, w.unary, w.clip, w.gelu, w.residual, w.residual, w.by_constant,
        w.gate, w.chosen, w.softmax, w.layer_norm, w.concat, w.cut, w.split, w.views,
    )  # fmt: skip
    w.layer()
    for _ in range(int(rng.integers(2, 7))):
        makers[int(rng.integers(len(makers)))]()
    others = tuple(int(t) for t in rng.choice(TOKENS, 2)) if symbolic else ()
    return Model(tuple(w.nodes), w.weights, w.inputs, (size, *others))
