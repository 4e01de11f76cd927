"""One plan for several instruction sets: every code of a file right, the best one chosen, one packing."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import corpus
import corpus_attention
import corpus_images
import graph_build
import numpy as np
import pytest
from conv_cases import LAYERS, conv_configs, make_conv_case, suited, weight_of
from kernel_cases import (
    AVX2,
    AVX512,
    PANEL_KERNELS,
    SPLIT,
    VECTOR_KERNELS,
    blocks_of_rows,
    bsr_spmm,
    groups_of_inputs,
    hybrid_spmm,
    nm_spmm,
    small_caches,
    uneven,
    unstructured,
)
from kernel_harness import check_case, make_case
from onnx_models import assert_close, encoder, mlp, onnxruntime_run
from runtime_models import compile_code, pointer, softmax_model, softmax_oracle, twice_model

from sparsec.compiler import artifact
from sparsec.errors import ArtifactError, ConfigError
from sparsec.frontends import import_model
from sparsec.ir.graph import Graph
from sparsec.reference.evaluate import evaluate
from sparsec.runtime import Program
from sparsec.runtime.artifact import MOST_ISAS, to_bytes
from sparsec.runtime.plan import Isa, Step
from sparsec.sparsity.pattern import infer
from sparsec.targets import x86
from sparsec.targets.kernels import active_gemv, bsr_conv, csr_conv, dense_conv, nm_conv
from sparsec.targets.kernels.portable import KERNELS, read_with
from sparsec.targets.named import target_named
from sparsec.targets.several import Joint, joined, most_capable_first
from sparsec.targets.target import Problem, Target

#: AVX2's instructions on vectors of 16 lanes, which LLVM splits: two codes that both run here
WIDE = replace(x86.AVX2, name="split", lanes=16, registers=32)
ORDERS = ((AVX2, SPLIT), (SPLIT, AVX2))


def weight_for(kernel: Any, rows: int, inner: int) -> Any:
    """Zeros the kernel is made for."""
    if kernel is bsr_spmm:
        return blocks_of_rows(rows, inner, 0.3, 4)
    if kernel is nm_spmm:
        return groups_of_inputs(rows, inner, 2, 4)
    return uneven(rows, inner) if kernel is hybrid_spmm else unstructured(rows, inner, 0.3)


def options(
    kernel: ModuleType, members: tuple[Target, ...], problem: Problem, weight: Any
) -> tuple[Joint, list[dict[str, int]]]:
    """A kernel for all members, and the configurations it offers."""
    joint = Joint(kernel, members)
    pattern = infer(weight)
    assert joint.accepts(problem, pattern, members[0])
    return joint, list(joint.space(problem, pattern, members[0]))


@pytest.mark.parametrize("order", ORDERS, ids=("narrow first", "wide first"))
@pytest.mark.parametrize("kernel", PANEL_KERNELS, ids=lambda k: k.name)
def test_panel_kernels_read_one_packing(kernel: Any, order: tuple[Target, ...]) -> None:
    members = tuple(map(small_caches, order))
    weight = weight_for(kernel, 23, 92)
    joint, found = options(kernel, members, Problem(23, 92, 37, 32), weight)
    assert found[0]["lanes"] == members[0].lanes, "the first target's vectors come first"
    for member in members:
        check_case(make_case(joint, weight, 37, 32, member, found[0], "bias_relu"))


@pytest.mark.parametrize("order", ORDERS, ids=("narrow first", "wide first"))
@pytest.mark.parametrize("kernel", VECTOR_KERNELS, ids=lambda k: k.name)
def test_vector_kernels_read_one_packing(kernel: Any, order: tuple[Target, ...]) -> None:
    weight = unstructured(53, 71, 0.3)
    for columns in (1, 3):
        joint, found = options(kernel, order, Problem(53, 71, columns, 0), weight)
        for config in found:
            for member in order:
                check_case(make_case(joint, weight, columns, 0, member, config, "bias"))


@pytest.mark.parametrize("order", ORDERS, ids=("narrow first", "wide first"))
@pytest.mark.parametrize("kernel", [dense_conv, csr_conv, bsr_conv, nm_conv], ids=lambda k: k.name)
def test_convolutions_read_one_packing(kernel: ModuleType, order: tuple[Target, ...]) -> None:
    layer = suited(kernel, LAYERS["odd"])
    weight = weight_of(kernel, layer)
    joint = Joint(kernel, tuple(map(small_caches, order)))
    found = list(conv_configs(joint, layer, weight, joint.members[0]))  # type: ignore[arg-type]
    assert found and {c["lanes"] for c in found} == {8}, "windows are bound to the lanes they are cut for"
    for member in joint.members:
        check_case(make_conv_case(joint, layer, weight, member, found[0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", [*PANEL_KERNELS, *VECTOR_KERNELS, active_gemv], ids=lambda k: k.name)
def test_arrays_of_portable_packings_do_not_depend_on_the_vectors(kernel: Any) -> None:
    """A rule that lets other vectors read a packing is right: packing for those gives the same bytes."""
    panel = 64 if kernel in PANEL_KERNELS else 0
    problem = Problem(48, 96, 2 if panel == 0 else 200, panel, active=0.2)
    weight = weight_for(kernel, 48, 96)
    ruled = 0
    for packed, other in ((AVX2, AVX512), (AVX512, AVX2)):
        for config in kernel.space(problem, infer(weight), packed):
            own = read_with(kernel.name, problem, config, packed, other)
            if own is not None:
                ruled += 1
                first = kernel.pack(weight, problem, config, packed)
                again = kernel.pack(weight, problem, own, other)
                assert first.tiles == again.tiles and list(first.arrays) == list(again.arrays)
                assert all(np.array_equal(first.arrays[a], again.arrays[a]) for a in first.arrays)
    assert (ruled > 0) == (kernel.name in KERNELS), f"{kernel.name}: {ruled} configurations can be shared"


def test_accumulators_stay_in_registers() -> None:
    """What was packed for one kind of vectors is not read with more accumulators than the other has."""
    for packed, other in ((AVX2, AVX512), (AVX512, AVX2)):
        for panel in (16, 32, 64):
            for kernel in PANEL_KERNELS:
                problem, weight = Problem(48, 96, 200, panel), weight_for(kernel, 48, 96)
                for config in kernel.space(problem, infer(weight), packed):
                    own = read_with(kernel.name, problem, config, packed, other)
                    assert own is not None
                    held = own["vectors"] * own.get("height", own.get("group", 1))
                    assert held < other.registers, (kernel.name, panel, own)


def run(program: Program, feeds: Mapping[str, Any]) -> list[Any]:
    return program.run(None, feeds)


#: graphs, and which target is named first
GRAPHS = (
    (corpus_attention.attention_exported, (x86.AVX2, WIDE)),
    (corpus.recurrent_layers, (WIDE, x86.AVX2)),
    (corpus_images.conv_residual, (x86.AVX2, WIDE)),
)


@pytest.mark.parametrize(("make", "targets"), GRAPHS, ids=[make.__name__ for make, _ in GRAPHS])
def test_graphs_agree_on_every_code(make: Any, targets: tuple[Target, ...]) -> None:
    graph: Graph = make()
    data = artifact(graph, joined(targets))
    for batch in (1, 37):
        feeds = graph_build.random_inputs(graph, batch, {"batch": batch})
        expected = evaluate(graph, feeds)
        for isa in ("x86-64-v3", "split"):
            program = Program.from_bytes(data, isa=isa)
            assert program.isa == isa
            for got, want in zip(run(program, feeds), expected.values(), strict=True):
                assert_close(got, want, 1e-4)


@pytest.mark.parametrize(
    "model",
    [mlp(1, (128, 256, 40)), mlp("batch", (96, 128, 40)), encoder(2, 21, 48)],
    ids=("one token", "any number", "encoder"),
)
def test_models_agree_with_onnxruntime_on_every_code(model: Any) -> None:
    data = artifact(import_model(model, None), joined((x86.AVX2, WIDE)))
    shapes = [[d.dim_value or 9 for d in i.type.tensor_type.shape.dim] for i in model.graph.input]
    feeds = {"x": np.random.default_rng(5).standard_normal(shapes[0]).astype(np.float32)}
    expected = onnxruntime_run(model, feeds)[0]
    for isa in ("x86-64-v3", "split"):
        assert_close(run(Program.from_bytes(data, isa=isa), feeds)[0], expected, 1e-4)


def test_one_plan_and_one_packing() -> None:
    model = import_model(mlp(40, (128, 256, 64)), None)
    one = Program.from_bytes(artifact(model, x86.AVX2)).manifest
    both = Program.from_bytes(artifact(model, joined((x86.AVX2, x86.AVX512)))).manifest
    assert both["target"] == "x86-64-v3,x86-64-v4" and one["target"] == "x86-64-v3"
    assert [isa["name"] for isa in both["isas"]] == ["x86-64-v4", "x86-64-v3"], "the most capable first"
    assert both["isas"][0]["features"] == list(x86.AVX512.features)
    assert both["features"] == list(x86.AVX2.features), "what every code needs"
    for few, many in zip(one["report"]["layers"], both["report"]["layers"], strict=True):
        assert (few["kernel"], few["bytes"]) == (many["kernel"], many["bytes"])
        assert many["config"] == few["config"] | {"lanes": 8}


def test_what_is_chosen_runs_on_all() -> None:
    """Lookups in 16 lanes are no candidates beside AVX2; what panels hold is for whoever is named first."""
    weight = unstructured(256, 256, 0.1)
    few, many = Problem(256, 256, 1, 0), Problem(256, 256, 200, 64)
    both = joined((x86.AVX512, x86.AVX2))
    kernels = {k.name: k for k in both.kernels}
    assert both.others[0].name == "x86-64-v3" and both.l1 == x86.AVX2.l1 and both.lanes == 16
    assert {c["lanes"] for c in kernels["lookup_gemv"].space(few, infer(weight), both)} == {8}
    first = kernels["csr_spmm"].space(many, infer(weight), both)[0]
    assert first["lanes"] == 16 and kernels["csr_spmm"].predict(many, infer(weight), first, both) > 0
    assert kernels["csr_spmm"].nbytes(many, infer(weight), first, both) < weight.nbytes / 4


def test_targets_by_name() -> None:
    both = target_named("x86-64-v4, x86-64-v3")
    assert (both.name, [t.name for t in both.others]) == ("x86-64-v4", ["x86-64-v3"])
    assert [t.name for t in most_capable_first((x86.AVX2, x86.AVX512))] == ["x86-64-v4", "x86-64-v3"]
    with pytest.raises(ConfigError, match="named twice: x86-64-v3, x86-64-v3"):
        target_named("x86-64-v3,x86-64-v3")
    with pytest.raises(ConfigError, match="unknown target ''"):
        target_named("x86-64-v3,")
    with pytest.raises(ConfigError, match=r"not for x86-64-v3 \(x86_64\) and aarch64 \(aarch64\)"):
        target_named("x86-64-v3,aarch64")


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_code(tmp_path_factory.mktemp("kernels"))


def with_isas(code: bytes, *needs: tuple[str, tuple[str, ...]]) -> bytes:
    """The model that doubles, in as many codes; in those called wrong it has no kernel."""
    b = twice_model()
    plan = b.plan()
    absent = tuple(replace(s, kernel="absent") for s in plan.steps)
    isas = [Isa(name, features, absent if name == "wrong" else plan.steps, code) for name, features in needs]
    return to_bytes(plan, isas, b.weights)


def flag() -> str:
    """A feature this processor has."""
    line = next(
        x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith(("flags", "Features"))
    )
    return line.split(":")[1].split()[0]


def test_the_first_that_fits_runs(code: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEC_ISA", raising=False)
    data = with_isas(code, ("wrong", ("flyv9",)), ("best", (flag(),)), ("plain", ()))
    assert Program.from_bytes(data).isa == "best"
    assert Program.from_bytes(data, isa="plain").isa == "plain"
    assert np.array_equal(Program.from_bytes(data, isa="plain")(np.ones(3, "f4")), [2, 2, 2])
    monkeypatch.setenv("SPARSEC_ISA", "plain")
    assert Program.from_bytes(data).isa == "plain"
    assert Program.from_bytes(data, isa="best").isa == "best", "the argument is asked before the environment"
    assert Program.from_bytes(with_isas(code, ("only", ()))).isa == "only", "where there is nothing to choose"


def test_codes_that_do_not_fit_are_named(code: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEC_ISA", raising=False)
    data = with_isas(code, ("v10", ("flyv9", "flyv10")), ("v9", (flag(), "flyv9")))
    with pytest.raises(
        ArtifactError, match="none of the file's codes: v10 needs flyv9, flyv10; v9 needs flyv9;"
    ):
        Program.from_bytes(data)
    with pytest.raises(ArtifactError, match="the code for v9 was asked for; it needs flyv9, which this proc"):
        Program.from_bytes(data, isa="v9")
    with pytest.raises(ArtifactError, match="the file has no code for v8, only for v10, v9"):
        Program.from_bytes(data, isa="v8")


def test_another_architecture_is_named(code: bytes) -> None:
    foreign = bytearray(code)
    other = 183 if os.uname().machine == "x86_64" else 62
    struct.pack_into("<H", foreign, 18, other)
    name = {183: "aarch64", 62: "x86-64"}[other]
    with pytest.raises(ArtifactError, match=f"was compiled for processors of {name}, which this one is not"):
        Program.from_bytes(with_isas(bytes(foreign), ("elsewhere", ())))


def test_steps_differ_and_buffers_do_not(code: bytes) -> None:
    """Each code has kernels, tiles and scratch of its own; both compute over the same buffers and weights."""
    bias = np.random.default_rng(1).standard_normal(37).astype("float32")
    b = softmax_model(bias)
    plan = b.plan()
    whole = b.size(1)
    coarse: tuple[Step, ...] = tuple(replace(s, scratch=b.size(4096), nanoseconds=1) for s in plan.steps)
    plan = b.plan()
    assert whole < len(plan.expressions)
    data = to_bytes(plan, [Isa("fine", (), plan.steps, code), Isa("coarse", (), coarse, code)], b.weights)
    x = np.random.default_rng(2).standard_normal((11, 37)).astype("float32")
    for isa in ("fine", "coarse"):
        program = Program.from_bytes(data, threads=2, isa=isa, verify=True)
        np.testing.assert_allclose(program(x), softmax_oracle(x, bias), atol=1e-6)
    assert len(data) < 2 * len(code) + 16384, "the weights are there once"


def test_a_bad_table_of_isas_is_refused(code: bytes) -> None:
    from runtime_fuzz import HEADER, repair, sections

    data = with_isas(code, ("one", ("fpu",)), ("two", ()))
    start = next(offset for kind, offset, _ in sections(data) if kind == 11)
    for at, value in ((0, 1 << 30), (8, 7), (12, 9), (16, 1 << 31)):
        changed = bytearray(data)
        struct.pack_into("<I", changed, start + at, value)
        repair(changed)
        with pytest.raises(ArtifactError, match="the file's table of isas is damaged"):
            Program.from_bytes(changed)
    changed = bytearray(data)
    entry = [kind for kind, _, _ in sections(data)].index(14)
    struct.pack_into("<I", changed, HEADER + entry * 32 + 24, 1)
    repair(changed)
    with pytest.raises(ArtifactError, match=r"damaged in its (arguments|code)"):
        Program.from_bytes(changed)
    changed = bytearray(data)
    struct.pack_into("<I", changed, HEADER + entry * 32 + 24, MOST_ISAS)
    repair(changed)
    with pytest.raises(ArtifactError, match="damaged in its code"):
        Program.from_bytes(changed)
    b = twice_model()
    with pytest.raises(ArtifactError, match="1 to 16 instruction sets, not 0"):
        to_bytes(b.plan(), [], [])
    b.step("twice", pointer(0), pointer(1))


def test_only_the_code_that_runs_is_checked(code: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime_fuzz import sections

    monkeypatch.delenv("SPARSEC_ISA", raising=False)
    data = bytearray(with_isas(code, ("first", ()), ("second", ())))
    places = [(offset, size) for kind, offset, size in sections(data) if kind == 14]
    data[places[1][0] + places[1][1] // 2] ^= 1
    assert Program.from_bytes(data).isa == "first"
    for changes in ({"isa": "second"}, {"verify": True}):
        with pytest.raises(ArtifactError, match="damaged in its code"):
            Program.from_bytes(data, **changes)
