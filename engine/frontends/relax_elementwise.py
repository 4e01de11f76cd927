"""Relax's elementwise operators as expression trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import pi, sqrt
from typing import Any

from sparsec.ir.expr import Expr, Scalar, call, clip, gelu, relu, silu

#: builds the expression of a call from its operands' expressions
Rule = Callable[[Any, Sequence[Expr]], Expr]


def _named(function: str) -> Rule:
    return lambda _call, operands: call(function, *operands)


def _unary(build: Callable[[Expr], Expr]) -> Rule:
    return lambda _call, operands: build(operands[0])


def _swapped(function: str) -> Rule:
    return lambda _call, operands: call(function, operands[1], operands[0])


def _not(x: Expr) -> Expr:
    return call("sub", Scalar(1.0), x)


def _power(_call: Any, operands: Sequence[Expr]) -> Expr:
    base, exponent = operands
    if not isinstance(exponent, Scalar):
        return call("pow", base, exponent)
    special: Mapping[float, Callable[[], Expr]] = {
        1.0: lambda: base,
        2.0: lambda: call("mul", base, base),
        3.0: lambda: call("mul", call("mul", base, base), base),
        0.5: lambda: call("sqrt", base),
        -1.0: lambda: call("div", Scalar(1.0), base),
        -0.5: lambda: call("rsqrt", base),
    }
    build = special.get(exponent.value)
    return build() if build else call("pow", base, exponent)


def _clip(relax_call: Any, operands: Sequence[Expr]) -> Expr:
    low, high = (float(bound.value) for bound in relax_call.args[1:3])
    return clip(operands[0], low, high)


def _leaky_relu(relax_call: Any, operands: Sequence[Expr]) -> Expr:
    return _two_slopes(operands[0], Scalar(float(relax_call.attrs.alpha)))


def _two_slopes(x: Expr, slope: Expr) -> Expr:
    negative = call("mul", slope, call("min", x, Scalar(0.0)))
    return call("add", relu(x), negative)


def _gelu_tanh(x: Expr) -> Expr:
    # the tanh approximation of Hendrycks and Gimpel 2016, section 2
    cubic = call("mul", Scalar(0.044715), call("mul", call("mul", x, x), x))
    inner = call("tanh", call("mul", Scalar(sqrt(2.0 / pi)), call("add", x, cubic)))
    return call("mul", call("mul", x, Scalar(0.5)), call("add", Scalar(1.0), inner))


def _softplus(relax_call: Any, operands: Sequence[Expr]) -> Expr:
    x = operands[0]
    beta = float(relax_call.attrs.beta)
    scaled = call("mul", x, Scalar(beta))
    # log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|)) cannot overflow
    tail = call("log", call("add", Scalar(1.0), call("exp", call("neg", call("abs", scaled)))))
    smooth = call("div", call("add", relu(scaled), tail), Scalar(beta))
    linear = call("less", Scalar(float(relax_call.attrs.threshold)), scaled)
    return call("where", linear, x, smooth)


def _selu(x: Expr) -> Expr:
    # constants of Klambauer et al. 2017
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    negative = call("sub", call("exp", call("min", x, Scalar(0.0))), Scalar(1.0))
    return call("mul", Scalar(scale), call("add", relu(x), call("mul", Scalar(alpha), negative)))


def _tan(x: Expr) -> Expr:
    return call("div", call("sin", x), call("cos", x))


#: operators from float32 to float32
FLOAT_RULES: Mapping[str, Rule] = {
    "relax.add": _named("add"),
    "relax.subtract": _named("sub"),
    "relax.multiply": _named("mul"),
    "relax.divide": _named("div"),
    "relax.maximum": _named("max"),
    "relax.minimum": _named("min"),
    "relax.power": _power,
    "relax.negative": _named("neg"),
    "relax.abs": _named("abs"),
    "relax.exp": _named("exp"),
    "relax.log": _named("log"),
    "relax.sqrt": _named("sqrt"),
    "relax.rsqrt": _named("rsqrt"),
    "relax.square": _unary(lambda x: call("mul", x, x)),
    "relax.tanh": _named("tanh"),
    "relax.sigmoid": _named("sigmoid"),
    "relax.erf": _named("erf"),
    "relax.floor": _named("floor"),
    "relax.ceil": _named("ceil"),
    "relax.round": _named("round"),
    "relax.sign": _named("sign"),
    "relax.sin": _named("sin"),
    "relax.cos": _named("cos"),
    "relax.tan": _unary(_tan),
    "relax.clip": _clip,
    "relax.nn.relu": _unary(relu),
    "relax.nn.relu6": _unary(lambda x: clip(x, 0.0, 6.0)),
    "relax.nn.leakyrelu": _leaky_relu,
    "relax.nn.gelu": _unary(gelu),
    "relax.nn.gelu_tanh": _unary(_gelu_tanh),
    "relax.nn.silu": _unary(silu),
    "relax.nn.softplus": _softplus,
    "relax.nn.selu": _unary(_selu),
}

#: operators from float32 to bool; the expression gives 1 or 0
COMPARISONS: Mapping[str, Rule] = {
    "relax.less": _named("less"),
    "relax.less_equal": _named("less_equal"),
    "relax.greater": _swapped("less"),
    "relax.greater_equal": _swapped("less_equal"),
    "relax.equal": _named("equal"),
    "relax.not_equal": lambda _call, operands: _not(call("equal", *operands)),
}

#: operators from bool to bool
LOGIC: Mapping[str, Rule] = {
    "relax.logical_and": _named("mul"),
    "relax.logical_or": _named("max"),
    "relax.logical_not": _unary(_not),
}
