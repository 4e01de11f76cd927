"""build: TIR kernels to CUDA text by TVM, and with nvcc to machine code (a cubin) for one kind of GPU."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from sparsec.errors import BuildError
from sparsec.targets.cache import cached
from sparsec.targets.cuda.toolkit import nvcc, nvlink
from sparsec.targets.target import Target

_TVM = Lock()

#: raised whenever what is built from the same text changes
GENERATION = 1


def cuda_source(function: Any, arch: str) -> str:
    """The CUDA text of a kernel made by :func:`sparsec.targets.cuda.builder.device_function`."""
    import tvm
    from tvm.tirx import transform

    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    module = tvm.IRModule({str(function.attrs["global_symbol"]): function.with_attr("target", target)})
    passes = [
        transform.VectorizeLoop(True), transform.UnrollLoop(), transform.LowerIntrin(),
    ]  # fmt: skip
    try:
        lowered = tvm.ir.transform.Sequential(passes)(module)
        text = str(tvm.get_global_func("target.build.cuda")(lowered, target).inspect_source())
    except Exception as failure:
        raise BuildError(f"TVM cannot generate CUDA for {arch}: {failure}") from failure
    # Hopper's matrix instructions read tiles that begin at multiples of 1024 bytes of shared memory
    text = text.replace("extern __shared__ __align__(64)", "extern __shared__ __align__(1024)")
    # the helpers TVM writes into every text must not meet when kernels are linked
    return re.sub(r"^(__device__|__host__ __device__) ", r"static \1 ", text, flags=re.MULTILINE)


def kernel_cubin(function: Any, target: Target) -> bytes:
    """A kernel's relocatable machine code."""
    # kernels are compiled by several threads; TVM is one program's
    with _TVM:
        source = cuda_source(function, target.mcpu)
    return cached(f"cuda|{GENERATION}|{target.mcpu}|{source}", lambda: _compiled(source, target.mcpu))


def _compiled(source: str, arch: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="sparsec_") as folder:
        (Path(folder) / "kernel.cu").write_text(source, encoding="utf-8")
        flags = ["-rdc=true", "-cubin", f"-arch={arch}", "-O3", "-w"]
        _run([nvcc(), *flags, "kernel.cu", "-o", "kernel.cubin"], folder)
        return (Path(folder) / "kernel.cubin").read_bytes()


def link(objects: Sequence[bytes], target: Target) -> bytes:
    """One cubin of many kernels; same inputs, same bytes.

    Raises:
        BuildError: the CUDA toolkit is missing, or linking failed.
    """
    parts = hashlib.sha256()
    for part in objects:
        parts.update(hashlib.sha256(part).digest())
    key = f"cuda-link|{GENERATION}|{target.mcpu}|{parts.hexdigest()}"
    return cached(key, lambda: _linked(objects, target.mcpu))


def _linked(objects: Sequence[bytes], arch: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="sparsec_") as folder:
        names = [f"k{i}.cubin" for i in range(len(objects))]
        for name, part in zip(names, objects, strict=True):
            (Path(folder) / name).write_bytes(part)
        _run([nvlink(), f"-arch={arch}", *names, "-o", "code.cubin"], folder)
        return (Path(folder) / "code.cubin").read_bytes()


def _run(command: Sequence[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        told = re.sub(r"\n{2,}", "\n", (done.stderr + done.stdout).strip())
        raise BuildError(f"{Path(command[0]).name} failed:\n{told[:4000]}")
