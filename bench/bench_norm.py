# SPDX-License-Identifier: Apache-2.0
"""The norm family: batch_norm with an activation in training, forward and backward, and in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import fastfer
from bench.cases import Case, parametrize
from bench.contenders import FASTFER, Copies, Problem, compiled, layout_of, slots_for
from bench.layers import TRAIN_BATCH
from bench.measure import Runner
from fastfer import ops

_SHAPES = (  # network, channels, size
    ("fgw_fer", 8, 48),
    ("sepconv_attention", 32, 48),
    ("patt_lite", 64, 112),
    ("mobilenetv3_cpsca", 240, 28),
)


def _values(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _call(norm: ops.Norm, training: bool, name: str) -> Callable[[Tensor], Tensor]:
    if name in FASTFER:
        return lambda x: ops.batch_norm(x, norm, act="relu", training=training)

    def stock(x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training))

    return compiled(stock) if name == "torch_compile" else stock


def _norm(channels: int, dtype: torch.dtype, grad: bool) -> ops.Norm:
    weight, bias = (1 + 0.1 * _values(s, channels).to(dtype) for s in (3, 4))
    return ops.Norm(
        weight.requires_grad_(grad),
        bias.requires_grad_(grad),
        0.1 * _values(5, channels).to(dtype),
        1 + 0.1 * _values(6, channels).sigmoid().to(dtype),
    )


def _problem(training: bool, batch: int, channels: int, size: int) -> Problem:
    image, dimage = _values(1, 2, channels, size, size), _values(2, 2, channels, size, size)
    elements = batch * channels * size * size
    slots = slots_for(batch, 4 * elements)

    def run(call: Callable[[Tensor], Tensor], x: Tensor, norm: ops.Norm, dout: Tensor) -> tuple[Tensor, ...]:
        out = call(x)
        return (out, *torch.autograd.grad(out, (x, norm.weight, norm.bias), dout)) if training else (out,)

    def oracle() -> list[Tensor]:
        norm, x = _norm(channels, torch.float64, training), image.double().requires_grad_(training)
        with fastfer.use("reference"):
            out, *grads = run(_call(norm, training, FASTFER[0]), x, norm, dimage.double())
        return [out.detach(), *(g if g.shape == x.shape else batch // 2 * g for g in grads)]

    def build(name: str) -> Runner:
        norm = _norm(channels, torch.float32, training)
        xs, douts = (
            Copies(image, batch, slots, layout_of(name), training),
            Copies(dimage, batch, slots, layout_of(name)),
        )
        call = _call(norm, training, name)
        return lambda slot: run(call, xs[slot], norm, douts[slot])

    mode = torch.enable_grad if training else torch.no_grad
    return Problem(0, (16 if training else 8) * elements, batch * size * size, slots, mode, oracle, build, training)


def _cases(work: str, training: bool) -> list[Case]:
    cases = []
    for network, channels, size in _SHAPES:
        batch = TRAIN_BATCH[network]
        problem = partial(_problem, training, batch, channels, size)
        cases.append(Case(work, network, f"relu {channels} @{size}x{size}", batch, 1, problem))
    return cases


@parametrize(_cases("batch_norm inference", False))
def test_batch_norm_inference(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_cases("batch_norm training", True))
def test_batch_norm_training(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
