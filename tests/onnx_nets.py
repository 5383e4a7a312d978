# SPDX-License-Identifier: Apache-2.0
"""Random convolutional networks over the operators that exporters write, and their ONNX files."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Maker = Callable[[Random, int, tuple[int, int]], nn.Module]
OPSETS = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
_ACTS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.ELU, nn.SELU, nn.Mish, nn.Softplus, nn.Hardswish, nn.Hardsigmoid,
    nn.SiLU, nn.Sigmoid, nn.Tanh, nn.CELU, nn.Softsign, nn.LogSigmoid, lambda: nn.Hardtanh(-0.7, 1.3),
    lambda: nn.GELU(approximate="tanh"),
]  # fmt: skip


class _Do(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def _conv(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    groups = r.choice([1, 1, 1, c, 2 if c % 2 == 0 else 1])
    out = groups * r.choice([1, 2]) if groups == c else r.choice([4, 6, 8, 12])
    kernel, dilation = r.choice([1, 3, 3, 3, 5]), r.choice([1, 1, 1, 2])
    stride = r.choice([1, 1, 2])
    pad = r.choice([0, dilation * (kernel - 1) // 2, dilation * (kernel - 1) // 2])
    pad = dilation * (kernel - 1) // 2 if min(size) <= dilation * (kernel - 1) + 1 else pad
    mode = r.choice(["zeros", "zeros", "zeros", "reflect", "replicate"])
    return nn.Conv2d(c, out, kernel, stride, pad, dilation, groups, bias=r.random() < 0.7, padding_mode=mode)


def _block(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    """Convolution, norm, activation, as most networks have them."""
    conv = _conv(r, c, size)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), r.choice(_ACTS)())  # type: ignore[arg-type,union-attr]


def _pad(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    sides = tuple(r.randint(0, 2) for _ in range(4))
    kind = r.choice([nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d])
    return kind(sides)


def _pool(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    if r.random() < 0.2:
        return r.choice([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])(1)
    if r.random() < 0.2 and size[0] % 2 == 0 and size[1] % 2 == 0:
        return nn.AdaptiveAvgPool2d((size[0] // 2, size[1] // 2))
    kernel = r.choice([2, 3])
    kind = r.choice([nn.MaxPool2d, nn.AvgPool2d])
    return kind(kernel, r.choice([1, 2]), r.choice([0, 1]), ceil_mode=r.random() < 0.3)


def _resize(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    if max(size) > 40:
        return nn.Identity()
    kind = r.randrange(4)
    if kind == 0:
        return nn.Upsample(scale_factor=2, mode="nearest")
    if kind == 1:
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=r.random() < 0.5)
    if kind == 2:
        return nn.Upsample(size=(size[0] + 3, size[1] + 1), mode="bilinear", align_corners=False)
    return nn.ConvTranspose2d(c, r.choice([4, 8]), r.choice([2, 3, 4]), 2, r.choice([0, 1]))


def _norm(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    kind = r.randrange(4)
    if kind == 0:
        return nn.GroupNorm(2 if c % 2 == 0 else 1, c)
    if kind == 1:
        return nn.InstanceNorm2d(c, affine=r.random() < 0.5) if min(size) > 1 else nn.Identity()
    if kind == 2:
        layer = nn.LayerNorm(c)
        return _Do(lambda x, norm: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), layer)
    return nn.BatchNorm2d(c)


def _gate(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    kind = r.randrange(3)
    if kind == 0:
        last = r.choice([nn.Sigmoid, nn.Hardsigmoid])()
        gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c, 1), last)
        return _Do(lambda x, g: x * g(x), gate)
    if kind == 1:
        linear = nn.Linear(c, c)
        return _Do(lambda x, g: x * torch.sigmoid(g(x.mean((2, 3))))[:, :, None, None], linear)
    conv = nn.Conv2d(2, 1, 3, padding=1)
    return _Do(lambda x, g: x * torch.sigmoid(g(torch.cat([x.amax(1, True), x.mean(1, True)], 1))), conv)


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w) if c % 2 == 0 else x


_FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    _shuffle, lambda x: x[:, 1:], lambda x: x[:, :, 1:, :-1] if min(x.shape[2:]) > 2 else x, lambda x: x.flip(3),
    lambda x: torch.cat([x, x.mean(1, True)], 1), lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    lambda x: x.abs().sqrt(), lambda x: x.pow(2), lambda x: x.clamp(-0.5, 0.8), lambda x: torch.softmax(x, 1),
    lambda x: torch.log_softmax(x, 1), lambda x: torch.maximum(x, x.mean((2, 3), True)),
    lambda x: x.transpose(2, 3), lambda x: F.normalize(x, dim=1), lambda x: x / (1 + x.abs()),
    lambda x: x - x.mean((2, 3), keepdim=True), lambda x: torch.where(x > 0, x, 0.1 * x), lambda x: x.exp().log1p(),
    lambda x: F.pixel_unshuffle(x, 2) if x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0 else x,
    lambda x: F.pixel_shuffle(x, 2) if x.shape[1] % 4 == 0 and x.shape[1] > 4 else x,
    lambda x: torch.stack([x, -x], 2).flatten(1, 2), lambda x: 1 - x, lambda x: x * 0.5 + 0.25, lambda x: -x,
    lambda x: torch.minimum(x, x.flip(2)), lambda x: x.std((2, 3), keepdim=True) + x, lambda x: x.repeat(1, 2, 1, 1),
]  # fmt: skip


def _function(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    return _Do(r.choice(_FUNCTIONS))


def _residual(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    inner = nn.Sequential(
        nn.Conv2d(c, c, 3, padding=1, groups=r.choice([1, c])), nn.BatchNorm2d(c), r.choice(_ACTS)(), nn.Conv2d(c, c, 1)
    )
    return _Do(r.choice([lambda x, f: x + f(x), lambda x, f: torch.cat([x, f(x)], 1)]), inner)


def _attend(r: Random, c: int, size: tuple[int, int]) -> nn.Module:
    if size[0] * size[1] > 400:
        return nn.Identity()
    qkv = nn.Linear(c, 3 * c)

    def run(x: Tensor, layer: nn.Module) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = layer(tokens).chunk(3, -1)
        y = torch.softmax(q @ k.transpose(1, 2) * c**-0.5, -1) @ v
        return (tokens + y).transpose(1, 2).reshape(x.shape)

    return _Do(run, qkv)


_MAKERS: list[Maker] = [
    _block, _block, _block, _conv, _pad, _pool, _resize, _norm, _gate, _function, _function, _residual, _attend,
]  # fmt: skip


class RandomNet(nn.Module):
    """Steps, then logits, or the last map beside them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        r = Random(seed)
        torch.manual_seed(seed)
        self.size = (r.choice([1, 3]), r.randint(12, 36), r.randint(12, 36))
        self.steps = nn.ModuleList([nn.Conv2d(self.size[0], 8, 3, r.choice([1, 2]), 1)])
        x = self.steps[0](torch.randn(4, *self.size)).detach()
        for _ in range(r.randint(2, 7)):
            step = r.choice(_MAKERS)(r, x.shape[1], (x.shape[2], x.shape[3])).train()
            try:
                with torch.no_grad():
                    y = step(x)
            except (RuntimeError, ValueError):  # a window larger than what is left
                continue
            good = y.dim() == 4 and y.shape[1] >= 2 and y.shape[2] * y.shape[3] * y.shape[1] < 30_000
            if good and bool(torch.isfinite(y).all()) and float(y.std()) > 1e-3 and float(y.abs().max()) < 1e3:
                self.steps.append(step)
                x = y
        self.both = r.random() < 0.2
        self.head = nn.Linear(x.shape[1], 5)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        for step in self.steps:
            x = step(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return (logits, x) if self.both else logits


def exported(net: RandomNet, path: Path, opset: int, dynamo: bool = False) -> None:
    """Write a network to an ONNX file, for any number of images."""
    x = torch.zeros(2, *net.size)
    names = ["logits", "map"] if net.both else ["logits"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                net, (x,), path, dynamo=True, opset_version=opset, input_names=["x"], output_names=names, verbose=False,
                dynamic_shapes=({0: torch.export.Dim("n")},), external_data=False,
            )  # fmt: skip
        else:
            axes = {name: {0: "n"} for name in ("x", *names)}
            torch.onnx.export(
                net,
                (x,),
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=["x"],
                output_names=names,
                dynamic_axes=axes,
            )
