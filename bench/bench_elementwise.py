# SPDX-License-Identifier: Apache-2.0
"""The elementwise family, forward and backward op: a network's activation at its largest tensor, others at one size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import fastfer
from bench.cases import Case, parametrize
from bench.contenders import FASTFER, Copies, Problem, compiled, slots_for
from bench.layers import TRAIN_BATCH
from bench.measure import Runner
from fastfer import ops
from fastfer._checks import ACTIVATIONS

_CONTENDERS = (*FASTFER, "torch_channels_last", "torch_compile")
_SHAPES = (  # network, activation, channels, size
    ("fgw_fer", "relu", 8, 48),
    ("sepconv_attention", "relu", 32, 48),
    ("vgg16_csa", "relu", 64, 128),
    ("patt_lite", "relu6", 64, 112),
    ("mobilenetv3_cpsca", "hardswish", 64, 112),
    ("mobilenetv3_cpsca", "hardsigmoid", 240, 28),
    ("mobilenetv3_cpsca", "sigmoid", 240, 28),
    ("mobilenetv3_cpsca", "silu", 240, 28),
)
_FORWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}
_ATEN = torch.ops.aten
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda dy, x: _ATEN.threshold_backward.default(dy, x, 0),
    "relu6": lambda dy, x: _ATEN.hardtanh_backward.default(dy, x, 0, 6),
    "hardswish": lambda dy, x: _ATEN.hardswish_backward.default(dy, x),
    "hardsigmoid": lambda dy, x: _ATEN.hardsigmoid_backward.default(dy, x),
    "sigmoid": lambda dy, y: _ATEN.sigmoid_backward.default(dy, y),  # PyTorch saves the output of this one
    "silu": lambda dy, x: _ATEN.silu_backward.default(dy, x),
}


def _image(batch: int, channels: int, size: int, seed: int) -> Tensor:
    return 3 * torch.randn(min(batch, 2), channels, size, size, generator=torch.Generator().manual_seed(seed))


def _forward(act: str, batch: int, channels: int, size: int) -> Problem:
    image = _image(batch, channels, size, 1)
    elements = batch * channels * size * size
    slots = slots_for(batch, 4 * elements)

    def oracle() -> list[Tensor]:
        with fastfer.use("reference"), torch.no_grad():
            return [ops.activation(image.double(), act)]

    def build(name: str) -> Runner:
        xs, stock = Copies(image, batch, slots, torch.channels_last), _FORWARD[act]
        if name in FASTFER:
            return lambda slot: (ops.activation(xs[slot], act),)
        call = compiled(stock) if name == "torch_compile" else stock
        return lambda slot: (call(xs[slot]),)

    return Problem(0, 8 * elements, 1, slots, torch.no_grad, oracle, build)


def _backward(act: str, batch: int, channels: int, size: int) -> Problem:
    image, dimage = _image(batch, channels, size, 1), _image(batch, channels, size, 2)
    elements = batch * channels * size * size
    slots, code = slots_for(batch, 4 * elements), ACTIVATIONS.index(act)
    backward = torch.ops.fastfer.activation_backward.default

    def oracle() -> list[Tensor]:
        with fastfer.use("reference"):
            return [backward(dimage.double(), image.double(), code)]

    def build(name: str) -> Runner:
        own = name in FASTFER
        saved = image.sigmoid() if act == "sigmoid" and not own else image
        xs, dys = (Copies(t, batch, slots, torch.channels_last) for t in (saved, dimage))
        if own:
            return lambda slot: (backward(dys[slot], xs[slot], code),)
        stock = _BACKWARD[act]
        call = compiled(stock) if name == "torch_compile" else stock
        return lambda slot: (call(dys[slot], xs[slot]),)

    return Problem(0, 12 * elements, 1, slots, torch.no_grad, oracle, build)


def _cases(work: str, problem: Callable[[str, int, int, int], Problem]) -> list[Case]:
    return [
        Case(
            work,
            network,
            f"{act} {channels} @{size}x{size}",
            TRAIN_BATCH[network],
            1,
            partial(problem, act, TRAIN_BATCH[network], channels, size),
            _CONTENDERS,
        )
        for network, act, channels, size in _SHAPES
    ]


@parametrize(_cases("elementwise forward", _forward))
def test_elementwise_forward(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_cases("elementwise backward", _backward))
def test_elementwise_backward(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
