"""Networks of linear layers, as torch modules: feed-forward blocks, encoders, one token of a decoder.

Imported by who has torch.  Weights are random normal numbers, scaled so that activations keep
their size, and pruned alike in every linear layer; operators are spelled as users' exporters do.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pruning import Sparsity, prune
from torch import Tensor, nn

OPSET = 18


def feed_forward() -> nn.Module:
    """768-3072-768 with GELU: the feed-forward half of a BERT-base layer."""
    return nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))


def layer_norm_mlp() -> nn.Module:
    """784-1024-1024-10 with layer norm and ReLU."""
    hidden = (nn.Linear(784, 1024), nn.LayerNorm(1024), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(1024, 1024), nn.LayerNorm(1024), nn.ReLU(), nn.Linear(1024, 10))


class EncoderLayer(nn.Module):
    """Devlin et al. 2018: attention and a feed-forward block, each added to its input and normed."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mixed = (nn.Linear(width, width) for _ in range(4))
        self.up, self.gelu, self.down = nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        self.norm_attention, self.norm_output = nn.LayerNorm(width), nn.LayerNorm(width)

    def split(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, heads, tokens, width of a head)."""
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, width // self.heads).permute(0, 2, 1, 3)

    def attention(self, x: Tensor) -> Tensor:
        """Scores divided by the root of a head's width, as exporters write them."""
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        seen = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.mixed(seen.permute(0, 2, 1, 3).reshape(x.shape))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_attention(x + self.attention(x))
        return self.norm_output(x + self.down(self.gelu(self.up(x))))


def encoder(layers: int = 12, width: int = 768, inner: int = 3072, heads: int = 12) -> nn.Module:
    """BERT-base by default, from embeddings to hidden states."""
    return nn.Sequential(*(EncoderLayer(width, inner, heads) for _ in range(layers)))


class RootMeanSquareNorm(nn.Module):
    """Zhang and Sennrich 2019."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class DecoderBlock(nn.Module):
    """The linear layers of one Llama block for one token: 2048 wide, 5632 inside, 256 for keys and values.

    What lies between queries, keys, values and their mix is a matter of the cache of past tokens
    and holds no weights: ``seen`` comes in, queries, keys and values go out.
    """

    def __init__(self, width: int = 2048, inner: int = 5632, shared: int = 256) -> None:
        super().__init__()
        sizes = {"query": width, "key": shared, "value": shared, "mixed": width, "gate": inner, "up": inner}
        self.layers = nn.ModuleDict({n: nn.Linear(width, rows, bias=False) for n, rows in sizes.items()})
        self.down = nn.Linear(inner, width, bias=False)
        self.norm_attention, self.norm_output = RootMeanSquareNorm(width), RootMeanSquareNorm(width)

    def forward(self, x: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        of, normed = self.layers, self.norm_attention(x)
        x = x + of["mixed"](seen)
        inner = self.norm_output(x)
        gated = nn.functional.silu(of["gate"](inner)) * of["up"](inner)
        return of["query"](normed), of["key"](normed), of["value"](normed), x + self.down(gated)


def made(make: Callable[[], nn.Module], sparsity: Sparsity) -> nn.Module:
    """``make()`` with seeded weights, pruned."""
    torch.manual_seed(0)
    module = make().eval()
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    prune(module, sparsity)
    return module


def exported(module: nn.Module, inputs: Mapping[str, tuple[int, ...]], path: Path) -> Path:
    """Write a module as ONNX for inputs of these shapes, in the order of its parameters."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, tuple(torch.zeros(shape) for shape in inputs.values()), path, dynamo=True,
            opset_version=OPSET, external_data=False, verbose=False, input_names=list(inputs),
        )  # fmt: skip
    return path


#: by the names workloads call them
NETWORKS: dict[str, Callable[[], Any]] = {
    "ffn": feed_forward,
    "mlp": layer_norm_mlp,
    "bert": encoder,
    "llama": DecoderBlock,
}
