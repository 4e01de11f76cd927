"""lowering_recurrent: one recurrent layer becomes one kernel call."""

from __future__ import annotations

from typing import Any, cast

from sparsec.errors import Unsupported
from sparsec.ir.attributes import RecurrentAttrs
from sparsec.ir.graph import Node
from sparsec.targets.calls import Call, Context, kernel_call, known, written
from sparsec.targets.target import Target


def recurrent_shape(nodes: Any, n: Node, target: Target) -> Any:
    """What the kernel of a recurrent node is generated for."""
    from sparsec.targets.kernels import recurrent

    attrs = cast(RecurrentAttrs, n.attrs)
    batch, hidden = n.type.shape[1], cast(int, n.type.shape[2])
    states = 2 if attrs.kind == "lstm" else 1
    shared = tuple(nodes[a].type.shape[0] == 1 != batch for a in n.args[2 : 2 + states])
    together = recurrent.sequences_a_tile(batch if isinstance(batch, int) else None, target)
    return recurrent.Shape(attrs, hidden, together, shared)


def recurrent(n: Node, context: Context) -> Call:
    """The call that runs all steps.

    Raises:
        Unsupported: the recurrent weight is no constant.
    """
    from sparsec.targets.kernels import recurrent as kernel

    if not n.choice:
        raise Unsupported(f"{n.name} (recurrent): the recurrent weight must be constant")
    shape = recurrent_shape(context.nodes, n, context.target)
    steps, batch = n.type.shape[:2]
    sizes = context.sizes
    y, *last = (name for name, _ in written(context.nodes.values(), n))
    reads = (n.args[0], n.choice[0].packed[0], *n.args[2 : 2 + len(shape.shared)], *n.choice[0].packed[1:])
    return kernel_call(
        context, "recurrent", shape, lambda name: kernel.emit(shape, context.target, name),
        (*reads, *last, y), (sizes.of(steps), sizes.of(batch)),
        sizes.ceil_divide(sizes.of(batch), shape.sequences),
        sizes.of(4 * kernel.scratch_floats(shape, context.target)),
        kernel.predict(shape, known(steps), known(batch), context.target),
    )  # fmt: skip
