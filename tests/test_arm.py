"""Whole models on ARM: compiled and linked here, run by the C executor under qemu, against onnxruntime."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnxruntime")

import qemu_arm
from artifact_runs import RUNNER, executor_sources, kernels_of, outputs_of, record
from onnx_models import assert_close, encoder, mlp, onnxruntime_run

import sparsec
from sparsec.compiler import artifact
from sparsec.errors import ArtifactError, BuildError, ConfigError
from sparsec.frontends import import_model
from sparsec.targets import arm, named, x86
from sparsec.targets.build import compiler_of
from sparsec.targets.named import target_named
from sparsec.targets.processor import parsed
from sparsec.targets.target import Target

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "benchmarks" / "models" / "digits.onnx"
LENET = ROOT.parent / "shared" / "data" / "pruned" / "dns_lenet5_sparse" / "model.onnx"

REASON = qemu_arm.missing()
emulated = pytest.mark.skipif(REASON is not None, reason=f"ARM not run: {REASON}")


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The models share kernels; each run of the tests starts cold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEC_CACHE", str(tmp_path_factory.getbasetemp() / "arm-kernels"))
        yield


def normal(*shape: int) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A model, the inputs it is run on, and kernels that must be among its steps."""

    model: Any
    feeds: Mapping[str, Any]
    threads: int = 1
    kernels: frozenset[str] = frozenset()


@cache
def cases() -> dict[str, Case]:
    """The models by name."""
    return {
        "digits": Case(DIGITS, {"pixels": normal(5, 64)}, 2, frozenset({"dense_conv", "csr_conv"})),
        "encoder layer": Case(
            encoder(1, 40, 96, zeros=0.9), {"x": normal(1, 40, 96)}, 2,
            frozenset({"attention", "layer_norm", "csr_spmm"}),
        ),
        "mlp, batch 1": Case(mlp(1, (784, 256, 256, 10)), {"x": normal(1, 784)}),
        "lenet": Case(LENET, {"x": normal(3, 1, 28, 28)}),
    }  # fmt: skip


NAMES = ("digits", "encoder layer", "mlp, batch 1", "lenet")
#: every model for the baseline and for scalable vectors; one for cores that differ from them in little
PAIRS = [
    *((target, name) for target in (arm.NEON, arm.NEOVERSE_V1) for name in NAMES),
    *((target, "mlp, batch 1") for target in (arm.DOT, arm.CORTEX_A76, arm.NEOVERSE_N1)),
]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executor and its program for ARM."""
    program = tmp_path_factory.mktemp("runner") / "program"
    return qemu_arm.build(program, (RUNNER, *executor_sources()), "-std=c11", "-Wl,--no-as-needed")


@emulated
@pytest.mark.parametrize(("target", "name"), PAIRS, ids=lambda part: getattr(part, "name", part))
def test_model_agrees_with_onnxruntime(target: Target, name: str, runner: Path, tmp_path: Path) -> None:
    case = cases()[name]
    if isinstance(case.model, Path) and not case.model.is_file():
        pytest.skip("the shared/data folder is not beside this clone")
    data = artifact(import_model(case.model, None), target)
    assert case.kernels <= kernels_of(data)
    (tmp_path / "model0.sparsec").write_bytes(data)
    (tmp_path / "cases.bin").write_bytes(record(0, case.threads, case.feeds))
    [want] = onnxruntime_run(case.model, case.feeds)
    [got] = outputs_of(qemu_arm.run(runner, qemu_arm.processor_of(target), tmp_path), [want.ndim])
    assert_close(got, want, 1e-4)


@emulated
def test_one_file_for_both_lengths_of_vectors(runner: Path, tmp_path: Path) -> None:
    """The best code is picked by what the processor has; both read the same weights."""
    model, feeds = mlp("n", (120, 96, 40)), {"x": normal(37, 120)}
    data = artifact(import_model(model, None), target_named("neoverse-n1,neoverse-v1"))
    (tmp_path / "model0.sparsec").write_bytes(data)
    (tmp_path / "cases.bin").write_bytes(record(0, 2, feeds))
    [want] = onnxruntime_run(model, feeds)
    for target in (arm.NEOVERSE_N1, arm.NEOVERSE_V1):
        [got] = outputs_of(qemu_arm.run(runner, qemu_arm.processor_of(target), tmp_path), [2])
        assert_close(got, want, 1e-4)


@emulated
def test_processor_without_the_instructions_refuses(runner: Path, tmp_path: Path) -> None:
    """Vectors of another length than the code was made for, or none at all."""
    data = artifact(import_model(mlp(1), None), arm.NEOVERSE_V1)
    (tmp_path / "model0.sparsec").write_bytes(data)
    (tmp_path / "cases.bin").write_bytes(record(0, 1, {"x": normal(1, 64)}))
    for processor, lacks in (("max,sve-max-vq=1", "sve256"), ("neoverse-n1", "sve, sve256")):
        process = qemu_arm.start(runner, processor, tmp_path)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1 and lacks in said.decode() and "which this one lacks" in said.decode()


def test_program_for_arm_is_saved_and_refuses_to_run(tmp_path: Path) -> None:
    if REASON:
        pytest.skip(REASON)
    program = sparsec.compile(mlp("n"), target="cortex-a76", threads=2)
    assert [str(p) for p in program.inputs] == ["x: float32[n, 64]"]
    assert (program.isa, program.threads, program.manifest["target"]) == ("cortex-a76", 2, "cortex-a76")
    assert program.report["layers"]
    program.save(tmp_path / "m.sparsec")
    for run in (
        lambda: program(normal(1, 64)),
        lambda: program.run(None, {"x": normal(1, 64)}),
        lambda: program.prepare({"x": normal(1, 64)}),
        lambda: program.profile(normal(1, 64)),
        lambda: sparsec.load(tmp_path / "m.sparsec"),
    ):
        with pytest.raises(ArtifactError, match="compiled for processors of aarch64, which this one is not"):
            run()
    with pytest.raises(ConfigError, match="threads=0"):
        program.threads = 0


def test_missing_cross_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", "")
    monkeypatch.setenv("SPARSEC_AARCH64_CC", "/nonexistent/gcc")
    with pytest.raises(BuildError, match=r"install gcc-aarch64-linux-gnu\) or set SPARSEC_AARCH64_CC"):
        sparsec.compile(mlp(1), target="aarch64")


def test_report_for_arm_needs_no_cross_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_AARCH64_CC", "/nonexistent/gcc")
    report = sparsec.analyze(mlp(32), target="neoverse-n1")
    assert report["target"]["name"] == "neoverse-n1" and len(report["layers"]) == 2


CPUINFO = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: {part}
CPU revision\t: 1
"""


