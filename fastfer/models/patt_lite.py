# SPDX-License-Identifier: Apache-2.0
"""PAtt-Lite: a truncated MobileNetV1, patch extraction, and an attention classifier.

What is published attends over the wrong axis: the code feeds the (batch, 32) features of pooled images to an attention
that then mixes the images of a batch, so that a prediction depends on the faces beside it; on one pooled token an image
attention is the identity. Here tokens are the patches of one image, attended before the mean over them; the published
behaviour can be had for study. BatchNorm has Keras' eps 1e-3 and momentum 0.01. Convolutions of stride 2 are padded by
1 on each side, as timm's MobileNetV1, or at the bottom and the right alone, as Keras', so that ImageNet weights of
either fit.
"""

from __future__ import annotations

import warnings
from typing import ClassVar

from torch import Tensor, nn

from fastfer.models._init import kaiming_convolutions
from fastfer.models.base import FerModel
from fastfer.models.registry import register_model
from fastfer.nn import (
    BatchNorm2d,
    Chain,
    Conv2d,
    DepthwiseConv2d,
    DotProductAttention,
    GlobalAvgPool,
    SeparableConv2d,
)
from fastfer.nn._checks import flag, one_of, positive, probability

_WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Channels after the first convolution and after each of MobileNetV1's 13 blocks."""
_STRIDED = (2, 4, 6, 12)
_PATCH = 256
_HIDDEN = 32
_EPS, _MOMENTUM = 1e-3, 0.01
_Padding = tuple[int, int, int, int]
_EVEN, _KERAS = (1, 1, 1, 1), (0, 0, 1, 1)
_KERNELS = {"P4": (4, 1, 1), "P8": (8, 1, 1), "NP7": (7, 0, 0), "OP3": (3, 0, 1), "OP5": (5, 0, 1)}
"""Kernel, which is the stride too, and padding before and after the 14×14 map."""
_SEPARABLE, _PATCH_ATTENTION, _NO_EXTRACTION = "separable", "attention", "none"
_ATTENTIONS = ("patches", "batch", "none")


def _norm(channels: int) -> BatchNorm2d:
    return BatchNorm2d(channels, _EPS, _MOMENTUM)


def _backbone(in_chans: int, depth: int, whole: bool, padding: _Padding) -> nn.Sequential:
    """MobileNetV1 through the depthwise half of block ``depth``, or all of that block; ``padding`` for stride 2."""

    def sizes(block: int) -> tuple[int, int, _Padding]:
        return (3, 2, padding) if block in _STRIDED else (3, 1, _EVEN)

    first = Conv2d(in_chans, _WIDTHS[0], 3, 2, padding, bias=False, norm=_norm(_WIDTHS[0]), act="relu6")
    layers: list[nn.Module] = [first]
    for block in range(1, depth + whole):
        a, b = _WIDTHS[block - 1 : block + 1]
        layers.append(SeparableConv2d(a, b, *sizes(block), norm1=_norm(a), act1="relu6", norm2=_norm(b), act2="relu6"))
    if not whole:
        width = _WIDTHS[depth - 1]
        layers.append(DepthwiseConv2d(width, *sizes(depth), bias=False, norm=_norm(width), act="relu6"))
    return Chain(*layers)


