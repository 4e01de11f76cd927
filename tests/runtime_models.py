"""Small models for the tests of the runtime: plans by hand, kernels in C, no TVM."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparsec.runtime
from sparsec.runtime.artifact import to_bytes, weight_offsets
from sparsec.runtime.plan import (
    Argument,
    ArgumentKind,
    Buffer,
    BufferKind,
    Expression,
    Operator,
    Plan,
    Port,
    Step,
    Tensor,
)

Array = NDArray[Any]
CSRC = Path(sparsec.runtime.__file__).parent / "csrc"

SCRATCH = Argument(ArgumentKind.SCRATCH)
BEGIN = Argument(ArgumentKind.TILE_BEGIN)
END = Argument(ArgumentKind.TILE_END)

#: Kernels with the binary interface that TVM's have.  ROWS of 64 floats are the tiles.
KERNELS = r"""
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "abi.h"
#define KERNEL(name) \
    int32_t __tvm_ffi_##name(void *self, const TVMFFIAny *a, int32_t count, TVMFFIAny *result)
#define UNUSED (void)self, (void)a, (void)count, (void)result
extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void *);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);

static int32_t refuse(const char *why) {
    const char *parts[] = {"because ", why};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 2);
    return -1;
}
static int aligned(const void *p) { return (uintptr_t)p % 64 == 0; }

/* y = 2x; x, y, number of items, tiles of 64 items */
KERNEL(twice) {
    UNUSED;
    const float *x = a[0].v_ptr; float *y = a[1].v_ptr; int64_t n = a[2].v_int64;
    if (!aligned(x) || !aligned(y)) return refuse("memory is not aligned");
    for (int64_t i = a[3].v_int64 * 64; i < a[4].v_int64 * 64 && i < n; i++) y[i] = 2 * x[i];
    return 0;
}

/* y[r, :] = softmax(x[r, :]) through scratch memory; scratch, x, y, columns, tiles of one row */
KERNEL(softmax) {
    UNUSED;
    DLTensor *scratch = a[0].v_ptr; const float *x = a[1].v_ptr; float *y = a[2].v_ptr;
    int64_t n = a[3].v_int64; float *t = scratch->data;
    if (!aligned(t) || scratch->ndim != 1 || scratch->shape[0] < n || scratch->shape[0] < 16
        || scratch->strides || scratch->dtype.code != 2 || scratch->dtype.bits != 32
        || scratch->device.device_type != 1)
        return refuse("scratch memory is wrong");
    for (int64_t r = a[4].v_int64; r < a[5].v_int64; r++) {
        float high = -INFINITY, sum = 0;
        for (int64_t i = 0; i < n; i++) high = fmaxf(high, x[r * n + i]);
        for (int64_t i = 0; i < n; i++) sum += t[i] = expf(x[r * n + i] - high);
        for (int64_t i = 0; i < n; i++) y[r * n + i] = t[i] / sum;
    }
    return 0;
}

/* y = x + w (w repeats every `columns`); x, w, y, columns, tiles of one row */
KERNEL(add_row) {
    UNUSED;
    const float *x = a[0].v_ptr, *w = a[1].v_ptr; float *y = a[2].v_ptr; int64_t n = a[3].v_int64;
    if (!aligned(w)) return refuse("weights are not aligned");
    for (int64_t i = a[4].v_int64 * n; i < a[5].v_int64 * n; i++) y[i] = x[i] + w[i % n];
    return 0;
}

/* copies tensor 0 to tensor 1 through nested workspaces */
KERNEL(copy_tensor) {
    UNUSED;
    DLTensor *x = a[0].v_ptr, *y = a[1].v_ptr;
    if (a[0].type_index != 7 || x->ndim != y->ndim || x->dtype.bits != y->dtype.bits)
        return refuse("tensors are wrong");
    int64_t bytes = x->dtype.bits / 8;
    for (int i = 0; i < x->ndim; i++) bytes *= x->shape[i];
    char *one = __TVMBackendAllocWorkspace(1, 0, bytes, 2, 32);
    char *two = __TVMBackendAllocWorkspace(1, 0, 100, 2, 32);
    if (!one || !two || !aligned(one) || !aligned(two)) return refuse("workspace is wrong");
    memset(two, 1, 100);
    memcpy(one, x->data, bytes);
    memcpy(y->data, one, bytes);
    __TVMBackendFreeWorkspace(1, 0, two);
    return __TVMBackendFreeWorkspace(1, 0, one);
}

