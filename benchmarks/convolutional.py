"""Convolutional networks made here: ResNet-18, ResNet-50 (v1.5), MobileNet-v1 and single layers.

Random weights (He's initialisation) are pruned by magnitude at the same rate in every layer; the
first convolution, which sees three channels, stays dense, as in the literature, and of MobileNet
only the 1x1 convolutions are pruned.  Batch norms hold the statistics of random images, so that
activations neither vanish nor explode, and the exporter folds them into the convolutions.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

#: what a classifier of ImageNet reads and says
SIDE, CLASSES = 224, 1000
OPSET = 17


@dataclass(frozen=True)
class Pruning:
    """``sparsity`` of every pruned layer, in blocks of ``outputs`` neighbours; ``only_1x1``: no others.

    ``filters``: whole filters of the convolutions within residual blocks but each block's last, and the
    weights that meet their channels (Li et al. 2017, pruning filters for efficient convnets).
    """

    sparsity: float
    outputs: int = 1
    only_1x1: bool = False
    filters: bool = False


def _normed(convolution: nn.Conv2d, *, relu: bool = True) -> nn.Sequential:
    from torch import nn

    norm = nn.BatchNorm2d(convolution.out_channels)
    return nn.Sequential(convolution, norm, *([nn.ReLU()] if relu else []))


def _conv(inner: int, outer: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    from torch import nn

    return nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False)


def _residual(inner: int, outer: int, stride: int, branch: nn.Module) -> nn.Module:
    """relu(branch(x) + x), x projected where the branch changes its shape."""
    from torch import nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            same = stride == 1 and inner == outer
            self.branch, self.relu = branch, nn.ReLU()
            self.shortcut = nn.Identity() if same else _normed(_conv(inner, outer, 1, stride), relu=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.branch(x) + self.shortcut(x))

    return Residual()


def _basic(inner: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """Two 3x3 convolutions; the block, and its output channels."""
    from torch import nn

    branch = nn.Sequential(
        _normed(_conv(inner, width, 3, stride)), _normed(_conv(width, width, 3), relu=False)
    )
    return _residual(inner, width, stride, branch), width


def _bottleneck(inner: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """1x1, 3x3, 1x1; v1.5 has the stride in the 3x3."""
    from torch import nn

    outer = 4 * width
    branch = nn.Sequential(
        _normed(_conv(inner, width, 1)),
        _normed(_conv(width, width, 3, stride)),
        _normed(_conv(width, outer, 1), relu=False),
    )
    return _residual(inner, outer, stride, branch), outer


def _resnet(block: Callable[[int, int, int], tuple[nn.Module, int]], depths: tuple[int, ...]) -> nn.Module:
    from torch import nn

    layers: list[nn.Module] = [_normed(_conv(3, 64, 7, 2)), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        for index in range(depth):
            made, channels = block(channels, 64 << stage, 2 if stage and not index else 1)
            layers.append(made)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def resnet18() -> nn.Module:
    """He et al. 2015, deep residual learning: 1.8 GMAC."""
    return _resnet(_basic, (2, 2, 2, 2))


def resnet50() -> nn.Module:
    """The same with bottlenecks, strides in their 3x3 convolutions (v1.5): 4.1 GMAC."""
    return _resnet(_bottleneck, (3, 4, 6, 3))


def mobilenet_v1() -> nn.Module:
    """Howard et al. 2017, MobileNets: 0.57 GMAC."""
    from torch import nn

    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    halved = (1, 3, 5, 11)
    layers: list[nn.Module] = [_normed(_conv(3, 32, 3, 2))]
    inner = 32
    for index, outer in enumerate(widths):
        stride = 2 if index in halved else 1
        layers += [_normed(_conv(inner, inner, 3, stride, groups=inner)), _normed(_conv(inner, outer, 1))]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, CLASSES))


def layer_3x3(channels: int) -> nn.Module:
    """One 3x3 convolution with bias and ReLU, as a folded batch norm leaves it."""
    from torch import nn

    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())


def prune(model: nn.Module, pruning: Pruning) -> None:
    """Set the blocks of smallest magnitude of every pruned layer to zero, in place."""
    if pruning.filters:
        for layer, reader in _within_blocks(model):
            order = layer.weight.data.flatten(1).abs().sum(dim=1).argsort()
            removed = order[: round(pruning.sparsity * len(order))]
            layer.weight.data[removed] = 0
            reader.weight.data[:, removed] = 0
        return
    for layer in _pruned(model, pruning):
        weight = layer.weight.data
        blocks = weight.reshape(-1, pruning.outputs, weight[0].numel())
        order = blocks.abs().sum(dim=1).flatten().argsort()
        removed = order[: round(pruning.sparsity * order.numel())]
        kept = blocks.new_ones(order.numel())
        kept[removed] = 0
        weight *= kept.reshape(blocks.shape[0], 1, -1).expand_as(blocks).reshape(weight.shape)


def _within_blocks(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Convolutions of a residual block, and the one that reads each."""
    for block in model.modules():
        for part, following in pairwise(getattr(block, "branch", ())):
            yield part[0], following[0]


def _pruned(model: nn.Module, pruning: Pruning) -> Iterator[Any]:
    from torch import nn

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            size = layer.kernel_size[0]
            stem = layer.in_channels == 3
            if not stem and layer.groups == 1 and (size == 1 or not pruning.only_1x1):
                yield layer
        elif isinstance(layer, nn.Linear) and not pruning.only_1x1:
            yield layer


def initialise(model: nn.Module) -> None:
    """He's normal weights, batch norms of varied scale and offset."""
    from torch import nn

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            layer.momentum = None  # a plain mean over what is seen


def calibrate(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Give batch norms the statistics of two random images."""
    import torch

    with torch.no_grad():
        model.train()(torch.randn(2, *shape[1:]))
    model.eval()


def made(make: Callable[[], nn.Module], shape: tuple[int, ...], pruning: Pruning) -> nn.Module:
    """``make()``, initialised, pruned and calibrated for inputs of ``shape``."""
    import torch

    torch.manual_seed(0)
    model = make()
    initialise(model)
    prune(model, pruning)
    calibrate(model, shape)
    return model


def exported(make: Callable[[], nn.Module], shape: tuple[int, ...], pruning: Pruning, path: Path) -> Path:
    """Write :func:`made` as ONNX."""
    import torch

    model = made(make, shape, pruning)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(shape),), path, dynamo=False, opset_version=OPSET,
            input_names=["x"], output_names=["y"],
        )  # fmt: skip
    return path
