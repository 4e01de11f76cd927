"""DeepSparse through deepsparse_server.py, where a variable names an interpreter that has it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from workloads import Absent, Arrays

from sparsec.bench.measure import Turn

#: the interpreter of an environment with deepsparse in it
VARIABLE = "SPARSEC_DEEPSPARSE_PYTHON"
SERVER = Path(__file__).with_name("deepsparse_server.py")
#: DeepSparse 1.8 reads no newer files
IR_VERSION = 9


class Server:
    """The model in another process: a call that is timed over there."""

    def __init__(self, path: Path, feeds: Arrays, threads: int) -> None:
        """Start it.

        Raises:
            Absent: it cannot run the model.
        """
        self._process = subprocess.Popen(
            [os.environ[VARIABLE], SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            model, inputs = Path(folder) / "model.onnx", Path(folder) / "inputs.npz"
            onnx.save(_readable(path), model)
            np.savez(inputs, **feeds)
            self._ask({"model": str(model), "inputs": str(inputs), "threads": threads})

    def __call__(self) -> None:
        """Run once."""
        self.turn(1)

    def turn(self, count: int) -> Turn:
        """Run ``count`` times."""
        took = self._ask({"turn": count})
        return Turn.of(took["elapsed"], took["busy"], count)

    def outputs(self) -> list[np.ndarray]:
        """What it computes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outputs.npz"
            self._ask({"outputs": str(path)})
            with np.load(path) as file:
                return [file[name] for name in file.files]

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        found: dict[str, Any] = json.loads(answer or '{"error": "its process ended"}')
        if "error" in found:
            raise Absent(str(found["error"]))
        return found


def _readable(path: Path) -> onnx.ModelProto:
    model = onnx.load(path)
    model.ir_version = min(model.ir_version, IR_VERSION)
    return model


@cache
def version() -> str | None:
    """The version in the interpreter that the variable names; None without one."""
    python = os.environ.get(VARIABLE)
    if not python:
        return None
    code = "from importlib.metadata import version; print(version('deepsparse'))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise SystemExit(f"{VARIABLE}={python}: that interpreter has no deepsparse")
    return asked.stdout.strip()