class PatchAttention(nn.Module):
    """Four quadrants, each its mean through a pointwise convolution and ReLU times a learnt gate in (0, 1).

    (N, in, 14, 14) -> (N, out, 2, 2). The paper names no design; this is the gated patch of the work it compares with
    (Li et al. 2019).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(7)
        self.proj = Conv2d(in_channels, out_channels, 1, act="relu")
        self.gate = Conv2d(out_channels, 1, 1, act="sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        patches = self.proj(self.pool(x))
        y: Tensor = patches * self.gate(patches)
        return y


def _extraction(kind: str, channels: int) -> nn.Module:
    """Patches, 256 channels, of the 14×14 map."""
    if kind == _NO_EXTRACTION:
        return nn.Identity()
    if kind == _PATCH_ATTENTION:
        return PatchAttention(channels, _PATCH)
    if kind == _SEPARABLE:
        first = SeparableConv2d(channels, _PATCH, 4, 4, 1, pw_bias=True, act2="relu")
        second = SeparableConv2d(_PATCH, _PATCH, 2, 2, 0, pw_bias=True, act2="relu")
        return nn.Sequential(first, second, Conv2d(_PATCH, _PATCH, 1, act="relu"))
    kernel, before, after = _KERNELS[kind]
    dense = Conv2d(channels, _PATCH, kernel, kernel, (before, before, after, after), act="relu")
    return nn.Sequential(dense, Conv2d(_PATCH, _PATCH, 1, act="relu"))


class AttentionClassifier(nn.Module):
    """Dropout, dense layer, ReLU, BatchNorm, dot-product self-attention: (N, C, H, W) -> (N, 32).

    Each place of the map is a token of its image; ``over`` "batch" takes the mean over the map first and makes one
    sequence of the batch, as published.
    """

    def __init__(self, channels: int, dropout: float, over: str) -> None:
        super().__init__()
        self.over = over
        self.attention = DotProductAttention(learnt_scale=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = Conv2d(channels, _HIDDEN, 1, act="relu")
        self.norm = _norm(_HIDDEN)
        self.pool = GlobalAvgPool()

    def forward(self, x: Tensor) -> Tensor:
        if self.over == "batch":
            if x.shape[0] == 1:
                raise ValueError('patt_lite: x: expected a batch of at least 2 images for attention="batch", got 1')
            x = self.pool(x)[:, :, None, None]
        y: Tensor = self.norm(self.fc(self.dropout(x)))
        if self.over == "batch":
            attended: Tensor = self.attention(y.flatten(1)[None])[0]
            return attended
        tokens: Tensor = self.attention(y.flatten(2).transpose(1, 2))
        return tokens.mean(1)


@register_model
class PattLite(FerModel):
    """PAtt-Lite: (N, in_chans, 224, 224) -> logits (N, num_classes); published for 3×224×224, the only size.

    ``attention``: "patches", "batch" (as published: logits depend on the other images of the batch; refuses a batch of
    one image) or "none" (Table 4: dropout and one dense layer on the mean). ``extraction``: "separable"; "none" (Table
    4: the rest of MobileNetV1 instead, its 7×7 places as tokens); "P4", "P8", "NP7", "OP3", "OP5" (Table 5: one dense
    convolution of that kernel and stride and a pointwise one; settled: P pads the map to 16×16, NP not at all, OP at
    one side to 15×15, the sizes that the kernels divide); or "attention" (Table 6). ``depth`` is the block, 6 to 11,
    whose depthwise half ends the backbone: layers 47 to 17 of Table 5, counted from the end. ``keras_padding`` is for
    weights trained in Keras. The embedding is the mean over the attended tokens (32), or without attention over the
    map.
    """

    name: ClassVar[str] = "patt_lite"
    input_size: ClassVar[tuple[int, int]] = (224, 224)

    def __init__(
        self,
        num_classes: int = 7,
        in_chans: int = 3,
        *,
        attention: str = "patches",
        extraction: str = "separable",
        depth: int = 9,
        keras_padding: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            num_classes,
            in_chans,
            attention=attention,
            extraction=extraction,
            depth=depth,
            keras_padding=keras_padding,
            dropout=dropout,
        )
        one_of(self.name, "attention", attention, _ATTENTIONS)
        one_of(self.name, "extraction", extraction, (_SEPARABLE, *_KERNELS, _PATCH_ATTENTION, _NO_EXTRACTION))
        if not 6 <= positive(self.name, "depth", depth) <= 11:
            raise ValueError(f"{self.name}: depth: expected 6 to 11, got {depth}")
        probability(self.name, "dropout", dropout)
        if attention == "batch":
            warnings.warn(
                f'{self.name}: attention="batch": logits of an image depend on the other images of its batch',
                stacklevel=2,
            )
        whole = extraction == _NO_EXTRACTION
        padding = _KERAS if flag(self.name, "keras_padding", keras_padding) else _EVEN
        self.backbone = _backbone(in_chans, len(_WIDTHS) - 1 if whole else depth, whole, padding)
        self.patches = _extraction(extraction, _WIDTHS[depth - 1])
        channels = _WIDTHS[-1] if whole else _PATCH
        self.classifier: nn.Module
        if attention == "none":
            self.classifier, self.embedding_dim = nn.Sequential(GlobalAvgPool(), nn.Dropout(dropout)), channels
        else:
            self.classifier, self.embedding_dim = AttentionClassifier(channels, dropout, attention), _HIDDEN
        self.head = nn.Linear(self.embedding_dim, num_classes)
        self.apply(kaiming_convolutions)

    def forward_map(self, x: Tensor) -> Tensor:
        """The patches, (N, 256, 2, 2) in the default form."""
        y: Tensor = self.patches(self.backbone(x))
        return y

    def forward_features(self, x: Tensor) -> Tensor:
        """The embedding (N, 32), in the default form."""
        y: Tensor = self.classifier(self.forward_map(x))
        return y

    def forward_head(self, features: Tensor) -> Tensor:
        """Embedding (N, embedding_dim) -> logits (N, num_classes)."""
        y: Tensor = self.head(features)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
