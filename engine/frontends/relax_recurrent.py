"""Calls of ``sparsec.recurrent``, which frontends write where Relax has no word for recurrence, as nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import relax

from sparsec.errors import Unsupported
from sparsec.ir.attributes import ItemAttrs, RecurrentAttrs
from sparsec.ir.graph import Op

if TYPE_CHECKING:
    from sparsec.frontends.from_relax import Converter
    from sparsec.frontends.relax_values import Value

#: what the called function's name begins with; then kind[_reset_after][_reverse]
CALLED = "sparsec.recurrent."


def recurrent(converter: Converter, relax_call: Any, name: str) -> Value:
    """One recurrent node and its items, from ``call_dps_packed``.

    Raises:
        Unsupported: it calls something else.
    """
    function, operands = relax_call.args
    called = str(getattr(function, "global_symbol", function))
    if not called.startswith(CALLED) or not isinstance(operands, relax.Tuple):
        raise Unsupported(f"a call of {called}, a function outside the model")
    kind, *how = called.removeprefix(CALLED).split("_", 1)
    attrs = RecurrentAttrs(kind, "reverse" in "".join(how), "reset_after" in "".join(how))
    args = [converter.node(a) for a in operands.fields]
    types = [converter.type(t) for t in relax_call.ty.fields]
    origin = converter.origin[1] or kind
    made = converter.building.add(name, Op.RECURRENT, args, types[0], attrs, origin)
    return tuple(
        converter.building.add(f"{made}_{i}", Op.ITEM, (made,), t, ItemAttrs(i), origin)
        for i, t in enumerate(types)
    )
