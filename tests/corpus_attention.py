"""Attention as exporters write it, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

from graph_build import BATCH, LENGTH, Build

from sparsec.ir.graph import Graph

#: How [B, L, H, D] becomes q, k^T and v.
SPLIT = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))


def _heads(b: Build, x: str, heads: int, *axes: int) -> str:
    *leading, width = b.shape(x)
    assert isinstance(width, int)
    return b.transpose(b.reshape(x, *leading, heads, width // heads), *axes)


def attention_exported() -> Graph:
    """BERT as exported: scores times a number plus a mask."""
    b = Build()
    x, mask = b.input(BATCH, LENGTH, 12), b.input(BATCH, LENGTH)
    mask = b.apply("mul", b.apply("sub", 1.0, b.reshape(mask, BATCH, 1, 1, LENGTH)), b.const(-100.0))
    q, k, v = (
        _heads(b, b.linear(x, 12, zeros=0), 3, *axes) for axes in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    )
    scores = b.apply("add", b.apply("mul", b.matmul(q, k), b.const(0.5)), mask)
    mixed = b.transpose(b.matmul(b.softmax(scores), v), 0, 2, 1, 3)
    return b.graph(b.apply("add", x, b.linear(b.reshape(mixed, BATCH, LENGTH, 12), 12)))


def attention_scaled_operands() -> Graph:
    """torch's decomposition: q and k each times the root of the scale, k transposed twice."""
    b = Build()
    x, other = b.input(BATCH, 5, 8), b.input(BATCH, LENGTH, 8)
    q = b.apply("mul", _heads(b, b.linear(x, 8), 2, 0, 2, 1, 3), b.const(0.7))
    k = b.transpose(_heads(b, b.linear(other, 8), 2, 0, 2, 1, 3), 0, 1, 3, 2)
    v = _heads(b, b.linear(other, 8), 2, 0, 2, 1, 3)
    mixed = b.matmul(b.softmax(b.matmul(q, b.apply("mul", k, b.const(0.7)))), v)
    return b.graph(b.reshape(b.transpose(mixed, 0, 2, 1, 3), BATCH * 5, 8))


def attention_merged_batch() -> Graph:
    """Batch and heads in one axis, as torch.bmm wants them; q divided before its heads are split."""
    b = Build()
    x = b.input(BATCH, LENGTH, 8)
    q = b.apply("div", b.linear(x, 8), b.const(2.0))
    q, k, v = (_heads(b, a, 2, 0, 2, 1, 3) for a in (q, b.linear(x, 8), b.linear(x, 8)))
    q, k, v = (b.reshape(a, BATCH * 2, LENGTH, 4) for a in (q, k, v))
    mixed = b.matmul(b.softmax(b.matmul(q, b.transpose(k, 0, 2, 1))), v)
    mixed = b.transpose(b.reshape(mixed, BATCH, 2, LENGTH, 4), 0, 2, 1, 3)
    return b.graph(b.reshape(mixed, BATCH, LENGTH, 8))


def attention_without_batch() -> Graph:
    b = Build()
    x, mask = b.input(LENGTH, 8), b.input(LENGTH, LENGTH)
    q, k, v = (_heads(b, b.linear(x, 8), 2, *axes) for axes in ((1, 0, 2), (1, 2, 0), (1, 0, 2)))
    scores = b.apply("add", b.apply("div", b.matmul(q, k), b.const(2.0)), mask)
    mixed = b.transpose(b.matmul(b.softmax(scores), v), 1, 0, 2)
    return b.graph(b.reshape(mixed, LENGTH, 8))


def attention_one_position() -> Graph:
    """A static length of 1: simplify turns its transposes into reshapes."""
    b = Build()
    x = b.input(2, 1, 8)
    q, k, v = (_heads(b, b.linear(x, 8), 2, *axes) for axes in SPLIT)
    mixed = b.transpose(b.matmul(b.softmax(b.matmul(q, k)), v), 0, 2, 1, 3)
    return b.graph(b.reshape(mixed, 2, 1, 8))


