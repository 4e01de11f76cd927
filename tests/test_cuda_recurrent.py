"""CUDA LSTM, GRU and RNN layers, interpreted, against double precision; their machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from device_runs import DTYPES, assert_right, calls_of, functions, graph_of, random, random_inputs
from sass import TARGETS, needs_nvcc, needs_sass, sass

from sparsec.errors import Unsupported
from sparsec.ir.attributes import ItemAttrs, RecurrentAttrs
from sparsec.ir.dims import symbol
from sparsec.ir.graph import Graph, Node, Op, replace
from sparsec.ir.types import Type
from sparsec.passes.pack_recurrent import pack_recurrent
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.build import kernel_cubin
from sparsec.targets.kernels.recurrent import GATES

KINDS = (
    RecurrentAttrs("lstm"), RecurrentAttrs("gru"), RecurrentAttrs("gru", reset_after=True),
    RecurrentAttrs("rnn"),
)  # fmt: skip


def layer(
    attrs: RecurrentAttrs, steps: Any, batch: Any, hidden: int, dtype: str, shared: bool = False
) -> Graph:
    """One layer with all its outputs, not packed."""
    columns = GATES[attrs.kind] * hidden
    given: dict[str, Any] = {
        "x": Type((steps, batch, columns), dtype),
        "r": (random((hidden, columns), "float32", 7) / np.sqrt(hidden)).astype(np.dtype(dtype)),
        "h": Type((1 if shared else batch, hidden), dtype),
    }
    if attrs.kind == "lstm":
        given["c"] = Type((1 if shared else batch, hidden), dtype)
    if attrs.reset_after:
        given["b"] = random((hidden,), dtype, 8)
    whole, state = Type((steps, batch, hidden), dtype), Type((batch, hidden), dtype)
    made = (whole, state, state) if attrs.kind == "lstm" else (whole, state)
    items = tuple(Node(f"y{i}", Op.ITEM, ("y",), t, ItemAttrs(i)) for i, t in enumerate(made))
    return graph_of(Op.RECURRENT, given, whole, attrs, items)


def check(graph: Graph, bindings: Any = None, target: Any = gpus.SM80) -> None:
    assert_right(
        pack_recurrent(graph, target), random_inputs(graph, bindings), bindings, target=target, oracle=graph
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attrs", KINDS, ids=str)
def test_layers(attrs: RecurrentAttrs, dtype: str) -> None:
    """Units that are no whole read, one, a multiple of a warp; both directions; one initial state for all."""
    for steps, batch, hidden, reverse, shared in (
        (3, 3, 37, False, False),
        (2, 1, 64, True, True),
        (1, 4, 1, False, True),
    ):
        check(layer(replace(attrs, reverse=reverse), steps, batch, hidden, dtype, shared))


@pytest.mark.parametrize("attrs", KINDS, ids=str)
def test_more_units_than_threads(attrs: RecurrentAttrs) -> None:
    check(layer(attrs, 2, 1, 520, "float16"))


@pytest.mark.parametrize("attrs", KINDS, ids=str)
def test_several_sequences_a_block(attrs: RecurrentAttrs) -> None:
    """The last block has fewer."""
    batch = gpus.SM80.gpu.multiprocessors + 3 if gpus.SM80.gpu else 0
    graph = layer(attrs, 2, batch, 20, "float32")
    ((_, call),) = calls_of(pack_recurrent(graph, gpus.SM80))[0]
    check(graph)
    assert call.threads == 512


@pytest.mark.parametrize("attrs", KINDS, ids=str)
def test_sizes_that_the_run_tells(attrs: RecurrentAttrs) -> None:
    """No step at all leaves the initial states."""
    graph = layer(replace(attrs, reverse=True), symbol("t"), symbol("n"), 40, "float16")
    for bound in ({"t": 5, "n": 1}, {"t": 2, "n": 5}, {"t": 0, "n": 2}):
        check(graph, bound)


def test_weights_stay_in_shared_memory_where_they_fit() -> None:
    """An A100 has less of it than a Hopper; the packed weight is the same."""
    graph = layer(RecurrentAttrs("lstm"), 2, 1, 150, "float16")
    bytes_of = {}
    for target in (gpus.SM80, gpus.SM90A):
        packed = pack_recurrent(graph, target)
        bytes_of[target] = int(functions(packed, target)[0].attrs["sparsec_shared"])
        np.testing.assert_array_equal(
            packed.consts["y.0.values"], pack_recurrent(graph, gpus.SM80).consts["y.0.values"]
        )
        check(graph, target=target)
    weights = 152 * 4 * 150 * 2
    assert bytes_of[gpus.SM80] < weights < bytes_of[gpus.SM90A] <= gpus.SM90A.l1


def test_refusals() -> None:
    graph = layer(RecurrentAttrs("lstm"), 2, 1, 8, "float32")
    with pytest.raises(Unsupported, match="must be constant"):
        calls_of(graph)
    wide = layer(RecurrentAttrs("rnn"), 2, 1, 8, "float32")
    huge = Type((2, 1, 20_000))
    nodes = tuple(
        replace(n, type=huge) if n.name == "y" else n for n in pack_recurrent(wide, gpus.SM80).nodes
    )
    with pytest.raises(Unsupported, match="exceeds shared memory"):
        calls_of(replace(wide, nodes=nodes, consts=pack_recurrent(wide, gpus.SM80).consts))


@needs_nvcc
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_compiles(target: Any) -> None:
    for attrs in KINDS:
        (function,) = functions(pack_recurrent(layer(attrs, 9, 3, 33, "bfloat16"), target), target)
        assert kernel_cubin(function, target)[:4] == b"\x7fELF"


@needs_sass
@pytest.mark.parametrize("hidden,load", [(64, r"LDS\.128"), (512, r"LDG\.E\.128")])
def test_the_weight_is_read_in_whole_vectors(hidden: int, load: str) -> None:
    (function,) = functions(pack_recurrent(layer(KINDS[0], 9, 3, hidden, "float16"), gpus.SM80), gpus.SM80)
    code = sass(function, gpus.SM80)
    assert code.count(load) >= 4, "a read for every gate"
    assert code.local_accesses == 0 and code.registers <= 128
