"""What ``make cuda-programs`` builds, on the stand-in for a GPU: weights left behind are made anew."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_models import driver, loaded
from cuda_programs import launched, ran
from fake_cuda.driver import FakeDriver, cubin

torch = pytest.importorskip("torch")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import cuda_build  # noqa: E402
import cuda_device  # noqa: E402
from cuda_cases import Case, pruned  # noqa: E402
from cuda_small import SMALL  # noqa: E402

from sparsec.runtime import Program  # noqa: E402

__all__ = ["driver", "loaded"]
BY_NAME = {case.name: case for case in SMALL}


def carried(driver: FakeDriver, case: Case, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as it travels, every constant that is packed left behind, however small."""
    planned: list[Any] = []
    monkeypatch.setattr(cuda_build, "CARRIED_BYTES", 600)
    monkeypatch.setattr("sparsec.planning.planner._makers", lambda _: [])
    monkeypatch.setattr("sparsec.planning.planner.link", lambda *_: cubin())
    plan = cuda_build.plan_program
    monkeypatch.setattr(cuda_build, "plan_program", lambda *a: planned.append(plan(*a)) or planned[-1])
    made = cuda_build.built(case, (case.kernels or ("",))[0])
    driver.machine(capability=(9, 0), shared=227 << 10)
    for call in {call.kernel: call for call in planned[0].calls}.values():
        driver.kernel(call.kernel, len(call.reads) + len(call.numbers), launched(driver, call))
    return pickle.loads(pickle.dumps(made))


@pytest.mark.parametrize(
    "name",
    [
        "nm_spmm_2of4_64x64x3_float16", "csr_spmm_u90_61x67x3_float32", "encoder_float16",
        "bsr_spmm_b16x16_75_128x192x70_float16", "csr_conv_3x3_1_float32",
    ],
)  # fmt: skip
def test_carried_programs(driver: FakeDriver, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME[name]
    found = carried(driver, case, monkeypatch)
    left_behind = [c for c in found.constants if not isinstance(c, np.ndarray)]
    assert left_behind, "nothing was left behind"
    module = pruned(case)
    program = Program.from_bytes(cuda_device.model_bytes(found, module))
    inputs = [torch.randn(shape).to(cuda_device.TORCH[case.dtype]) for shape in case.inputs]
    feeds = {port.name: x.numpy() for port, x in zip(program.inputs, inputs, strict=True)}
    [y] = ran(driver, program, feeds)
    want = cuda_device.expected(case, module, tuple(inputs)).numpy()
    assert y.dtype == case.dtype and y.shape == want.shape
    np.testing.assert_allclose(y, want, atol=case.tolerance * np.abs(want).max(), rtol=0)


def test_other_weights_are_refused(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["nm_spmm_2of4_64x64x3_float16"]
    found, module = carried(driver, case, monkeypatch), pruned(case)
    module[0].weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="is not the weight that was compiled for"):
        cuda_device.model_bytes(found, module)


def test_the_device_side_needs_no_compiler() -> None:
    """It loads neither TVM nor ONNX, which the machine with the GPU has not."""
    text = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('tvm', 'tvm_ffi', 'onnx', 'networkx', 'typer', 'rich'):\n"
        "            raise ImportError(f'{name} is not for this side')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import cuda_run, cuda_small, sparsec.targets.cuda.kernels\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=BENCHMARKS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
