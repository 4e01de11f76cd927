"""What a target is and what a kernel must provide: frozen facts, no tvm import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sparsec.ir.expr import Expr
from sparsec.targets.geometry import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsec.sparsity.pattern import Pattern


@dataclass(frozen=True, slots=True)
class Gpu:
    """Figures of a GPU; rates are per cycle of its clock, of one multiprocessor unless noted."""

    multiprocessors: int
    #: floating-point operations of its tensor cores on float16, dense, and of its float32 units
    tensor_flops: float
    flops: float
    #: bytes all multiprocessors together read from L2 and from memory
    l2_bytes: float
    dram_bytes: float
    #: cycles from one kernel of a graph to the next
    launch: float


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to generate code for.

    Sizes are bytes; ``lanes`` float32 per vector register; ``cycles`` figures are per core.
    ``features`` are the names ``/proc/cpuinfo`` uses (and ``sve256``: scalable vectors of 256 bits);
    an artifact refuses to load without them.
    """

    name: str
    mcpu: str
    features: tuple[str, ...]
    lanes: int
    registers: int
    l1: int = 32 * 1024
    l2: int = 512 * 1024
    l3: int = 16 * 1024 * 1024
    gigahertz: float = 3.4
    mattr: tuple[str, ...] = ()
    #: LLVM's triple of another architecture than x86-64, and command line options of its code generator
    triple: str = ""
    options: tuple[str, ...] = ()
    #: threads that a program is made for; it runs on any number of them, with the same results
    threads: int = 1
    #: what can run a layer, in the order ties are broken
    kernels: tuple[Kernel, ...] = ()
    #: further targets that code is made for from the same plan and weights (see targets.several)
    others: tuple[Target, ...] = ()
    #: bytes a cycle one core reads from L2, L3 and memory
    l2_bytes: float = 32.0
    l3_bytes: float = 16.0
    dram_bytes: float = 6.0
    #: bytes a cycle one core reads from L1, and vector multiply-adds a cycle
    l1_bytes: float = 60.0
    fmas: float = 2.0
    #: elements a cycle read at random places of L1; cycles lost where a loop ends unforeseen
    gathers: float = 1.2
    mispredict: float = 18.0
    #: figures of a GPU; None where code is for a processor
    gpu: Gpu | None = None
    #: dtypes that layers may compute in, and the one that float32 models compute in
    dtypes: tuple[str, ...] = ("float32",)
    dtype: str = "float32"
    #: that of inputs and outputs which the model has in float32
    port_dtype: str = "float32"

    @property
    def architecture(self) -> str:
        """``x86_64``, ``aarch64`` or ``cuda``: which instructions there are, for kernels that name some."""
        return self.triple.partition("-")[0] or "x86_64"

    @property
    def tvm_target(self) -> dict[str, Any]:
        """The dictionary ``tvm.target.Target`` takes."""
        if self.gpu:
            return {"kind": "cuda", "arch": self.mcpu}
        described: dict[str, Any] = {"kind": "llvm", "mcpu": self.mcpu}
        if self.mattr:
            described["mattr"] = list(self.mattr)
        if self.triple:
            described["mtriple"] = self.triple
        if self.options:
            described["cl-opt"] = list(self.options)
        return described


@dataclass(frozen=True, slots=True)
class Problem:
    """One layer as a kernel sees it; equal problems share one compiled kernel.

    ``y[M, N] = epilogue(w[M, K] @ x[K, N], extras)``; ``columns`` is N or None when it is only
    known at run time; ``panel`` the width of the token panels (0: x and y are row-major
    ``[N][K]``, ``[N][M]``).  ``extras`` says what each extra argument is: "row" (one number per
    output feature), "full" (same shape and layout as y), or "one" (a single number).

    ``active`` is the share of inputs that were not zero in all columns of calibration samples, None
    where nobody looked; code does not depend on it.

    With ``conv``, x is (images, groups * C, H, W), y (images, M, out H, out W), row-major; the inner
    dimension K counts taps before channels, ``K = R * S * C``, and N all output positions.
    """

    rows: int
    inner: int
    columns: int | None
    panel: int
    epilogue: Expr | None = None
    extras: tuple[str, ...] = ()
    dtype: str = "float32"
    conv: Geometry | None = None
    active: float | None = None


@dataclass(frozen=True, slots=True)
class Packing:
    """A weight as a kernel reads it: named arrays in argument order, and their bytes.

    ``tiles`` is the number of units of work the rows are split into (per column panel).
    ``config`` holds what packing learned and the emitted code must know.
    """

    arrays: Mapping[str, NDArray[Any]] = field(hash=False)
    tiles: int
    config: tuple[tuple[str, int], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.arrays.values())


class Kernel(Protocol):
    """What each file under ``targets/kernels`` that runs a weight provides (see csr_spmm)."""

    @property
    def name(self) -> str:
        """File, function, debug print and report all use this word."""

    @property
    def format(self) -> str:
        """The name of the format in ``sparsec.formats`` it reads."""

    def accepts(self, problem: Problem, pattern: Pattern, target: Target) -> bool:
        """Whether it can run the problem."""

    def space(self, problem: Problem, pattern: Pattern, target: Target) -> tuple[dict[str, int], ...]:
        """Configurations worth trying; the first is the default."""

    def predict(self, problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> float:
        """Predicted cycles of one run on one core."""

    def pack(
        self, weight: NDArray[Any], problem: Problem, config: Mapping[str, int], target: Target
    ) -> Packing:
        """Pack ``weight[M, K]``."""

    def nbytes(self, problem: Problem, pattern: Pattern, config: Mapping[str, int], target: Target) -> int:
        """Predicted bytes of the packed weight."""

    def emit(self, problem: Problem, packing: Packing, target: Target, name: str) -> Any:
        """The TIR function; same inputs, same text."""