@pytest.mark.parametrize(
    ("part", "features", "name"),
    [
        ("0xd0c", arm.NEOVERSE_N1.features, "neoverse-n1"),
        ("0xd0b", arm.CORTEX_A76.features, "cortex-a76"),
        ("0xd4f", (*arm.NEOVERSE_N1.features, "sve", "sve2", "sve128"), "neoverse-n1"),
        ("0xd40", arm.NEOVERSE_V1.features, "neoverse-v1"),
        ("0xd40", arm.NEOVERSE_N1.features, "neoverse-n1"),  # a hypervisor hides its scalable vectors
        ("0xd40", ("fp", "asimd"), "aarch64"),
        ("0xd03", ("fp", "asimd", "crc32"), "aarch64"),
        ("0xd05", arm.DOT.features, "armv8.2-a+dotprod"),
    ],
)
def test_this_machine_is_known_by_its_part_and_features(
    part: str, features: tuple[str, ...], name: str
) -> None:
    processor = parsed(CPUINFO.format(part=part, features=" ".join(features)))
    assert (processor.vendor, processor.family, processor.model) == ("0x41", 8, int(part, 16))
    assert arm.core_of(processor).name == name


def test_an_arm_machine_compiles_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one at hand: what it would take for itself, and link with."""
    processor = parsed(CPUINFO.format(part="0xd0c", features=" ".join(arm.NEOVERSE_N1.features)))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(arm, "this_processor", lambda: processor)
    monkeypatch.setenv("SPARSEC_CC", "gcc-13")
    found = target_named("native")
    assert (found.name, found.mcpu, found.l2) == ("native (neoverse-n1)", "neoverse-n1", 1 << 20)
    assert named.level() is arm.NEOVERSE_N1
    assert compiler_of(found) == "gcc-13"
    with pytest.raises(BuildError, match="linking for x86_64 needs a machine of that kind"):
        compiler_of(x86.AVX2)


def test_machine_without_vectors_is_refused() -> None:
    with pytest.raises(ConfigError, match="lacks asimd"):
        arm.core_of(parsed(CPUINFO.format(part="0xd03", features="fp")))


def test_targets_are_named_and_known_to_llvm() -> None:
    import tvm

    for target in arm.TARGETS:
        assert target_named(target.name) is target and target.architecture == "aarch64"
        tvm.target.Target(target.tvm_target)
    with pytest.raises(ConfigError, match="neoverse-v1"):
        target_named("neoverse-v9")
