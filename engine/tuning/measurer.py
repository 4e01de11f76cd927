"""measurer: the parent's side of a worker; starts it anew when a trial killed it or took too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import IO

from sparsec.targets.target import Target
from sparsec.tuning.records import Config
from sparsec.tuning.tasks import Layer
from sparsec.tuning.worker import Answer, Work, packed_target, receive, send

#: seconds for a trial, building included
PATIENCE = 60.0
#: seconds until a new process has loaded the compiler
STARTUP = 120.0


class Measurer:
    """Measures trials of one layer after the other in a process of its own; a context manager."""

    def __init__(
        self, target: Target, remote: str | None = None, patience: float = PATIENCE,
        command: Sequence[str] = (sys.executable, "-m", "sparsec.tuning.worker"),
    ) -> None:  # fmt: skip
        self._target, self._remote = target, remote
        self._patience, self._command = patience, command
        self._process: subprocess.Popen[bytes] | None = None
        self._layer: Layer | None = None

    def __enter__(self) -> Measurer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def measure(self, layer: Layer, kernel: str, config: Config) -> Answer:
        """Seconds of a trial and of the layer's default, or what became of the process."""
        if self._layer is not layer or self._process is None:
            prepared = self._prepare(layer)
            if prepared.status != "ok":
                return prepared
        return self._ask((kernel, config), self._patience)

    def _prepare(self, layer: Layer) -> Answer:
        fresh = self._process is None
        if fresh:
            self._start()
        first = layer.trials[0]
        work = Work(layer.graph, layer.node.name, packed_target(self._target),
                    (first.kernel, first.config), layer.problem.active, self._remote)  # fmt: skip
        answer = self._ask(work, self._patience + (STARTUP if fresh else 0))
        self._layer = layer if answer.status == "ok" else None
        return answer

    def _start(self) -> None:
        # pins itself to a core, and its crash must not take us along: a session of its own
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, env=_environment(),
        )  # fmt: skip

    def _ask(self, message: object, patience: float) -> Answer:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            timer = threading.Timer(patience, self._kill)
            timer.daemon = True
            timer.start()
            try:
                send(process.stdin, message)
                answer = receive(process.stdout)
            finally:
                timed_out = not timer.is_alive()
                timer.cancel()
        except OSError:
            answer = None
        if isinstance(answer, Answer):
            return answer
        status = self._stop()
        return Answer(None, None, f"took more than {patience:g} s" if timed_out else status)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _stop(self) -> str:
        """End the process; what ended it."""
        process, self._process, self._layer = self._process, None, None
        if process is None:
            return "not started"
        for pipe in (process.stdin, process.stdout):
            _close(pipe)
        try:
            code = process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return f"crashed: {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        return


def _environment() -> dict[str, str]:
    """Ours; libraries beside sparsec get one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "SPARSEC_DEBUG": "0", "SPARSEC_DUMP": ""}
