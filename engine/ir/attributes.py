"""What each kind of node says beside its arguments: see the table in ``sparsec.ir.graph``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sparsec.ir.types import Type

if TYPE_CHECKING:
    from sparsec.ir.expr import Expr
    from sparsec.sparsity.pattern import Pattern


@dataclass(frozen=True, slots=True)
class ConstAttrs:
    """``pattern``: what the zeros look like, once infer_patterns has run."""

    pattern: Pattern | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """Outputs and inputs (a convolution's channels) of a layer that the model has and the weight has not.

    Sorted, counted in the model's weight; see ``sparsec.passes.remove_channels``.
    """

    outputs: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class MatmulAttrs:
    """``epilogue`` reads the product as Arg(0) and the extra arguments as Arg(1) onward.

    ``active``: the share of x's features that were not zero in every token of a calibration
    sample, on average; None where there was none.
    """

    epilogue: Expr | None = None
    active: float | None = None
    removed: Removed = Removed()


@dataclass(frozen=True, slots=True)
class AttentionAttrs:
    """``heads``, and the ``scale`` that multiplies the scores."""

    heads: int
    scale: float


@dataclass(frozen=True, slots=True)
class ElementwiseAttrs:
    """The expression over the node's arguments."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class LayerNormAttrs:
    """``epsilon`` is added to the variance; without ``centred`` to the mean square, and there is no beta."""

    epsilon: float
    centred: bool = True


@dataclass(frozen=True, slots=True)
class SoftmaxAttrs:
    """``axis`` is non-negative; ``log`` asks for log-softmax."""

    axis: int
    log: bool = False


@dataclass(frozen=True, slots=True)
class ReduceAttrs:
    """``kind`` is sum, mean, max or min; ``axes`` are non-negative and sorted."""

    kind: str
    axes: tuple[int, ...]
    keepdims: bool


@dataclass(frozen=True, slots=True)
class TransposeAttrs:
    """``axes`` as NumPy's transpose takes them."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConvAttrs:
    """``padding`` is (top, left, bottom, right); pairs are (vertical, horizontal).

    ``epilogue`` reads the convolution as Arg(0) and the extra arguments as Arg(1) onward.
    """

    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    epilogue: Expr | None = None
    removed: Removed = Removed()


@dataclass(frozen=True, slots=True)
class PoolAttrs:
    """``kind`` is max or mean; ``padding`` (top, left, bottom, right) may be exceeded at the end.

    Whatever lies outside x never wins a max; a mean divides by the elements inside x, or with
    ``count_padding`` by those inside x and its declared padding.
    """

    kind: str
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    count_padding: bool = False


@dataclass(frozen=True, slots=True)
class ResizeAttrs:
    """``method`` is nearest or linear; the other two are ONNX Resize's words.

    ``coordinates``: half_pixel, pytorch_half_pixel, align_corners or asymmetric;
    ``rounding`` (nearest): round_prefer_floor, round_prefer_ceil, floor or ceil.
    """

    method: str
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"


@dataclass(frozen=True, slots=True)
class ConcatAttrs:
    """``axis`` is non-negative."""

    axis: int


@dataclass(frozen=True, slots=True)
class SliceAttrs:
    """``begin`` and ``step`` per axis, non-negative and positive; the type's shape says where it ends."""

    begin: tuple[int, ...]
    step: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PadAttrs:
    """``before`` elements of ``value`` on each axis, and as many after as the type's shape needs."""

    before: tuple[int, ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class RecurrentAttrs:
    """``kind`` is lstm, gru or rnn: 4, 3 or 1 gates of H columns each, in ONNX's order.

    x holds the products of all inputs with the input weights, and the biases.  An lstm reads (and
    makes) a cell state c, shaped as h, after h.  ``reverse`` runs from the last step to the first; y keeps
    the order of x.  A gru with ``reset_after`` resets the product with r rather than its operand, and
    reads the bias (H,) of that product's last gate after h (ONNX: linear_before_reset).
    """

    kind: str
    reverse: bool = False
    reset_after: bool = False


@dataclass(frozen=True, slots=True)
class TirAttrs:
    """An operator the IR has no word for, as one self-contained TIR function.

    ``source`` is the operator's name in Relax; ``module`` the TVM JSON of an IRModule with one
    PrimFunc called ``name`` taking the arguments and then the outputs as tensors;
    ``outputs`` the output types (the node's own type is the first).
    """

    source: str
    name: str
    module: str
    outputs: tuple[Type, ...]


@dataclass(frozen=True, slots=True)
class ItemAttrs:
    """Which output of a node that has several."""

    index: int


Attrs: TypeAlias = (
    ConstAttrs | MatmulAttrs | AttentionAttrs | ElementwiseAttrs | LayerNormAttrs | SoftmaxAttrs
    | ReduceAttrs | TransposeAttrs | ConvAttrs | PoolAttrs | ResizeAttrs | ConcatAttrs | SliceAttrs
    | PadAttrs | RecurrentAttrs | TirAttrs | ItemAttrs | None
)  # fmt: skip
