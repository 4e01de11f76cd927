"""Programs compiled for a GPU and run here: by the C runtime, over the stand-in for CUDA's driver.

Every launch is interpreted from the TIR its machine code was made from; no machine code is made.  Memory
that nobody has written yet is full of NaN, as fresh memory of the stand-in is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from fake_cuda.driver import FakeDriver, Kernel, cubin
from numpy.typing import NDArray

from sparsec.compiler import artifact
from sparsec.errors import SparsecError
from sparsec.ir.graph import Graph, Node, replace
from sparsec.planning.planner import Planned, plan_program
from sparsec.reference.evaluate import evaluate
from sparsec.runtime import Program
from sparsec.targets.calls import Call, Context
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.interpreter import run as interpreter
from sparsec.targets.cuda.leftover.retelling import libraries
from sparsec.targets.lowering import lower
from sparsec.targets.opaque import run
from sparsec.targets.target import Target

Array = NDArray[Any]

#: what of an output's largest number a result may be off by
ALLOWED = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}


def target_of(dtype: str = "float32", base: Target = gpus.SM80) -> Target:
    """A GPU's target whose programs compute in a dtype."""
    return replace(base, dtype=dtype)


def program_on(
    driver: FakeDriver, graph: Graph, target: Target, capability: tuple[int, int] | None = None
) -> tuple[Program, list[Call]]:
    """A program for a GPU with the driver's kernels set to what its steps are, and those steps.

    The machine's GPU is the target's unless ``capability`` says otherwise.
    """
    calls: list[Call] = []
    #: also those of further targets
    made: list[Call] = []

    def planned(graph: Graph, target: Target, *_: Any) -> Planned:
        found = plan_program(graph, target)
        calls.extend(found.calls)
        return found

    def lowered(n: Node, context: Context) -> tuple[Call, ...]:
        made.extend(found := lower(n, context))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsec.planning.planner._makers", lambda _: [])
        patch.setattr("sparsec.planning.planner.link", lambda *_: cubin())
        patch.setattr("sparsec.planning.planner.lower", lowered)
        patch.setattr("sparsec.compiler.plan_program", planned)
        data = artifact(graph, target)
    major, minor = divmod(int(target.mcpu.removeprefix("sm_").rstrip("a")), 10)
    driver.machine(capability=capability or (major, minor), shared=target.l1)
    for call in {call.kernel: call for call in (*made, *calls)}.values():
        driver.kernel(call.kernel, len(call.reads) + len(call.numbers), launched(driver, call))
    return Program.from_bytes(data), calls


def launched(driver: FakeDriver, call: Call) -> Kernel:
    """What a launch of a step does."""
    simulation = interpreter.compiled(call.function, libraries())
    attributes = call.function.attrs

    def launch(blocks: int, threads: int, shared: int, parameters: Sequence[int]) -> None:
        assert threads == int(attributes["sparsec_threads"]), call.kernel
        assert shared == int(attributes["sparsec_shared"]), call.kernel
        simulation.run(blocks, list(parameters), resolve=driver.view)

    return launch


def check(
    driver: FakeDriver, graph: Graph, inputs: Sequence[Mapping[str, Array]], dtype: str = "float32",
    base: Target = gpus.SM80, allowed: float | None = None,
) -> list[Call]:  # fmt: skip
    """Compile a float32 graph, run it on every set of inputs, and compare with its meaning in float64."""
    program, calls = program_on(driver, graph, target_of(dtype, base))
    off = ALLOWED[dtype] if allowed is None else allowed
    for feeds in inputs:
        wanted = evaluate(graph, feeds, tir=run, dtype=np.float64)
        found = ran(driver, program, feeds)
        for port, y in zip(program.outputs, found, strict=True):
            want = wanted[port.name]
            assert y.shape == want.shape, port
            if y.dtype.kind != "f":
                np.testing.assert_array_equal(y, want, err_msg=port.name)
                continue
            finite = np.isfinite(want)
            np.testing.assert_array_equal(np.isfinite(y), finite, err_msg=port.name)
            scale = max(float(np.abs(want[finite]).max(initial=0)), 1e-6)
            np.testing.assert_allclose(y, want, atol=off * scale, rtol=0, err_msg=port.name)
    return calls


def ran(driver: FakeDriver, program: Program, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs; what went wrong in a launch is raised as it was."""
    try:
        return program.run(None, dict(feeds))
    except SparsecError as failure:
        raise AssertionError("\n".join(driver.failures) or str(failure)) from failure


def names_of(calls: Sequence[Call]) -> list[str]:
    """Which kernels steps run, without what tells two of one kind apart."""
    return [call.kernel.rpartition("_")[0] for call in calls]
