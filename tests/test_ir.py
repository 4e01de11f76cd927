"""The graph's rules, its sizes and expressions, and how it prints."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import corpus
import corpus_attention
import numpy as np
import pytest
from corpus import TARGET
from graph_build import BATCH, LENGTH

from sparsec import pipeline
from sparsec.errors import IRError
from sparsec.ir import dims, expr, printer
from sparsec.ir.attributes import ElementwiseAttrs, MatmulAttrs
from sparsec.ir.dims import product
from sparsec.ir.expr import Arg, Scalar, call
from sparsec.ir.graph import Choice, Graph, Node, Op, const_node, fresh_name, with_nodes
from sparsec.ir.types import Layout, Type
from sparsec.ir.verify import verify
from sparsec.passes.fuse_attention import fuse_attention
from sparsec.passes.fuse_elementwise import fuse_elementwise
from sparsec.passes.simplify import simplify

W = np.ones((4, 3), np.float32)
X = Node("x", Op.INPUT, (), Type((BATCH, 4)))
Y = Node("y", Op.MATMUL, ("x", "w"), Type((BATCH, 3)), MatmulAttrs())


def graph(*nodes: Node, outputs: tuple[str, ...] = ("x",), names: tuple[str, ...] | None = None) -> Graph:
    return Graph(nodes, outputs, outputs if names is None else names, {"w": W})


BROKEN: tuple[tuple[Graph, str], ...] = (
    (graph(X, X), r"^x: two nodes have this name$"),
    (graph(X, Y), r"^y \(matmul\): reads w, which no earlier node makes$"),
    (
        graph(X, replace(X, name="y", attrs=MatmulAttrs())),
        r"^y \(input\): attrs must be NoneType, not MatmulAttrs$",
    ),
    (graph(X, const_node("w", W), replace(Y, attrs=None)), r"^y \(matmul\): attrs must be MatmulAttrs"),
    (graph(X, const_node("v", W)), r"^v \(const\): no array of this name$"),
    (graph(X, const_node("w", W[:2])), r"^w \(const\): array float32\(4, 3\) but type f32\[2, 3\]$"),
    (graph(X, const_node("w", W.astype("i4"))), r"^w \(const\): array float32\(4, 3\) but type i32\[4, 3\]$"),
    (graph(replace(X, type=Type((-1,)))), r"^x \(input\): negative size in f32\[-1\]$"),
    (graph(replace(X, type=Type((4,), "int8", Layout(8)))), r"only float32 tensors can be stored in panels"),
    (graph(replace(X, type=Type((), "float32", Layout(8)))), r"only float32 tensors can be stored in panels"),
    (
        graph(X, const_node("w", W), replace(Y, choice=(Choice("k", "csr", packed=("gone",)),))),
        r"^y \(matmul\): packed constant gone is not in the graph$",
    ),
    (graph(X, names=("a", "b")), r"^outputs and output_names differ in length$"),
    (graph(X, outputs=("z",)), r"^output z: no node makes it$"),
)


@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_verify_names_node_and_rule(broken: Graph, message: str) -> None:
    with pytest.raises(IRError, match=message):
        verify(broken)


@pytest.mark.parametrize("make", corpus.CORPUS, ids=lambda f: f.__name__)
def test_verify_returns_a_good_graph(make: Callable[[], Graph]) -> None:
    good = make()
    assert verify(good) is good


def test_with_nodes_drops_the_dead_but_no_input() -> None:
    other = replace(X, name="unused")
    kept = with_nodes(graph(X), [X, other, const_node("w", W), Y], outputs=("x",))
    assert [n.name for n in kept.nodes] == ["x", "unused"]
    assert not kept.consts


def test_same_as_compares_constants_by_bytes() -> None:
    one = graph(X, const_node("w", W), Y, outputs=("y",))
    assert one.same_as(replace(one, consts={"w": W.copy()}))
    assert not one.same_as(replace(one, consts={"w": W + 1}))


def test_fresh_name_takes_the_first_free() -> None:
    assert fresh_name("a", ["b"]) == "a"
    assert fresh_name("a", {"a", "a_1"}) == "a_2"


def test_sizes_have_one_normal_form() -> None:
    assert BATCH * LENGTH + 2 * BATCH == BATCH * (LENGTH + 2)
    assert BATCH - BATCH == 0
    assert product((BATCH, 4, LENGTH, 2)) == 8 * LENGTH * BATCH
    assert str(2 * BATCH * LENGTH + 3) == "2*batch*length + 3"
    assert dims.value(2 * BATCH * LENGTH + 3, {"batch": 5, "length": 7}) == 73
    with pytest.raises(KeyError, match="length"):
        dims.value(LENGTH, {"batch": 5})


def test_expressions_check_their_operands() -> None:
    with pytest.raises(ValueError, match="'add' does not take 1 operands"):
        call("add", Arg(0))


def test_shared_subtrees_stay_cheap() -> None:
    """Sixty squarings are a tree of 2**60 leaves."""
    e: expr.Expr = Arg(0)
    for _ in range(60):
        e = call("mul", e, e)
    assert len(expr.walk(e)) == 61
    assert expr.arguments(expr.substitute(e, [Arg(3)])) == (3,)
    assert hash(pickle.loads(pickle.dumps(expr.gelu(Arg(0))))) == hash(expr.gelu(Arg(0)))


@pytest.mark.parametrize("make", [corpus.mlp_gelu, corpus_attention.attention_exported, corpus.reductions])
def test_text(make: Callable[[], Graph], golden: Callable[[str, str], None]) -> None:
    passes = (simplify, fuse_attention, fuse_elementwise, simplify)
    golden(f"{make.__name__}.txt", printer.text(pipeline.run(make(), TARGET, passes)))


def test_diff(golden: Callable[[str, str], None]) -> None:
    before = corpus.mlp_relu()
    golden("mlp_relu.diff", printer.diff(before, fuse_elementwise(simplify(before, TARGET), TARGET)))
    assert printer.diff(before, corpus.mlp_relu()) == ""


def test_choice_prints_as_a_comment() -> None:
    chosen = Choice("csr_spmm", "csr", (("kb", 192), ("nb", 64)), (), (1, 64), "0.46 ms, 4.6x dense")
    other = Choice("dense_matmul", "dense", columns=(65, None))
    line = printer.line(replace(Y, choice=(chosen, other)))
    assert line.endswith(
        "# csr_spmm(kb=192, nb=64) for 1 to 64 columns: 0.46 ms, 4.6x dense; "
        "dense_matmul() for 65 to any columns"
    )


def test_long_expressions_are_cut() -> None:
    e: expr.Expr = Scalar(1.0)
    for _ in range(60):
        e = call("add", e, e)
    line = printer.line(Node("y", Op.ELEMENTWISE, ("x",), Type((3,)), ElementwiseAttrs(e)))
    assert len(line) < 160 and line.endswith("...")