/* refuses when the first item is negative, leaking a workspace on purpose */
KERNEL(check) {
    UNUSED;
    const float *x = a[0].v_ptr; float *y = a[1].v_ptr;
    __TVMBackendAllocWorkspace(1, 0, 1000, 2, 32);
    if (x[0] < 0) return refuse("the first item is negative");
    y[0] = sqrtf(x[0]);
    return 0;
}
"""


def compile_code(folder: Path, *flags: str, compiler: str = "cc") -> bytes:
    """The kernels and the shim as a shared object."""
    source, library = folder / "kernels.c", folder / "kernels.so"
    source.write_text(KERNELS)
    options = ["-shared", "-fPIC", "-O1", f"-I{CSRC}", *flags]
    command = [compiler, *options, str(source), str(CSRC / "shim.c")]
    subprocess.run([*command, "-o", str(library), "-lm"], check=True)
    return library.read_bytes()


@dataclass
class PlanBuilder:
    """Collects a plan's tables; sizes are numbers, symbol names, or tuples (operator, a, b)."""

    symbols: list[str] = field(default_factory=list)
    expressions: list[Expression] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)

    def size(self, value: Any) -> int:
        """The index of an expression."""
        if isinstance(value, tuple):
            operator, a, b = value
            return self._add(Expression(operator, self.size(a), self.size(b)))
        if isinstance(value, str):
            if value not in self.symbols:
                self.symbols.append(value)
            return self._add(Expression(Operator.SYMBOL, self.symbols.index(value)))
        return self._add(Expression(Operator.CONSTANT, int(value)))

    def _add(self, expression: Expression) -> int:
        self.expressions.append(expression)
        return len(self.expressions) - 1

    def nbytes(self, shape: tuple[Any, ...], dtype: str) -> int:
        """The index of a tensor's size in bytes."""
        total: Any = np.dtype(dtype).itemsize
        for size in shape:
            total = (Operator.MULTIPLY, total, size)
        return self.size(total)

    def input(self, name: str, shape: tuple[Any, ...], dtype: str = "float32") -> int:
        """An input; returns its buffer."""
        self.buffers.append(Buffer(BufferKind.INPUT, len(self.inputs), self.nbytes(shape, dtype)))
        self.inputs.append(Port(name, dtype, tuple(map(self.size, shape)), len(self.buffers) - 1))
        return len(self.buffers) - 1

    def output(
        self, name: str, shape: tuple[Any, ...], dtype: str = "float32", buffer: int | None = None
    ) -> int:
        """An output; returns its buffer."""
        if buffer is None:
            self.buffers.append(Buffer(BufferKind.OUTPUT, len(self.outputs), self.nbytes(shape, dtype)))
            buffer = len(self.buffers) - 1
        self.outputs.append(Port(name, dtype, tuple(map(self.size, shape)), buffer))
        return buffer

    def constant(self, array: Array) -> int:
        """A weight; returns its buffer."""
        self.weights.append(array)
        offset = weight_offsets(self.weights)[0][-1]
        self.buffers.append(Buffer(BufferKind.CONSTANT, offset, self.size(array.nbytes)))
        return len(self.buffers) - 1

    def temporary(self, shape: tuple[Any, ...], first: int, last: int) -> int:
        """Memory for the steps first..last; returns its buffer."""
        self.buffers.append(Buffer(BufferKind.TEMPORARY, 0, self.nbytes(shape, "float32"), first, last))
        return len(self.buffers) - 1

    def tensor(self, buffer: int, shape: tuple[Any, ...], dtype: str = "float32") -> Argument:
        """A tensor argument."""
        self.tensors.append(Tensor(buffer, dtype, tuple(map(self.size, shape))))
        return Argument(ArgumentKind.TENSOR, len(self.tensors) - 1)

    def integer(self, value: Any) -> Argument:
        """An integer argument."""
        return Argument(ArgumentKind.INTEGER, self.size(value))

    def step(
        self, kernel: str, *arguments: Argument, tiles: Any = 1, scratch: Any = 0, **options: Any
    ) -> None:
        """A call."""
        self.steps.append(
            Step(
                kernel,
                arguments,
                self.size(tiles),
                self.size(scratch),
                node=f"node_{len(self.steps)}",
                **options,
            )
        )

    def launch(
        self, kernel: str, *arguments: Argument, blocks: Any = 1, threads: int = 128, shared: Any = 0
    ) -> None:
        """A step on a GPU."""
        self.step(kernel, *arguments, tiles=blocks, scratch=shared, threads=threads)

    def plan(self) -> Plan:
        """The frozen tables."""
        tables = (
            self.symbols,
            self.expressions,
            self.buffers,
            self.tensors,
            self.steps,
            self.inputs,
            self.outputs,
        )
        return Plan(*map(tuple, tables))

    def build(self, code: bytes, **manifest: Any) -> bytes:
        """The model file's bytes."""
        return to_bytes(self.plan(), code, self.weights, manifest)


def pointer(buffer: int) -> Argument:
    """A bare pointer argument."""
    return Argument(ArgumentKind.POINTER, buffer)


def tiles_of(items: Any) -> Any:
    """How many tiles of 64 items there are."""
    return (Operator.CEIL_DIVIDE, items, 64)


def twice_model(n: Any = "n", nanoseconds: int = 1_000_000) -> PlanBuilder:
    """``y[n] = 2 * x[n]``."""
    b = PlanBuilder()
    x, y = b.input("x", (n,)), b.output("y", (n,))
    b.step(
        "twice", pointer(x), pointer(y), b.integer(n), BEGIN, END, tiles=tiles_of(n), nanoseconds=nanoseconds
    )
    return b


def softmax_model(bias: Array, nanoseconds: int = 1_000_000) -> PlanBuilder:
    """``y[n, k] = softmax(2 * x + bias)`` over two temporaries and scratch memory."""
    b = PlanBuilder()
    k = len(bias)
    items = (Operator.MULTIPLY, "n", k)
    x, y = b.input("x", ("n", k)), b.output("y", ("n", k))
    w, one, two = b.constant(bias), b.temporary(("n", k), 0, 1), b.temporary(("n", k), 1, 2)
    timed: dict[str, Any] = {"nanoseconds": nanoseconds}
    b.step("twice", pointer(x), pointer(one), b.integer(items), BEGIN, END, tiles=tiles_of(items), **timed)
    b.step("add_row", pointer(one), pointer(w), pointer(two), b.integer(k), BEGIN, END, tiles="n", **timed)
    b.step(
        "softmax",
        SCRATCH,
        pointer(two),
        pointer(y),
        b.integer(k),
        BEGIN,
        END,
        tiles="n",
        scratch=4 * k,
        **timed,
    )
    return b


def softmax_oracle(x: Array, bias: Array) -> Array:
    """What the softmax model computes, in float64."""
    z = 2 * x.astype(np.float64) + bias
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
