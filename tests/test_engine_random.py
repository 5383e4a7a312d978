# SPDX-License-Identifier: Apache-2.0
"""Random small CNNs of torch, of all that a plan has: each is a plan, and answers as torch does in float64."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastfer

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.GELU, nn.Mish, nn.ELU, nn.SELU, nn.Softplus, nn.Tanh,
    lambda: nn.LeakyReLU(0.2), nn.Hardsigmoid, nn.Softsign, lambda: nn.GELU("tanh"), nn.Hardtanh, lambda: nn.CELU(0.7),
]  # fmt: skip


class Seq(nn.Module):
    """Layers and functions, one after the other."""

    def __init__(self, *parts: Any) -> None:
        super().__init__()
        self.parts = parts
        self.held = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])

    def forward(self, x: Tensor) -> Any:
        for part in self.parts:
            x = part(x)
        return x


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(channels), nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        t = self.norm(x.flatten(2).transpose(1, 2))
        return x + self.heads(t, t, t, need_weights=False)[0].transpose(1, 2).reshape(x.shape)


class Squeeze(nn.Module):
    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(channels, 3), nn.Conv2d(3, channels, 1), act

    def forward(self, x: Tensor) -> Tensor:
        return x * self.b(self.act(self.a(x.mean((2, 3))))[:, :, None, None]).sigmoid()


def divisor(rng: random.Random, n: int) -> int:
    return rng.choice([d for d in range(1, n + 1) if n % d == 0])


def layer(rng: random.Random, x: Tensor) -> Any:
    """A layer or a function that takes x (1, C, H, W)."""
    _, c, h, w = x.shape
    k, wide = rng.choice([1, 2, 3, 3, 5]), rng.choice([1, 3, 8, 16, 17, 24, 32])
    groups = divisor(rng, c)
    act = rng.choice(ACTIVATIONS)()
    scale = rng.choice([2, (h + 3, w + 1)])
    size = {"scale_factor": scale} if isinstance(scale, int) else {"size": scale}
    mode = rng.choice(["nearest", "bilinear", "bicubic", "nearest-exact"])
    pads = [rng.randint(0, 2) for _ in range(4)]
    around = rng.choice(["reflect", "replicate"])
    cut = rng.randint(min(1, c - 1), c - 1)
    stride = rng.choice([1, 1, 2, 3])
    dilation = rng.choice([1, 1, 2])
    out = [max(1, rng.randint(h // 2, h + 1)), max(1, rng.randint(w // 2, w + 1))]
    choices: list[Callable[[], Any]] = [
        lambda: Seq(nn.Conv2d(c, wide, k, stride, k // 2, bias=rng.random() < 0.5), nn.BatchNorm2d(wide), act),
        lambda: Seq(nn.Conv2d(c, groups * rng.randint(1, 3), k, stride, k, dilation, groups), act),
        lambda: Seq(nn.Conv2d(c, c, 3, stride, 1, groups=c), nn.BatchNorm2d(c), act, nn.Conv2d(c, wide, 1)),
        lambda: Seq(nn.Conv2d(c, c * 2, 3, 1, 1, groups=c), act),
        lambda: nn.ConvTranspose2d(c, groups * rng.randint(1, 3), k + 1, stride, rng.randint(0, 1), groups=groups),
        lambda: act,
        lambda: nn.PReLU(rng.choice([1, c])),
        lambda: nn.GroupNorm(groups, c),
        lambda: nn.InstanceNorm2d(c, affine=True),
        lambda: nn.LayerNorm([c, h, w]),
        lambda: Seq(lambda x: x.movedim(1, 3), nn.LayerNorm(c), nn.Linear(c, wide), lambda x: x.movedim(3, 1)),
        lambda: nn.LocalResponseNorm(3),
        lambda: nn.MaxPool2d(rng.choice([2, 3]), stride, 1, ceil_mode=rng.random() < 0.5),
        lambda: nn.MaxPool2d(2, 1, 1, dilation=2),
        lambda: nn.AvgPool2d(3, stride, 1, rng.random() < 0.5, rng.random() < 0.5),
        lambda: nn.AdaptiveAvgPool2d(out),
        lambda: nn.AdaptiveMaxPool2d(out),
        lambda: lambda x: F.interpolate(x, **size, mode=mode),  # type: ignore[arg-type]
        lambda: lambda x: F.pixel_shuffle(x, 2) if c % 4 == 0 else F.channel_shuffle(x, groups),
        lambda: lambda x: F.pad(x, pads, value=0.3),
        lambda: lambda x: F.pad(x, [min(p, h - 1, w - 1) for p in pads], mode=around),
        lambda: lambda x: torch.cat([x[:, cut:], x[:, : max(cut, 1)].sigmoid(), x[:, :1]], 1),
        lambda: lambda x: torch.cat([p * i for i, p in enumerate(x.chunk(3, 1), 1)][::-1], 1),
        lambda: lambda x: x.flip(3) + x.roll(1, 2),
        lambda: lambda x: x[:, :, h // 3 :, ::2],
        lambda: lambda x: x * x.mean((2, 3), keepdim=True).softmax(1),
        lambda: lambda x: x / (1 + x.abs().amax(1, keepdim=True)),
        lambda: lambda x: x * x.flatten(2).softmax(2).view(x.shape),
        lambda: lambda x: F.normalize(x, dim=1) - x.std(1, keepdim=True),
        lambda: lambda x: torch.maximum(x, x.mean(3, keepdim=True)) + x.clamp(-0.5, 2),
        lambda: lambda x: torch.where(x > 0, x * 0.5, torch.minimum(-x, x.amax((2, 3), keepdim=True))),
        lambda: lambda x: x.transpose(2, 3) + 1,
        lambda: lambda x: torch.matmul(x, x.transpose(2, 3).softmax(3)),
        lambda: lambda x: torch.stack([x, -x], 2).flatten(1, 2),
        lambda: Squeeze(c, act),
        lambda: Attention(c, groups) if h * w <= 100 else act,
        lambda: lambda x: F.glu(x, 1) if c % 2 == 0 else x.square(),
        lambda: lambda x: (x.abs() + 1).log() + x.exp().clamp(max=3),
    ]  # fmt: skip
    return rng.choice(choices)()


def network(seed: int) -> tuple[nn.Module, Tensor]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    x = torch.randn(3, rng.choice([1, 3, 4]), rng.randint(5, 14), rng.randint(5, 14))
    layers: list[Any] = []
    y = x
    while len(layers) < rng.randint(3, 8):
        chosen = layer(rng, y)
        residual = rng.random() < 0.2
        state = torch.random.get_rng_state()
        try:
            with torch.no_grad():
                z = chosen.eval()(y) if isinstance(chosen, nn.Module) else chosen(y)
        except (RuntimeError, ValueError):
            torch.random.set_rng_state(state)
            continue
        if min(z.shape) < 1 or z.numel() > 60000 or z.shape[1] > 100 or not bool(z.isfinite().all()):
            continue
        if residual and z.shape == y.shape:
            chosen = (lambda inner: Added(inner))(chosen)
        elif z.shape[1] > 40:
            chosen = Seq(chosen, nn.Conv2d(z.shape[1], 12, 1))
        with torch.no_grad():
            y = chosen.eval()(y) if isinstance(chosen, nn.Module) else chosen(y)
        layers.append(chosen)
    flat = y[0].numel()
    head: Any = rng.choice(
        [
            lambda: Seq(lambda x: x.mean((2, 3)), nn.Linear(y.shape[1], 5), lambda x: x.log_softmax(1)),
            lambda: Seq(nn.Flatten(), nn.Linear(flat, 4)),
            lambda: lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]),
            lambda: lambda x: (x, x.amax((2, 3))),
            lambda: lambda x: {"map": x.transpose(1, 2), "mean": x.mean(1)},
        ]
    )()
    net = Seq(*layers, head)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval(), x


class Added(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


def leaves(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return list(result.values()) if isinstance(result, dict) else list(result)


def check(seed: int) -> None:
    net, x = network(seed)
    with torch.no_grad():
        plain = leaves(net(x))
    engine = fastfer.compile(net, x.shape, threads=1 + seed % 2, strict=seed % 3 == 0)
    got = leaves(engine(x))
    with torch.no_grad():
        want = leaves(net.double()(x.double()))
    for ours, torchs, exact in zip(got, plain, want, strict=True):
        assert ours.shape == exact.shape
        largest = float(exact.abs().max())
        allowed = 3e-5 * largest + 30 * float((torchs - exact).abs().max()) + 1e-6
        assert float((ours - exact).abs().max()) <= allowed


@pytest.mark.parametrize("seed", range(16))
def test_random_networks(seed: int) -> None:
    check(seed)


@pytest.mark.full
@pytest.mark.parametrize("block", range(20))
def test_many_random_networks(block: int) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        check(seed)
