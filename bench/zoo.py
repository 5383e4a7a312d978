# SPDX-License-Identifier: Apache-2.0
"""Ordinary small networks in plain torch, with random weights and the statistics of random images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class _Sum(nn.Module):
    """x + f(x), or shortcut(x) + f(x), then an activation."""

    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.shortcut, self.act = inner, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.shortcut(x) + self.inner(x))
        return y


class _Joined(nn.Module):
    """Branches of one map, joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class _Gate(nn.Module):
    def __init__(self, channels: int, hidden: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), act(), nn.Conv2d(hidden, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.layers(x)
        return y


def _conv(
    i: int, o: int, k: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    layers = [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([act()] if act else []))


def _head(channels: int, classes: int = 1000) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def mobilenet_v1() -> nn.Module:
    layers, channels = [_conv(3, 32, 3, 2)], 32
    for out, stride in (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ):
        layers += [_conv(channels, channels, 3, stride, channels), _conv(channels, out, 1)]
        channels = out
    return nn.Sequential(*layers, *_head(channels))


def _inverted(
    i: int, o: int, k: int, stride: int, hidden: int, act: type[nn.Module], gate: nn.Module | None = None
) -> nn.Module:
    layers = [] if hidden == i else [_conv(i, hidden, 1, act=act)]
    layers.append(_conv(hidden, hidden, k, stride, hidden, act))
    block = nn.Sequential(*layers, *([gate] if gate else []), _conv(hidden, o, 1, act=None))
    return _Sum(block) if stride == 1 and i == o else block


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, act=nn.ReLU6)]
    channels = 32
    for rate, out, count, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for index in range(count):
            layers.append(_inverted(channels, out, 3, stride if index == 0 else 1, rate * channels, nn.ReLU6))
            channels = out
    return nn.Sequential(*layers, _conv(channels, 1280, 1, act=nn.ReLU6), *_head(1280))


_V3 = (
    (3, 16, 16, False, nn.ReLU, 1), (3, 64, 24, False, nn.ReLU, 2), (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2), (5, 120, 40, True, nn.ReLU, 1), (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2), (3, 200, 80, False, nn.Hardswish, 1), (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1), (3, 480, 112, True, nn.Hardswish, 1), (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2), (5, 960, 160, True, nn.Hardswish, 1), (5, 960, 160, True, nn.Hardswish, 1),
)  # fmt: skip


