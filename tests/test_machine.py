"""A machine measured: the probes, what they find here, and the command that prints it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from assembly import Loop, innermost_loops

from sparsec.targets import limits
from sparsec.targets.build import module_of
from sparsec.targets.facts import NAMES, Facts
from sparsec.targets.limits import Probe, best_rates, loop_ends, multiply_adds, reads, reads_in_parts
from sparsec.targets.measured import MEASURED, keep, kept, measure_facts
from sparsec.targets.processor import cache_sizes, this_processor
from sparsec.targets.target import Target
from sparsec.targets.x86 import AVX2, AVX512, level

FOUND = Facts(3.0, 2.0, 32768, 524288, 1 << 25, 60.0, 29.5, 22.5, 6.5, 1.1, 17.5)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache of its own, whose figures count."""
    monkeypatch.setenv("SPARSEC_FACTS", "measured")
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def test_this_machine_measured(cache: Path) -> None:
    told: list[tuple[str, int, int]] = []
    facts = measure_facts(level(), lambda *at: told.append(at), seconds=0.5)
    assert 0.2 < facts.gigahertz < 10 and facts.fmas in (1, 2)
    assert facts.l1_bytes > facts.l2_bytes > 0.5 and facts.l1_bytes < 300
    assert 0.1 < facts.dram_bytes < facts.l1_bytes and 0.5 < facts.l3_bytes < facts.l1_bytes
    assert 0.05 < facts.gathers < 16 and 1 <= facts.mispredict < 500
    assert all(getattr(facts, f"l{at}") == size for at, size in cache_sizes().items() if at <= 3)
    assert {stage for stage, _, _ in told} == {"probes", "measuring"}
    assert told[-1][1:] == (5, 5) and all(done <= total for _, done, total in told)
    assert keep(level(), facts) and kept(level()) == facts


def test_every_probe_gets_a_turn() -> None:
    probes = {"peak": multiply_adds(AVX2, tiles=1), "parts": reads_in_parts(AVX2, 3 << 20, part=1 << 20)}
    rates = best_rates(probes, seconds=0.0)
    assert len(probes["parts"].inputs) == 3 and all(1e6 < rate < 1e14 for rate in rates.values())


@pytest.mark.parametrize("nbytes, passes", [(16 << 10, 3), (384 << 10, 2), (1000 * 1024, 1)])
def test_sums_read_everything(nbytes: int, passes: int) -> None:
    probe = reads(AVX2, nbytes, passes)
    [x], [y] = probe.inputs, probe.program.run(None, {"x": probe.inputs[0]})
    assert y.sum() * 4 == probe.work and x.nbytes * passes == probe.work and nbytes * 0.9 < x.nbytes <= nbytes


def test_loops_run_as_long_as_they_should() -> None:
    for shuffled in (False, True):
        probe = loop_ends(AVX2, shuffled)
        [y] = probe.program.run(None, {"x": probe.inputs[0]})
        assert (y == 1).all()


def machine(*options: str, **variables: str) -> str:
    """What the command prints."""
    environment = {**os.environ, "SPARSEC_DEBUG": "0", "SPARSEC_FACTS": "measured", **variables}
    command = [sys.executable, "-m", "sparsec", "machine", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_command_says_what_is_known(cache: Path) -> None:
    text = machine()
    assert "clock under vector code" in text and "GFLOP/s a core" in text and MEASURED not in text
    keep(level(), FOUND)
    about = json.loads(machine("--json"))
    assert set(about["facts"]) == set(NAMES)
    assert about["facts"]["l2_bytes"] == {"value": 29.5, "from": MEASURED}
    assert about["target"] == level().name and about["lanes"] == level().lanes
    assert about["peak_gflops"] == pytest.approx(2 * 3.0 * 2 * level().lanes)
    assert about["processor"]["family"] == this_processor().family


@pytest.mark.slow
def test_the_command_measures_and_keeps(cache: Path) -> None:
    about = json.loads(machine("--measure", "--json"))
    assert about["facts"]["gigahertz"]["from"] == MEASURED
    found = kept(level())
    assert found is not None and found.gigahertz == about["facts"]["gigahertz"]["value"]


def loops_of(monkeypatch: pytest.MonkeyPatch, make: Callable[[Target], Probe], target: Target) -> list[Loop]:
    """The innermost loops of a probe's code for a target that need not be this machine."""

    class Emitted(Exception):
        pass

    def stop(key: str, emit: Callable[[], Any], target: Target) -> bytes:
        raise Emitted(emit())

    monkeypatch.setattr(limits, "kernel_object", stop)
    with pytest.raises(Emitted) as caught:
        make(target)
    return innermost_loops(module_of(caught.value.args[0], target).mod.inspect_source("s"))


@pytest.mark.parametrize("target", [AVX2, AVX512], ids=lambda target: target.name)
def test_probes_are_bound_by_what_they_measure(monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    wide = "zmm" if target is AVX512 else "ymm"
    [peak] = [loop for loop in loops_of(monkeypatch, multiply_adds, target) if loop.multiply_adds]
    assert peak.multiply_adds % limits.CHAINS == 0 and not peak.from_memory and not peak.spills
    assert peak.registers() == {wide}
    sums = [
        loop for loop in loops_of(monkeypatch, lambda t: reads(t, 1 << 20), target) if loop.count("vaddps")
    ]
    [read] = [loop for loop in sums if any("(" in line for line in loop.lines)]
    from_memory = sum("vaddps" in line and "(" in line and wide in line for line in read.lines)
    assert from_memory == read.count("vaddps") and from_memory % 8 == 0
    [chain] = [loop for loop in loops_of(monkeypatch, limits.clock, target) if loop.count("imulq")]
    assert chain.count("imulq") % 16 == 0 and chain.count("addq|leaq") >= chain.count("imulq")
    picks = [loop for loop in loops_of(monkeypatch, limits.gathers, target) if loop.count("vaddps")]
    assert picks and not any(loop.count("vgather.*") for loop in picks)
