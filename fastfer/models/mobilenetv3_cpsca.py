# SPDX-License-Identifier: Apache-2.0
"""Improved MobileNetV3-Large: high layers of half the channels, and coordinate attention with complementary pooling.

Table 1 of the paper with two corrections that its parameter count and public code make: the last 1×1 convolution has
480 channels (6 × 80), not 960, and BatchNorm has eps 1e-3 and momentum 0.01, but torch's defaults within coordinate
attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from fastfer.models._init import kaiming_convolutions
from fastfer.models.base import FerModel
from fastfer.models.registry import register_model
from fastfer.nn import BatchNorm2d, Conv2d, CoordinateAttention, GlobalAvgPool, InvertedBottleneck, SqueezeExcite
from fastfer.nn._checks import flag, one_of, probability

_STEM = 16
_EPS, _MOMENTUM = 1e-3, 0.01
_ATTENTIONS = ("none", "se", "ca", "maxca", "cpsca")


class _Row(NamedTuple):
    """A line of the table; ``level`` says which options its attention and activation follow."""

    kernel: int
    hidden: int
    out: int
    stride: int
    level: str


_LOW = (
    _Row(3, 16, 16, 1, "low"), _Row(3, 64, 24, 2, "low"), _Row(3, 72, 24, 1, "low"),
    _Row(5, 72, 40, 2, "low se"), _Row(5, 120, 40, 1, "low se"), _Row(5, 120, 40, 1, "low se"),
    _Row(3, 240, 80, 2, "plain"), _Row(3, 200, 80, 1, "plain"), _Row(3, 184, 80, 1, "middle"),
    _Row(3, 184, 80, 1, "middle"), _Row(3, 480, 112, 1, "high"), _Row(3, 672, 112, 1, "high"),
)  # fmt: skip


def _table(halved: bool) -> Iterator[_Row]:
    """The 15 blocks; ``halved`` concerns the output of block 13 and the whole of 14 and 15."""
    out = 80 if halved else 160
    yield from _LOW
    yield _Row(5, 672, out, 2, "high")
    yield from [_Row(5, 6 * out, out, 1, "high")] * 2


def _attention(kind: str, channels: int) -> nn.Module | None:
    if kind == "none":
        return None
    if kind == "se":
        return SqueezeExcite(channels)
    return CoordinateAttention(channels, kind=kind)


@register_model
class MobileNetV3Cpsca(FerModel):
    """Improved MobileNetV3: (N, in_chans, H, W) -> logits (N, num_classes); published for 3×224×224, any size runs.

    ``attention`` is that of blocks 9 and 10, ``high_attention`` that of blocks 11 to 15: "none", "se", "ca", "maxca" or
    "cpsca" (Table 5: none, CA, MAXCA, CPSCA in blocks 9 and 10); blocks 4 to 6 have SE. ``act`` "relu" or "hardswish"
    is the activation of blocks 1 to 6, h-swish that of the others. ``halved`` is the paper's reduction of the channels.
    Stock MobileNetV3-Large is ``halved=False, act="relu", attention="none", high_attention="se"``. The embedding are
    the 640 units (stock: 1280) that the last linear layer reads.
    """

    name: ClassVar[str] = "mobilenetv3_cpsca"
    input_size: ClassVar[tuple[int, int]] = (224, 224)

    def __init__(
        self,
        num_classes: int = 7,
        in_chans: int = 3,
        *,
        attention: str = "cpsca",
        high_attention: str = "ca",
        act: str = "hardswish",
        halved: bool = True,
        dropout: float = 0.4,
    ) -> None:
        super().__init__(
            num_classes,
            in_chans,
            attention=attention,
            high_attention=high_attention,
            act=act,
            halved=halved,
            dropout=dropout,
        )
        one_of(self.name, "attention", attention, _ATTENTIONS)
        one_of(self.name, "high_attention", high_attention, _ATTENTIONS)
        one_of(self.name, "act", act, ("relu", "hardswish"))
        flag(self.name, "halved", halved)
        kinds = {"low se": "se", "middle": attention, "high": high_attention}
        stem = BatchNorm2d(_STEM, _EPS, _MOMENTUM)
        self.stem = Conv2d(in_chans, _STEM, 3, 2, 1, bias=False, norm=stem, act="hardswish")
        blocks, channels = [], _STEM
        for kernel, hidden, out, stride, level in _table(halved):
            block = InvertedBottleneck(
                channels, hidden, out, kernel, stride, kernel // 2, act=act if level.startswith("low") else "hardswish",
                attention=_attention(kinds.get(level, "none"), hidden), eps=_EPS, momentum=_MOMENTUM,
            )  # fmt: skip
            blocks.append(block)
            channels = out
        self.blocks = nn.Sequential(*blocks)
        last = BatchNorm2d(6 * channels, _EPS, _MOMENTUM)
        self.conv = Conv2d(channels, 6 * channels, 1, bias=False, norm=last, act="hardswish")
        self.pool = GlobalAvgPool()
        self.embedding_dim = 8 * channels
        self.fc = nn.Linear(6 * channels, self.embedding_dim)
        self.dropout = nn.Dropout(probability(self.name, "dropout", dropout))
        self.head = nn.Linear(self.embedding_dim, num_classes)
        self.apply(kaiming_convolutions)

    def forward_map(self, x: Tensor) -> Tensor:
        """The last convolution's output (N, 480, ceil(H / 32), ceil(W / 32)), stock: 960 channels."""
        y: Tensor = self.conv(self.blocks(self.stem(x)))
        return y

    def forward_features(self, x: Tensor) -> Tensor:
        """The embedding (N, 640), stock: 1280."""
        return F.hardswish(self.fc(self.pool(self.forward_map(x))))

    def forward_head(self, features: Tensor) -> Tensor:
        """Embedding (N, 640) -> logits (N, num_classes)."""
        y: Tensor = self.head(self.dropout(features))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
