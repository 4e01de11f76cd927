"""Torch modules compiled and compared with torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tvm")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import sparsec  # noqa: E402
from sparsec.bench.compare import is_sparse  # noqa: E402
from sparsec.errors import ModelError  # noqa: E402
from sparsec.explain.summary import times_of  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEC_CACHE", str(tmp_path_factory.getbasetemp() / "torch-kernels"))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def agree(program: Any, module: Any, *inputs: Any) -> None:
    """Tensors in, tensors out, and what the module says."""
    with torch.no_grad():
        want = module.eval()(*inputs)
    got = program(*inputs)
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_a_pruned_module_and_its_report() -> None:
    module = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64), nn.LayerNorm(64))
    for layer in (module[0], module[2]):
        prune.l1_unstructured(layer, "weight", amount=0.9)
    program = sparsec.compile(module, example_inputs=(torch.randn(64, 128),))
    agree(program, module, torch.randn(64, 128))
    layers = program.report["layers"]
    assert [round(entry["sparsity"], 2) for entry in layers] == [0.9, 0.9]
    assert all(entry["format"] != "dense" for entry in layers)
    assert hasattr(module[0], "weight_orig"), "the caller's module stays as it was"


def test_structured_pruning_leaves_a_small_dense_network() -> None:
    """What torch's own ln_structured zeroes is left out, in the file too."""
    module = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 64, 256), nn.ReLU(), nn.Linear(256, 10),
    ).eval()  # fmt: skip
    module[1].bias.data.normal_()
    for layer in (module[0], module[3], module[7]):
        prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    program = sparsec.compile(module, example_inputs=(torch.randn(1, 3, 16, 16),))
    agree(program, module, torch.randn(1, 3, 16, 16))
    first, second, third, last = program.report["layers"]
    assert (first["shape"], second["shape"]) == ([64, 3, 3, 3], [64, 64, 3, 3])
    assert third["removed"] == {"outputs": 128, "inputs": 32 * 64} and last["removed"]["inputs"] == 128
    assert second["removed"]["outputs"] == 32 and "32 of 64 outputs" in second["found"]
    assert 0.74 < third["sparsity"] < 0.76 and third["bytes"] < 0.26 * third["dense_bytes"]
    assert times_of(third).speed_up > 2.5, "over the whole layer, not over what is left of it"
    whole = sparsec.compile(module, example_inputs=(torch.randn(1, 3, 16, 16),), dense=True)
    agree(whole, module, torch.randn(1, 3, 16, 16))
    assert all(layer["bytes"] >= layer["dense_bytes"] for layer in whole.report["layers"])
    assert is_sparse(program) and not is_sparse(whole)


@pytest.mark.parametrize("batch", [1, 3, 33])
def test_a_dynamic_batch(batch: int) -> None:
    module = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8), nn.Softmax(-1))
    shapes = ({0: torch.export.Dim("batch")},)
    program = sparsec.compile(module, example_inputs=(torch.randn(4, 16),), dynamic_shapes=shapes)
    agree(program, module, torch.randn(batch, 16))


def test_an_exported_program() -> None:
    module = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True).eval()
    x = torch.randn(2, 9, 32)
    exported = torch.export.export(module, (x,))
    agree(sparsec.compile(exported), module, torch.randn(2, 9, 32))


def test_a_small_convolutional_network() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    prune.random_unstructured(module[4], "weight", amount=0.8)
    program = sparsec.compile(module.eval(), example_inputs=(torch.randn(2, 3, 16, 16),))
    agree(program, module, torch.randn(2, 3, 16, 16))
    kinds = [entry["kind"] for entry in program.report["layers"]]
    assert kinds.count("convolution") == 2 and kinds.count("linear") == 1


def test_several_outputs_and_integers() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(50, 16), nn.Linear(16, 16)

        def forward(self, tokens: Any) -> Any:
            h = self.linear(self.table(tokens))
            return h, h.mean(1), h.argmax(-1)

    module, tokens = Embedded().eval(), torch.randint(0, 50, (2, 7))
    program = sparsec.compile(module, example_inputs=(tokens,))
    with torch.no_grad():
        wanted = module(tokens)
    for got, want in zip(program(tokens), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_numpy_in_numpy_out() -> None:
    module = nn.Linear(8, 4)
    program = sparsec.compile(module, example_inputs=(torch.randn(2, 8),))
    assert isinstance(program(np.ones((2, 8), np.float32)), np.ndarray)


def test_a_module_needs_example_inputs() -> None:
    with pytest.raises(ModelError, match="needs example_inputs"):
        sparsec.compile(nn.Linear(8, 4))
