"""Builds the plan's size expressions: numbers the executor works out from the input shapes."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsec.ir.dims import Size
from sparsec.runtime.plan import Expression, Operator


@dataclass(slots=True)
class Sizes:
    """The expression table under construction; equal expressions share one entry."""

    symbols: list[str] = field(default_factory=list)
    expressions: list[Expression] = field(default_factory=list)
    _known: dict[Expression, int] = field(default_factory=dict)

    def of(self, size: Size) -> int:
        """A number or polynomial of named sizes."""
        if isinstance(size, int):
            return self._add(Expression(Operator.CONSTANT, size))
        total: int | None = None
        for names, factor in size.terms:
            term = self.of(factor)
            for name in names:
                term = (
                    self.multiply(term, self._symbol(name)) if self._is_not(term, 1) else self._symbol(name)
                )
            total = term if total is None else self._add(Expression(Operator.ADD, total, term))
        return self.of(0) if total is None else total

    def multiply(self, a: int, b: int) -> int:
        """The product of two expressions."""
        return self._binary(Operator.MULTIPLY, a, b, lambda x, y: x * y)

    def add(self, a: int, b: int) -> int:
        """The sum of two expressions."""
        return self._binary(Operator.ADD, a, b, lambda x, y: x + y)

    def ceil_divide(self, a: int, divisor: int) -> int:
        """``ceil(a / divisor)``."""
        return self._binary(Operator.CEIL_DIVIDE, a, self.of(divisor), lambda x, y: -(-x // y))

    def constant(self, index: int) -> int | None:
        """The number an expression is, when it does not depend on the input shapes."""
        e = self.expressions[index]
        return e.a if e.operator is Operator.CONSTANT else None

    def _binary(self, operator: Operator, a: int, b: int, compute: object) -> int:
        x, y = self.constant(a), self.constant(b)
        if x is not None and y is not None and callable(compute):
            return self.of(int(compute(x, y)))
        return self._add(Expression(operator, a, b))

    def _is_not(self, index: int, number: int) -> bool:
        return self.constant(index) != number

    def _symbol(self, name: str) -> int:
        if name not in self.symbols:
            self.symbols.append(name)
        return self._add(Expression(Operator.SYMBOL, self.symbols.index(name)))

    def _add(self, expression: Expression) -> int:
        if expression not in self._known:
            self._known[expression] = len(self.expressions)
            self.expressions.append(expression)
        return self._known[expression]
