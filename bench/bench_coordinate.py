# SPDX-License-Identifier: Apache-2.0
"""The coordinate family (coordinate_attention, cpsca_pool) at the layers of mobilenetv3_cpsca, and eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import attention
from bench.cases import Case, parametrize
from bench.contenders import FASTFER, Problem, Weights, seeded
from bench.layers import TRAIN_BATCH
from fastfer import ops

_NETWORK = "mobilenetv3_cpsca"
_BATCH = TRAIN_BATCH[_NETWORK]
_CONTENDERS = (*FASTFER, "torch_nchw", "torch_channels_last")
_CONSTANT = ("running_mean", "running_var", "bias")  # batch statistics leave rounding of the bias's gradient
_SHAPES = (("cpsca", 184, 14, 2), ("ca", 480, 14, 1), ("ca", 672, 14, 1), ("ca", 672, 7, 1), ("ca", 480, 7, 2))


def _weights(channels: int) -> Weights:
    generator, middle = seeded(), max(8, channels // 32)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "weight": draw(middle, channels, 1, 1) / channels**0.5,
        "bias": 0.1 * draw(middle),
        "n_weight": 1 + 0.1 * draw(middle),
        "n_bias": 0.1 * draw(middle),
        "running_mean": torch.zeros(middle),
        "running_var": torch.ones(middle),
        "h_weight": draw(channels, middle, 1, 1) / middle**0.5,
        "h_bias": 0.1 * draw(channels),
        "w_weight": draw(channels, middle, 1, 1) / middle**0.5,
        "w_bias": 0.1 * draw(channels),
    }


def _own(x: Tensor, t: Weights, kind: str, training: bool) -> Tensor:
    norm = ops.Norm(t["n_weight"], t["n_bias"], t["running_mean"], t["running_var"])
    return ops.coordinate_attention(
        x, t["weight"], t["bias"], norm, t["h_weight"], t["h_bias"], t["w_weight"], t["w_bias"],
        kind=kind, training=training,
    )  # fmt: skip


def _stock(x: Tensor, t: Weights, kind: str, training: bool) -> Tensor:
    """The published code's way."""
    mean = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
    groups = [mean]
    if kind == "cpsca":
        most = x.amax(3, keepdim=True), x.amax(2, keepdim=True).transpose(2, 3)
        groups = [(mean[0], most[1]), (most[0], mean[1])]
    y = F.conv2d(torch.cat(groups[0], 2), t["weight"], t["bias"])
    for group in groups[1:]:
        y = y + F.conv2d(torch.cat(group, 2), t["weight"], t["bias"])
    z = F.hardswish(F.batch_norm(y, t["running_mean"], t["running_var"], t["n_weight"], t["n_bias"], training))
    rows, cols = z.split([x.shape[2], x.shape[3]], 2)
    g_h = F.conv2d(rows, t["h_weight"], t["h_bias"]).sigmoid()
    g_w = F.conv2d(cols.transpose(2, 3), t["w_weight"], t["w_bias"]).sigmoid()
    return x * g_h * g_w


def _problem(training: bool, kind: str, channels: int, size: int) -> Problem:
    own, stock = (partial(f, kind=kind, training=training) for f in (_own, _stock))
    image = attention.draw_image(_BATCH, channels, size, size, 1)
    if training:
        dimage = attention.draw_image(_BATCH, channels, size, size, 2)
        return attention.training(own, stock, _weights(channels), image, dimage, _BATCH, _CONSTANT)
    return attention.inference(own, stock, _weights(channels), image, _BATCH, 4 * _BATCH * image[0].numel())


def _pool_stock(x: Tensor, _: Weights) -> Tensor:
    return torch.cat([x.mean(3), x.amax(3), x.mean(2), x.amax(2)], 2)[..., None]


def _pool_own(x: Tensor, _: Weights) -> Tensor:
    return torch.cat(ops.cpsca_pool(x), 2)[..., None]


def _pool_problem(channels: int, size: int) -> Problem:
    image = attention.draw_image(_BATCH, channels, size, size, 1)
    dimage = attention.draw_image(_BATCH, channels, 4 * size, 1, 2)
    return attention.training(_pool_own, _pool_stock, {}, image, dimage, _BATCH)


def _cases(work: str, training: bool) -> list[Case]:
    return [
        Case(
            work,
            _NETWORK,
            f"{kind} {channels} @{size}x{size}",
            _BATCH,
            count,
            partial(_problem, training, kind, channels, size),
            _CONTENDERS,
        )
        for kind, channels, size, count in _SHAPES
    ]


@parametrize(_cases("coordinate_attention inference", False))
def test_coordinate_attention_inference(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_cases("coordinate_attention training", True))
def test_coordinate_attention_training(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(
    [Case("cpsca_pool training", _NETWORK, "184 @14x14", _BATCH, 2, partial(_pool_problem, 184, 14), _CONTENDERS)]
)
def test_cpsca_pool(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
