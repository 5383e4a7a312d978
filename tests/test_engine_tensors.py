# SPDX-License-Identifier: Apache-2.0
"""What ordinary networks are made of beside convolutions: each as a plan, against torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastfer
from fastfer import _C

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


class Net(nn.Module):
    """A convolution whose channels fill no vector, and then what a function makes of its result (N, 6, 6, 7)."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 4)
        self.place, self.token = nn.Parameter(torch.randn(1, 6, 6, 7)), nn.Parameter(torch.randn(1, 1, 6))
        self.first = nn.MultiheadAttention(6, 2, batch_first=True)
        self.last = nn.MultiheadAttention(6, 3)
        self.register_buffer("order", torch.tensor([5, 0, 2, 2, 1, 3]))
        self.function = function

    def weight(self, *shape: int) -> Tensor:
        """Some numbers that are the network's own."""
        count = torch.Size(shape).numel()
        return self.place.reshape(-1).repeat(-(-count // self.place.numel()))[:count].reshape(shape)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.conv(x))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def heads(x: Tensor, **options: Any) -> Tensor:
    t = tokens(x)
    q = t.view(t.shape[0], -1, 2, 3).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q * 0.5, q + 1, **options).transpose(1, 2).flatten(2)


def turned(net: Any, x: Tensor) -> Tensor:
    """A grid of each image's own, some of it outside of the map."""
    theta = torch.cat([net.head(x.mean((2, 3))), x.mean((2, 3))[:, :2]], 1).view(-1, 2, 3)
    return F.affine_grid(theta * 2 + net.weight(1, 2, 3), x.shape, align_corners=False)


NETWORKS: dict[str, Callable[[Any, Tensor], Any]] = {
    # moved
    "boxes of a detector": lambda net, x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 3).sigmoid(),
    "tokens": lambda net, x: tokens(x),
    "slices": lambda net, x: x[:, 1:4, ::2, 1:],
    "shuffle": lambda net, x: F.conv2d(F.channel_shuffle(x, 3), net.weight(5, 6, 3, 3)),
    "shuffle by hand": lambda net, x: x.view(len(x), 2, 3, 6, 7).transpose(1, 2).contiguous().view(x.shape),
    "pixel shuffle": lambda net, x: F.pixel_shuffle(x[:, :4], 2),
    "pixel unshuffle": lambda net, x: F.pixel_unshuffle(x[:, :, :6, :6], 2),
    "flip": lambda net, x: x.flip(3) + x.flip(1),
    "roll": lambda net, x: x.roll((1, 2), (2, 3)),
    "index": lambda net, x: x[:, net.order],
    "stack": lambda net, x: torch.stack([x, x * 2], 2).flatten(1, 2),
    "joined rows": lambda net, x: torch.cat([x, x + 1], 2),
    "joined columns": lambda net, x: torch.cat([x, x[..., :2]], 3),
    "class token": lambda net, x: torch.cat([net.token.expand(x.shape[0], -1, -1), tokens(x)], 1),
    "place embedding": lambda net, x: x + net.place,
    "reflected": lambda net, x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "circular": lambda net, x: F.pad(x, (1, 2, 0, 1), mode="circular"),
    "replicated": lambda net, x: F.pad(x, (1, 2, 0, 1), mode="replicate"),
    "padded and cut": lambda net, x: F.pad(x, (1, 2, 0, -1), value=0.5),
    "padded channels": lambda net, x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "expanded": lambda net, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 5) + 0,
    "repeated": lambda net, x: x.repeat(1, 2, 1, 1),
    "windows": lambda net, x: (
        x[:, :, :6, :6].reshape(x.shape[0], 6, 3, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 6).mean(1)
        .reshape(x.shape[0], 9, 6)
    ),
    "im2col": lambda net, x: F.unfold(x, 2, padding=1, stride=2),
    "unbind": lambda net, x: torch.cat([a * 2 for a in x.unbind(1)[::2]], 1),
    # element by element
    "gelu": lambda net, x: F.gelu(x),
    "gelu by tanh": lambda net, x: F.gelu(x, approximate="tanh"),
    "mish": lambda net, x: F.mish(x),
    "elu": lambda net, x: F.elu(x, 0.7),
    "selu": lambda net, x: F.selu(x),
    "celu": lambda net, x: F.celu(x, 0.3),
    "softplus": lambda net, x: F.softplus(x, 2, 3),
    "leaky relu": lambda net, x: F.leaky_relu(x),
    "prelu": lambda net, x: F.prelu(x, net.weight(6)),
    "hardtanh": lambda net, x: F.hardtanh(x),
    "clamp": lambda net, x: x.clamp(0.1, 0.9) + x.clamp(min=0.2) + x.clamp(max=0.3),
    "maximum": lambda net, x: torch.maximum(x, 1 - x) - torch.minimum(x, x * 2),
    "division": lambda net, x: x / (x.amax((1, 2, 3), keepdim=True) + 1) + 1 / (x.abs() + 1),
    "where": lambda net, x: torch.where(x > 0.3, x, -x),
    "comparisons": lambda net, x: (x > 0.5).float() * x + (x >= 0.2).float() + (x != x.flip(1)).float(),
    "powers": lambda net, x: (x.abs() + 0.1) ** 1.7 + x**3 + x.square() + 2**x,
    "logarithm": lambda net, x: (x.abs() + 0.1).log() + x.exp() + (x * x + 1).sqrt(),
    "softsign": lambda net, x: F.softsign(x) + F.logsigmoid(x) + F.tanhshrink(x) + F.softshrink(x, 0.2),
    "glu": lambda net, x: F.glu(x, 1),
    "rounding": lambda net, x: (x * 3).floor() + (x * 2.5).ceil() + (x * 4).round() + (x * 3.3).trunc() + x.sign(),
    "masked": lambda net, x: x.masked_fill(net.order.view(6, 1, 1) > 2, 0.5),
    "waves": lambda net, x: torch.sin(3 * x) + torch.cos(x - 1) * 0.5,
    # reductions
    "running sums": lambda net, x: x.cumsum(1) + x.cumsum(3) - net.head(x.mean((2, 3))).cumsum(1)[:, :1, None, None],
    "gem": lambda net, x: x.clamp(min=1e-3).pow(3).mean((2, 3)).pow(1 / 3),
    "variance": lambda net, x: x.var((2, 3)),
    "deviation": lambda net, x: x.std(1, unbiased=False),
    "normalised vector": lambda net, x: F.normalize(x.mean((2, 3)), dim=1),
    "normalised channels": lambda net, x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-3),
    "smallest": lambda net, x: x.min(1)[0] + x.amin((1,)),
    "sums": lambda net, x: x.sum(2).unsqueeze(2) + x.prod(1).unsqueeze(1) + x.logsumexp(3, keepdim=True),
    "norms": lambda net, x: x.norm(p=1, dim=1) + torch.linalg.vector_norm(x, 3, dim=1),
    # softmax and norms
    "softmax of channels": lambda net, x: x.softmax(1),
    "softmax of columns": lambda net, x: x.softmax(3),
    "log softmax": lambda net, x: F.log_softmax(net.head(x.mean((2, 3))), 1),
    "spatial softmax": lambda net, x: (x.flatten(2).softmax(2).view_as(x) * x).sum((2, 3)),
    "layer norm of a vector": lambda net, x: net.head(F.layer_norm(x.mean((2, 3)), (6,))),
    "layer norm of images": lambda net, x: F.layer_norm(x, x.shape[1:], net.weight(6, 6, 7), net.weight(6, 6, 7)),
    "layer norm of pixels": lambda net, x: F.layer_norm(x.permute(0, 2, 3, 1), (6,), net.weight(6)).permute(0, 3, 1, 2),
    "group norm": lambda net, x: F.group_norm(x, 3, net.weight(6)),
    "instance norm": lambda net, x: F.instance_norm(x),
    "local response norm": lambda net, x: F.local_response_norm(x, 3),
    # products
    "einsum": lambda net, x: torch.einsum("nchw,ndhw->ncd", x, x),
    "bmm": lambda net, x: torch.bmm(x.flatten(2), tokens(x)),
    "outer": lambda net, x: x.mean(3).unsqueeze(3) * x.mean(2).unsqueeze(2),
    "attention": lambda net, x: net.first(tokens(x), tokens(x), tokens(x), need_weights=False)[0],
    "attention with weights": lambda net, x: net.first(tokens(x), tokens(x), tokens(x))[1],
    "attention, images second": lambda net, x: net.last(*[x.flatten(2).permute(2, 0, 1)] * 3)[0].mean(0),
    "heads": lambda net, x: heads(x),
    "causal heads": lambda net, x: heads(x, is_causal=True),
    "cosines": lambda net, x: F.linear(F.normalize(x.mean((2, 3))), F.normalize(net.weight(5, 6))) * 16,
    # sizes
    "nearest": lambda net, x: F.interpolate(x, scale_factor=2),
    "nearest odd": lambda net, x: F.interpolate(x, size=(9, 5)) + F.interpolate(x, size=(9, 5), mode="nearest-exact"),
    "bilinear": lambda net, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear corners": lambda net, x: F.interpolate(x, size=(9, 5), mode="bilinear", align_corners=True),
    "bicubic": lambda net, x: F.interpolate(x, size=(9, 5), mode="bicubic"),
    "sampled where it is turned": lambda net, x: F.grid_sample(x, turned(net, x), align_corners=False),
    "sampled by reflection": lambda net, x: F.grid_sample(
        x, turned(net, x)[:, ::2], mode="bicubic", padding_mode="reflection", align_corners=True
    ),
    "sampled at the border": lambda net, x: F.grid_sample(
        x, turned(net, x)[..., :4, :], padding_mode="border", align_corners=True
    ),
    "a constant grid": lambda net, x: F.grid_sample(
        x, net.weight(1, 5, 3, 2).expand(len(x), -1, -1, -1), mode="nearest", align_corners=False
    ),
    "adaptive mean": lambda net, x: F.adaptive_avg_pool2d(x, (4, 5)),
    "adaptive maximum": lambda net, x: F.adaptive_max_pool2d(x, (4, 5)),
    "rounded up and counted": lambda net, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "divisor": lambda net, x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    "dilated maximum": lambda net, x: F.max_pool2d(x, 2, 1, dilation=2),
    "pools of lines": lambda net, x: F.max_pool1d(x.flatten(2), 3, 2) + F.avg_pool1d(x.flatten(2), 3, 2),
    # convolutions
    "groups": lambda net, x: F.conv2d(x, net.weight(4, 3, 3, 3), groups=2, padding=1),
    "many groups": lambda net, x: F.conv2d(x.repeat(1, 8, 1, 1), net.weight(96, 4, 3, 3), net.weight(96), groups=12),
    "transposed odd": lambda net, x: F.conv_transpose2d(x, net.weight(6, 2, 5, 4), net.weight(4), 3, (2, 1), (1, 2), 2),
    "far apart": lambda net, x: F.conv2d(x, net.weight(6, 1, 3, 3), dilation=3, padding=3, groups=6),
    "padded before": lambda net, x: F.conv2d(F.pad(x, (1, 2, 0, 3)), net.weight(5, 6, 3, 3), padding=1),
    "largest": lambda net, x: x.topk(3, 1)[0] + x.sort(2, descending=True)[0][:, :3],
    "dilation": lambda net, x: F.conv2d(x, net.weight(5, 6, 2, 3), dilation=(2, 3), padding=2),
    "several filters a channel": lambda net, x: F.conv2d(x, net.weight(12, 1, 3, 3), groups=6),
    "transposed": lambda net, x: F.conv_transpose2d(x, net.weight(6, 3, 2, 2), stride=2),
    "transposed dilated": lambda net, x: F.conv_transpose2d(x, net.weight(6, 2, 3, 3), stride=2, padding=1, dilation=2),
    "along pixels": lambda net, x: F.conv1d(x.flatten(2), net.weight(4, 6, 3), net.weight(4), padding=1, stride=2),
    "transposed along pixels": lambda net, x: F.conv_transpose1d(x.flatten(2), net.weight(6, 2, 4), stride=2),
}  # fmt: skip


