"""Plans and files that no GPU, or not this machine's, can run: each is refused with what would be right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_models import COLUMNS, chain, chain_model, cuda_file, driver, loaded, whole
from fake_cuda.driver import (
    NO_DEVICE,
    FakeDriver,
    cubin,
)
from runtime_models import BEGIN, SCRATCH, PlanBuilder, compile_code, pointer, twice_model

from sparsec.errors import ArtifactError, InputError
from sparsec.planning.foreign import foreign_program
from sparsec.runtime import Program
from sparsec.runtime.artifact import to_bytes
from sparsec.runtime.plan import Isa

__all__ = ["driver", "loaded"]

BIAS = np.arange(COLUMNS, dtype="float32")
ROOT = Path(__file__).resolve().parents[1]


def test_limits_of_launches(driver: FakeDriver) -> None:
    def program(**options: Any) -> Program:
        b = PlanBuilder()
        x, y = b.input("x", ("n",)), b.output("y", ("n",))
        b.launch("twice", pointer(x), pointer(y), b.integer("n"), **options)
        return Program.from_bytes(cuda_file(b))

    x = np.zeros(8, "float32")
    with pytest.raises(InputError, match="the inputs are too large: step 0 has too many blocks"):
        program(blocks=1 << 31)(x)
    with pytest.raises(
        InputError, match=r"kernel twice cannot have 232449 bytes of shared memory: GPU 0 has 232448"
    ):
        program(shared=(227 << 10) + 1)(x)
    assert np.array_equal(program(shared=227 << 10, threads=1024)(x), x)
    for threads, text in (
        (1025, "has more threads than a block can have"),
        (0, "is a call on the processor"),
    ):
        with pytest.raises(ArtifactError, match=f"table of steps is damaged: entry 0 {text}"):
            program(threads=threads)


def test_steps_of_the_wrong_kind(driver: FakeDriver, tmp_path: Path) -> None:
    mixed = chain_model(BIAS)
    mixed.steps[1] = replace(mixed.steps[1], threads=0)
    with pytest.raises(ArtifactError, match="entry 1 is a call on the processor, in code for a GPU"):
        Program.from_bytes(cuda_file(mixed))
    host = twice_model()
    host.steps[0] = replace(host.steps[0], threads=64)
    with pytest.raises(ArtifactError, match="entry 0 is a launch on a GPU, in code for a processor"):
        Program.from_bytes(host.build(compile_code(tmp_path)))
    for argument in (SCRATCH, BEGIN, chain_model(BIAS).tensor(0, ("n",))):
        b = chain_model(BIAS)
        b.tensor(0, ("n",))
        b.steps[2] = replace(b.steps[2], arguments=(*b.steps[2].arguments, argument))
        with pytest.raises(ArtifactError, match="entry 2 has an argument that no GPU can take"):
            Program.from_bytes(cuda_file(b))


def test_code_that_is_no_cubin(driver: FakeDriver) -> None:
    changes: tuple[Callable[[bytes], bytes], ...] = (
        lambda c: c[:40],
        lambda c: c[:40] + (1 << 40).to_bytes(8, "little") + c[48:],
        lambda c: c[:58] + b"\x40\0\x02\0" + c[62:],
    )
    for change in changes:
        code = change(cubin())
        with pytest.raises(
            ArtifactError, match="the code is no machine code for a GPU; compile the model again"
        ):
            Program.from_bytes(chain_model(BIAS).build(code, features=["sm_90a"]))
    b = chain_model(BIAS)
    b.launch("unheard_of", pointer(0))
    with pytest.raises(
        ArtifactError, match="the code has no kernel called unheard_of; compile the model again"
    ):
        Program.from_bytes(cuda_file(b))
    for features in ([], ["sm_90a", "sm_80"]):
        with pytest.raises(ArtifactError, match="table of isas is damaged"):
            Program.from_bytes(chain_model(BIAS).build(cubin(), features=features))


@pytest.mark.parametrize(
    ("kind", "capability"),
    [("sm_90a", (9, 1)), ("sm_90a", (10, 0)), ("sm_90", (8, 9)), ("sm_86", (8, 0)), ("sm_80", (9, 0)),
     ("90", (9, 0)), ("sm_", (9, 0)), ("sm_90x", (9, 0)), ("compute_90", (9, 0))],
)  # fmt: skip
def test_a_gpu_of_another_kind(driver: FakeDriver, kind: str, capability: tuple[int, int]) -> None:
    driver.machine(capability=capability)
    major, minor = capability
    text = rf"compiled for a CUDA GPU \({kind}\); GPU 0 has compute capability {major}.{minor}; run it where"
    with pytest.raises(ArtifactError, match=text):
        Program.from_bytes(cuda_file(chain_model(BIAS), kind))


def test_the_code_that_was_asked_for(driver: FakeDriver) -> None:
    b = chain_model(BIAS)
    data = to_bytes(b.plan(), [Isa(k, (k,), b.plan().steps, cubin()) for k in ("sm_90a", "sm_80")], b.weights)
    assert Program.from_bytes(data, isa="sm_90a").isa == "sm_90a"
    with pytest.raises(
        ArtifactError, match=r"the code for sm_80 was asked for; GPU 0 has compute capability 9\.0"
    ):
        Program.from_bytes(data, isa="sm_80")
    driver.machine(capability=(7, 5))
    with pytest.raises(
        ArtifactError, match=r"for a CUDA GPU \(sm_90a, sm_80\); GPU 0 has compute capability 7.5"
    ):
        Program.from_bytes(data)


def test_no_such_gpu(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, told in (
        ("1", "there is no GPU 1: invalid device ordinal"),
        ("one", "SPARSEC_DEVICE=one is not"),
    ):
        monkeypatch.setenv("SPARSEC_DEVICE", text)
        with pytest.raises(ArtifactError, match=told):
            chain(BIAS)
    assert NO_DEVICE == 100


def in_a_process(script: str, **environment: str) -> str:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("SPARSEC_")} | environment
    done = subprocess.run(
        [sys.executable, "-c", f"from sparsec.runtime import Program\nimport sys\n{script}"],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("library", "text"),
    [("libabsent.so.1", r"no driver: libabsent\.so\.1: cannot open shared object file"),
     ("libm.so.6", r"no driver: libm\.so\.6 has no function cuInit; install a later one")],
)  # fmt: skip
def test_no_driver(tmp_path: Path, library: str, text: str) -> None:
    file = tmp_path / "model.sparsec"
    file.write_bytes(cuda_file(chain_model(BIAS)))
    told = in_a_process(f"Program.load({str(file)!r})", SPARSEC_LIBCUDA=library)
    assert re.search(rf"the model was compiled for a CUDA GPU \(sm_90a\); {text}", told), told


def test_no_gpu(loaded: FakeDriver, tmp_path: Path) -> None:
    file = tmp_path / "model.sparsec"
    file.write_bytes(cuda_file(chain_model(BIAS)))
    library = str(loaded.path)
    script = (
        f"import ctypes; ctypes.CDLL({library!r}).fake_machine(0, 0, 0, 0, 0); Program.load({str(file)!r})"
    )
    told = in_a_process(script, SPARSEC_LIBCUDA=library)
    assert "(sm_90a); no GPU: no CUDA-capable device is detected (CUDA_ERROR_NO_DEVICE, 100)" in told, told


def test_a_foreign_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What cannot run here can be looked at and saved."""
    monkeypatch.setenv("SPARSEC_LIBCUDA", "libabsent.so.1")
    data = cuda_file(chain_model(BIAS))
    with pytest.raises(ArtifactError) as why:
        Program.from_bytes(data)
    program = foreign_program(data, why.value, None)
    assert (program.device, program.isa, program.inputs[0].shape) == ("cuda", "sm_90a", ("n", COLUMNS))
    program.save(tmp_path / "model.sparsec")
    assert (tmp_path / "model.sparsec").read_bytes() == data
    calls: tuple[Callable[[], Any], ...] = (
        lambda: program(whole(3)), lambda: program.run(None, {"x": whole(3)}),
        lambda: program.prepare({"x": whole(3)}), lambda: program.profile(whole(3)),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ArtifactError, match="no driver: libabsent"):
            call()


def test_declarations_are_those_of_cuda(tmp_path: Path) -> None:
    """cuda.h here against NVIDIA's, where a toolkit is installed: every function's type is compatible."""
    theirs = [p for p in (Path("/usr/local/cuda/include"), Path("/usr/include")) if (p / "cuda.h").exists()]
    if not theirs:
        pytest.skip("no CUDA toolkit's cuda.h is installed")
    header = (ROOT / "runtime" / "csrc" / "cuda.h").read_text(encoding="utf-8")
    table = header[header.index("#define DRIVER_FUNCTIONS(F)") : header.index("#define DRIVER_FIELD")]
    source = f"""
        #include "{theirs[0] / "cuda.h"}"
        {table}
        #define SAME(field, symbol, parameters) extern unsigned int (*field) parameters; \\
            _Static_assert(__builtin_types_compatible_p(__typeof__(*field), __typeof__(symbol)), #symbol);
        DRIVER_FUNCTIONS(SAME)
    """
    (tmp_path / "same.c").write_text(source, encoding="utf-8")
    done = subprocess.run(
        ["cc", "-std=c11", "-c", "same.c"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
