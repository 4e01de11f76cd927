"""CUDA kernels, one file each."""

from __future__ import annotations

from sparsec.targets.cuda.kernels import (
    bitmask_gemv,
    bitmask_spmm,
    bsr_spmm,
    csr_conv,
    csr_spmm,
    dense_conv,
    dense_gemm,
    dense_gemv,
    nm_conv,
    nm_gather,
    nm_spmm,
)
from sparsec.targets.target import Kernel

#: what runs a layer, in the order ties are broken: dense first, nothing is gained by a sparse one then
KERNELS: tuple[Kernel, ...] = (
    dense_gemm, dense_gemv, dense_conv, nm_spmm, bsr_spmm, nm_gather, bitmask_gemv, bitmask_spmm, csr_spmm,
    nm_conv, csr_conv,
)  # fmt: skip
