"""Runs one generated kernel on this machine, outputs poisoned, without plan or executor."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import tvm
from kernel_cases import EPILOGUES

from sparsec.targets.build import module_of
from sparsec.targets.target import Packing, Problem, Target

POISON = np.float32(np.nan)
#: words either side of y that no kernel may write, and what they hold
GUARD_WORDS, GUARD = 64, np.float32(-12345.5)

_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def aligned(array: Any) -> Any:
    """A copy whose data starts at a multiple of 64 bytes."""
    array = np.ascontiguousarray(array)
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def fenced(array: Any) -> Any:
    """An aligned copy; reading a cache line beyond its end is a segmentation fault.

    Weights are mapped from files, so a kernel that reads past an array may read past the file.
    """
    array = np.ascontiguousarray(array)
    held = -(-array.nbytes // 64) * 64
    pages = -(-held // mmap.PAGESIZE) * mmap.PAGESIZE
    raw = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
    raw[:pages] = 0xFF  # NaN as float32, far away as an index
    if _protect(raw.ctypes.data + pages, mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "cannot protect a page")
    view = raw[pages - held : pages - held + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def guarded(shape: Sequence[int]) -> tuple[Any, Any]:
    """A poisoned output and the array that holds it, guard words either side included."""
    size = int(np.prod(shape))
    whole = aligned(np.full(size + 2 * GUARD_WORDS, GUARD, np.float32))
    y = whole[GUARD_WORDS : GUARD_WORDS + size].reshape(shape)
    y[...] = POISON
    return y, whole


def guards_hold(whole: Any) -> bool:
    """Whether nothing wrote beside the output."""
    return bool((whole[:GUARD_WORDS] == GUARD).all() and (whole[-GUARD_WORDS:] == GUARD).all())


def call(
    entry: Callable[..., None], buffers: Sequence[Any], sizes: Sequence[int], tiles: tuple[int, int],
    scratch_bytes: int = 1 << 20,
) -> None:  # fmt: skip
    """One call; ``buffers`` are aligned arrays in parameter order."""
    # all of it NaN: what an earlier call left there must not matter
    scratch = fenced(np.full(max(16, scratch_bytes // 4), POISON, np.float32))
    pointers = [ctypes.c_void_p(b.ctypes.data) for b in buffers]
    entry(tvm.runtime.from_dlpack(scratch), *pointers, *sizes, *tiles)


def to_panels(x: Any, panel: int) -> Any:
    """``x[tokens, features]`` in token panels; lanes beyond the last token hold NaN."""
    tokens, features = x.shape
    count = -(-tokens // panel)
    padded = np.full((count * panel, features), POISON, np.float32)
    padded[:tokens] = x
    return aligned(padded.reshape(count, panel, features).transpose(0, 2, 1))


def from_panels(y: Any, tokens: int) -> Any:
    """The inverse of :func:`to_panels`."""
    count, features, panel = y.shape
    return y.transpose(0, 2, 1).reshape(count * panel, features)[:tokens]


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a kernel: its inputs as the kernel reads them, and the right answer.

    ``emit(name)`` makes the TIR; cases of equal ``key`` share machine code.  ``inputs`` come in
    parameter order, y (``shape``) after them, then ``numbers`` and the tiles.  ``logical``
    turns y into the shape of ``expected`` and ``allowed`` (float64, the second an error bound).
    """

    label: str
    target: Target
    key: Any
    emit: Callable[[str], Any]
    inputs: tuple[Any, ...]
    shape: tuple[int, ...]
    tiles: int
    expected: Any
    allowed: Any
    numbers: tuple[int, ...] = ()
    scratch_floats: int = 16
    logical: Callable[[Any], Any] = lambda y: y
    config: Mapping[str, int] = field(default_factory=dict)

    def check(self, y: Any) -> None:
        """Assert that an output is right, infinities included."""
        found = self.logical(y).astype(np.float64)
        with np.errstate(invalid="ignore"):
            error = np.abs(found - self.expected)
        wrong = ~((error <= self.allowed) | (found == self.expected))
        assert not wrong.any(), (
            f"{self.label}: {wrong.sum()} of {wrong.size} wrong, first at "
            f"{tuple(np.argwhere(wrong)[0].tolist())}, largest error {np.nanmax(error):g}"
        )


