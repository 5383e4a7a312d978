# SPDX-License-Identifier: Apache-2.0
"""The five networks in stock ``torch.nn``, written from their tables without fastfer.

Parameters and running statistics come in the same order as in `fastfer.models`, so `copy_weights` pairs them by place.
There is no dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(i: int, o: int, k: int, *after: nn.Module, stride: int = 1, groups: int = 1, bias: bool = False) -> Any:
    """Convolution padded to keep the size, then the modules ``after``."""
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=bias), *after)


def _separable(i: int, o: int, *after: nn.Module, between: tuple[nn.Module, ...] = (), stride: int = 1) -> Any:
    """Depthwise 3×3 and pointwise convolution without biases."""
    return nn.Sequential(*_conv(i, i, 3, *between, stride=stride, groups=i), nn.Conv2d(i, o, 1, bias=False), *after)


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class _Cbam(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 8
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.spatial = _conv(2, 1, 7, nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate[:, :, None, None]
        y: Tensor = x * torch.sigmoid(self.spatial(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)))
        return y


class _FgwBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()

        def dsc(a: int, b: int, stride: int) -> Any:
            norm1 = (nn.BatchNorm2d(a), nn.ReLU())
            return _separable(a, b, nn.BatchNorm2d(b), nn.ReLU(), between=norm1, stride=stride)

        self.skip = _conv(i, o, 1, nn.BatchNorm2d(o), nn.MaxPool2d(3, 2, 1), bias=True)
        self.body = nn.Sequential(dsc(i, o, 2), dsc(o, o, 1), _Cbam(o))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.skip(x)
        return y


class FgwFer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stem = (_conv(i, 8, 3, nn.BatchNorm2d(8), nn.ReLU(), bias=True) for i in (1, 8))
        blocks = (_FgwBlock(a, b) for a, b in pairwise((8, 16, 32, 64, 128)))
        self.body = nn.Sequential(*stem, _Cbam(8), *blocks, _conv(128, 7, 3, nn.BatchNorm2d(7), bias=True))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x).mean((2, 3))
        return y


class SepConvAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128)
        self.normal = nn.ModuleList(
            _conv(i, o, 3, nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)) for i, o in pairwise(widths)
        )
        self.separable = nn.ModuleList(_separable(c, c, nn.BatchNorm2d(c), nn.ReLU()) for c in widths[1:])
        self.proj, self.score = nn.Linear(256, 128), nn.Linear(128, 1)
        self.fc, self.head = nn.Linear(256, 128), nn.Linear(128, 7)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for normal, separable in zip(self.normal, self.separable, strict=True):
            h = normal(x)
            x = h + separable(h)
        h, x = (t.flatten(2).transpose(1, 2) for t in (h, x))
        dot = F.scaled_dot_product_attention(h, x, x).mean(1)
        weights = self.score(torch.tanh(self.proj(torch.cat([x, h], 2)))).softmax(1)
        y: Tensor = self.head(torch.relu(self.fc(torch.cat([dot, (weights * x).sum(1)], 1))))
        return y


class _Csa(nn.Module):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.channel = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.spatial = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        channel = torch.sigmoid(self.channel(x.mean((2, 3))[:, None]))[:, 0, :, None, None]
        spatial = torch.sigmoid(self.spatial(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)))
        return x * channel + x * spatial


class Vgg16Csa(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(1, 64, 3, nn.BatchNorm2d(64), nn.ReLU())]
        i = 64
        for o, depth, kernel in ((64, 1, 3), (128, 2, 5), (256, 3, 5), (512, 3, 5), (512, 3, 5)):
            for _ in range(depth):
                layers.append(_separable(i, o, nn.BatchNorm2d(o), nn.ReLU()))
                i = o
            layers += [_Csa(kernel), nn.MaxPool2d(2)]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(512, 7)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x).mean((2, 3)))
        return y


class PattLite(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def norm(c: int) -> tuple[nn.Module, ...]:
            return nn.BatchNorm2d(c, 1e-3, 0.01), nn.ReLU6()

        layers = [_conv(3, 32, 3, *norm(32), stride=2)]
        for block, (i, o) in enumerate(pairwise((32, 64, 128, 128, 256, 256, 512, 512, 512)), 1):
            layers.append(_separable(i, o, *norm(o), between=norm(i), stride=2 if block in (2, 4, 6) else 1))
        layers.append(_conv(512, 512, 3, *norm(512), groups=512))
        for i, kernel, pad in ((512, 4, 1), (256, 2, 0)):
            depthwise = nn.Conv2d(i, i, kernel, kernel, pad, groups=i, bias=False)
            layers.append(nn.Sequential(depthwise, nn.Conv2d(i, 256, 1), nn.ReLU()))
        self.body = nn.Sequential(*layers, nn.Conv2d(256, 256, 1), nn.ReLU())
        self.scale = nn.ParameterList([torch.ones(())])  # a list, as a parameter of its own would come first
        self.fc, self.norm, self.head = nn.Linear(256, 32), nn.BatchNorm1d(32, 1e-3, 0.01), nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.fc(self.body(x).flatten(2).transpose(1, 2)))
        tokens = self.norm(tokens.flatten(0, 1)).view_as(tokens)
        tokens = F.scaled_dot_product_attention(self.scale[0] * tokens, tokens, tokens)
        y: Tensor = self.head(tokens.mean(1))
        return y


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class _Coordinate(nn.Module):
    def __init__(self, channels: int, complementary: bool) -> None:
        super().__init__()
        middle = max(8, channels // 32)
        self.complementary = complementary
        self.conv, self.norm = nn.Conv2d(channels, middle, 1), nn.BatchNorm2d(middle)
        self.h, self.w = nn.Conv2d(middle, channels, 1), nn.Conv2d(middle, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        def pooled(rows: Tensor, columns: Tensor) -> Any:
            return self.conv(torch.cat([rows, columns.transpose(2, 3)], 2))

        if self.complementary:
            y = pooled(x.mean(3, keepdim=True), x.amax(2, keepdim=True))
            y = y + pooled(x.amax(3, keepdim=True), x.mean(2, keepdim=True))
        else:
            y = pooled(x.mean(3, keepdim=True), x.mean(2, keepdim=True))
        rows, columns = F.hardswish(self.norm(y)).split([x.shape[2], x.shape[3]], 2)
        return x * torch.sigmoid(self.h(rows)) * torch.sigmoid(self.w(columns.transpose(2, 3)))


_BLOCKS = (  # kernel, expanded, out, attention, stride
    (3, 16, 16, "", 1), (3, 64, 24, "", 2), (3, 72, 24, "", 1), (5, 72, 40, "SE", 2), (5, 120, 40, "SE", 1),
    (5, 120, 40, "SE", 1), (3, 240, 80, "", 2), (3, 200, 80, "", 1), (3, 184, 80, "CPSCA", 1), (3, 184, 80, "CPSCA", 1),
    (3, 480, 112, "CA", 1), (3, 672, 112, "CA", 1), (5, 672, 80, "CA", 2), (5, 480, 80, "CA", 1), (5, 480, 80, "CA", 1),
)  # fmt: skip


class MobileNetV3Cpsca(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def norm(c: int) -> nn.Module:
            return nn.BatchNorm2d(c, 1e-3, 0.01)

        layers, i = [_conv(3, 16, 3, norm(16), nn.Hardswish(), stride=2)], 16
        for kernel, hidden, out, attention, stride in _BLOCKS:
            parts = [_conv(i, hidden, 1, norm(hidden), nn.Hardswish())] if hidden != i else []
            parts.append(_conv(hidden, hidden, kernel, norm(hidden), nn.Hardswish(), stride=stride, groups=hidden))
            if attention == "SE":
                parts.append(_SqueezeExcite(hidden, -(-hidden // 32) * 8))
            elif attention:
                parts.append(_Coordinate(hidden, attention == "CPSCA"))
            body = nn.Sequential(*parts, _conv(hidden, out, 1, norm(out)))
            layers.append(_Residual(body) if stride == 1 and i == out else body)
            i = out
        self.body = nn.Sequential(*layers, _conv(80, 480, 1, norm(480), nn.Hardswish()))
        self.fc, self.head = nn.Linear(480, 640), nn.Linear(640, 7)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.hardswish(self.fc(self.body(x).mean((2, 3)))))
        return y


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "fgw_fer": FgwFer,
    "sepconv_attention": SepConvAttention,
    "vgg16_csa": Vgg16Csa,
    "patt_lite": PattLite,
    "mobilenetv3_cpsca": MobileNetV3Cpsca,
}


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Pair the tensors of two builds by their order; ValueError where they do not pair."""
    ours, theirs = (
        {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
        for module in (source, target)
    )
    if len(ours) != len(theirs):
        raise ValueError(f"copy_weights: expected {len(ours)} tensors, got {len(theirs)}")
    for (key, value), (name, place) in zip(ours.items(), theirs.items(), strict=True):
        if [n for n in value.shape if n > 1] != [n for n in place.shape if n > 1]:
            raise ValueError(f"copy_weights: {name}: expected the shape of {key}, {value.shape}, got {place.shape}")
        place.copy_(value.reshape(place.shape))
