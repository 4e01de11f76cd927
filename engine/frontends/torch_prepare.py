"""Making a torch module exportable without changing what its owner holds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune


def exportable(module: nn.Module) -> nn.Module:
    """The module, or a copy of it whose pruned, parametrised or sparse weights are plain dense parameters."""
    if not any(_pruned(m) or parametrize.is_parametrized(m) or _sparse(m) for m in module.modules()):
        return module
    duplicate = _copy(module)
    for part in duplicate.modules():
        _make_pruning_permanent(part)
        _bake_parametrizations(part)
        _make_dense(part)
    return duplicate


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, every submodule's own mode restored afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _pruned(module: nn.Module) -> bool:
    return any(isinstance(h, prune.BasePruningMethod) for h in module._forward_pre_hooks.values())


def _sparse(module: nn.Module) -> bool:
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return any(t is not None and t.layout != torch.strided for t in tensors)


def _copy(module: nn.Module) -> nn.Module:
    # masked weights are computed tensors, which deepcopy refuses: hand it detached ones
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def _make_pruning_permanent(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)


def _bake_parametrizations(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _make_dense(module: nn.Module) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.layout != torch.strided:
            module._parameters[name] = nn.Parameter(parameter.detach().to_dense(), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.layout != torch.strided:
            module._buffers[name] = buffer.to_dense()
