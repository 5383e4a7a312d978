# SPDX-License-Identifier: Apache-2.0
"""Small networks that each do one thing which people write in a forward."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Heads(NamedTuple):
    logits: Tensor
    features: Tensor


class Net(nn.Module):
    """A convolution, and then what a function makes of its result."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.head = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.table = nn.Embedding(5, 6)
        self.register_buffer("order", torch.tensor([5, 0, 2, 2, 1, 3]))
        self.register_buffer("chosen", torch.tensor([True, False, True, True, False, True]).view(1, 6, 1, 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("kernels", torch.randn(6, 6, 3, 3))
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.register_buffer("fine", torch.rand(6, dtype=torch.float64))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, F.relu(self.bn(self.conv(x))))


def write_channel(net: Any, x: Tensor) -> Tensor:
    x[:, 0] = 1.5
    return net.head(x.mean((2, 3)))


def write_mask(net: Any, x: Tensor) -> Tensor:
    y = x * 2
    y[y > 1] = 0
    return net.head(y.mean((2, 3)))


def write_corner(net: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 0, :2] += x[:, :, -1, :2]
    return net.conv.bias.view(1, -1, 1, 1) + y


def autocast_off(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        x = net.head(x.mean((2, 3)).float())
    return x.sigmoid()


def with_gradients(net: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = net.head(x.mean((2, 3)))
    return x * 2


def without_gradients(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.amax((1, 2, 3), keepdim=True)
    return x / (scale + 1)


def counting(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.head(x.mean((2, 3)))


def unpooled(net: Any, x: Tensor) -> Tensor:
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y, places, 2, output_size=x.shape[2:])


def by_loop(net: Any, x: Tensor) -> Tensor:
    return torch.stack([torch.cat([x[:, i].mean((1, 2)), x[:, i].amax((1, 2))]) for i in range(3)]).mean(0)


NETWORKS: dict[str, Callable[[Any, Tensor], Any]] = {
    "index": lambda net, x: x[:, net.order],
    "index_select": lambda net, x: x.index_select(1, net.order),
    "gather": lambda net, x: x.flatten(2).gather(1, net.order.view(1, 6, 1).expand(len(x), 6, x.shape[2])),
    "where": lambda net, x: torch.where(net.chosen, x, -x),
    "masked_fill": lambda net, x: x.masked_fill(net.chosen, 0.5),
    "embedding": lambda net, x: x.mean((2, 3)) + net.table(net.order[:1] % 5),
    "embedding of the input": lambda net, x: net.table((x.mean((1, 2, 3)) * 10).long() % 5),
    "float64 buffer": lambda net, x: net.head((x.mean((2, 3)) * net.fine).float()),
    "float64 result": lambda net, x: x.mean((2, 3)).double() * net.fine,
    "maxima and indices": lambda net, x: x.flatten(2).max(2),
    "indices alone": lambda net, x: x.flatten(1).argmax(1),
    "pool with indices": lambda net, x: F.max_pool2d(x, 2, return_indices=True),
    "unpool": unpooled,
    "topk": lambda net, x: net.head(x.mean((2, 3))).softmax(1).topk(2),
    "sort": lambda net, x: x.mean((2, 3)).sort(dim=1, descending=True),
    "none and numbers": lambda net, x: (net.head(x.mean((2, 3))), None, 3, 0.5, "v1", True),
    "number of images": lambda net, x: (x.mean((2, 3)), x.shape[0], x.shape[0] * 4),
    "batch of a half": lambda net, x: (F.gelu(x).mean((2, 3)), x.shape[0] // 2, x.shape[0] / 3),
    "dict": lambda net, x: {"logits": net.head(x.mean((2, 3))), "map": x, "extra": [x.amax((2, 3)), (None, {1: x})]},
    "named tuple": lambda net, x: Heads(net.head(x.mean((2, 3))), x),
    "one in a tuple": lambda net, x: (net.head(x.mean((2, 3))),),
    "a list": lambda net, x: [x.mean((2, 3)), x],
    "ordered dict": lambda net, x: OrderedDict(b=x, a=F.gelu(x)),
    "the same twice": lambda net, x: (x, x, F.gelu(x)),
    "a constant": lambda net, x: (x.mean((2, 3)), net.order),
    "float over 255": lambda net, x: net.head((x.float() / 255).mean((2, 3))),
    "to": lambda net, x: net.head(x.to(torch.float32).to("cpu").mean((2, 3)).type_as(x)),
    "half way": lambda net, x: x.to(torch.bfloat16).float(),
    "write a channel": write_channel,
    "write by mask": write_mask,
    "write a corner": write_corner,
    "autocast off": autocast_off,
    "gradients": with_gradients,
    "no gradients": without_gradients,
    "a counter": counting,
    "by loop": by_loop,
    "mean by number of images": lambda net, x: x / x.shape[0] + 1.0 / x.shape[0],
    "batch statistics": lambda net, x: x - x.sum(0, keepdim=True) / x.shape[0],
    "made for the batch": lambda net, x: x.mean((2, 3)) + torch.arange(x.shape[0], dtype=torch.float32)[:, None],
    "numbers in order": lambda net, x: torch.linspace(0, 1, 6).view(1, 6, 1, 1) * x,
    "flattened over the batch": lambda net, x: F.gelu(x.movedim(1, 3).reshape(-1, 6)).reshape(x.shape[0], -1),
    "times len": lambda net, x: x * len(x),
    "len": lambda net, x: net.head(x.mean((2, 3)).reshape(len(x), -1)),
    "size(0)": lambda net, x: net.head(x.mean((2, 3)).view(x.size(0), 6)).view(x.size()[0], 2, 2).flatten(1),
    "layer norm": lambda net, x: net.head(F.layer_norm(x.mean((2, 3)), (6,))),
    "chunks": lambda net, x: torch.cat([part.sigmoid() * x[:, 2:4] for part in x.chunk(3, 1)], 1),
    "einsum": lambda net, x: torch.einsum("nchw,ndhw->ncd", x, x),
    "interpolate": lambda net, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "group norm": lambda net, x: F.group_norm(x, 3),
    "pad": lambda net, x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "pixel shuffle": lambda net, x: F.pixel_shuffle(x[:, :4], 2),
    "log softmax": lambda net, x: F.log_softmax(net.head(x.mean((2, 3))), 1),
    "square root": lambda net, x: (x.mean((2, 3)) + 1).sqrt().rsqrt().pow(2).clamp(0.1, 0.9),
    "conjugates": lambda net, x: torch.fft.rfft(x).abs(),
    "gelu and mish": lambda net, x: F.gelu(x) + F.mish(x) - F.elu(x - 1) + F.leaky_relu(x - 1, 0.2),
    "prelu": lambda net, x: F.prelu(x - 0.5, net.fine.float()),
    "dilated": lambda net, x: F.conv2d(x, net.kernels[:, :, :2, :2], dilation=2),
    "groups": lambda net, x: F.conv2d(x, net.kernels[:, :3], groups=2, padding=1),
    "several filters a channel": lambda net, x: F.conv2d(x, net.kernels[:, :2].reshape(12, 1, 3, 3), groups=6),
    "transposed": lambda net, x: F.conv_transpose2d(x, net.kernels, stride=2, padding=1, output_padding=1),
    "u-net": lambda net, x: torch.cat([x[:, :, :6, :6], F.interpolate(F.max_pool2d(x, 2), size=(6, 6))], 1),
    "nearest": lambda net, x: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=(12, 14), mode="nearest"),
    "circular and replicated": lambda net, x: F.pad(x, (1, 1, 1, 1), "circular") + F.pad(x, (1, 1, 1, 1), "replicate"),
    "zero padding": lambda net, x: net.conv(F.pad(x[:, :2], (1, 2, 0, 1))),
    "instance norm": lambda net, x: F.instance_norm(x),
    "local response norm": lambda net, x: F.local_response_norm(x, 3),
    "channel shuffle": lambda net, x: x.view(len(x), 3, 2, 6, 7).transpose(1, 2).flatten(1, 2),
    "adaptive": lambda net, x: F.adaptive_avg_pool2d(x, (4, 5)) * F.adaptive_max_pool2d(x, (4, 5)),
    "heads": lambda net, x: net.attention(*[x.flatten(2).transpose(1, 2)] * 3)[0],
    "places": lambda net, x: torch.cat([net.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1),
    "gem": lambda net, x: x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
    "cosines": lambda net, x: F.linear(F.normalize(x.mean((2, 3))), F.normalize(net.head.weight)),
    "comparisons": lambda net, x: torch.where(x > 0.5, x, torch.minimum(x * 2, 1 - x)),
    "flip and roll": lambda net, x: x.flip(3) + x.roll(1, 2),
    "stack": lambda net, x: torch.stack([x, x * 2, x.sqrt()], 1).mean(1),
    "along pixels": lambda net, x: F.conv1d(x.flatten(2), net.kernels[:, :, 0], padding=1),
    "argmax of pixels": lambda net, x: {"classes": x.argmax(1), "mask": x > 0.5},
    "repeat": lambda net, x: x.mean((2, 3), True).repeat(1, 1, 3, 2) + x.amax((2, 3), True).expand(-1, -1, 3, 2),
    "spatial softmax": lambda net, x: (x.flatten(2).softmax(2) * torch.linspace(-1, 1, 42)).sum(2),
}  # fmt: skip
