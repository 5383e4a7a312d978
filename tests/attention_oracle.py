# SPDX-License-Identifier: Apache-2.0
"""Attention in float64 by torch's own functions and autograd: what every backend is compared with."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from draws import normal
from tolerance import assert_close
from torch import Tensor

from fastfer import ops


class Sizes(NamedTuple):
    """Batch, queries, keys, features of q and k, features of v."""

    b: int
    t: int
    s: int
    d: int
    e: int


def dot_inputs(sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """q, k, v, scale and the upstream gradient."""
    b, t, s, d, e = sizes
    shapes = ((b, t, d), (b, s, d), (b, s, e))
    leaves = [normal(*shape, dtype=dtype, seed=3 * seed + i) for i, shape in enumerate(shapes)]
    leaves.append(torch.tensor(0.75, dtype=dtype))
    return [leaf.requires_grad_() for leaf in leaves], normal(b, t, e, dtype=dtype, seed=3 * seed + 7)


def dot_oracle(leaves: list[Tensor], dout: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
    """Output and gradients in float64 for factor 1/√D, and for the gradients the sizes of the terms they sum."""
    q, k, v, scale = (leaf.detach().double().requires_grad_() for leaf in leaves)
    root = max(q.shape[2], 1) ** -0.5
    raw = q @ k.transpose(1, 2)
    weights = torch.softmax(raw * (scale * root), 2)
    out = weights @ v
    grads = torch.autograd.grad(out, (q, k, v, scale), dout.double())
    with torch.no_grad():
        wide = dout.double()
        down = weights * ((wide.abs() @ v.abs().transpose(1, 2)) + (wide * out).abs().sum(2, keepdim=True))
        terms = [
            (down @ k.abs()) * root,
            (down.transpose(1, 2) @ q.abs()) * root,
            weights.transpose(1, 2) @ wide.abs(),
            (down * raw.abs()).sum() * root,
        ]
    return [out.detach(), *grads], [None, *(t.max() if t.numel() else None for t in terms)]


Case = tuple[list[Tensor], Tensor, tuple[list[Tensor], list[Tensor | None]]]


@cache
def dot_case(sizes: Sizes, dtype: torch.dtype) -> Case:
    leaves, dout = dot_inputs(sizes, dtype)
    return leaves, dout, dot_oracle(leaves, dout)


def dot(leaves: list[Tensor]) -> Tensor:
    q, k, v, scale = leaves
    return ops.dot_product_attention(q, k, v, scale=scale, factor=max(q.shape[2], 1) ** -0.5)


def dot_result(leaves: list[Tensor], dout: Tensor) -> list[Tensor]:
    out = dot(leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def additive_inputs(b: int, t: int, d: int, a: int, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """x, h, weight, bias, v, v_bias and the upstream gradient."""
    shapes = ((b, t, d), (b, t, d), (a, 2 * d), (a,), (a,), (1,))
    leaves = [normal(*shape, dtype=dtype, seed=7 * seed + i) for i, shape in enumerate(shapes)]
    leaves[2] = leaves[2] / max(d, 1) ** 0.5
    return [leaf.requires_grad_() for leaf in leaves], normal(b, d, dtype=dtype, seed=7 * seed + 6)


def additive_formula(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor) -> Tensor:
    scores = torch.tanh(torch.cat([x, h], 2) @ weight.t() + bias) @ v.reshape(-1) + v_bias
    return (torch.softmax(scores, 1)[:, :, None] * x).sum(1)


def additive_oracle(leaves: list[Tensor], dout: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out = additive_formula(*wide)
    grads = torch.autograd.grad(out, wide, dout.double())
    with torch.no_grad():
        x, h, weight, bias, v, v_bias = wide
        u = torch.tanh(torch.cat([x, h], 2) @ weight.t() + bias)
        a = torch.softmax(u @ v + v_bias, 1)
        reach = x.abs() @ dout.double().abs()[:, :, None]
        de = a * (reach[:, :, 0] + (a[:, :, None] * reach).sum(1))
        dz = de[:, :, None] * v.abs()
        through = dz @ weight.abs()
        sizes = (
            a[:, :, None] * dout.double().abs()[:, None] + through[:, :, : x.shape[2]],
            through[:, :, x.shape[2] :],
            torch.einsum("bta,btd->ad", dz, torch.cat([x, h], 2).abs()),
            dz.sum((0, 1)),
            torch.einsum("bt,bta->a", de, u.abs()),
            de.sum(),
        )
    return [out.detach(), *grads], [None, *(t.max() if t.numel() else None for t in sizes)]


@cache
def additive_case(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> Case:
    leaves, dout = additive_inputs(*sizes, dtype)
    return leaves, dout, additive_oracle(leaves, dout)


def additive_result(leaves: list[Tensor], dout: Tensor) -> list[Tensor]:
    out = ops.additive_attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def assert_all(
    got: list[Tensor], oracle: tuple[list[Tensor], list[Tensor | None]], names: str, length: int, text: str = ""
) -> None:
    for name, each, want, scale in zip(names.split(), got, *oracle, strict=True):
        assert each.is_contiguous(), name
        assert_close(each, want, "chain", length, scale=scale, name=f"{name} {text}")


DOT_NAMES = "out dq dk dv dscale"
ADDITIVE_NAMES = "out dx dh dweight dbias dv dv_bias"


def dot_length(sizes: Sizes) -> int:
    return sizes.d + sizes.s + sizes.e
