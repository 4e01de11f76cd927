"""recurrent: all steps of one LSTM, GRU or RNN layer for a few sequences of the batch a block.

What the input adds to the gates comes ready from one product over all steps; a step is then the product of
the state with the recurrent weight, and the gates.  A block stays for all steps: the state never
leaves its shared memory, nor does the weight where it fits there; a larger one is read from L2 at every step,
whose bytes are the work.  It is stored as it is read, [16 bytes of inputs][gates][units][inputs], so that
neighbouring threads, each with a unit, read 16 neighbouring bytes of one gate.  Layers of few units are
shared by inputs too: threads then hold parts of the sums.  Sequences of a block share the weight's loads.
State and sums are float32 whatever the dtype.  The steps are written by ``recurrent_steps``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import cast

from sparsec.errors import Unsupported
from sparsec.ir.attributes import RecurrentAttrs
from sparsec.ir.graph import Node, outputs_of, replace
from sparsec.targets.calls import Call, Context, known, written
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.cost import gpu_of
from sparsec.targets.cuda.kernels.recurrent_steps import emit
from sparsec.targets.cuda.parts.recurrent_shape import READ, Areas, Shape
from sparsec.targets.target import Target

#: most sequences of a block
TOGETHER = 4
#: bytes a cycle that one multiprocessor reads from L2 and from shared memory; cycles of a step's barriers
_FROM_L2, _FROM_SHARED, _BARRIERS = 50.0, 110.0, 1500.0


def shape_of(n: Node, nodes: Mapping[str, Node], target: Target) -> Shape | None:
    """What a recurrent node's kernel is generated for; None: one sequence's state exceeds shared memory."""
    attrs = cast(RecurrentAttrs, n.attrs)
    batch, hidden = n.type.shape[1], cast(int, n.type.shape[2])
    states = n.args[2 : 4 if attrs.kind == "lstm" else 3]
    bias = n.args[3:4] if attrs.reset_after else ()
    last = outputs_of(n)[1:]
    dtypes = (
        *(nodes[a].type.dtype for a in (*n.args[:2], *states, *bias)), *(t.dtype for t in last), n.type.dtype,
    )  # fmt: skip
    shared = tuple(nodes[a].type.shape[0] == 1 != batch for a in states)
    multiprocessors = gpu_of(target).multiprocessors
    together = -(-batch // multiprocessors) if isinstance(batch, int) else 2
    return fitted(Shape(attrs, hidden, max(1, min(TOGETHER, together)), shared, True, dtypes), target)


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The call that runs all steps of a recurrent node.

    Raises:
        Unsupported: the recurrent weight is no constant, or the state of one sequence exceeds
            shared memory.
    """
    if not n.choice:
        raise Unsupported(f"{n.name} (recurrent): the recurrent weight must be constant")
    steps, batch, hidden = n.type.shape
    shape = shape_of(n, context.nodes, context.target)
    if shape is None:
        raise Unsupported(f"{n.name} (recurrent): the state of {hidden} units exceeds shared memory")
    values, *bias = n.choice[0].packed
    y, *last = (name for name, _ in written(context.nodes.values(), n))
    sizes = context.sizes
    reads = (n.args[0], values, *n.args[2 : 2 + len(shape.shared)], *bias, *last, y)
    cycles = predict(shape, known(steps), known(batch), context.target)
    return (
        device_call(
            context, "recurrent", shape, lambda name: emit(shape, name), reads,
            (sizes.of(steps), sizes.of(batch)), sizes.ceil_divide(sizes.of(batch), shape.sequences), cycles,
        ),
    )  # fmt: skip


def fitted(shape: Shape, target: Target) -> Shape | None:
    """The shape with what shared memory holds: the weight if it does, else as many sequences as it does."""
    room = target.l1
    resident = shape.weights * READ // shape.inputs
    while True:
        state = 4 * Areas(shape).floats
        if state + resident <= room:
            return replace(shape, resident=True)
        if state <= room:
            return replace(shape, resident=False)
        if shape.sequences == 1:
            return None
        shape = replace(shape, sequences=shape.sequences - 1)


def predict(shape: Shape, steps: int, batch: int, target: Target) -> float:
    """Cycles: every block reads the weight once a step."""
    gpu = gpu_of(target)
    rate = _FROM_SHARED if shape.resident else _FROM_L2
    waves = ceil(batch / shape.sequences / gpu.multiprocessors)
    return gpu.launch + waves * steps * (shape.weights * READ / shape.inputs / rate + _BARRIERS)
