"""ONNX's LSTM, GRU and RNN: one product of all steps with the input weight, then one call a direction.

TVM's importer has none of them.  Before the import :func:`arrange` stores their weights by direction as
products read them; during the import :func:`convert` writes the product in Relax and the steps as
a call of ``sparsec.recurrent``, which ``relax_recurrent`` turns into a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import helper
from tvm import relax

from sparsec.errors import Unsupported
from sparsec.frontends.onnx_load import OnnxModel
from sparsec.frontends.relax_recurrent import CALLED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

#: operator -> its activations, in ONNX's order
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",),
}  # fmt: skip


#: positions of ONNX's inputs
_X, _W, _R, _B, _LENGTHS, _H0, _C0, _PEEPHOLES = range(8)


def refusal(node: onnx.NodeProto) -> str:
    """Why a recurrent node's attributes and inputs cannot be run, or nothing."""
    if node.op_type not in ACTIVATIONS:
        return ""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    names = [a.decode().lower() for a in given.get("activations", ())]
    default = list(ACTIVATIONS[node.op_type])
    wrong = [
        ("activations other than the default ones", names not in ([], default, 2 * default)),
        ("clip", bool(given.get("clip"))),
        ("input_forget", bool(given.get("input_forget"))),
        ("peepholes", bool(_input(node, _PEEPHOLES))),
    ]
    found = [what for what, is_so in wrong if is_so]
    return f"sparsec has no recurrent kernel with {' or '.join(found)}" if found else ""


def arrange(model: OnnxModel) -> None:
    """Give every recurrent node its weights by direction, in place.

    Its inputs become x, h0, c0, and for each direction the weights [I, G * H] and [H, G * H], the
    biases (G * H,) of all gates, and the bias (H,) that a gru adds before it resets.  A node that
    cannot be run so gets an attribute ``refused`` that says why.
    """
    for node in model.graph.node:
        if node.op_type in ACTIVATIONS:
            refused = _unknown(node, model.constants) or _unequal_lengths(node, model.constants)
            if refused:
                node.attribute.append(helper.make_attribute("refused", refused))
            else:
                _arrange(node, model.constants)


def _unknown(node: onnx.NodeProto, constants: Mapping[str, Array]) -> str:
    wanted = [_input(node, i) for i in (_W, _R, _B)]
    varying = [name for name in wanted if name and name not in constants]
    return f"its weights must be constants, but {varying[0]!r} is computed" if varying else ""


def _unequal_lengths(node: onnx.NodeProto, constants: Mapping[str, Array]) -> str:
    name = _input(node, _LENGTHS)
    if not name:
        return ""
    lengths = constants.get(name)
    if lengths is None or lengths.size == 0 or (lengths != lengths.flat[0]).any():
        return "sequences of unequal length (sequence_lens) have no kernel"
    node.attribute.append(helper.make_attribute("steps", int(lengths.flat[0])))
    return ""


def _arrange(node: onnx.NodeProto, constants: dict[str, Array]) -> None:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    w, r = (constants[_input(node, i)] for i in (_W, _R))
    b = constants.get(_input(node, _B))
    inputs = [_input(node, i) for i in (_X, _H0, _C0)]
    for direction in range(len(w)):
        bias, inner = (None, None) if b is None else _biases(node, b[direction], given)
        parts = {"W": w[direction].T, "R": r[direction].T, "B": bias, "Rb": inner}
        inputs += [
            _store(constants, f"{node.name}_{label}{direction}", array) for label, array in parts.items()
        ]
    del node.input[:]
    node.input.extend(inputs)


def _biases(node: onnx.NodeProto, b: Array, given: Mapping[str, Any]) -> tuple[Array, Array | None]:
    """The sum of both biases, and what of the second a gru must add before it resets."""
    of_input, of_state = np.split(b, 2)
    if node.op_type != "GRU" or not given.get("linear_before_reset"):
        return of_input + of_state, None
    first = len(b) // 3
    return of_input + np.where(np.arange(len(of_state)) < first, of_state, 0), of_state[first:]


def _store(constants: dict[str, Array], name: str, array: Array | None) -> str:
    if array is None:
        return ""
    while name in constants:
        name += "_"
    constants[name] = array
    return name


