# SPDX-License-Identifier: Apache-2.0
"""The gate family (CSA with its pooling, squeeze-and-excitation, ECA, scSE) at layers of the networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import attention
from bench.cases import Case, parametrize
from bench.contenders import FASTFER, Problem, Weights, seeded
from bench.layers import TRAIN_BATCH
from fastfer import ops

_CONTENDERS = (*FASTFER, "torch_nchw", "torch_channels_last")
_MLP = ("w1", "b1", "w2", "b2")


def _mlp(x: Tensor, t: Weights) -> Tensor:
    return F.linear(F.relu(F.linear(x.mean((2, 3)), t["w1"], t["b1"])), t["w2"], t["b2"])[:, :, None, None]


def _eca(x: Tensor, t: Weights) -> Tensor:
    k = t["k"]
    return F.conv1d(x.mean((2, 3))[:, None], k, padding=k.shape[2] // 2).transpose(1, 2)[..., None].sigmoid()


def _csa(x: Tensor, t: Weights) -> Tensor:
    pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
    return x * _eca(x, t) + x * F.conv2d(pooled, t["sw"], t["sb"]).sigmoid()


class _Kind(NamedTuple):
    own: Callable[[Tensor, Weights], Tensor]
    stock: Callable[[Tensor, Weights], Tensor]
    weights: tuple[str, ...]
    pool: bool = False


_KINDS = {
    "csa, max_pool2d": _Kind(
        lambda x, t: ops.csa(x, t["k"], t["sw"], t["sb"], pool=True),
        lambda x, t: F.max_pool2d(_csa(x, t), 2),
        ("k", "sw", "sb"),
        True,
    ),
    "squeeze_excite": _Kind(
        lambda x, t: ops.squeeze_excite(x, *(t[name] for name in _MLP)),
        lambda x, t: x * F.hardsigmoid(_mlp(x, t)),
        _MLP,
    ),
    "eca": _Kind(lambda x, t: ops.eca(x, t["k"]), lambda x, t: x * _eca(x, t), ("k",)),
    "scse": _Kind(
        lambda x, t: ops.scse(x, *(t[name] for name in (*_MLP, "sl", "sb"))),
        lambda x, t: x * _mlp(x, t).sigmoid() + x * F.conv2d(x, t["sl"], t["sb"]).sigmoid(),
        (*_MLP, "sl", "sb"),
    ),
}
_SHAPES = (  # network, kind, channels, hidden units, size, count
    ("vgg16_csa", "csa, max_pool2d", 64, 1, 128, 1),
    ("vgg16_csa", "csa, max_pool2d", 128, 1, 64, 1),
    ("vgg16_csa", "csa, max_pool2d", 256, 1, 32, 1),
    ("vgg16_csa", "csa, max_pool2d", 512, 1, 16, 1),
    ("vgg16_csa", "csa, max_pool2d", 512, 1, 8, 1),
    ("vgg16_csa", "eca", 256, 1, 32, 1),
    ("vgg16_csa", "scse", 256, 128, 32, 1),
    ("mobilenetv3_cpsca", "squeeze_excite", 72, 24, 28, 1),
    ("mobilenetv3_cpsca", "squeeze_excite", 120, 32, 28, 2),
)


def _weights(kind: _Kind, channels: int, hidden: int) -> Weights:
    generator, c = seeded(), channels
    sizes = {
        "w1": (hidden, c),
        "b1": (hidden,),
        "w2": (c, hidden),
        "b2": (c,),
        "k": (1, 1, 3 if c == 64 else 5),
        "sw": (1, 2, 1, 1),
        "sl": (1, c, 1, 1),
        "sb": (1,),
    }
    drawn = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    scale = {"w1": c**-0.5, "w2": hidden**-0.5, "sl": c**-0.5}
    return {name: drawn[name] * scale.get(name, 1.0) for name in kind.weights}


def _problem(training: bool, name: str, batch: int, channels: int, hidden: int, size: int) -> Problem:
    kind = _KINDS[name]
    image, weights = attention.draw_image(batch, channels, size, size, 1), _weights(kind, channels, hidden)
    out = size // 2 if kind.pool else size
    if training:
        dimage = attention.draw_image(batch, channels, out, out, 2)
        return attention.training(kind.own, kind.stock, weights, image, dimage, batch)
    return attention.inference(kind.own, kind.stock, weights, image, batch, 4 * batch * channels * out * out)


def _cases(work: str, training: bool) -> list[Case]:
    return [
        Case(
            work,
            network,
            f"{name} {channels} @{size}x{size}",
            TRAIN_BATCH[network],
            count,
            partial(_problem, training, name, TRAIN_BATCH[network], channels, hidden, size),
            _CONTENDERS,
        )
        for network, name, channels, hidden, size, count in _SHAPES
    ]


@parametrize(_cases("gate inference", False))
def test_gate_inference(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_cases("gate training", True))
def test_gate_training(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
