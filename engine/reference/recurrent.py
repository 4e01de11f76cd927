"""What a recurrent node means, in plain NumPy: the oracle of its kernel.

The equations are ONNX's (operators LSTM, GRU and RNN) with their default activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sparsec.ir.attributes import RecurrentAttrs
from sparsec.ir.graph import Node

Array: TypeAlias = NDArray[Any]


def recurrent(node: Node, arrays: Sequence[Array]) -> list[Array]:
    """All outputs: y (T, B, H), the last h (B, H), and an lstm's last c (B, H)."""
    attrs = cast(RecurrentAttrs, node.attrs)
    x, weight, *rest = arrays
    shape = (x.shape[1], weight.shape[0])
    states = 2 if attrs.kind == "lstm" else 1
    state = tuple(np.broadcast_to(a, shape) for a in rest[:states])
    step = _step(attrs, weight, rest[states:])
    y = np.zeros((len(x), *shape), x.dtype)
    with np.errstate(all="ignore"):
        for t in reversed(range(len(x))) if attrs.reverse else range(len(x)):
            state = step(x[t], *state)
            y[t] = state[0]
    return [y, *state]


def _step(attrs: RecurrentAttrs, weight: Array, biases: Sequence[Array]) -> Callable[..., tuple[Array, ...]]:
    """One step: from the gates' share of the input and the state to the next state."""
    if attrs.kind == "gru" and attrs.reset_after:
        return lambda x, h: _gru_reset_after(x, h, weight, biases[0])
    return lambda x, *state: _STEPS[attrs.kind](x, weight, *state)


def _lstm(x: Array, weight: Array, h: Array, c: Array) -> tuple[Array, ...]:
    i, o, f, g = np.split(x + h @ weight, 4, axis=1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def _gru(x: Array, weight: Array, h: Array) -> tuple[Array, ...]:
    (xz, xr, xn), (wz, wr, wn) = np.split(x, 3, axis=1), np.split(weight, 3, axis=1)
    z, r = _sigmoid(xz + h @ wz), _sigmoid(xr + h @ wr)
    return ((1 - z) * np.tanh(xn + (r * h) @ wn) + z * h,)


def _gru_reset_after(x: Array, h: Array, weight: Array, bias: Array) -> tuple[Array, ...]:
    (xz, xr, xn), (hz, hr, hn) = np.split(x, 3, axis=1), np.split(h @ weight, 3, axis=1)
    z, r = _sigmoid(xz + hz), _sigmoid(xr + hr)
    return ((1 - z) * np.tanh(xn + r * (hn + bias)) + z * h,)


def _rnn(x: Array, weight: Array, h: Array) -> tuple[Array, ...]:
    return (np.tanh(x + h @ weight),)


def _sigmoid(x: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-x))
    return found


_STEPS: Mapping[str, Callable[..., tuple[Array, ...]]] = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}
