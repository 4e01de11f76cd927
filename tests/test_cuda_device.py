"""Every small program of ``make cuda-programs`` on a GPU, against float64: ``pytest -m cuda``.

Imports no tvm: it runs where only torch, NumPy and the driver are.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "cuda"

pytestmark = pytest.mark.cuda


def missing() -> str | None:
    """Why nothing can run here, or None."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "no GPU"
    return None if any(FOLDER.glob("*.program")) else "no programs: make cuda-programs"


WHY = missing()
if WHY is None:
    sys.path.insert(0, str(ROOT / "benchmarks"))


@cache
def programs() -> dict[str, list[Any]]:
    """What was built, by case."""
    from cuda_device import carried_programs

    return carried_programs(FOLDER)


def cases() -> list[Any]:
    """The small ones."""
    if WHY is not None:
        return []
    from cuda_small import SMALL

    return list(SMALL)


@pytest.mark.skipif(WHY is not None, reason=f"CUDA programs are not run: {WHY}")
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_program(case: Any) -> None:
    """On the device, three times, the second run being recorded; then on the host's memory."""
    import numpy as np
    import torch
    from cuda_cases import pruned
    from cuda_device import error_of, inputs_of, model_bytes

    from sparsec.runtime import Program

    assert case.name in programs(), "not built: make cuda-programs"
    for carried in programs()[case.name]:
        program = Program.from_bytes(model_bytes(carried, pruned(case)))
        generator = torch.Generator(device="cuda").manual_seed(int.from_bytes(np.random.bytes(4), "little"))
        assert error_of(program, case, pruned(case).cuda(), generator) < case.tolerance
        inputs = inputs_of(case, generator)
        found = program(*inputs)
        assert torch.equal(found, program(*inputs)), "two runs differ"
        if case.dtype != "bfloat16":
            on_host = program(*(x.cpu().numpy() for x in inputs))
            assert np.array_equal(on_host, found.cpu().numpy()), "arrays of the host give something else"
    assert "tvm" not in sys.modules
