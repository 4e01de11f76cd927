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
    return any(t.layout != torch.strided for t in _tensors(module))


def _copy(module: nn.Module) -> nn.Module:
    # deepcopy refuses computed tensors (masked weights) and sparse parameters: hand it plain ones
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        memo.update({id(t): _dense(t) for t in _tensors(part) if t.layout != torch.strided})
    return copy.deepcopy(module, memo)


def _make_pruning_permanent(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)


def _bake_parametrizations(module: nn.Module) -> None:
    if not parametrize.is_parametrized(module):
        return
    names = list(module._modules["parametrizations"]._modules)
    values = {name: getattr(module, name).detach().clone() for name in names}
    # remove_parametrizations would change the class, which the copy shares with its original
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    dense = tensor.detach().to_dense()
    return nn.Parameter(dense, requires_grad=False) if isinstance(tensor, nn.Parameter) else dense


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    own = [*module._parameters.values(), *module._buffers.values()]
    return [t for t in own if t is not None]
