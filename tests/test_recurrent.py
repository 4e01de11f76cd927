"""LSTM, GRU and RNN from ONNX against onnxruntime: one product, then all steps in one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("tvm")

import onnx  # noqa: E402
from kernel_harness import aligned, call, fenced  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_models import assert_close, onnxruntime_run  # noqa: E402
from recurrent_cases import KINDS, right_answer  # noqa: E402

import sparsec  # noqa: E402
from sparsec.errors import Unsupported  # noqa: E402
from sparsec.frontends.from_onnx import from_onnx  # noqa: E402
from sparsec.ir import printer  # noqa: E402
from sparsec.ir.graph import Op  # noqa: E402
from sparsec.reference.evaluate import evaluate  # noqa: E402
from sparsec.targets.build import module_of  # noqa: E402
from sparsec.targets.kernels import recurrent  # noqa: E402
from sparsec.targets.x86 import native  # noqa: E402

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WAYS = {"forward": 1, "reverse": 1, "bidirectional": 2}
INPUTS = 6


def layer(
    operator: str, way: str, steps: int | str, batch: int | str, hidden: int, *, states: bool = True,
    biased: bool = True, weights: Mapping[str, Any] | None = None, inputs: tuple[str, ...] = (),
    **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """One recurrent node with all its outputs."""
    rng = np.random.default_rng(hidden)
    ways, columns = WAYS[way], GATES[operator] * hidden
    stored = {
        "W": rng.standard_normal((ways, columns, INPUTS)) / INPUTS**0.5,
        "R": rng.standard_normal((ways, columns, hidden)) / hidden**0.5,
        "B": rng.standard_normal((ways, 2 * columns)),
    }
    stored = {k: v.astype(np.float32) for k, v in stored.items() if biased or k != "B"} | dict(weights or {})
    known = ["Y", "Y_h", "Y_c"] if operator == "LSTM" else ["Y", "Y_h"]
    begins = ["h0", "c0"][: len(known) - 1] if states else []
    names = inputs or ("x", "W", "R", "B" if biased else "", "", *begins)
    node = helper.make_node(
        operator, names, known, name="cell", hidden_size=hidden, direction=way, **attributes
    )
    shapes = {"x": [steps, batch, INPUTS]} | {s: [ways, batch, hidden] for s in begins}
    ports = [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in shapes.items()]
    outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in known]
    arrays = [numpy_helper.from_array(a, k) for k, a in stored.items()]
    graph = helper.make_graph([node], "test", ports, outputs, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds(proto: onnx.ModelProto, steps: int, batch: int, seed: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sizes = {"T": steps, "N": batch}
    shapes = {
        i.name: [sizes.get(d.dim_param, d.dim_value) for d in i.type.tensor_type.shape.dim]
        for i in proto.graph.input
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def check(proto: onnx.ModelProto, program: Any, steps: int, batch: int) -> None:
    inputs = feeds(proto, steps, batch)
    for got, want in zip(program.run(None, inputs), onnxruntime_run(proto, inputs), strict=True):
        assert_close(got, want, 1e-5)


@pytest.mark.parametrize("hidden", [1, 7, 32, 128])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("operator", GATES)
def test_agrees_with_onnxruntime(operator: str, way: str, hidden: int) -> None:
    """One step and many, one sequence and many, with initial states and without."""
    for steps, batch, states in ((1, 1, True), (17, 5, False), (17, 1, False), (1, 5, True)):
        proto = layer(operator, way, steps, batch, hidden, states=states)
        check(proto, sparsec.compile(proto), steps, batch)


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("operator", GATES)
def test_open_steps_and_batch(operator: str, states: bool) -> None:
    proto = layer(operator, "bidirectional", "T", "N", 20, states=states)
    program = sparsec.compile(proto)
    for steps, batch in ((1, 1), (17, 5), (4, 9), (2, 2)):
        check(proto, program, steps, batch)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_gru_that_resets_the_product(way: str, biased: bool) -> None:
    for hidden, steps, batch in ((7, 5, 3), (32, 1, 1)):
        proto = layer("GRU", way, steps, batch, hidden, biased=biased, linear_before_reset=1)
        check(proto, sparsec.compile(proto), steps, batch)


@pytest.mark.parametrize("operator", GATES)
def test_batch_before_steps(operator: str) -> None:
    """onnxruntime has no layout 1, so the answer is that of layout 0, its axes moved."""
    plain, moved = (layer(operator, "bidirectional", 5, 3, 9, layout=which) for which in (0, 1))
    for port in moved.graph.input:
        sizes = [d.dim_value for d in port.type.tensor_type.shape.dim]
        for dim, size in zip(port.type.tensor_type.shape.dim, (sizes[1], sizes[0], sizes[2]), strict=True):
            dim.dim_value = size
    inputs = feeds(plain, 5, 3)
    y, *states = onnxruntime_run(plain, inputs)
    got = sparsec.compile(moved).run(None, {k: v.swapaxes(0, 1).copy() for k, v in inputs.items()})
    for one, want in zip(got, [y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in states)], strict=True):
        assert_close(one, want, 1e-5)


def test_a_sparse_input_weight_is_skipped_and_the_recurrent_one_reported() -> None:
    hidden = 64
    weight = np.random.default_rng(0).standard_normal((1, 4 * hidden, INPUTS)).astype(np.float32)
    proto = layer("LSTM", "forward", 40, 1, hidden, weights={"W": weight * (weight > 1.6)})
    program = sparsec.compile(proto)
    check(proto, program, 40, 1)
    of_input, of_state = program.report["layers"]
    assert of_input["shape"] == [256, 6] and of_input["sparsity"] > 0.9
    assert of_state["shape"] == [256, 64] and of_state["kernel"] == "recurrent"
    assert "no sparse kernel" in of_state["reason"]


def test_the_graph_has_one_node_a_direction() -> None:
    graph = from_onnx(layer("LSTM", "bidirectional", "T", 2, 8))
    lines = [line for line in printer.text(graph).splitlines() if "recurrent(" in line]
    assert len(lines) == 2 and "[T, 2, 8]" in lines[0]
    assert [n.attrs.reverse for n in graph.nodes if n.op is Op.RECURRENT] == [False, True]  # type: ignore[union-attr]


def test_the_reference_agrees_with_onnxruntime() -> None:
    for operator in GATES:
        proto = layer(operator, "reverse", 6, 3, 5)
        graph, inputs = from_onnx(proto), feeds(proto, 6, 3)
        got = evaluate(graph, inputs, dtype=np.float64)
        for one, want in zip(got.values(), onnxruntime_run(proto, inputs), strict=True):
            assert_close(one.astype(np.float32), want, 1e-5)


def test_lengths_that_are_all_steps_change_nothing() -> None:
    names = ("x", "W", "R", "B", "lengths", "h0", "c0")
    for length, fits in ((4, True), (3, False)):
        lengths = {"lengths": np.full(2, length, np.int32)}
        proto = layer("LSTM", "forward", 4, 2, 8, weights=lengths, inputs=names)
        if fits:
            check(proto, sparsec.compile(proto), 4, 2)
        else:
            with pytest.raises(Unsupported, match="cut short to 3 steps"):
                from_onnx(proto)


@pytest.mark.parametrize(
    ("operator", "changes", "reason"),
    [
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, "activations other than the default"),
        ("GRU", {"clip": 1.0}, "with clip"),
        ("LSTM", {"input_forget": 1}, "input_forget"),
        ("LSTM", {"inputs": ("x", "W", "R", "B", "", "h0", "c0", "P"),
                  "weights": {"P": np.zeros((1, 24), np.float32)}}, "peepholes"),
        ("RNN", {"weights": {"lengths": np.array([2, 3], np.int32)},
                 "inputs": ("x", "W", "R", "B", "lengths", "h0")}, "unequal length"),
        ("RNN", {"inputs": ("x", "h0", "R", "B")}, "must be constants, but 'h0'"),
    ],
)  # fmt: skip
def test_what_no_kernel_runs_is_refused_by_name(operator: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason) as refused:
        from_onnx(layer(operator, "forward", 4, 2, 8, **changes))
    assert refused.value.operators == ((operator, "cell"),)


@pytest.mark.parametrize("attrs", KINDS, ids=lambda a: f"{a.kind}{'_after' * a.reset_after}")
@pytest.mark.parametrize(("steps", "batch", "hidden"), [(3, 5, 11), (1, 1, 16), (0, 2, 16)])
def test_the_kernel_writes_every_last_state(attrs: Any, steps: int, batch: int, hidden: int) -> None:
    """Outputs full of NaN, inputs at the end of their pages."""
    target, rng = native(), np.random.default_rng(0)
    columns = recurrent.GATES[attrs.kind] * hidden
    draw = [(steps, batch, columns), (hidden, columns), *[(batch, hidden)] * (1 + (attrs.kind == "lstm"))]
    arrays = [rng.standard_normal(s).astype(np.float32) for s in draw]
    biases = [rng.standard_normal(hidden).astype(np.float32)] if attrs.reset_after else []
    states = arrays[2:]
    shape = recurrent.Shape(attrs, hidden, recurrent.sequences_a_tile(None, target), (False,) * len(states))
    entry = module_of(recurrent.emit(shape, target, "k"), target)["k"]
    outputs = [aligned(np.full(s, np.nan, np.float32)) for s in (*draw[2:], (steps, batch, hidden))]
    extra = [np.pad(b, (0, recurrent.padded(hidden, target) - hidden)) for b in biases]
    inputs = [arrays[0], recurrent.pack(arrays[1], shape, target), *states, *extra]
    tiles = -(-batch // shape.sequences)
    call(entry, [*map(fenced, inputs), *outputs], (steps, batch), (0, tiles),
         4 * recurrent.scratch_floats(shape, target))  # fmt: skip
    y, *last = right_answer(attrs, [*arrays, *biases])
    for got, want in zip(outputs, [*last, y], strict=True):
        np.testing.assert_allclose(got, want, atol=5e-6, rtol=1e-5)
