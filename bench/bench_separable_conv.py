# SPDX-License-Identifier: Apache-2.0
"""The separable_conv family at every layer of the five networks: fused blocks, and the two convolutions alone.

Blocks: inference at batch 1 and 32, training (forward and backward) at the network's batch. Convolutions alone:
forward and backward op at the training batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import attention, layers
from bench.cases import Case, of_layers, parametrize
from bench.contenders import FASTFER, Problem, Weights, block_inference, block_training, seeded
from bench.convolutions import conv_backward, conv_forward
from fastfer import backend, ops
from fastfer.ops._linked import Linked, linked_separable_conv2d

Compare = Callable[[Case, str], None]
_RUNNING = {"running_mean": torch.zeros, "running_var": torch.ones}
_TRAIN = layers.TRAIN_BATCH.__getitem__
_INFERENCE = [
    case
    for batch in layers.INFERENCE_BATCHES
    for case in of_layers(f"block inference, batch {batch}", block_inference, layers.separable(), lambda _, b=batch: b)  # type: ignore[misc]
]


@parametrize(_INFERENCE, keep=2)
def test_block_inference(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("block training", block_training, layers.separable(), _TRAIN))
def test_block_training(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("depthwise forward", conv_forward, layers.depthwise(), _TRAIN))
def test_depthwise_forward(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("depthwise backward", conv_backward, layers.depthwise(), _TRAIN))
def test_depthwise_backward(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("pointwise forward", conv_forward, layers.pointwise(), _TRAIN))
def test_pointwise_forward(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("pointwise backward", conv_backward, layers.pointwise(), _TRAIN))
def test_pointwise_backward(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


def _depthwise_norm(channels: int, kernel: int, stride: int, size: int) -> Problem:
    """depthwise_norm in training: act(norm(depthwise(x))), what an attention follows in an inverted bottleneck."""
    generator, batch, pad = seeded(), layers.TRAIN_BATCH["mobilenetv3_cpsca"], kernel // 2
    weights = {
        "weight": torch.randn((channels, 1, kernel, kernel), generator=generator) / kernel,
        "n_weight": 1 + 0.1 * torch.randn(channels, generator=generator),
        "n_bias": 0.1 * torch.randn(channels, generator=generator),
        "running_mean": torch.zeros(channels),
        "running_var": torch.ones(channels),
    }

    def own(x: Tensor, t: Weights) -> Tensor:
        norm = ops.Norm(t["n_weight"], t["n_bias"], t["running_mean"], t["running_var"])
        return ops.depthwise_conv2d(x, t["weight"], None, stride, pad, norm=norm, act="hardswish", training=True)

    def stock(x: Tensor, t: Weights) -> Tensor:
        y = F.conv2d(x, t["weight"], None, stride, pad, groups=channels)
        return F.hardswish(F.batch_norm(y, t["running_mean"], t["running_var"], t["n_weight"], t["n_bias"], True))

    out = -(-size // stride)
    image, dimage = (
        attention.draw_image(batch, channels, size, size, 1),
        attention.draw_image(batch, channels, out, out, 2),
    )
    return attention.training(own, stock, weights, image, dimage, batch, ("running_mean", "running_var"))


@parametrize([
    Case(
        "depthwise norm training", "mobilenetv3_cpsca", f"{kernel}x{kernel}s{stride} {channels} @{size}x{size}",
        layers.TRAIN_BATCH["mobilenetv3_cpsca"], count, partial(_depthwise_norm, channels, kernel, stride, size),
        (*FASTFER, "torch_nchw", "torch_channels_last"),
    )
    for channels, kernel, stride, size, count in (
        (72, 5, 2, 56, 1), (120, 5, 1, 28, 2), (184, 3, 1, 14, 2), (672, 3, 1, 14, 1), (672, 5, 2, 14, 1)
    )
])  # fmt: skip
def test_depthwise_norm(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


def _pair(network: str, channels: int, size: int, between: bool, act: str) -> Problem:
    """Two blocks one after the other in training, in a `Chain`: natively the first leaves its norm to the second."""
    generator, batch = seeded(), layers.TRAIN_BATCH[network]
    norms = ("a2", "b2", *(("a1", "b1") if between else ()))
    weights = {f"{block}_dw": torch.randn((channels, 1, 3, 3), generator=generator) / 3 for block in "ab"}
    weights |= {
        f"{block}_pw": torch.randn((channels, channels, 1, 1), generator=generator) / channels**0.5 for block in "ab"
    }
    for norm in norms:
        weights[f"{norm}_weight"] = 1 + 0.1 * torch.randn(channels, generator=generator)
        weights[f"{norm}_bias"] = 0.1 * torch.randn(channels, generator=generator)
    running = {f"{norm}_{name}": value(channels) for norm in norms for name, value in _RUNNING.items()}

    def own(x: Tensor, t: Weights) -> Tensor:
        norm = {n: ops.Norm(*(t[f"{n}_{name}"] for name in ("weight", "bias", *_RUNNING))) for n in norms}
        links = backend.links("cpu") and torch.is_grad_enabled()
        y: Tensor | Linked = x
        for block in "ab":
            options = {"norm1": norm.get(f"{block}1"), "act1": act if between else None, "norm2": norm[f"{block}2"]}
            common = {**options, "act2": act, "stride": 1, "padding": 1, "dw_bias": None, "pw_bias": None}
            if links:
                y = linked_separable_conv2d(y, t[f"{block}_dw"], t[f"{block}_pw"], **common, leaves=block == "a")
            else:
                y = ops.separable_conv2d(y, t[f"{block}_dw"], t[f"{block}_pw"], **common, training=True)
        return y

    def stock(x: Tensor, t: Weights) -> Tensor:
        def norm_act(y: Tensor, norm: str) -> Tensor:
            running = (t[f"{norm}_running_mean"], t[f"{norm}_running_var"])
            return getattr(F, act)(F.batch_norm(y, *running, t[f"{norm}_weight"], t[f"{norm}_bias"], True))

        for block in "ab":
            x = F.conv2d(x, t[f"{block}_dw"], None, 1, 1, groups=channels)
            x = norm_act(F.conv2d(norm_act(x, f"{block}1") if between else x, t[f"{block}_pw"]), f"{block}2")
        return x

    images = (attention.draw_image(batch, channels, size, size, seed) for seed in (1, 2))
    return attention.training(own, stock, {**weights, **running}, *images, batch, tuple(running))


@parametrize([
    Case(
        "two blocks training", network, f"{channels} @{size}x{size}", layers.TRAIN_BATCH[network], count,
        partial(_pair, network, channels, size, between, act), (*FASTFER, "torch_nchw", "torch_channels_last"),
    )
    for network, channels, size, between, act, count in (
        ("vgg16_csa", 256, 32, False, "relu", 1), ("vgg16_csa", 512, 16, False, "relu", 1),
        ("patt_lite", 128, 56, True, "relu6", 1), ("patt_lite", 512, 14, True, "relu6", 1),
    )
], keep=1)  # fmt: skip
def test_two_blocks(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)
