"""What happens to a finished accumulator before it is stored: bias, residual, activation."""

from __future__ import annotations

from typing import Any

from sparsec.targets.kernels import math
from sparsec.targets.kernels.builder import Kernel
from sparsec.targets.target import Problem


def extra_pointers(problem: Problem) -> list[tuple[str, str]]:
    """The pointer parameters of a problem's extra arguments, in order."""
    return [(f"extra{i}", problem.dtype) for i in range(len(problem.extras))]


def finish(k: Kernel, problem: Problem, value: Any, row: Any, offset: Any, lanes: int | None = None) -> Any:
    """Apply the epilogue to a vector of one output feature.

    ``row`` is the output feature, ``offset`` the vector's element offset in y (and in any
    extra of y's shape).
    """
    if problem.epilogue is None:
        return value
    width = lanes or k.lanes

    def operand(index: int) -> Any:
        if index == 0:
            return value
        buffer, kind = k[f"extra{index - 1}"], problem.extras[index - 1]
        if kind == "full":
            return k.vector(buffer, offset, width)
        return k.splat(buffer[row if kind == "row" else 0], width)

    return math.emit(k, problem.epilogue, operand, value)


def finish_across(k: Kernel, problem: Problem, value: Any, row: Any, offset: Any, lanes: int) -> Any:
    """Like :func:`finish` for a vector of ``lanes`` neighbouring output features of one column."""
    if problem.epilogue is None:
        return value

    def operand(index: int) -> Any:
        if index == 0:
            return value
        buffer, kind = k[f"extra{index - 1}"], problem.extras[index - 1]
        if kind == "one":
            return k.splat(buffer[0], lanes)
        return k.vector(buffer, offset if kind == "full" else row, lanes)

    return math.emit(k, problem.epilogue, operand, value)
