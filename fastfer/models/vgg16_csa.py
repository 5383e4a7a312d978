# SPDX-License-Identifier: Apache-2.0
"""Light VGG16 with CSA: separable convolutions, channel and spatial attention before each pool, mean over the image.

The paper publishes no count; settled here: the first convolution is a plain one (its input has one channel), no
convolution has a bias, each is followed by BatchNorm and ReLU. Its channel attention (Table 3, CA) is that of ECA-Net,
and its Table 4 gives ECA-Net the same accuracies, so "ca" and "eca" are one network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from torch import Tensor, nn

from fastfer.models._init import kaiming_convolutions
from fastfer.models.base import FerModel
from fastfer.models.registry import register_model
from fastfer.nn import (
    CBAM,
    CSA,
    ECA,
    Chain,
    Conv2d,
    GlobalAvgPool,
    MaxPool2d,
    ScSE,
    SeparableConv2d,
    SpatialAttention,
    SqueezeExcite,
)
from fastfer.nn._checks import flag, one_of, probability

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_DIM = _STAGES[-1][0]
_PLAIN_DIM = 4096
_POSITIONS = ("conv", "before_pool", "after_pool")
_ATTENTIONS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "ca": ECA,
    "sa": lambda channels: SpatialAttention(),
    "csa": CSA,
    "se": lambda channels: SqueezeExcite(channels, channels // 16, gate="sigmoid"),
    "eca": ECA,
    "cbam": lambda channels: CBAM(channels, 16),
    "scse": ScSE,
}


def _conv(in_channels: int, out_channels: int, first: bool) -> nn.Module:
    """Convolution 3×3, BatchNorm, ReLU: plain for the first layer, else depthwise and pointwise; no biases."""
    if first:
        return Conv2d(in_channels, out_channels, 3, 1, 1, bias=False, norm=True, act="relu")
    return SeparableConv2d(in_channels, out_channels, 3, 1, 1, norm2=True, act2="relu")


def _pooled(channels: int, attention: str, position: str) -> Iterator[nn.Module]:
    """The 2×2 max-pool with what stands before or after it."""
    build = _ATTENTIONS[attention]
    if build is None or position == "conv":
        yield MaxPool2d(2)
    elif position == "after_pool":
        yield from (MaxPool2d(2), build(channels))
    elif attention == "csa":
        yield CSA(channels, pool=True)
    else:
        yield from (build(channels), MaxPool2d(2))


def _stages(in_chans: int, attention: str, position: str) -> Iterator[nn.Module]:
    inputs, build = in_chans, _ATTENTIONS[attention]
    for index, (width, depth) in enumerate(_STAGES):
        layers: list[nn.Module] = []
        for place in range(depth):
            layers.append(_conv(inputs, width, first=index == place == 0))
            inputs = width
            if build is not None and position == "conv":
                layers.append(build(width))
        yield Chain(*layers, *_pooled(width, attention, position))


def _plain(in_chans: int) -> Iterator[nn.Module]:
    """Simonyan and Zisserman's stages: dense convolutions with bias and ReLU, and max-pools."""
    inputs = in_chans
    for width, depth in _STAGES:
        sizes = ((inputs, width), *((width, width),) * (depth - 1))
        yield nn.Sequential(*(Conv2d(a, b, 3, 1, 1, act="relu") for a, b in sizes), MaxPool2d(2))
        inputs = width


class _FullyConnected(nn.Sequential):
    """VGG16's two hidden layers: (N, 512, 4, 4) -> (N, 4096)."""

    def __init__(self, dropout: float) -> None:
        hidden = (nn.Linear(_DIM * 16, _PLAIN_DIM), nn.ReLU(), nn.Dropout(dropout))
        super().__init__(nn.Flatten(), *hidden, nn.Linear(_PLAIN_DIM, _PLAIN_DIM), nn.ReLU())


@register_model
class Vgg16Csa(FerModel):
    """Light VGG16: (N, in_chans, H, W) -> logits (N, num_classes); published for 1×128×128, H and W >= 32 run.

    ``attention`` is "none", "ca", "sa", "csa" (Table 3), "se", "eca", "cbam" or "scse" (Table 4; reduction 16 for SE
    and CBAM, 2 for scSE, as in their papers); ``position`` puts it after each convolution ("conv"), "before_pool" or
    "after_pool" (Table 2). The input is meant to be histogram-equalised grey. The embedding is the mean of the 512
    channels; the published head has no dropout, so 0 is the default.
    ``plain=True, attention="none"`` is VGG16 itself (Table 1), for 128×128 alone: dense convolutions with biases, no
    norms, and three fully connected layers; its embedding are the 4096 units that the last of them reads.
    """

    name: ClassVar[str] = "vgg16_csa"
    input_size: ClassVar[tuple[int, int]] = (128, 128)

    def __init__(
        self,
        num_classes: int = 7,
        in_chans: int = 1,
        *,
        attention: str = "csa",
        position: str = "before_pool",
        plain: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, attention=attention, position=position, plain=plain, dropout=dropout)
        one_of(self.name, "attention", attention, tuple(_ATTENTIONS))
        one_of(self.name, "position", position, _POSITIONS)
        probability(self.name, "dropout", dropout)
        if flag(self.name, "plain", plain) and attention != "none":
            raise ValueError(f"{self.name}: attention: expected 'none' for plain=True, got {attention!r}")
        stages = _plain(in_chans) if plain else _stages(in_chans, attention, position)
        self.stages = nn.Sequential(*stages)
        self.pool: nn.Module = _FullyConnected(dropout) if plain else GlobalAvgPool()
        self.embedding_dim = _PLAIN_DIM if plain else _DIM
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_classes)
        self.apply(kaiming_convolutions)

    def forward_map(self, x: Tensor) -> Tensor:
        """The last stage's output (N, 512, H // 32, W // 32)."""
        y: Tensor = self.stages(x)
        return y

    def forward_features(self, x: Tensor) -> Tensor:
        """The embedding (N, embedding_dim)."""
        y: Tensor = self.pool(self.forward_map(x))
        return y

    def forward_head(self, features: Tensor) -> Tensor:
        """Embedding (N, embedding_dim) -> logits (N, num_classes)."""
        y: Tensor = self.head(self.dropout(features))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