def attention_length_first() -> Graph:
    """torch.nn.MultiheadAttention: [L, B, E], batch and heads merged for the scores."""
    b = Build()
    x = b.transpose(b.input(BATCH, LENGTH, 8), 1, 0, 2)
    q, k, v = (b.reshape(b.linear(x, 8), LENGTH, BATCH * 2, 4) for _ in range(3))
    q, k, v = (b.reshape(b.transpose(a, 1, 0, 2), BATCH, 2, LENGTH, 4) for a in (q, k, v))
    scores = b.apply("mul", b.matmul(q, b.transpose(k, 0, 1, 3, 2)), b.const(0.5))
    mixed = b.transpose(b.matmul(b.softmax(scores), v), 2, 0, 1, 3)
    y = b.linear(b.reshape(mixed, LENGTH * BATCH, 8), 8)
    return b.graph(b.transpose(b.reshape(y, LENGTH, BATCH, 8), 1, 0, 2))


def attention_mask_per_head() -> Graph:
    """A mask that differs from head to head, as relative positions make it."""
    b = Build()
    x, mask = b.input(BATCH, 5, 8), b.input(1, 2, 5, 5)
    q, k, v = (_heads(b, x, 2, *axes) for axes in SPLIT)
    mixed = b.matmul(b.softmax(b.apply("add", b.matmul(q, k), mask)), v)
    return b.graph(b.reshape(b.transpose(mixed, 0, 2, 1, 3), BATCH, 5, 8))


def attention_masked_fill() -> Graph:
    """Scores replaced by a low number where a mask says so, after a bias was added."""
    b = Build()
    x, bias, hidden = b.input(BATCH, 9, 8), b.input(2, 9, 9), b.input(BATCH, 1, 1, 9)
    q, k, v = (_heads(b, x, 2, *axes) for axes in SPLIT)
    scores = b.apply("add", b.apply("mul", b.matmul(q, k), 0.5), bias)
    scores = b.apply("where", b.apply("less", hidden, 0.0), -1e9, scores)
    mixed = b.matmul(b.softmax(scores), v)
    return b.graph(b.reshape(b.transpose(mixed, 0, 2, 1, 3), BATCH, 9, 8))


def attention_shared_heads() -> Graph:
    """Rotated queries, and two heads' keys and values for four heads of queries."""
    b = Build()
    x, turn = b.input(BATCH, 9, 8), b.input(9, 2)
    q = b.apply("mul", _heads(b, b.linear(x, 8), 4, 0, 2, 1, 3), turn)
    k, v = (b.concat(1, *(2 * [_heads(b, b.linear(x, 4), 2, 0, 2, 1, 3)])) for _ in range(2))
    scores = b.apply("mul", b.matmul(q, b.transpose(k, 0, 1, 3, 2)), 0.5)
    mixed = b.matmul(b.softmax(scores), v)
    return b.graph(b.reshape(b.transpose(mixed, 0, 2, 1, 3), BATCH, 9, 8))


def attention_shows_weights() -> Graph:
    """The softmax is an output too, so it has to be computed anyway."""
    b = Build()
    x = b.input(BATCH, 5, 8)
    q, k, v = (_heads(b, x, 2, *axes) for axes in SPLIT)
    weights = b.softmax(b.matmul(q, k))
    return b.graph(b.reshape(b.transpose(b.matmul(weights, v), 0, 2, 1, 3), BATCH, 5, 8), weights)


ATTENTION: tuple[Callable[[], Graph], ...] = (
    attention_exported, attention_scaled_operands, attention_merged_batch, attention_without_batch,
    attention_one_position, attention_length_first, attention_mask_per_head, attention_masked_fill,
    attention_shared_heads, attention_shows_weights,
)  # fmt: skip
