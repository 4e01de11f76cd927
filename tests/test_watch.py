"""What long work says of itself: to whom, when, and in which characters."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec.bench.measure import interleaved
from sparsec.commands.watch import watched
from sparsec.progress import counted


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def work(out: io.StringIO, *, quiet: bool = False, patience: float = 0.0) -> str:
    """What is shown of two stages."""
    with watched(quiet, patience, out) as progress:
        for stage, total in (("passes", 3), ("kernels", 5)):
            for _ in counted(range(total), stage, progress):
                pass
    return out.getvalue()


def test_a_pipe_gets_plain_lines() -> None:
    shown = work(io.StringIO())
    assert shown == "passes: 1 of 3\n"  # the next line would come seconds later


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = work(Terminal())
    assert "kernels" in shown and "5/5" in shown and "\x1b[" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is there again


def test_an_exception_leaves_the_terminal_as_it_was() -> None:
    out = Terminal()
    with pytest.raises(KeyboardInterrupt), watched(False, 0.0, out) as progress:
        progress("kernels", 1, 3)
        progress("kernels", 3, 3)
        raise KeyboardInterrupt
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_short_work_and_quiet_work_show_nothing(stream: type[io.StringIO]) -> None:
    assert work(stream(), patience=2.0) == work(stream(), quiet=True) == ""


def test_counting() -> None:
    seen: list[tuple[str, int, int]] = []
    assert list(counted("ab", "letters", lambda *of: seen.append(of))) == ["a", "b"]
    assert seen == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2)]
    assert list(counted((), "none", lambda *of: seen.append(of))) == [] and seen[-1] == ("none", 0, 0)
    assert list(counted([1], "unseen", None)) == [1]


def test_rounds_are_counted_between_turns() -> None:
    seen: list[tuple[str, int, int]] = []
    interleaved({"a": lambda: None}, rounds=2, turn=1e-5, pause=0.0, progress=lambda *of: seen.append(of))
    assert seen == [("rounds", 0, 2), ("rounds", 1, 2), ("rounds", 2, 2)]


def test_compile_tells_its_passes_and_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path))
    seen: list[tuple[str, int, int]] = []
    weight = np.eye(16, dtype=np.float32)
    program = sparsec.compile(weight, progress=lambda *of: seen.append(of))
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["passes", "kernels"]
    for stage in stages:
        steps = [(done, total) for of, done, total in seen if of == stage]
        assert steps == [(done, steps[0][1]) for done in range(steps[0][1] + 1)]
    assert len({step["kernel"] for step in program.report["steps"]}) == seen[-1][2]
    seen.clear()
    sparsec.analyze(weight, progress=lambda *of: seen.append(of))
    assert {stage for stage, _, _ in seen} == {"passes"}
