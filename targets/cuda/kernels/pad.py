"""pad: a tensor with a value around it.

Every thread writes one unit of y, neighbours beside each other, and looks whether x has it; axes without
padding are merged, and where the innermost has none a unit is up to 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16)
import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from sparsec.ir.attributes import PadAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Node
from sparsec.targets import operators
from sparsec.targets.calls import Call, Context
from sparsec.targets.cuda import leftover
from sparsec.targets.cuda.builder import Kernel, device_function, int64
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.kernels.moves import READ_AS, cycles, items
from sparsec.targets.cuda.parts.places import coordinates, divided, number
from sparsec.targets.kernels.tiles import Numbers

#: threads of a block
THREADS = 256


@dataclass(frozen=True, slots=True)
class Padding:
    """Axes of x and of y in units of ``unit`` bytes, the units before x, and the bits of the value."""

    shape: tuple[Size, ...]
    result: tuple[Size, ...]
    before: tuple[int, ...]
    bits: int
    item: int
    unit: int


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The call for a pad."""
    x, attrs = context.type(n.args[0]), cast(PadAttrs, n.attrs)
    item, shape = items(x)
    words = np.array([attrs.value]).astype(np.dtype(x.dtype)).view(f"uint{8 * item}")
    if len(set(words.tolist())) > 1:
        # eight bytes whose halves differ
        return leftover.carried(n, context, operators.pad(x, attrs.before, attrs.value, n.type))
    before = (*attrs.before, 0)[: len(shape)]
    padding = padding_of(shape, items(n.type)[1], before, int(words[0]), item)
    count = product(padding.result)
    numbers = Numbers([*padding.shape, *padding.result, count])
    sizes = context.sizes
    return (
        device_call(
            context, "pad", padding, lambda name: emit(padding, numbers, name), (*n.args, n.name),
            tuple(map(sizes.of, numbers.dims)), sizes.ceil_divide(sizes.of(count), THREADS),
            cycles(n, context),
        ),
    )  # fmt: skip


def padding_of(
    shape: Sequence[Size], result: Sequence[Size], before: Sequence[int], bits: int, item: int
) -> Padding:
    """The padding with as few axes and as large units as possible; ``item`` is an element's bytes."""
    axes: list[tuple[Size, Size, int]] = []
    for small, large, first in zip(shape, result, before, strict=True):
        outer = axes[-1] if axes else None
        if outer and small == large and (isinstance(small, int) or outer[2] == 0):
            # what is whole belongs to the axis before it
            along = outer[2] * small if isinstance(small, int) else 0
            axes[-1] = (outer[0] * small, outer[1] * small, along)
        else:
            axes.append((small, large, first))
    *rest, last = axes or [(1, 1, 0)]
    unit = item
    for wider in (16, 8, 4, 2):
        found = [divided(size, wider // item) if wider > item else None for size in last]
        if None not in found:
            last, unit = cast(tuple[Size, Size, int], tuple(found)), wider
            break
    shapes, results, begins = zip(*rest, last, strict=True)
    return Padding(shapes, results, begins, bits, item, unit)


def emit(padding: Padding, numbers: Numbers, name: str) -> Any:
    """The TIR function; a thread writes a unit."""
    dtype, lanes = READ_AS[padding.unit]

    def body(k: Kernel) -> None:
        x, y = k.view("x", dtype), k.view("y", dtype)
        at = k.bind(k.block * THREADS + int64(k.thread))
        with k.when(at < number(numbers.value(k, product(padding.result)))):
            source, inside = _place(k, padding, numbers, at)
            words = k.registers(lanes, dtype)
            words.put(0, _filled(padding, dtype, lanes), lanes)
            with k.when(tirx.all(*inside)):
                words.put(0, x.vector(source * lanes, lanes), lanes)
            y.put(at * lanes, words.vector(0, lanes), lanes)

    bits = f"uint{8 * padding.item}"
    return device_function(name, THREADS, [("x", bits), ("y", bits)], numbers.labels, body)


def _place(k: Kernel, padding: Padding, numbers: Numbers, at: Any) -> tuple[Any, list[Any]]:
    """Where in x a unit of y comes from, and the conditions under which it does."""
    places = coordinates(k, at, [numbers.value(k, size) for size in padding.result])
    source, inside = number(0), [tirx.const(True, "bool")]
    for i, place in enumerate(places):
        size = number(numbers.value(k, padding.shape[i]))
        own = k.bind(place - padding.before[i])
        if padding.shape[i] != padding.result[i]:
            inside += [own >= 0, own < size]
        source = source * size + own
    return k.bind(source), inside


def _filled(padding: Padding, dtype: str, lanes: int) -> Any:
    """The value in as many words as a unit has."""
    width = int(dtype.removeprefix("uint")) // 8
    word = sum(padding.bits << (8 * padding.item * i) for i in range(width // padding.item))
    value = tirx.const(word, dtype)
    return T.Broadcast(value, lanes) if lanes > 1 else value
