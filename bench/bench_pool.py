# SPDX-License-Identifier: Apache-2.0
"""The pool family on tensors of the networks: max_pool2d in inference and in training, the global pools' forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import fastfer
from bench.cases import Case, parametrize
from bench.contenders import ALL, FASTFER, Copies, Problem, compiled, layout_of, slots_for
from bench.layers import TRAIN_BATCH
from bench.measure import Runner
from fastfer import ops

_WINDOWS = (  # network, channels, size, kernel, padding; stride 2
    *(("fgw_fer", channels, size, 3, 1) for channels, size in ((16, 48), (32, 24), (64, 12), (128, 6))),
    *(("sepconv_attention", channels, size, 2, 0) for channels, size in ((32, 48), (64, 24), (128, 12))),
    *(("vgg16_csa", channels, size, 2, 0) for channels, size in ((64, 128), (128, 64), (256, 32), (512, 16))),
)
_IMAGES = (("fgw_fer", 7, 3), ("mobilenetv3_cpsca", 480, 7), ("vgg16_csa", 512, 4))  # network, channels, size
_Pool = Callable[[Tensor], tuple[Tensor, ...]]


def _image(batch: int, channels: int, size: int, seed: int) -> Tensor:
    return torch.randn(min(batch, 2), channels, size, size, generator=torch.Generator().manual_seed(seed))


def _forward(own: _Pool, stock: _Pool, batch: int, channels: int, size: int, outputs: int) -> Problem:
    image, elements = _image(batch, channels, size, 1), batch * channels * size * size
    slots = slots_for(batch, 4 * elements)

    def oracle() -> list[Tensor]:
        with fastfer.use("reference"), torch.no_grad():
            return list(own(image.double()))

    def build(name: str) -> Runner:
        xs = Copies(image, batch, slots, layout_of(name))
        call = own if name in FASTFER else compiled(stock) if name == "torch_compile" else stock
        return lambda slot: call(xs[slot])

    return Problem(0, 4 * (elements + outputs), size * size, slots, torch.no_grad, oracle, build)


def _training(own: _Pool, stock: _Pool, batch: int, channels: int, size: int, out: int) -> Problem:
    image, dimage = _image(batch, channels, size, 1), _image(batch, channels, out, 2)
    elements, outputs = batch * channels * size * size, batch * channels * out * out
    slots = slots_for(batch, 4 * elements)

    def both(pool: _Pool, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        (y,) = pool(x)
        return y, *torch.autograd.grad(y, x, dy)

    def oracle() -> list[Tensor]:
        with fastfer.use("reference"):
            return [t.detach() for t in both(own, image.double().requires_grad_(), dimage.double())]

    def build(name: str) -> Runner:
        xs = Copies(image, batch, slots, layout_of(name), grad=True)
        dys = Copies(dimage, batch, slots, layout_of(name))
        call = own if name in FASTFER else compiled(stock) if name == "torch_compile" else stock
        return lambda slot: both(call, xs[slot], dys[slot])

    return Problem(0, 8 * (elements + outputs), 9, slots, torch.enable_grad, oracle, build)


def _window_cases(training: bool) -> list[Case]:
    cases = []
    for network, channels, size, kernel, padding in _WINDOWS:
        batch, out = TRAIN_BATCH[network], size // 2

        def own(x: Tensor, kernel: int = kernel, padding: int = padding) -> tuple[Tensor, ...]:
            return (ops.max_pool2d(x, kernel, 2, padding),)

        def stock(x: Tensor, kernel: int = kernel, padding: int = padding) -> tuple[Tensor, ...]:
            return (F.max_pool2d(x, kernel, 2, padding),)

        shape = f"{kernel}x{kernel} {channels} @{size}x{size}"
        if training:
            problem = partial(_training, own, stock, batch, channels, size, out)
        else:
            problem = partial(_forward, own, stock, batch, channels, size, batch * channels * out * out)
        cases.append(
            Case(f"max_pool2d {'training' if training else 'forward'}", network, shape, batch, 1, problem, ALL)
        )
    return cases


_GLOBAL: dict[str, tuple[_Pool, _Pool]] = {
    "global_avg_pool": (lambda x: (ops.global_avg_pool(x),), lambda x: (x.mean((2, 3)),)),
    "global_max_pool": (lambda x: (ops.global_max_pool(x),), lambda x: (x.amax((2, 3)),)),
    "global_avg_max_pool": (ops.global_avg_max_pool, lambda x: (x.mean((2, 3)), x.amax((2, 3)))),
}


def _global_cases() -> list[Case]:
    return [
        Case(
            "global pool forward",
            network,
            f"{name} {channels} @{size}x{size}",
            TRAIN_BATCH[network],
            1,
            partial(_forward, *pools, TRAIN_BATCH[network], channels, size, 2 * TRAIN_BATCH[network] * channels),
            ALL,
        )
        for name, pools in _GLOBAL.items()
        for network, channels, size in _IMAGES
    ]


@parametrize(_window_cases(training=False))
def test_max_pool_forward(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_window_cases(training=True))
def test_max_pool_training(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_global_cases())
def test_global_pool_forward(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
