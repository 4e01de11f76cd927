"""lowering_windows: depthwise convolutions and pooling as kernel calls."""

from __future__ import annotations

from typing import cast

from sparsec.errors import Unsupported
from sparsec.ir.attributes import PoolAttrs
from sparsec.ir.dims import Size
from sparsec.ir.graph import Node, replace
from sparsec.targets.calls import Call, Context, kernel_call, known
from sparsec.targets.problem import counted_padding, pool_geometry, problem_of


def depthwise_call(n: Node, context: Context) -> Call:
    """The call of a conv2d node with as many groups as input channels."""
    from sparsec.targets.kernels import depthwise

    target, sizes = context.target, context.sizes
    problem = problem_of(context.nodes, n)
    assert problem.conv is not None
    problem = replace(problem, columns=None, conv=replace(problem.conv, images=None))
    images: Size = n.type.shape[0]
    per_image = depthwise.division_of(problem, target).tiles(problem.rows)
    cycles = known(images, 1) * problem.rows * depthwise.plane_cycles(problem, target)
    return kernel_call(
        context, "depthwise", problem, lambda name: depthwise.emit(problem, target, name),
        (*n.args, n.name), (), sizes.multiply(sizes.of(images), sizes.of(per_image)), sizes.of(64), cycles,
    )  # fmt: skip


def pool(n: Node, context: Context) -> Call:
    """The call of a pool node."""
    from sparsec.targets.kernels import pool as kernel

    target, sizes = context.target, context.sizes
    x, attrs = context.type(n.args[0]), cast(PoolAttrs, n.attrs)
    if x.dtype != "float32" or not all(isinstance(s, int) for s in (*x.shape[1:], *n.type.shape[1:])):
        raise Unsupported(f"{n.name} (pool {x}): only float32 images of known size have a kernel")
    geometry = pool_geometry(x, n)
    channels = geometry.groups
    pooling = kernel.Pooling(attrs.kind, geometry, counted_padding(attrs))
    images: Size = n.type.shape[0]
    per_image = kernel.division_of(pooling, target).tiles(channels)
    cycles = known(images, 1) * channels * kernel.plane_cycles(pooling, target)
    return kernel_call(
        context, "pool", pooling, lambda name: kernel.emit(pooling, target, name),
        (n.args[0], n.name), (), sizes.multiply(sizes.of(images), sizes.of(per_image)), sizes.of(64), cycles,
    )  # fmt: skip