def mobilenet_v3() -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 16, 3, 2, act=nn.Hardswish)]
    channels = 16
    for k, hidden, out, gated, act, stride in _V3:
        gate = _Gate(hidden, hidden // 4, nn.ReLU, nn.Hardsigmoid) if gated else None
        layers.append(_inverted(channels, out, k, stride, hidden, act, gate))
        channels = out
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(960, 1280), nn.Hardswish(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, _conv(channels, 960, 1, act=nn.Hardswish), *end)


_B0 = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


def _efficientnet(act: type[nn.Module], gated: bool) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, act=act)]
    channels = 32
    for rate, k, out, count, stride in _B0:
        for index in range(count):
            hidden = rate * channels
            gate = _Gate(hidden, max(channels // 4, 4), nn.SiLU, nn.Sigmoid) if gated else None
            layers.append(_inverted(channels, out, k, stride if index == 0 else 1, hidden, act, gate))
            channels = out
    return nn.Sequential(*layers, _conv(channels, 1280, 1, act=act), *_head(1280))


def efficientnet_b0() -> nn.Module:
    return _efficientnet(nn.SiLU, True)


def efficientnet_lite0() -> nn.Module:
    return _efficientnet(nn.ReLU6, False)


class _Shuffle(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass by, then all are shuffled."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        half = o // 2
        self.passing = None if stride == 1 else nn.Sequential(_conv(i, i, 3, 2, i, None), _conv(i, half, 1))
        start = half if stride == 1 else i
        self.inner = nn.Sequential(
            _conv(start, half, 1), _conv(half, half, 3, stride, half, None), _conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1) if self.passing is None else (self.passing(x), x)
        y = torch.cat([a, self.inner(b)], 1)
        n, c, h, w = y.shape
        return y.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 24
    for out, count in ((116, 4), (232, 8), (464, 4)):
        for index in range(count):
            layers.append(_Shuffle(channels, out, 2 if index == 0 else 1))
            channels = out
    return nn.Sequential(*layers, _conv(channels, 1024, 1), *_head(1024))


def squeezenet() -> nn.Module:
    def fire(i: int, s: int, e: int) -> nn.Module:
        wide = _Joined(
            nn.Sequential(nn.Conv2d(s, e, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(s, e, 3, padding=1), nn.ReLU())
        )
        return nn.Sequential(nn.Conv2d(i, s, 1), nn.ReLU(), wide)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), fire(64, 16, 64), fire(128, 16, 64), pool(), fire(128, 32, 128),
        fire(256, 32, 128), pool(), fire(256, 48, 192), fire(384, 48, 192), fire(384, 64, 256), fire(512, 64, 256),
        nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for out, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        inner = nn.Sequential(_conv(channels, out, 3, stride), _conv(out, out, 3, act=None))
        shortcut = None if stride == 1 and channels == out else _conv(channels, out, 1, stride, act=None)
        layers.append(_Sum(inner, shortcut, nn.ReLU()))
        channels = out
    return nn.Sequential(*layers, *_head(channels))


def densenet() -> nn.Module:
    """Norms before the convolutions, and all maps of a block joined."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels, growth = 64, 32
    for number, count in enumerate((4, 6, 8)):
        for _ in range(count):
            inner = nn.Sequential(
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                _conv(channels, 4 * growth, 1),
                nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )
            layers.append(_Joined(nn.Identity(), inner))
            channels += growth
        if number < 2:
            half = channels // 2
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, half, 1, bias=False), nn.AvgPool2d(2)]
            channels = half
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), *_head(channels))


class _Ghost(nn.Module):
    """Half of the channels by a product, the others by cheap depthwise convolutions of these."""

    def __init__(self, i: int, o: int, act: type[nn.Module] | None) -> None:
        super().__init__()
        self.first = _conv(i, o // 2, 1, act=act)
        self.cheap = _conv(o // 2, o // 2, 3, 1, o // 2, act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return torch.cat([y, self.cheap(y)], 1)


def ghostnet() -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 16, 3, 2)]
    channels = 16
    for k, hidden, out, gated, stride in (
        (3, 16, 16, False, 1),
        (3, 48, 24, False, 2),
        (3, 72, 24, False, 1),
        (5, 72, 40, True, 2),
        (5, 120, 40, True, 1),
        (3, 240, 80, False, 2),
        (3, 200, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 480, 112, True, 1),
        (5, 672, 160, True, 2),
        (5, 960, 160, True, 1),
    ):
        parts: list[nn.Module] = [_Ghost(channels, hidden, nn.ReLU)]
        if stride == 2:
            parts.append(_conv(hidden, hidden, k, 2, hidden, None))
        if gated:
            parts.append(_Gate(hidden, hidden // 4, nn.ReLU, nn.Hardsigmoid))
        inner = nn.Sequential(*parts, _Ghost(hidden, out, None))
        same = stride == 1 and channels == out
        shortcut = (
            None
            if same
            else nn.Sequential(_conv(channels, channels, k, stride, channels, None), _conv(channels, out, 1, act=None))
        )
        layers.append(_Sum(inner, shortcut))
        channels = out
    return nn.Sequential(*layers, _conv(channels, 960, 1), *_head(960))


class _UNet(nn.Module):
    """Depthwise blocks down and up again, maps of the way down joined on the way up; a mask of the image's size."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.stem = _conv(3, widths[0], 3)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_separable(i, o) for i, o in pairs)
        self.up = nn.ModuleList(_separable(o + i, i) for i, o in reversed(pairs))
        self.pool, self.wide = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.last = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept = []
        for block in self.down:
            kept.append(x)
            x = block(self.pool(x))
        for block in self.up:
            x = block(torch.cat([self.wide(x), kept.pop()], 1))
        y: Tensor = self.last(x)
        return y


def _separable(i: int, o: int, act: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(_conv(i, i, 3, 1, i), _conv(i, o, 1, act=act))


def unet() -> nn.Module:
    return _UNet()


def mini_xception() -> nn.Module:
    layers: list[nn.Module] = [_conv(1, 8, 3), _conv(8, 8, 3)]
    channels = 8
    for out in (16, 32, 64, 128):
        inner = nn.Sequential(_separable(channels, out), _separable(out, out, None), nn.MaxPool2d(3, 2, 1))
        layers.append(_Sum(inner, _conv(channels, out, 1, 2, act=None)))
        channels = out
    return nn.Sequential(
        *layers, nn.Conv2d(channels, 7, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)
    )


class _Norm(nn.Module):
    """LayerNorm over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class _Next(nn.Module):
    """ConvNeXt's block: depthwise 7×7, LayerNorm, two linear layers with GELU between them, a scale, the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(nn.functional.gelu(self.wide(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 40, 4, 4), _Norm(40)]
    widths = (40, 80, 160, 320)
    for number, (width, count) in enumerate(zip(widths, (2, 2, 6, 2), strict=True)):
        if number:
            layers += [_Norm(widths[number - 1]), nn.Conv2d(widths[number - 1], width, 2, 2)]
        layers += [_Next(width) for _ in range(count)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(320, eps=1e-6), nn.Linear(320, 1000)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "mobilenet_v1": (mobilenet_v1, (3, 224, 224)),
    "mobilenet_v2": (mobilenet_v2, (3, 224, 224)),
    "mobilenet_v3": (mobilenet_v3, (3, 224, 224)),
    "efficientnet_b0": (efficientnet_b0, (3, 224, 224)),
    "efficientnet_lite0": (efficientnet_lite0, (3, 224, 224)),
    "shufflenet_v2": (shufflenet_v2, (3, 224, 224)),
    "squeezenet": (squeezenet, (3, 224, 224)),
    "resnet18": (resnet18, (3, 224, 224)),
    "densenet": (densenet, (3, 224, 224)),
    "ghostnet": (ghostnet, (3, 224, 224)),
    "unet": (unet, (3, 128, 128)),
    "mini_xception": (mini_xception, (1, 64, 64)),
    "convnext": (convnext, (3, 224, 224)),
}
MOBILE = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "efficientnet_b0", "efficientnet_lite0", "shufflenet_v2",
          "ghostnet", "unet", "mini_xception")  # fmt: skip
"""Networks of depthwise convolutions, which are to be further ahead."""


def network(name: str, size: tuple[int, int, int] | None = None) -> nn.Module:
    """A network in evaluation mode whose running statistics are those of random images."""
    build, usual = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # an average over all batches, however few
        model.train()(torch.randn(4, *(size or usual)))
    return model.eval()
