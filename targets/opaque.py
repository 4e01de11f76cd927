"""Running tir nodes on the machine at hand, one at a time: for oracles and constant folding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sparsec.errors import BuildError
from sparsec.ir.attributes import TirAttrs
from sparsec.ir.types import Type

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]


def run(attrs: TirAttrs, arrays: Sequence[Array], outputs: Sequence[Type]) -> list[Array]:
    """Run a tir node's function.

    Args:
        attrs: the function.
        arrays: the arguments, of the dtypes the function declares.
        outputs: the output types with all sizes known.

    Returns:
        The outputs, in order.

    Raises:
        BuildError: TVM cannot compile the function.
    """
    import tvm

    function = _compiled(attrs.name, attrs.module)
    results = [tvm.runtime.empty(tuple(t.shape), t.dtype) for t in outputs]
    # TVM's code relies on 64-byte alignment, which tensor() provides and NumPy does not
    function(*(tvm.runtime.tensor(np.asarray(a, order="C")) for a in arrays), *results)
    return [r.numpy() for r in results]


@cache
def _compiled(name: str, module: str) -> Any:
    import tvm

    try:
        loaded = tvm.ir.load_json(module)
        return tvm.compile(loaded, target=tvm.target.Target({"kind": "llvm"}))[name]
    except Exception as failure:
        raise BuildError(f"tir function {name}: {failure}") from failure
