"""Pads that TVM's ONNX importer lowers to TIR at once, as Relax operators again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, tirx

from sparsec.frontends.relax_calls import op_name


def restore_pads(module: Any) -> Any:
    """``call_tir(pad, x)`` as ``nn.pad(x)``."""
    return _Restoring(module).restored()


@relax.expr_functor.mutator
class _Restoring(relax.PyExprMutator):  # type: ignore[misc]
    """Rewrites ``main``; functions nobody calls any more go with dead code."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.module = module

    def restored(self) -> Any:
        main = self.module.get_global_var("main")
        self.builder_.update_func(main, self.visit_expr(self.module[main]))
        return self.builder_.get()

    def visit_call_(self, call: Any) -> Any:
        """A pad's call replaced, any other as it was."""
        visited = super().visit_call_(call)
        if op_name(visited) != "relax.call_tir" or not str(visited.args[0].name_hint).startswith("pad"):
            return visited
        found = _before_and_value(self.module[visited.args[0]])
        if found is None:
            return visited
        (x,) = visited.args[1].fields
        widths = _widths(found[0], x.ty.shape.values, call.ty.shape.values)
        if not any(widths):
            return x
        return relax.op.nn.pad(x, widths, "constant", found[1])


def _before_and_value(function: Any) -> tuple[list[int], float] | None:
    """Of ``y[i] = if_then_else(inside, x[i - before], value)``, if that is all a function does.

    Without padding it is ``y[i] = x[i]``.
    """
    store = function.body
    while not isinstance(store, tirx.BufferStore):
        store = getattr(store, "body", None) or getattr(getattr(store, "block", None), "body", None)
        if store is None:
            return None
    source, fill = store.value, tirx.FloatImm("float32", 0.0)
    if isinstance(source, tvm.ir.Call) and getattr(source.op, "name", "") == "prim.if_then_else":
        source, fill = source.args[1:]
    if not isinstance(source, tvm.ir.TensorLoad) or not isinstance(fill, tirx.FloatImm):
        return None
    analyzer = tvm.sym.Analyzer()
    before = [analyzer.simplify(at - index) for at, index in zip(store.indices, source.indices, strict=True)]
    constant = all(isinstance(width, tirx.IntImm) for width in before)
    return ([int(width) for width in before], float(fill.value)) if constant else None


def _widths(before: Sequence[int], x: Sequence[Any], result: Sequence[Any]) -> list[int]:
    """Elements before and after, axis by axis; an open size is not padded at its end."""
    analyzer = tvm.sym.Analyzer()
    total = [analyzer.simplify(after - size) for size, after in zip(x, result, strict=True)]
    return [width for b, t in zip(before, total, strict=True) for width in (b, int(t) - b)]
