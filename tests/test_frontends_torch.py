"""The PyTorch frontend against torch itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tvm")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

from sparsec.errors import ModelError, Unsupported  # noqa: E402
from sparsec.frontends import import_model  # noqa: E402
from sparsec.frontends.from_torch import from_exported, from_torch  # noqa: E402
from sparsec.ir.dims import symbol  # noqa: E402
from sparsec.ir.graph import Graph, Op  # noqa: E402
from sparsec.reference.evaluate import evaluate  # noqa: E402
from sparsec.targets.opaque import run  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def agree(module: Any, example: tuple[Any, ...], dynamic: Any = None, inputs: Any = None) -> Graph:
    """Import with example inputs, evaluate on others, compare with the module."""
    graph = from_torch(module, example, dynamic)
    fed = inputs or example
    feeds = {n.name: t.numpy() for n, t in zip(graph.inputs, fed, strict=True)}
    module.eval()
    with torch.no_grad():
        want = module(*fed)
    wanted = want if isinstance(want, tuple) else (want,)
    for got, expected in zip(evaluate(graph, feeds, run).values(), wanted, strict=True):
        np.testing.assert_allclose(got, expected.numpy(), atol=2e-5, rtol=1e-4)
    return graph


def kinds(graph: Graph) -> Counter[str]:
    return Counter(str(n.op) for n in graph.nodes)


def test_linear_stack_with_a_named_dynamic_batch() -> None:
    module = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8), nn.Softmax(-1))
    batch = torch.export.Dim("batch")
    graph = agree(module, (torch.randn(4, 16),), ({0: batch},), (torch.randn(7, 16),))
    assert graph.inputs[0].type.shape == (symbol("batch"), 16)
    assert {"0.weight", "0.bias", "3.weight"} <= set(graph.consts)
    assert graph.consts["0.weight"].shape == (32, 16)
    assert "tir" not in kinds(graph)


def test_weights_are_not_copied_through_relax() -> None:
    module = nn.Linear(64, 64)
    graph = from_torch(module, (torch.randn(2, 64),))
    assert np.shares_memory(graph.consts["weight"], module.weight.detach().numpy())


def test_pruned_module_becomes_one_weight_and_stays_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.Dropout(0.5))
    prune.l1_unstructured(module[0], "weight", 0.75)
    prune.ln_structured(module[2], "weight", 0.5, n=2, dim=1)
    module.train()
    module[1].eval()
    graph = from_torch(module, (torch.randn(3, 16),))
    assert set(graph.consts) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert float((graph.consts["0.weight"] == 0).mean()) == 0.75
    assert module[0].training and not module[1].training and prune.is_pruned(module[0])
    agree(module, (torch.randn(3, 16),))


def test_parametrised_weights_are_baked() -> None:
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))
    graph = agree(module, (torch.randn(2, 8),))
    assert set(graph.consts) == {"0.weight", "0.bias"}


def test_sparse_parameters_become_dense_arrays() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = torch.randn(6, 10) * (torch.rand(6, 10) > 0.7)
            self.weight = nn.Parameter(weight.to_sparse(), requires_grad=False)

        def forward(self, x: Any) -> Any:
            return torch.matmul(x, self.weight.to_dense().t() if self.weight.is_sparse else self.weight.t())

    module = Sparse()
    graph = agree(module, (torch.randn(3, 10),))
    np.testing.assert_array_equal(graph.consts["weight"], module.weight.to_dense().numpy())


def test_attention_is_products_and_a_softmax() -> None:
    class Attention(nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)

    graph = agree(Attention(), tuple(torch.randn(2, 4, 5, 8) for _ in range(3)))
    assert kinds(graph) == {"input": 3, "transpose": 1, "matmul": 2, "elementwise": 1, "softmax": 1}


def test_causal_and_boolean_masks() -> None:
    class Masked(nn.Module):
        def forward(self, q: Any, mask: Any) -> Any:
            a = nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
            return a, nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    agree(Masked(), (torch.randn(2, 3, 6, 8), mask))


def test_encoder_layer() -> None:
    module = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    graph = agree(module, (torch.randn(2, 5, 32),))
    assert kinds(graph)["layer_norm"] == 2 and kinds(graph)["softmax"] == 1


def test_convolutions_and_batch_norm() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    graph = agree(
        module, (torch.randn(2, 3, 12, 12),), ({0: torch.export.Dim("n")},), (torch.randn(3, 3, 12, 12),)
    )
    assert [n.origin.split("/")[0] for n in graph.nodes if n.op is Op.CONV2D] == ["0", "4"]
    assert not [n for n in graph.nodes if n.op is Op.TIR]


def test_several_outputs_and_an_embedding() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 16)
            self.head = nn.Linear(16, 4)

        def forward(self, ids: Any) -> Any:
            vectors = self.table(ids)
            return self.head(vectors), vectors.mean(1)

    graph = agree(Embedded(), (torch.randint(0, 50, (2, 7)),))
    assert graph.output_names == ("output_0", "output_1")


def test_exported_programs_are_accepted() -> None:
    module = nn.Linear(6, 4).eval()
    exported = torch.export.export(module, (torch.randn(2, 6),))
    graph = from_exported(exported)
    assert import_model(exported).same_as(graph)
    x = np.ones((2, 6), np.float32)
    want = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(evaluate(graph, {"input": x})["output"], want, atol=1e-5)


def test_unknown_operators_are_all_listed() -> None:
    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.slogdet(x)[1] + torch.special.i0(x).sum() + torch.fft.fft(x).real.sum()

    with pytest.raises(Unsupported) as refused:
        from_torch(Odd(), (torch.randn(3, 3),))
    assert len(refused.value.operators) >= 2


def test_untraceable_modules_are_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Any) -> Any:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ModelError, match=r"torch\.export cannot trace Branching"):
        from_torch(Branching(), (torch.randn(3),))


def test_a_module_needs_example_inputs() -> None:
    with pytest.raises(ModelError, match="example_inputs"):
        import_model(nn.Linear(2, 2))


class _Arithmetic(nn.Module):
    """Numbers of another type than the tensor beside them, and ``alpha``."""

    def forward(self, x: torch.Tensor, whole: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            whole * 0.5,
            whole / 2,
            x + whole,
            torch.add(x, x + 1, alpha=3),
            torch.rsub(x, 2.0),
            torch.sub(whole, x, alpha=0.25),
            whole.sqrt(),
            torch.div(x, 0.3, rounding_mode="floor"),
            torch.div(x, 0.3, rounding_mode="trunc"),
            whole > 2.5,
        )


def test_arithmetic_of_mixed_types_is_torchs() -> None:
    agree(_Arithmetic(), (torch.randn(3, 4), torch.randint(0, 9, (3, 4))))


def test_an_index_that_depends_on_the_data_is_refused() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0].sum()

    with pytest.raises(Unsupported, match="depends on the data"):
        from_torch(Masked(), (torch.randn(3, 4),))


def test_an_open_length_with_positions_and_a_causal_mask() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("positions", torch.arange(40.0)[None])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.positions[:, : x.shape[1]].unsqueeze(-1)
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=40)}
    graph = from_torch(Decoder(), (torch.randn(2, 5, 4),), ({**sizes},))
    for shape in ((1, 3, 4), (3, 7, 4)):
        x = torch.randn(shape)
        (got,) = evaluate(graph, {"x": x.numpy()}, run).values()
        np.testing.assert_allclose(got, Decoder()(x).numpy(), atol=1e-5)