def _input(node: onnx.NodeProto, index: int) -> str:
    return str(node.input[index]) if index < len(node.input) else ""


# -- in Relax


def convert(builder: Any, operator: str, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """The Relax tuple of Y, Y_h and an LSTM's Y_c of an arranged node.

    Raises:
        Unsupported: the node is one no kernel runs.
    """
    if "refused" in attrs:
        raise Unsupported(attrs["refused"].decode())
    batch_first = bool(attrs.get("layout"))
    x, *states = _padded(inputs)[:3]
    if batch_first:
        x, *states = (None if v is None else builder.emit(_moved(v, 1, 0, 2)) for v in (x, *states))
    if not isinstance(x.ty, relax.TensorType) or str(x.ty.dtype.dtype) != "float32":
        raise Unsupported("only float32 sequences have a recurrent kernel")
    _check_steps(x, attrs)
    ways = {b"forward": (False,), b"reverse": (True,)}.get(attrs.get("direction", b"forward"), (False, True))
    made = []
    for number, reverse in enumerate(ways):
        weights = _padded(inputs)[3 + 4 * number : 7 + 4 * number]
        line = _Line(builder, operator, bool(attrs.get("linear_before_reset")), reverse)
        made.append(line.emit(x, [_of_direction(s, number, len(ways)) for s in states], weights))
    joined = [_joined(parts, 1 if i == 0 else 0) for i, parts in enumerate(zip(*made, strict=True))]
    if batch_first:
        joined = [_moved(joined[0], 2, 0, 1, 3), *(_moved(v, 1, 0, 2) for v in joined[1:])]
    return relax.Tuple([builder.normalize(v) for v in joined])


def _padded(inputs: Iterable[Any]) -> list[Any]:
    return [*inputs, *(None,) * 11][:11]


def _moved(value: Any, *axes: int) -> Any:
    return relax.op.permute_dims(value, axes)


def _check_steps(x: Any, attrs: Mapping[str, Any]) -> None:
    steps = x.ty.shape.values[0]
    if attrs.get("steps") is not None and getattr(steps, "value", None) != attrs["steps"]:
        raise Unsupported(f"sequences cut short to {attrs['steps']} steps (sequence_lens) have no kernel")


def _of_direction(state: Any, number: int, count: int) -> Any:
    """An initial state [directions, B, H] of one direction."""
    if state is None:
        return None
    if count > 1:
        state = relax.op.strided_slice(state, [0], [number], [number + 1])
    return relax.op.squeeze(state, [0])


def _joined(parts: tuple[Any, ...], axis: int) -> Any:
    """The directions along a new axis."""
    spread = [relax.op.expand_dims(p, axis) for p in parts]
    return spread[0] if len(spread) == 1 else relax.op.concat(spread, axis)


class _Line:
    """One direction."""

    def __init__(self, builder: Any, operator: str, reset_after: bool, reverse: bool) -> None:
        self.builder = builder
        self.states = 2 if operator == "LSTM" else 1
        self.reset_after = reset_after and operator == "GRU"
        self.kind = operator.lower()
        self.name = CALLED + self.kind + "_reset_after" * self.reset_after + "_reverse" * reverse

    def emit(self, x: Any, states: list[Any], weights: list[Any]) -> list[Any]:
        """y [T, B, H], then the last states [B, H]."""
        w, r, bias, inner = weights
        emit: Callable[[Any], Any] = self.builder.emit
        gates = emit(relax.op.matmul(x, w))
        if bias is not None:
            gates = emit(relax.op.add(gates, bias))
        steps, batch, _ = gates.ty.shape.values
        hidden = r.ty.shape.values[0]
        nothing = relax.const(np.zeros((1, int(hidden)), np.float32))
        args = [gates, r, *(nothing if s is None else emit(s) for s in states[: self.states])]
        if self.reset_after:
            args.append(relax.const(np.zeros(int(hidden), np.float32)) if inner is None else inner)
        sizes = [(steps, batch, hidden), *[(batch, hidden)] * self.states]
        types = [relax.TensorType(size, "float32") for size in sizes]
        made = emit(relax.call_dps_packed(self.name, relax.Tuple(args), types))
        return [emit(relax.TupleGetItem(made, i)) for i in range(len(types))]
