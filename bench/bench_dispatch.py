# SPDX-License-Identifier: Apache-2.0
"""What a call costs apart from its arithmetic, and whether fastfer's and torch's ops live together on one thread pool.

- dispatch: an activation of 16 floats, and a separable block on a 6×6 image, against the same in eager PyTorch.
- alternating: a chain of 8 depthwise convolutions by torch, by fastfer, and by both in turn. On one thread pool the
  mixed chain costs the mean of the other two; two pools that spin against each other would make it dearer than either.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import fastfer
from bench.cases import Case, parametrize
from bench.contenders import FASTFER, Problem, block_inference, block_training
from bench.layers import RELU, Layer
from bench.measure import Runner
from fastfer import ops

_EAGER = (*FASTFER, "torch_channels_last")
_CHAIN = ("torch", "fastfer_native", "alternating_native", "fastfer_numba", "alternating_numba")
_LENGTH = 8
_CHANNELS, _SIZE = 64, 24
_BLOCK = Layer(1, 3, 1, 1, 1, 1, 1, 8, 8, 6, 6, 1, RELU, 1, RELU)


def _tiny(mode: Callable[[], AbstractContextManager[object]], grad: bool, backward: bool) -> Problem:
    """hardswish of 16 floats."""
    values = torch.linspace(-4, 4, 16)
    dy = torch.ones(16)

    def oracle() -> list[Tensor]:
        x = values.double().requires_grad_()
        with fastfer.use("reference"), torch.enable_grad():
            y = ops.hardswish(x)
            return [torch.autograd.grad(y, x, dy.double())[0] if backward else y.detach()]

    def build(name: str) -> Runner:
        x, call = values.clone().requires_grad_(grad), ops.hardswish if name in FASTFER else F.hardswish
        if backward:
            return lambda slot: torch.autograd.grad(call(x), x, dy)
        return lambda slot: (call(x),)

    return Problem(0, 8 * 16 * (1 + backward), 1, 1, mode, oracle, build)


def _chain(batch: int) -> Problem:
    """Depthwise 3×3 convolutions one after the other."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(min(batch, 2), _CHANNELS, _SIZE, _SIZE, generator=generator)
    weight = torch.randn(_CHANNELS, 1, 3, 3, generator=generator) / 3
    own: Callable[[Tensor], Tensor] = lambda x: ops.depthwise_conv2d(x, weight, None, 1, 1)  # noqa: E731
    stock: Callable[[Tensor], Tensor] = lambda x: F.conv2d(x, weight, None, 1, 1, groups=_CHANNELS)  # noqa: E731

    def oracle() -> list[Tensor]:
        y, wide = image.double(), weight.double()
        with fastfer.use("reference"), torch.no_grad():
            for _ in range(_LENGTH):
                y = ops.depthwise_conv2d(y, wide, None, 1, 1)
        return [y]

    def build(name: str) -> Runner:
        x = image.repeat(batch // image.shape[0], 1, 1, 1).contiguous(memory_format=torch.channels_last)
        first, second = {"torch": (stock, stock), "alternating": (stock, own)}.get(name.partition("_")[0], (own, own))

        def run(slot: int) -> tuple[Tensor, ...]:
            y = x
            for _ in range(_LENGTH // 2):
                y = second(first(y))
            return (y,)

        return run

    elements = batch * _CHANNELS * _SIZE * _SIZE
    return Problem(_LENGTH * 9 * elements, _LENGTH * 8 * elements, _LENGTH * 9, 1, torch.no_grad, oracle, build)


def _case(work: str, shape: str, batch: int, problem: Callable[[], Problem], contenders: tuple[str, ...]) -> Case:
    return Case(work, "none", shape, batch, 1, problem, contenders)


_DISPATCH = [
    _case("dispatch", "hardswish no_grad", 1, partial(_tiny, torch.no_grad, False, False), _EAGER),
    _case("dispatch", "hardswish inference_mode", 1, partial(_tiny, torch.inference_mode, False, False), _EAGER),
    _case("dispatch", "hardswish forward with graph", 1, partial(_tiny, torch.enable_grad, True, False), _EAGER),
    _case("dispatch", "hardswish forward and backward", 1, partial(_tiny, torch.enable_grad, True, True), _EAGER),
    _case("dispatch", "block 8 @6x6 inference", 1, partial(block_inference, _BLOCK, 1), _EAGER),
    _case("dispatch", "block 8 @6x6 training", 2, partial(block_training, _BLOCK, 2), _EAGER),
]
_ALTERNATING = [
    _case("alternating", f"{_LENGTH} depthwise 3x3 {_CHANNELS} @{_SIZE}x{_SIZE}", batch, partial(_chain, batch), _CHAIN)
    for batch in (1, 16)
]


@parametrize(_DISPATCH, keep=len(_DISPATCH))
def test_dispatch(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_ALTERNATING)
def test_alternating(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
