"""What a user of torch could run instead, one function a peer: calls for every turn's inputs and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from cuda_cases import Case

Calls = list[Callable[[], Any]]


@dataclass(frozen=True)
class Turn:
    """A case, its pruned module (float32, on the host), the inputs of every turn, and the dtype."""

    case: Case
    module: Any
    inputs: Sequence[tuple[Any, ...]]
    dtype: Any


def dense(turn: Turn) -> Calls:
    """The module as it is, cuBLAS and cuDNN; convolutions in whichever memory format is faster."""
    plain = _copies(turn, torch.contiguous_format)
    if len(turn.case.inputs[0]) != 4:
        return _calls(plain, turn.inputs)
    last = _copies(turn, torch.channels_last)
    moved = [tuple(x.contiguous(memory_format=torch.channels_last) for x in xs) for xs in turn.inputs]
    return min((_calls(plain, turn.inputs), _calls(last, moved)), key=_seconds)


def compiled(turn: Turn) -> Calls:
    """``torch.compile`` of the dense module."""
    modules = [torch.compile(m) for m in _copies(turn, torch.contiguous_format)]
    return _calls(modules, turn.inputs)


def cusparselt(turn: Turn) -> Calls:
    """torch's semi-structured sparsity, which runs cuSPARSELt."""
    torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = False
    modules = _copies(turn, torch.contiguous_format)
    for module in modules:
        module.weight = torch.nn.Parameter(torch.sparse.to_sparse_semi_structured(module.weight))
    return _calls(modules, turn.inputs)


def cusparse(turn: Turn) -> Calls:
    """A CSR weight times the transposed inputs, which runs cuSPARSE; the transposition is not timed."""
    weights = [_with_short_indices(m.weight.detach()) for m in _copies(turn, torch.contiguous_format)]
    columns = [xs[0].t().contiguous() for xs in turn.inputs]
    return [lambda w=w, x=x: w @ x for w, x in zip(weights, columns, strict=True)]


PEERS: dict[str, Callable[[Turn], Calls]] = {
    "dense": dense, "compiled": compiled, "cusparselt": cusparselt, "cusparse": cusparse,
}  # fmt: skip


def _with_short_indices(weight: Any) -> Any:
    """CSR with indices of four bytes, as cuSPARSE likes them."""
    csr = weight.to_sparse_csr()
    places = (csr.crow_indices().int(), csr.col_indices().int())
    return torch.sparse_csr_tensor(*places, csr.values(), size=csr.shape)


def _copies(turn: Turn, form: torch.memory_format) -> list[Any]:
    """A module for every turn, with weights of its own."""
    made = []
    for _ in turn.inputs:
        module = deepcopy(turn.module).to("cuda", turn.dtype).requires_grad_(False)
        made.append(module.to(memory_format=form) if len(turn.case.inputs[0]) == 4 else module)
    return made


def _calls(modules: Sequence[Any], inputs: Sequence[tuple[Any, ...]]) -> Calls:
    return [lambda m=m, x=x: _without_gradients(m, x) for m, x in zip(modules, inputs, strict=True)]


def _without_gradients(module: Any, inputs: tuple[Any, ...]) -> Any:
    with torch.no_grad():
        return module(*inputs)


def _seconds(calls: Calls) -> float:
    for call in calls:
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(5):
        for call in calls:
            call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
