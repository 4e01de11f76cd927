"""Trains the small network that ships with the repository and prunes it.

A convolutional network (3x3 convolutions of 32 and 64 channels with batch norm, 2x2 max pooling,
linear layers of 128 and 10) learns scikit-learn's handwritten digits (1797 images of 8x8), is
pruned gradually by magnitude while it keeps training (the cubic schedule of Zhu and Gupta, 2017:
to prune or not to prune), trains on with its zeros held, and is written as ONNX with a dynamic
batch, batch norm folded into the convolutions.  Data, initial weights and order of batches are
seeded.  About a minute on one core.

    python benchmarks/train_digits.py            # writes benchmarks/models/digits.onnx and .npz
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

FOLDER = Path(__file__).parent / "models"
SIDE, CLASSES = 8, 10
CHANNELS, HIDDEN = (32, 64), 128
#: share of zeros each layer ends with, in order; the small first and last ones keep more
SPARSITY = (0.50, 0.95, 0.97, 0.80)
EPOCHS, PRUNE_FROM, PRUNE_TO = 60, 8, 40


def network() -> nn.Sequential:
    """Rows of 64 pixels to 10 scores."""
    first, second = CHANNELS
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        *(nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU()),
        *(nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(second * (SIDE // 2) ** 2, HIDDEN), nn.ReLU(), nn.Dropout(0.3)),
        nn.Linear(HIDDEN, CLASSES),
    )


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images scaled to 0..1 and labels: four fifths to learn from, one fifth held out."""
    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    split = train_test_split(
        images, digits.target.astype(np.int64), test_size=0.2, random_state=0, stratify=digits.target
    )
    train_x, test_x, train_y, test_y = (torch.from_numpy(a) for a in split)
    return train_x, train_y, test_x, test_y


def weighted(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The layers that are pruned."""
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def share_at(epoch: int) -> float:
    """How much of the final sparsity is reached at an epoch: a cubic rise from 0 to 1."""
    progress = min(max((epoch - PRUNE_FROM) / (PRUNE_TO - PRUNE_FROM), 0.0), 1.0)
    return 1 - (1 - progress) ** 3


def magnitude_masks(model: nn.Module, share: float) -> list[torch.Tensor]:
    """Ones where a weight stays: the largest of each layer."""
    return [_mask(m.weight.detach(), s * share) for m, s in zip(weighted(model), SPARSITY, strict=True)]


def _mask(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    removed = round(sparsity * weight.numel())
    order = weight.abs().flatten().argsort()
    mask = torch.ones(weight.numel())
    mask[order[:removed]] = 0
    return mask.reshape(weight.shape)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: list[torch.Tensor]) -> None:
    """Set the pruned weights to zero."""
    for layer, mask in zip(weighted(model), masks, strict=True):
        layer.weight *= mask


def batches(x: torch.Tensor, y: torch.Tensor, size: int = 64) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches; images are moved by up to one pixel, so that 1437 of them suffice."""
    for at in torch.randperm(len(x)).split(size):
        down, right = (int(i) for i in torch.randint(-1, 2, (2,)))
        moved = torch.roll(x[at].reshape(-1, SIDE, SIDE), (down, right), (1, 2)).flatten(1)
        yield moved, y[at]


def train() -> tuple[nn.Sequential, float]:
    """The pruned network, and its accuracy on the images held out."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = network()
    train_x, train_y, test_x, test_y = data()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS, eta_min=1e-4)
    for epoch in range(EPOCHS):
        masks = magnitude_masks(model, share_at(epoch))
        apply_masks(model, masks)
        for x, y in batches(train_x, train_y):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y, label_smoothing=0.05).backward()
            optimizer.step()
            apply_masks(model, masks)
        schedule.step()
    model.eval()
    with torch.no_grad():
        accuracy = float((model(test_x).argmax(1) == test_y).float().mean())
    return model, accuracy


def sparsity(model: nn.Module) -> float:
    """Share of zeros in the weights of all pruned layers."""
    weights = [m.weight for m in weighted(model)]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def folded(model: nn.Sequential) -> nn.Sequential:
    """The same function for inference: batch norms are part of the convolutions before them."""
    layers: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        elif not isinstance(layer, nn.Dropout):
            layers.append(layer)
    return nn.Sequential(*layers).eval()


def export(model: nn.Sequential, path: Path) -> None:
    """Write ONNX with a dynamic batch."""
    example = (torch.zeros(2, SIDE * SIDE),)
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            folded(model), example, path, dynamo=True, opset_version=18, external_data=False, verbose=False,
            input_names=["pixels"], output_names=["scores"], dynamic_shapes=({0: batch},),
        )  # fmt: skip
    onnx.save(without_notes(onnx.load(path)), path)


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what the exporter noted about source lines and paths of this machine."""
    graph = model.graph
    for entry in (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    model, accuracy = train()
    print(f"accuracy on images held out {accuracy:.2%}, zeros {sparsity(model):.2%}")
    export(model, folder / "digits.onnx")
    _, _, test_x, test_y = data()
    pixels = (test_x.numpy() * 16).round().astype(np.uint8)
    np.savez_compressed(folder / "digits.npz", pixels=pixels, labels=test_y.numpy().astype(np.uint8))


if __name__ == "__main__":
    main()
