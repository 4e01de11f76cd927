"""attention: softmax(q k^T * scale + mask) v for every head, without ever storing the scores.

Two kernels compute it, both a block of queries of one head at a time, keys going by in tiles while the
softmax is kept up to date (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022): one on tensor
cores for values of two bytes and heads of a multiple of eight features up to 128 (``attention_mma``), one
by multiply-adds in float32 for everything else (``attention_fma``).
"""

from __future__ import annotations

from typing import Any, cast

from sparsec.errors import Unsupported
from sparsec.ir.attributes import AttentionAttrs
from sparsec.ir.dims import Size, product
from sparsec.ir.graph import Node
from sparsec.targets.calls import Call, Context, known
from sparsec.targets.cuda.calls import device_call
from sparsec.targets.cuda.cost import MEMORY_SHARE, gpu_of
from sparsec.targets.cuda.kernels import attention_fma, attention_mma
from sparsec.targets.cuda.parts.attention_shape import Shape


def calls(n: Node, context: Context) -> tuple[Call, ...]:
    """The call for an attention node.

    Raises:
        Unsupported: the mask does not broadcast to the scores as (batch, heads, queries, keys) from the
            last axis on, or a head is too wide for shared memory.
    """
    attrs = cast(AttentionAttrs, n.attrs)
    types = [context.type(a) for a in n.args]
    q, k, v = types[:3]
    batch: Size = product(q.shape[:-2])
    queries, keys = q.shape[-2], k.shape[-2]
    depth, value_depth = (cast(int, t.shape[-1]) // attrs.heads for t in (k, v))
    mask = _mask_axes(n, types[3].shape, (batch, attrs.heads, queries), keys) if len(types) > 3 else None
    shape = Shape(
        attrs.heads, depth, value_depth, attrs.scale, mask, (*(t.dtype for t in types), n.type.dtype),
        isinstance(keys, int) and keys % 2 == 0,
    )  # fmt: skip
    if attention_mma.accepts(shape):
        return (_on_tensor_cores(n, context, shape, batch, queries, keys),)
    block = attention_fma.block_of_queries(shape, context.target.l1)
    if not block:
        raise Unsupported(f"{n.name} (attention): heads of {depth} and {value_depth} features are too wide")
    return (
        _call(n, context, (shape, block), lambda name: attention_fma.emit(shape, block, name), block,
              _operations(shape, batch, queries, keys) / gpu_of(context.target).flops),
    )  # fmt: skip


def _on_tensor_cores(n: Node, context: Context, shape: Shape, batch: Size, queries: Size, keys: Size) -> Call:
    gpu = gpu_of(context.target)
    tiling = attention_mma.tiling(shape, known(batch), queries, gpu.multiprocessors)
    # multiply instructions, and beside them about as long for the softmax
    cycles = 2 * _operations(shape, batch, queries, keys) / gpu.tensor_flops
    return _call(
        n,
        context,
        (shape, tiling),
        lambda name: attention_mma.emit(shape, tiling, name),
        tiling.queries,
        cycles,
    )


def _operations(shape: Shape, batch: Size, queries: Size, keys: Size) -> float:
    return (
        2.0 * known(batch, 1) * known(queries) * known(keys) * shape.heads * (shape.depth + shape.value_depth)
    )


def _call(n: Node, context: Context, key: object, emit: Any, block: int, work: float) -> Call:
    sizes, gpu = context.sizes, gpu_of(context.target)
    q, k = (context.type(a) for a in n.args[:2])
    queries, keys = sizes.of(q.shape[-2]), sizes.of(k.shape[-2])
    heads = cast(AttentionAttrs, n.attrs).heads
    blocks = sizes.ceil_divide(queries, block)
    every = sizes.multiply(sizes.multiply(sizes.of(product(q.shape[:-2])), sizes.of(heads)), blocks)
    moved = sum(known(t.elements, 4096) * 4.0 for t in (*(context.type(a) for a in n.args), n.type))
    cycles = max(work / gpu.multiprocessors, moved / (gpu.dram_bytes * MEMORY_SHARE))
    return device_call(
        context,
        "attention",
        key,
        emit,
        (*n.args, n.name),
        (queries, keys, blocks),
        every,
        gpu.launch + cycles,
    )


def _mask_axes(
    n: Node, shape: tuple[Size, ...], whole: tuple[Size, Size, Size], keys: Size
) -> tuple[bool, bool, bool]:
    """Whether the mask has entries of its own for every batch, head and query."""
    *given, along = (1,) * (4 - len(shape)) + tuple(shape[-4:])
    if along != keys or any(have not in (1, want) for have, want in zip(given, whole, strict=True)):
        raise Unsupported(f"{n.name} (attention): a mask of shape {shape} has no kernel")
    batch, heads, queries = (have != 1 or want == 1 for have, want in zip(given, whole, strict=True))
    return batch, heads, queries
