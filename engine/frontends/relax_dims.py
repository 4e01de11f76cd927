"""Sizes inside lowered functions.

A TIR function learns its symbolic sizes from its arguments' shapes, which works only where each
size stands alone as an axis.  So before an operator is lowered, every compound size
(``2*n + 1``) is given a name of its own; the names are turned back in the results' types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import ir as tvm_ir
from tvm import relax, tirx

from sparsec.frontends.relax_types import size_of
from sparsec.ir.dims import Dim, Size, symbol
from sparsec.ir.types import Type


class CanonicalSizes:
    """The names given so far, and the sizes they stand for."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.meaning: dict[str, Size] = {source: symbol(shown) for source, shown in names.items()}
        self.vars: dict[Size, Any] = {}

    def canonical_call(self, call: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        """The call on fresh variables ``a0, a1 ...``, and which argument each stands for.

        Equal calls then lower to equal functions, whatever their variables are called.
        """
        renamed: list[tuple[Any, Any]] = []
        args = [self._argument(a, renamed) for a in call.args]
        return tvm_ir.Call(call.op, args, call.attrs, list(call.ty_args)), renamed

    def restore(self, type_: Type) -> Type:
        """A type with the given names replaced by their sizes."""
        return Type(tuple(self._restored(s) for s in type_.shape), type_.dtype)

    def _argument(self, arg: Any, renamed: list[tuple[Any, Any]]) -> Any:
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([self._argument(f, renamed) for f in arg.fields])
        if isinstance(arg, relax.ShapeExpr):
            return relax.ShapeExpr([self._named(s) for s in arg.values])
        if isinstance(arg, relax.Var | relax.TupleGetItem) and isinstance(arg.ty, relax.TensorType):
            fresh = relax.Var(f"a{len(renamed)}", self._tensor(arg.ty))
            renamed.append((fresh, arg))
            return fresh
        return arg

    def _tensor(self, ty: Any) -> Any:
        if not isinstance(ty.shape, relax.ShapeExpr):
            return ty
        return relax.TensorType([self._named(s) for s in ty.shape.values], ty.dtype)

    def _named(self, size: Any) -> Any:
        if isinstance(size, int | tirx.IntImm | tirx.Var):
            return size
        key = size_of(size)
        if not isinstance(key, Dim):
            return tirx.IntImm("int64", key)
        if key not in self.vars:
            name = f"size{len(self.vars)}_"
            self.vars[key] = tirx.Var(name, "int64")
            self.meaning[name] = self._restored(key)
        return self.vars[key]

    def _restored(self, size: Size) -> Size:
        if isinstance(size, int) or not self.meaning.keys() & set(size.symbols):
            return size
        total: Size = 0
        for names, factor in size.terms:
            term: Size = factor
            for name in names:
                term = term * self.meaning.get(name, symbol(name))
            total = total + term
        return total
