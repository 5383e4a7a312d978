# SPDX-License-Identifier: Apache-2.0
"""The attention family at the heads of the networks, at one image and at the training batch, and at a long sequence.

Dot-product attention with a learnt scale against the formula in eager PyTorch, additive attention likewise; inference,
and training (forward and the gradients of all inputs and parameters).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Case, parametrize
from bench.contenders import Problem, seeded
from bench.formulas import CONTENDERS, problem
from fastfer import ops

_DOT = (  # network, batch, tokens, features
    ("patt_lite", 1, 4, 32),
    ("patt_lite", 8, 4, 32),
    ("sepconv_attention", 1, 36, 128),
    ("sepconv_attention", 64, 36, 128),
    ("long", 1, 1024, 64),
)
_ADDITIVE = (("sepconv_attention", 1, 36, 128), ("sepconv_attention", 64, 36, 128))


def _dot(batch: int, tokens: int, features: int, training: bool) -> Problem:
    generator = seeded()
    leaves = [torch.randn(batch, tokens, features, generator=generator) for _ in range(3)]
    leaves.append(torch.ones(1))
    root = features**-0.5

    def ours(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        return ops.dot_product_attention(q, k, v, scale=scale, factor=root)

    def stock(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        return torch.softmax((q @ k.transpose(1, 2)) * (scale * root), 2) @ v

    upstream = torch.randn(batch, tokens, features, generator=generator) if training else None
    macs = batch * tokens * tokens * features * (7 if training else 2)
    return problem(ours, stock, leaves, upstream, macs, batch * tokens * features)


def _additive(batch: int, tokens: int, features: int, training: bool) -> Problem:
    generator, hidden = seeded(), features
    shapes = ((batch, tokens, features),) * 2 + ((hidden, 2 * features), (hidden,), (1, hidden))
    leaves = [torch.randn(shape, generator=generator) for shape in shapes]
    leaves[2] /= features**0.5
    v_bias = torch.zeros(1)  # its gradient is zero, of which no relative error can be told

    def ours(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor) -> Tensor:
        return ops.additive_attention(x, h, weight, bias, v, v_bias.to(x.dtype))

    def stock(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor) -> Tensor:
        scores = F.linear(torch.tanh(F.linear(torch.cat([x, h], 2), weight, bias)), v, v_bias)
        return (torch.softmax(scores, 1) * x).sum(1)

    upstream = torch.randn(batch, features, generator=generator) if training else None
    macs = batch * tokens * 2 * features * hidden * (3 if training else 1)
    return problem(ours, stock, leaves, upstream, macs, batch * tokens * features)


def _cases(work: str, build: Callable[..., Problem], shapes: tuple[tuple[str, int, int, int], ...]) -> list[Case]:
    return [
        Case(
            f"{work} {'training' if training else 'inference'}",
            network,
            f"{tokens}x{features}",
            batch,
            1,
            partial(build, batch, tokens, features, training),
            CONTENDERS,
        )
        for training in (False, True)
        for network, batch, tokens, features in shapes
    ]


@parametrize(_cases("dot_product_attention", _dot, _DOT), keep=2)
def test_dot_product_attention(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_cases("additive_attention", _additive, _ADDITIVE), keep=2)
def test_additive_attention(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
