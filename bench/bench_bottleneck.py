# SPDX-License-Identifier: Apache-2.0
"""The bottleneck family in training: every shape of inverted bottleneck of the network that has them.

One op against convolutions, norms and activations one after the other in stock PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import attention, layers
from bench.cases import Case, parametrize
from bench.contenders import FASTFER, Problem, Weights, seeded
from fastfer import ops

_NETWORK = "mobilenetv3_cpsca"
_BATCH = layers.TRAIN_BATCH[_NETWORK]
_NORMS = ("norm1", "norm2", "norm3")


def _weights(channels: int, hidden: int, out: int, kernel: int) -> Weights:
    generator = seeded()
    weights = {
        "expand": torch.randn((hidden, channels, 1, 1), generator=generator) / channels**0.5,
        "dw": torch.randn((hidden, 1, kernel, kernel), generator=generator) / kernel,
    }
    if out:
        weights["project"] = torch.randn((out, hidden, 1, 1), generator=generator) / hidden**0.5
    for name, size in zip(_NORMS, (hidden, hidden, out), strict=True):
        if size:
            weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=generator)
            weights[f"{name}.bias"] = 0.1 * torch.randn(size, generator=generator)
            weights[f"{name}.mean"], weights[f"{name}.var"] = torch.zeros(size), torch.ones(size)
    return weights


def _problem(channels: int, hidden: int, out: int, kernel: int, stride: int, size: int) -> Problem:
    """``out`` 0: an attention follows the depthwise convolution."""
    pad, residual, small = kernel // 2, stride == 1 and channels == out, -(-size // stride)

    def own(x: Tensor, t: Weights) -> Tensor:
        norms = [
            ops.Norm(*(t[f"{name}.{field}"] for field in ("weight", "bias", "mean", "var")))
            for name in _NORMS[: 3 if out else 2]
        ]
        projection = (t["project"], norms[2]) if out else ()
        return ops.inverted_bottleneck(
            x, t["expand"], norms[0], t["dw"], norms[1], *projection, act="hardswish", stride=stride, padding=pad,
            residual=residual, training=True,
        )  # fmt: skip

    def stock(x: Tensor, t: Weights) -> Tensor:
        def norm(y: Tensor, name: str) -> Tensor:
            mean, var = t[f"{name}.mean"], t[f"{name}.var"]
            return F.batch_norm(y, mean, var, t[f"{name}.weight"], t[f"{name}.bias"], True)

        y = F.hardswish(norm(F.conv2d(x, t["expand"]), "norm1"))
        y = F.hardswish(norm(F.conv2d(y, t["dw"], None, stride, pad, groups=hidden), "norm2"))
        if not out:
            return y
        y = norm(F.conv2d(y, t["project"]), "norm3")
        return x + y if residual else y

    image = attention.draw_image(_BATCH, channels, size, size, 1)
    dimage = attention.draw_image(_BATCH, out or hidden, small, small, 2)
    running = tuple(f"{name}.{field}" for name in _NORMS[: 3 if out else 2] for field in ("mean", "var"))
    return attention.training(own, stock, _weights(channels, hidden, out, kernel), image, dimage, _BATCH, running)


_CASES = [
    Case(
        "inverted bottleneck training", _NETWORK,
        f"{kernel}x{kernel}s{stride} {channels}>{hidden}>{out or 'attention'} @{size}x{size}",
        _BATCH, count, partial(_problem, channels, hidden, out, kernel, stride, size),
        (*FASTFER, "torch_nchw", "torch_channels_last", "torch_compile"),
    )
    for channels, hidden, out, kernel, stride, size, count in (
        (16, 64, 24, 3, 2, 112, 1), (24, 72, 24, 3, 1, 56, 1), (24, 72, 0, 5, 2, 56, 1), (40, 120, 0, 5, 1, 28, 2),
        (40, 240, 80, 3, 2, 28, 1), (80, 200, 80, 3, 1, 14, 1), (112, 672, 0, 3, 1, 14, 1),
    )
]  # fmt: skip


@parametrize(_CASES)
def test_inverted_bottleneck(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
