# SPDX-License-Identifier: Apache-2.0
"""FGW-FER: a stem, four residual blocks of separable convolutions with attention, and a convolutional head.

The text puts 3×3 filters on the skip branch; a 1×1 projection is what gives the published 64,176 parameters (7 classes,
grey) and 321,816 of the twin without separable convolutions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from fastfer.models._init import kaiming_convolutions
from fastfer.models.base import FerModel
from fastfer.models.registry import register_model
from fastfer.nn import CBAM, Conv2d, GlobalAvgPool, MaxPool2d, SeparableConv2d
from fastfer.nn._checks import flag, probability
from fastfer.nn._residual import residual

_WIDTHS = (8, 16, 32, 64, 128)


def _conv3x3(in_channels: int, out_channels: int, stride: int, separable: bool) -> nn.Module:
    """Convolution, BatchNorm, ReLU: depthwise and pointwise, each with its own and no bias, or dense with bias."""
    if separable:
        relu: dict[str, Any] = {"norm1": True, "act1": "relu", "norm2": True, "act2": "relu"}
        return SeparableConv2d(in_channels, out_channels, 3, stride, 1, **relu)
    return Conv2d(in_channels, out_channels, 3, stride, 1, norm=True, act="relu")


class FgwBlock(nn.Module):
    """body(x) + skip(x), each halving the image: (N, C, H, W) -> (N, out, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, out_channels: int, separable: bool) -> None:
        super().__init__()
        self.skip = nn.Sequential(Conv2d(in_channels, out_channels, 1, norm=True, pool=MaxPool2d(3, 2, 1)))
        self.body = nn.Sequential(
            _conv3x3(in_channels, out_channels, 2, separable),
            _conv3x3(out_channels, out_channels, 1, separable),
            CBAM(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return residual(self.skip(x), self.body(x), self.body)


@register_model
class FgwFer(FerModel):
    """FGW-FER: (N, in_chans, H, W) -> logits (N, num_classes); published for 1×48×48, any size runs.

    The head is a convolution to classes, BatchNorm and the mean over the image, so that no vector feeds a linear
    classifier; the embedding is the mean over the image of the 128 channels that the head reads.
    ``separable=False`` is the paper's all-convolution twin (its Table 1). ``dropout``, which the paper names without a
    place or a rate, comes before the head's convolution.
    Weights start as in the paper: Kaiming normal for convolutions, N(0, 0.05) for linear layers, zero biases.
    """

    name: ClassVar[str] = "fgw_fer"
    input_size: ClassVar[tuple[int, int]] = (48, 48)
    embedding_dim = _WIDTHS[-1]

    def __init__(
        self, num_classes: int = 7, in_chans: int = 1, *, separable: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__(num_classes, in_chans, separable=separable, dropout=dropout)
        flag(self.name, "separable", separable)
        probability(self.name, "dropout", dropout)
        self.stem = nn.Sequential(
            _conv3x3(in_chans, _WIDTHS[0], 1, separable=False),
            _conv3x3(_WIDTHS[0], _WIDTHS[0], 1, separable=False),
            CBAM(_WIDTHS[0]),
        )
        self.blocks = nn.Sequential(*(FgwBlock(a, b, separable) for a, b in pairwise(_WIDTHS)))
        # Nothing at a rate of 0: torch's dropout would copy the map and draw numbers all the same.
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = Conv2d(_WIDTHS[-1], num_classes, 3, 1, 1, norm=True)
        self.pool = GlobalAvgPool()
        self.apply(_init_weights)

    def forward_map(self, x: Tensor) -> Tensor:
        """The last block's output (N, 128, ceil(H / 16), ceil(W / 16))."""
        y: Tensor = self.blocks(self.stem(x))
        return y

    def forward_features(self, x: Tensor) -> Tensor:
        """The embedding (N, 128)."""
        y: Tensor = self.pool(self.forward_map(x))
        return y

    def forward_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embedding of one pass: both are means over the same map."""
        features = self.forward_map(x)
        return self.pool(self.head(self.dropout(features))), self.pool(features)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.head(self.dropout(self.forward_map(x))))
        return y


def _init_weights(module: nn.Module) -> None:
    kaiming_convolutions(module)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.05)
        nn.init.zeros_(module.bias)