def make_case(
    kernel: ModuleType, weight: Any, tokens: int, panel: int, target: Target,
    config: Mapping[str, int], epilogue: str = "none", columns: int | None = -1, seed: int = 0,
) -> Case:  # fmt: skip
    """Pack a weight and draw fresh inputs; ``columns`` None leaves them unknown to the kernel."""
    rows, inner = weight.shape
    ending = EPILOGUES[epilogue]
    told = tokens if columns == -1 else columns
    problem = Problem(rows, inner, told, panel, ending.expression, ending.extras)
    packing = kernel.pack(weight, problem, config, target)
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, inner)).astype(np.float32)
    sizes = {"row": (rows,), "full": (tokens, rows), "one": (1,)}
    extras = [random.standard_normal(sizes[kind]).astype(np.float32) for kind in ending.extras]
    laid_out = [lay_out(e, panel) if e.ndim == 2 else e for e in extras]
    panels = -(-tokens // panel) if panel else 1
    scratch = getattr(kernel, "scratch_floats", lambda *_: 16)
    product = x.astype(np.float64) @ weight.T.astype(np.float64)
    # kernels must not look at the arrays: equal problems share one compiled kernel
    known = Packing({}, packing.tiles, packing.config)
    return Case(
        label=f"{kernel.name} {target.name} {rows}x{inner}x{tokens} panel {panel} {epilogue} {dict(config)}",
        target=target,
        key=(kernel.name, problem, packing.config, target),
        emit=lambda name: kernel.emit(problem, known, target, name),
        inputs=(lay_out(x, panel), *packing.arrays.values(), *laid_out),
        shape=(panels, rows, panel) if panel else (tokens, rows),
        tiles=panels * packing.tiles,
        expected=ending.reference(product, *(e.astype(np.float64) for e in extras)),
        allowed=rounding(x, weight.T),
        numbers=(tokens,) if panel and told is None else (),
        scratch_floats=scratch(problem, packing, target),
        logical=partial(from_panels, tokens=tokens) if panel else lambda y: y,
        config=dict(packing.config),
    )


def rounding(a: Any, b: Any) -> Any:
    """Allowed error of the float32 product ``a @ b``.

    Rounding of a sum of K products grows like the square root of K (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, section 2.8).
    """
    magnitude = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    return 1.2 * np.finfo(np.float32).eps * (4 + a.shape[-1] ** 0.5) * magnitude + 3e-6


def lay_out(x: Any, panel: int) -> Any:
    """``x[tokens, features]`` as stored: token panels, or row-major for panel 0."""
    return to_panels(x, panel) if panel else x


_entries: dict[Any, Callable[..., None]] = {}


def entry_of(case: Case) -> Callable[..., None]:
    """The machine code of a case, compiled once."""
    if case.key not in _entries:
        _entries[case.key] = module_of(case.emit("kernel_under_test"), case.target)["kernel_under_test"]
    return _entries[case.key]


def run_case(case: Case, calls: Sequence[tuple[int, int]] | None = None) -> Any:
    """Run a case in one call, or in several; returns y after checking its guards."""
    entry = entry_of(case)
    y, whole = guarded(case.shape)
    buffers = [*(fenced(a) for a in case.inputs), y]
    for tiles in calls or ((0, case.tiles),):
        call(entry, buffers, case.numbers, tiles, case.scratch_floats * 4)
    assert guards_hold(whole), f"{case.label}: wrote beside y"
    return y


def in_three_calls(case: Case) -> list[tuple[int, int]]:
    """All tiles in three calls, the last tiles first."""
    cut, low = case.tiles // 2, case.tiles // 4
    return [(cut, case.tiles), (low, cut), (0, low)]


def check_case(case: Case) -> None:
    """The answer is right, and the same to the bit in several calls."""
    y = run_case(case)
    case.check(y)
    if case.tiles > 1:
        again = run_case(case, in_three_calls(case))
        same = case.logical(y).tobytes() == case.logical(again).tobytes()
        assert same, f"{case.label}: depends on how tiles are split into calls"