def settled(function: Callable[[Any, Tensor], Any]) -> tuple[Net, Tensor]:
    return Net(function).eval(), torch.randn(3, 2, 8, 9, generator=torch.Generator().manual_seed(1))


def near(got: Tensor, want: Tensor) -> None:
    """Within 3e-6 of the largest: single roundings, and none that grew."""
    assert got.shape == want.shape
    largest = float(want.abs().max())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=3e-6 * largest)


def on(isa: str, engine: Any, x: Tensor) -> Tensor:
    """The first output of a plan for an instruction set."""
    plan = _C.EnginePlan(engine._data, 1, isa=isa)
    outputs = [torch.full((len(x), *shape), torch.nan) for shape in engine.output_shapes]
    plan.run(x.data_ptr(), "float32", len(x), [y.data_ptr() for y in outputs])
    return outputs[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_against_torch_on_every_instruction_set(name: str) -> None:
    net, x = settled(NETWORKS[name])
    engine = fastfer.compile(net, x.shape, threads=2)
    assert not hasattr(engine, "islands")
    with torch.no_grad():
        want = net.double()(x.double())
    for count in (3, 1):
        near(engine(x[:count]), want[:count])
    for isa in _C.isas(only_supported=True):
        near(on(isa, engine, x), want)


INF, NAN = float("inf"), float("nan")
SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-30, -1e-30, 1e-38, 20.5, -20.5, 100.0, -100.0, 1e6, -1e6, 3e38, INF, -INF,
    NAN,
]  # fmt: skip
ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs, "sin": torch.sin, "cos": torch.cos, "running": lambda x: x.cumsum(3),
    "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "reciprocal": torch.reciprocal, "exp": torch.exp,
    "log": torch.log, "square": torch.square, "power": lambda x: x**1.7, "odd power": lambda x: x**5,
    "negative power": lambda x: x**-3, "tanh": torch.tanh, "erf": torch.erf, "gelu": F.gelu, "elu": F.elu,
    "leaky relu": F.leaky_relu, "mish": F.mish, "softplus": F.softplus, "softsign": F.softsign,
    "log sigmoid": F.logsigmoid, "clamp": lambda x: x.clamp(-0.5, 2), "at least": lambda x: x.clamp(min=0.25),
    "at most": lambda x: x.clamp(max=0.25), "threshold": lambda x: F.threshold(x, 0.1, 7.0),
    "hard shrink": F.hardshrink, "soft shrink": F.softshrink, "sign": torch.sign, "floor": torch.floor,
    "ceil": torch.ceil, "round": torch.round, "trunc": torch.trunc, "is nan": lambda x: torch.isnan(x).float(),
    "equal": lambda x: (x == 1).float(), "less": lambda x: (x < 0.5).float(), "at": lambda x: (x >= 0.5).float(),
    "maximum": lambda x: torch.maximum(x, x.flip(3)), "minimum": lambda x: torch.minimum(x, x.flip(3)),
    "quotient": lambda x: x / x.flip(3), "where": lambda x: torch.where(x > 0, x, x.flip(3)),
    "softmax": lambda x: x.softmax(3), "largest": lambda x: x.amax(3, keepdim=True),
    "first of the largest": lambda x: x.argmax(3).float(), "sum": lambda x: x.sum(3), "hardtanh": F.hardtanh,
}  # fmt: skip


class Only(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_special_numbers(name: str) -> None:
    """NaN and infinities as torch has them; what is finite within a few roundings."""
    model = Only(ELEMENTWISE[name])
    x = torch.tensor(SPECIAL).repeat(3).view(1, 1, 3, -1)
    engine = fastfer.compile(model, x.shape, threads=1)
    want = model(x.double()).float()
    for isa in _C.isas(only_supported=True):
        torch.testing.assert_close(on(isa, engine, x), want, rtol=3e-6, atol=2e-7, equal_nan=True)
