# SPDX-License-Identifier: Apache-2.0
"""Six convolution blocks with residual links, whose two last outputs are read by two attentions and an MLP.

The paper's figure is lost. Its text gives three normal blocks (convolution, BatchNorm, pooling), three separable ones
(separable convolution, BatchNorm), residual links, two outputs into two attentions, and an MLP. Settled here: a normal
and a separable block alternate, the residual link spans the separable one, and the two outputs are the last pair's.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fastfer.models._init import kaiming_convolutions
from fastfer.models.base import FerModel
from fastfer.models.registry import register_model
from fastfer.nn import AdditiveAttention, Conv2d, DotProductAttention, MaxPool2d, SeparableConv2d
from fastfer.nn._checks import one_of, probability
from fastfer.nn._residual import residual

_WIDTHS = (32, 64, 128)
_DIM = _WIDTHS[-1]
_HIDDEN = 128


class NormalBlock(nn.Sequential):
    """Convolution 3×3, BatchNorm, ReLU, max-pool 2×2: (N, in, H, W) -> (N, out, H // 2, W // 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            Conv2d(in_channels, out_channels, 3, 1, 1, bias=False, norm=True, act="relu", pool=MaxPool2d(2))
        )


@register_model
class SepConvAttention(FerModel):
    """Separable convolutions and attention: (N, in_chans, H, W) -> logits (N, num_classes); 1×48×48, H, W >= 8 run.

    With h and x, the input and output of the last separable block, as tokens of 128 channels (36 for 48×48):
    dot-product attention softmax(h xᵀ/√128) x, its mean over tokens, and additive attention of x with memory h.
    ``attention`` keeps "both", "dot" or "additive". The embedding is the 128 units of the MLP's hidden layer; the
    default dropout is the middle one of the three that the paper searches.
    """

    name: ClassVar[str] = "sepconv_attention"
    input_size: ClassVar[tuple[int, int]] = (48, 48)
    embedding_dim = _HIDDEN

    def __init__(
        self, num_classes: int = 7, in_chans: int = 1, *, attention: str = "both", dropout: float = 0.2
    ) -> None:
        super().__init__(num_classes, in_chans, attention=attention, dropout=dropout)
        one_of(self.name, "attention", attention, ("both", "dot", "additive"))
        probability(self.name, "dropout", dropout)
        inputs = (in_chans, *_WIDTHS)
        self.normal = nn.ModuleList(NormalBlock(a, b) for a, b in zip(inputs, _WIDTHS, strict=False))
        self.separable = nn.ModuleList(SeparableConv2d(c, c, 3, 1, 1, norm2=True, act2="relu") for c in _WIDTHS)
        self.dot = DotProductAttention() if attention != "additive" else None
        self.additive = AdditiveAttention(_DIM, _HIDDEN) if attention != "dot" else None
        self.fc = nn.Linear(_DIM * (2 if attention == "both" else 1), _HIDDEN)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(_HIDDEN, num_classes)
        self.apply(kaiming_convolutions)

    def forward_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """h and x of the last pair, each (N, 128, H // 8, W // 8)."""
        h = x
        for normal, separable in zip(self.normal, self.separable, strict=True):
            h = normal(x)
            x = residual(h, separable(h), separable)
        return h, x

    def forward_features(self, x: Tensor) -> Tensor:
        """The embedding (N, 128)."""
        h, x = (t.flatten(2).transpose(1, 2) for t in self.forward_maps(x))
        parts = []
        if self.dot is not None:
            parts.append(self.dot(h, x).mean(1))
        if self.additive is not None:
            parts.append(self.additive(x, h))
        return torch.relu(self.fc(torch.cat(parts, 1)))

    def forward_head(self, features: Tensor) -> Tensor:
        """Embedding (N, 128) -> logits (N, num_classes)."""
        y: Tensor = self.head(self.dropout(features))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
