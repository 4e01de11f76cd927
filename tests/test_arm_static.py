"""Predicting ARM: what is read from a trace, what llvm-mca is asked, and the table's arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conv_cases import layer, make_conv_case, problem_of
from kernel_cases import unstructured

from sparsec.errors import ConfigError
from sparsec.sparsity.pattern import infer
from sparsec.targets import arm
from sparsec.targets.kernels import csr_conv
from sparsec.targets.target import Target

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import arm_static  # noqa: E402
import arm_table  # noqa: E402
import machine  # noqa: E402
import mca  # noqa: E402
import table  # noqa: E402
from arm_trace import Trace, disassembled, entered, lanes_of, missing, traced  # noqa: E402

#: a loop of three instructions between a block that falls into it and one that leaves
LISTING = """
0000000000401000 <kernel_compute_>:
  401000:      \tmov\tx0, x1
  401004:      \tldr\tq1, [x2], #0x10            // 16
  401008:      \tfmla\tv0.4s, v1.4s, v2.4s
  40100c:      \tcbnz\tx0, 0x401004 <kernel_compute_+0x4>
  401010:      \tret
"""
BEGIN, LOOP, END = 0x401000, 0x401004, 0x401010


def _trace(*turns: int) -> Trace:
    """Runs of the loop of so many turns each."""
    runs = [[BEGIN] + [LOOP] * (n - 1) + [END] for n in turns]
    return Trace(disassembled(LISTING), [block for run in runs for block in run])


def test_trace_counts_what_ran() -> None:
    trace = _trace(5, 3)
    assert trace.blocks[BEGIN] == (0x401000, 0x401004, 0x401008, 0x40100C)
    assert trace.blocks[LOOP] == (0x401004, 0x401008, 0x40100C)
    assert (trace.instructions, trace.multiply_adds, trace.vector_multiply_adds) == (2 * 2 + 8 * 3, 32, 8)
    assert [text.split()[0] for text in trace.hot] == ["ldr", "fmla", "cbnz"]


def test_a_block_ends_where_the_emulator_split_it() -> None:
    """Only a place that nothing jumps to shows that translation stopped there."""
    trace = Trace(disassembled(LISTING), [BEGIN, 0x401008, LOOP, END])
    assert trace.blocks[BEGIN] == (0x401000, 0x401004)
    assert trace.instructions == 2 + 2 + 3 + 1


def test_ends_of_loops_are_foreseen_where_their_length_repeats() -> None:
    same, other = _trace(*[6] * 20).unforeseen, _trace(*[6, 9] * 10).unforeseen
    assert same <= 3
    assert other >= 19


def test_log_and_lanes() -> None:
    log = [
        "Trace 0: 0x7f00 [0000000001009331/0000000000401004/00000001/00000201] kernel_compute_\n",
        "something else\n",
    ]
    assert entered(log) == [LOOP]
    lanes = {
        "fmla v7.4s, v17.4s, v16.s[0]": 4, "fmla z1.s, p0/m, z16.s, z17.s": 8, "fmadd s0, s1, s2, s3": 1,
        "fmla v0.2s, v1.2s, v2.2s": 2, "fmul v0.4s, v1.4s, v2.4s": 0, "fmov s0, s1": 0,
    }  # fmt: skip
    assert {text: lanes_of(text) for text in lanes} == lanes


def test_stretches_come_from_all_over() -> None:
    trace = _trace(*[50] * 200)
    found = trace.stretches(10, 100)
    assert len(found) == 10 and all(90 <= len(s) <= 110 for s in found)
    (everything,) = trace.stretches(1000, 1000)
    assert len(everything) == trace.instructions


def _entry(sparsity: float, cycles: int, **other: Any) -> dict[str, Any]:
    loop = {"cycles_per_nonzero": 7.0, "columns": 28, "cycles_per_multiply_add": 1.0}
    about = {"name": "a", "about": "1x1", "kernel": "csr_conv", "pattern": "unstructured", "core": "N1"}
    layer = {"cycles": cycles, "multiply_adds": 1000}
    return {**about, "sparsity": sparsity, "loop": loop, "layer": layer, **other}


def test_break_even_and_speedup() -> None:
    dense = _entry(0.0, 1000, kernel="dense_conv", pattern="dense")
    # 100 cycles and 3000 for all weights: as fast as dense with 30 % of them
    sparse = [_entry(s, round(100 + 3000 * (1 - s))) for s in (0.6, 0.8, 0.9, 0.95)]
    assert arm_table.break_even(sparse, dense) == pytest.approx(0.7)
    assert arm_table.break_even(sparse[2:], dense) == 0, "with the fewest zeros tried"
    assert arm_table.break_even(sparse[:1], dense) == 1, "not with the most tried"
    assert arm_table.speedup(sparse[2], dense) == pytest.approx(2.5)
    text = arm_table.markdown({"llvm": "22", "cores": ["N1"], "layers": [dense, *sparse]})
    assert "| 1x1 | csr_conv | unstructured | 80 / 90 / 95 % | 1.4 / 2.5 / 4.0x | 70 % |" in text
    assert "| 1x1 | csr_conv | unstructured | 90 % | 7.00 x28; 1.00; 0.40 |" in text


def test_committed_table_is_that_of_the_committed_results() -> None:
    found = json.loads((BENCHMARKS / "results" / "arm-static.json").read_text())
    assert (BENCHMARKS / "results" / "arm-static.md").read_text() == arm_table.markdown(found)
    assert found["cores"] == [core.name for core in arm_static.CORES]


@pytest.mark.parametrize("core", ["Cortex-A76", "Neoverse N1"])
def test_committed_pointwise_convolutions_at_90_percent_are_twice_as_fast_as_dense(core: str) -> None:
    results = json.loads((BENCHMARKS / "results" / "arm-static.json").read_text())["layers"]
    rows = [r for r in arm_table.rows_of(results) if r[1] == "csr_conv" and r[0].startswith("conv1x1")]
    assert len(rows) == 3
    for row in rows:
        (entry,) = [e for e in arm_table.of_row(results, row, core) if e["sparsity"] == 0.9]
        assert arm_table.speedup(entry, arm_table.dense_of(results, row[0], core)) >= 2, row


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no nothing-mca: install Debian's llvm-22"):
        mca.find("nothing-mca")
    assert arm_static.main(["--llvm-mca", "nothing-mca"]) == 2
    assert "llvm-22" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert missing("llvm-objdump-22") == "no llvm-objdump-22: install Debian's llvm-22"


def _tools() -> tuple[str, str]:
    """llvm-mca and llvm-objdump; skips where they or what runs ARM code are not here."""
    try:
        tool = mca.find()
    except ConfigError as error:
        pytest.skip(f"ARM not predicted: {error}")
    if (found := mca.version(tool)).partition(".")[0] != "22":
        pytest.skip(f"ARM not predicted: {tool} is of LLVM {found}, whose cycles differ from 22's")
    objdump = arm_static.objdump_beside(tool)
    if reason := missing(objdump):
        pytest.skip(f"ARM not predicted: {reason}")
    return tool, objdump


def test_mca_counts_cycles() -> None:
    tool, _ = _tools()
    chain = ["add x0, x0, x1", "add x0, x0, x1", "add x0, x0, x1"]
    assert mca.loop_cycles(chain, "neoverse-n1", tool) == pytest.approx(3)
    products = [f"fmul v{i}.4s, v8.4s, v9.4s" for i in range(4)]
    products.append("b.ne 0x401010 <kernel+0x10>")
    assert mca.loop_cycles(products, "neoverse-n1", tool) == pytest.approx(2), "two products a cycle"
    assert 30 <= mca.stretch_cycles([chain * 10, ["ret", *chain]], "neoverse-n1", tool) <= 50
    with pytest.raises(ConfigError, match="cannot read"):
        mca.loop_cycles(["vfmadd231ps"], "neoverse-n1", tool)


@pytest.mark.parametrize("target", [arm.CORTEX_A76, arm.NEOVERSE_V1], ids=lambda t: t.name)
def test_every_multiply_add_of_a_kernel_is_found(target: Target, tmp_path: Path) -> None:
    tool, objdump = _tools()
    a = layer(24, 48, (8, 16))
    weight = unstructured(a.rows, a.inner, 0.3)
    # in groups of rows the shorter ones are padded
    space = csr_conv.space(problem_of(a), infer(weight), target)
    config = next(c for c in space if c["group"] == 1)
    case = make_conv_case(csr_conv, a, weight, target, config)
    trace = traced(case, (0, case.tiles), tmp_path, objdump)
    window = csr_conv.window_visits.window_of(problem_of(a), config, target)
    computed = window.line * window.tiles[0] * window.tiles[1]
    assert trace.multiply_adds == np.count_nonzero(weight) * computed
    products = np.count_nonzero(weight) * a.geometry.positions
    core = next(c for c in arm_static.CORES if c.target is target)
    loop = arm_static.loop_of(
        trace.hot, products / trace.multiply_adds, config["vectors"] * target.lanes, core.mca, tool
    )
    assert loop["multiply_adds"] % config["vectors"] == 0
    assert 0.2 < loop["cycles_per_multiply_add"] < 4
    half = arm_static.layer_of(trace, 0.5, core, tool)
    assert half["multiply_adds"] == 2 * trace.vector_multiply_adds
    assert half["cycles"] > 2 * loop["cycles_per_multiply_add"] * trace.vector_multiply_adds * 0.8


def test_benchmarks_name_arm_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"CPU implementer": "0x41", "CPU part": "0xd0b", "Features": "fp asimd asimddp sha2"}
    monkeypatch.setattr(machine, "_cpu_facts", lambda: facts)
    described = machine.described()
    assert (described["cpu"], described["flags"]) == ("Cortex-A76", ["asimd", "asimddp"])
    assert machine.slug(described) == "cortex-a76"
    assert table.machine_line(described) == "Cortex-A76, NEON dot product"
    facts |= {"CPU implementer": "0x61", "CPU part": "0x022"}
    assert machine.described()["cpu"] == "ARM 0x61 0x022"
