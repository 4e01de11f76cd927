"""What every pass promises, on every graph of the corpus; then what each pass is for."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import corpus
import corpus_attention as attention
import corpus_images as images
import numpy as np
import pytest
from corpus import BEFORE, CORPUS, PASSES, TARGET, random_graph
from graph_build import BATCH, Build, random_inputs

from sparsec import pipeline
from sparsec.errors import IRError
from sparsec.ir import expr, printer
from sparsec.ir.attributes import AttentionAttrs, ConstAttrs, MatmulAttrs, TirAttrs
from sparsec.ir.expr import Arg, Scalar, call
from sparsec.ir.graph import Graph, Node, Op, replace, with_nodes
from sparsec.ir.types import Type
from sparsec.ir.verify import verify
from sparsec.passes.algebra import broadcast, simplify_expr
from sparsec.passes.assign_layouts import FEW_TOKENS, assign_layouts
from sparsec.passes.choose_format import choose_format
from sparsec.passes.fold_convolution import fold_convolution
from sparsec.passes.fuse_attention import fuse_attention
from sparsec.passes.fuse_elementwise import fuse_elementwise
from sparsec.passes.fuse_norms import fuse_norms
from sparsec.passes.infer_patterns import infer_patterns
from sparsec.passes.pack import pack
from sparsec.passes.simplify import simplify
from sparsec.pipeline import Pass
from sparsec.reference.evaluate import evaluate
from sparsec.targets.target import Target

ALL = (
    simplify, fuse_attention, fuse_norms, simplify, fuse_elementwise, fold_convolution, simplify,
    infer_patterns,
)  # fmt: skip
LAID_OUT = (*ALL, assign_layouts)
LOWERED = (*LAID_OUT, choose_format, pack)


def assert_same_meaning(before: Graph, after: Graph, seed: int = 1) -> None:
    inputs = random_inputs(before, seed)
    wanted = evaluate(before, inputs, dtype=np.float64)
    found = evaluate(after, inputs, dtype=np.float64)
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6 * np.abs(array).max(initial=0))


def assert_pass_keeps_its_promises(one: Pass, graph: Graph) -> None:
    after = verify(one(graph, TARGET))
    assert_same_meaning(graph, after)
    again = one(after, TARGET)
    assert again.same_as(after), printer.diff(after, again)
    assert again is after, "a pass returns the same object when nothing changes"


@pytest.mark.parametrize("make", CORPUS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("one", PASSES, ids=pipeline.pass_name)
def test_pass(one: Pass, make: Callable[[], Graph]) -> None:
    before = BEFORE.get(one, ())
    assert_pass_keeps_its_promises(one, pipeline.run(make(), TARGET, before))
    assert_pass_keeps_its_promises(one, pipeline.run(make(), TARGET, (simplify, *before)))


@pytest.mark.parametrize("make", CORPUS, ids=lambda f: f.__name__)
def test_whole_pipeline(make: Callable[[], Graph]) -> None:
    graph = make()
    assert_same_meaning(graph, pipeline.run(graph, TARGET, LOWERED))


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    graph = random_graph(seed)
    assert_pass_keeps_its_promises(fuse_elementwise, graph)
    assert_pass_keeps_its_promises(assign_layouts, graph)
    assert_same_meaning(graph, pipeline.run(graph, TARGET, LOWERED))


def ops(graph: Graph) -> list[str]:
    """The kinds of node that compute something, in order."""
    return [str(n.op) for n in graph.nodes if n.op not in (Op.INPUT, Op.CONST)]


def only(graph: Graph, op: Op) -> Node:
    (found,) = (n for n in graph.nodes if n.op is op)
    return found


def compiled(make: Callable[[], Graph]) -> Graph:
    return pipeline.run(make(), TARGET, ALL)


# What is left after the passes, op by op.
@pytest.mark.parametrize(
    ("make", "left"),
    [
        (corpus.mlp_relu, ["matmul", "matmul"]),
        (corpus.mlp_gelu, ["matmul", "matmul"]),
        (corpus.mlp_silu_clip_residual, ["matmul", "matmul"]),
        (corpus.two_matmuls_added, ["matmul", "matmul"]),
        (corpus.residual_depends_on_product, ["matmul", "softmax", "elementwise"]),
        (corpus.gate_after_activation, ["reduce", "elementwise", "matmul", "elementwise"]),
        (corpus.product_is_output, ["matmul", "elementwise"]),
        (corpus.value_used_twice, ["matmul", "matmul", "softmax"]),
        (corpus.reshape_between, ["matmul", "layer_norm", "matmul"]),
        (corpus.layer_norm_by_hand, ["layer_norm"]),
        (corpus.rms_norm, ["matmul", "layer_norm", "matmul", "matmul"]),
        (corpus.rms_norm_divided, ["elementwise", "reduce", "layer_norm", "elementwise"]),
        (attention.attention_exported, ["reshape", "elementwise", *["matmul"] * 3, "attention", "matmul"]),
        (attention.attention_scaled_operands, [*["matmul"] * 3, "attention", "reshape"]),
        (attention.attention_merged_batch, [*["matmul"] * 3, "attention"]),
        (attention.attention_without_batch, ["reshape", *["matmul"] * 3, "attention", "reshape"]),
        (attention.attention_one_position, [*["matmul"] * 3, "attention"]),
        (corpus.diamond, ["elementwise", "elementwise", "elementwise"]),
        (corpus.constants_fold, ["matmul"]),
        (corpus.equal_values_merge, ["elementwise", "elementwise", "elementwise"]),
        (corpus.moves_that_cancel, ["elementwise"]),
        (corpus.inputs_are_outputs, []),
        (images.conv_batch_norm, ["conv2d"]),
        (images.conv_residual, ["conv2d", "conv2d", "slice", "pad", "conv2d", "conv2d"]),
        (images.conv_scaled_input, ["conv2d", "conv2d", "elementwise", "conv2d"]),
        (images.conv_weight_shared, ["conv2d", "conv2d"]),
        (images.conv_padded_before, ["pad", "conv2d", "pad", "conv2d", "reshape", "conv2d", *["pool"] * 3]),
        (images.conv_sequence, ["conv2d", "conv2d", "reshape"]),
        (images.conv_gated, ["reduce", "conv2d", "conv2d", "reduce", "conv2d", "conv2d", "elementwise"]),
        (images.pyramid, ["conv2d", "pool", "conv2d", "resize", "elementwise", "pool", "resize", "concat"]),
        (
            images.channel_shuffle,
            ["conv2d", "concat", "reshape", "slice", "slice", "reshape", "reshape", "conv2d", "concat"],
        ),
        (images.cuts_and_joins, ["concat", "slice", "slice", "slice", "pad"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_left(make: Callable[[], Graph], left: list[str]) -> None:
    assert ops(compiled(make)) == left


def test_attention_whose_weights_are_an_output_stays() -> None:
    graph = attention.attention_shows_weights()
    assert fuse_attention(graph, TARGET) is graph


@pytest.mark.parametrize(
    ("make", "heads", "scale", "arguments"),
    [
        (attention.attention_exported, 3, 0.5, 4),
        (attention.attention_scaled_operands, 2, 0.49, 3),
        (attention.attention_merged_batch, 2, 1.0, 3),
        (attention.attention_without_batch, 2, 0.5, 4),
        (attention.attention_length_first, 2, 0.5, 3),
        (attention.attention_mask_per_head, 2, 1.0, 4),
        (attention.attention_masked_fill, 2, 0.5, 4),
        (attention.attention_shared_heads, 4, 0.5, 3),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_attention_attributes(make: Callable[[], Graph], heads: int, scale: float, arguments: int) -> None:
    found = only(compiled(make), Op.ATTENTION)
    assert isinstance(found.attrs, AttentionAttrs)
    assert (found.attrs.heads, len(found.args)) == (heads, arguments)
    assert found.attrs.scale == pytest.approx(scale)


def test_epilogue_of_gelu_is_one_expression_over_product_and_bias() -> None:
    first = next(n for n in compiled(corpus.mlp_gelu).nodes if n.op is Op.MATMUL)
    assert isinstance(first.attrs, MatmulAttrs) and first.attrs.epilogue is not None
    assert expr.arguments(first.attrs.epilogue) == (0, 1)
    assert len(first.args) == 3


def test_a_folded_scale_keeps_the_zeros_of_a_weight_and_rounds_once() -> None:
    graph, folded = images.conv_batch_norm(), compiled(images.conv_batch_norm)
    layer = only(folded, Op.CONV2D)
    before, after = (g.consts[only(g, Op.CONV2D).args[1]] for g in (graph, folded))
    assert ((before == 0) == (after == 0)).all() and (before == 0).any()
    assert [folded.consts[a].shape for a in layer.args[2:]] == [(6, 1, 1)]
    ratios = np.where(before == 0, np.nan, after / np.where(before == 0, 1, before)).reshape(6, -1)
    np.testing.assert_allclose(np.nanmin(ratios, 1), np.nanmax(ratios, 1), rtol=1e-6)


def test_a_scale_that_overflows_stays_outside() -> None:
    b = Build()
    y = b.conv(b.input(1, 2, 3, 3), b.const(np.full((2, 2, 1, 1), 1e30)))
    graph = pipeline.run(
        b.graph(b.apply("mul", y, b.const(np.full((2, 1, 1), 1e30)))), TARGET, (fuse_elementwise,)
    )
    assert fold_convolution(graph, TARGET) is graph


@pytest.mark.parametrize(
    ("shape", "fused"),
    [((), True), ((1, 6, 1, 1), True), ((6, 1, 1), True), (("batch", 6, 4, 5), True), ((6, 4, 5), False),
     ((5,), False), ((1, 1, 4, 5), False), (("batch", 6, 1, 1), False), (("batch", 1, 1, 1), False)],
)  # fmt: skip
def test_what_a_convolution_adds(shape: tuple[int | str, ...], fused: bool) -> None:
    b = Build()
    sizes = [BATCH if s == "batch" else s for s in shape]
    other = b.input(*sizes) if "batch" in shape else b.random(*(int(s) for s in shape))
    y = b.conv(b.input(BATCH, 3, 4, 5), b.random(6, 3, 1, 1))
    left = ops(fuse_elementwise(b.graph(b.apply("add", y, other)), TARGET))
    assert left == (["conv2d"] if fused else ["conv2d", "elementwise"])


def test_long_chains_stop_growing() -> None:
    b = Build()
    y = b.linear(b.input(4, 8), 8)
    for step in range(200):
        y = b.apply("tanh", b.apply("add", y, b.const(0.01 * (step + 1))))
    graph = b.graph(y)
    fused = pipeline.run(graph, TARGET, ALL)
    assert_same_meaning(graph, fused)
    assert len(ops(fused)) < 12
    for n in fused.nodes:
        body = getattr(n.attrs, "expr", None) or getattr(n.attrs, "epilogue", None)
        assert body is None or len(expr.walk(body)) <= 64


def test_integers_keep_their_own_node() -> None:
    """A cast to integers truncates; inside a float expression it would not."""
    left = compiled(corpus.comparisons)
    assert {n.type.dtype for n in left.nodes if n.op is Op.ELEMENTWISE} >= {"int64", "float32"}


def test_huge_broadcasts_are_not_folded() -> None:
    b = Build()
    x = b.apply("add", b.const(np.ones((1000, 1))), b.const(np.ones((1, 1000))))
    graph = b.graph(x)
    assert simplify(graph, TARGET) is graph


def test_tir_nodes_are_not_folded() -> None:
    b = Build()
    b.add(Op.TIR, (b.const(np.ones(3)),), (3,), TirAttrs("relax.abs", "abs", "", (Type((3,)),)))
    graph = b.graph(list(b.nodes)[-1])
    assert simplify(graph, TARGET) is graph


def test_patterns_land_on_weights_only() -> None:
    b = Build()
    graph = infer_patterns(b.graph(b.linear(b.input(2, 40), 30, zeros=0.9)), TARGET)
    patterns = [n.attrs.pattern for n in graph.nodes if isinstance(n.attrs, ConstAttrs)]
    weight, bias = patterns
    assert weight is not None and bias is None
    assert weight.shape == (30, 40)  # [outputs, inputs]
    assert f"# {weight.describe()}" in printer.text(graph)
    assert weight.sparsity == pytest.approx(np.mean(graph.consts[graph.nodes[1].name] == 0))


x0 = Arg(0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (call("add", Scalar(0.0), x0), x0),
        (call("mul", x0, Scalar(1.0)), x0),
        (call("div", x0, Scalar(8.0)), call("mul", x0, Scalar(0.125))),
        (call("div", x0, Scalar(3.0)), call("div", x0, Scalar(3.0))),
        (call("pow", x0, Scalar(2.0)), call("mul", x0, x0)),
        (call("sub", call("mul", Scalar(2.0), Scalar(3.0)), x0), call("sub", Scalar(6.0), x0)),
        (call("where", Scalar(0.0), Scalar(5.0), x0), x0),
    ],
    ids=str,
)
def test_simplify_expr(before: expr.Expr, after: expr.Expr) -> None:
    assert simplify_expr(before, floating=True) == after


def test_integer_division_is_not_multiplication() -> None:
    halved = call("div", x0, Scalar(2.0))
    assert simplify_expr(halved, floating=False) == halved


def test_broadcast_of_unknown_sizes_is_uncertain() -> None:
    assert broadcast([(BATCH, 1), (4,)]) == (BATCH, 4)
    assert broadcast([(BATCH,), (4,)]) is None


def break_the_graph(graph: Graph, target: Target) -> Graph:
    first = graph.nodes[0]
    return Graph((first, first), graph.outputs, graph.output_names, graph.consts)


def test_layouts_change_at_the_borders_of_a_cluster_only(golden: Callable[[str, str], None]) -> None:
    golden(
        "attention_layouts.txt", printer.text(pipeline.run(attention.attention_exported(), TARGET, LAID_OUT))
    )


def test_few_tokens_stay_row_major() -> None:
    def panels(tokens: int) -> set[int]:
        b = Build()
        graph = b.graph(b.linear(b.apply("max", b.linear(b.input(tokens, 8), 16), 0.0), 8))
        return {n.type.layout.panel for n in pipeline.run(graph, TARGET, LAID_OUT).nodes if n.op is Op.MATMUL}

    assert panels(FEW_TOKENS) == {0}
    assert all(0 not in panels(tokens) for tokens in (FEW_TOKENS + 1, 33, 128))


def test_packing_keeps_a_weight_once_for_each_choice() -> None:
    graph = pipeline.run(corpus.mlp_relu(), TARGET, LOWERED)
    for n in graph.nodes:
        assert len(n.choice) == (n.op is Op.MATMUL)
        assert all(name in graph.consts for c in n.choice for name in c.packed)


def test_pipeline_names_the_pass_that_broke_a_rule() -> None:
    with pytest.raises(IRError, match=r"pass break_the_graph: input_0: two nodes have this name"):
        pipeline.run(corpus.mlp_relu(), TARGET, [break_the_graph])


class RenameOrigin:
    """A pass with options is an object."""

    def __call__(self, graph: Graph, target: Target) -> Graph:
        return with_nodes(graph, [replace(n, origin="x") for n in graph.nodes])


def test_pipeline_debug_and_dump(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEC_DEBUG", "2")
    monkeypatch.setenv("SPARSEC_DUMP", str(tmp_path / "dump"))
    log = io.StringIO()
    pipeline.run(corpus.mlp_relu(), TARGET, [fuse_attention, fuse_elementwise, RenameOrigin()], log)
    lines = log.getvalue().splitlines()
    assert "fuse_attention" in lines[0] and "11 -> 11 nodes  (unchanged)" in lines[0]
    assert "fuse_elementwise" in lines[1] and "11 -> 8 nodes" in lines[1]
    assert any(line.startswith("+%") for line in lines) and any(line.startswith("-%") for line in lines)
    names = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert names == [
        "000_imported.txt",
        "001_fuse_attention.txt",
        "002_fuse_elementwise.txt",
        "003_rename_origin.txt",
    ]
