# SPDX-License-Identifier: Apache-2.0
"""Normalisations that one op leaves to the next, in plain torch, their gradients by torch's own autograd.

The first op ends with y and its statistics (3, C): mean, 1/sqrt(var + eps), unbiased variance. The next takes
z = act((y - mean)·invstd·weight + bias) for its input. The other backends have the derivatives written out: here
torch derives them from these two lines, so that a fault in the formulas is no fault of both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference.norm import normalise
from fastfer.signatures.fields import Affine, Link

_DIMS = (0, 2, 3)
_C: Any = torch._C
_PLAIN_KEYS = _C._dispatch_tls_local_include_set(), _C._dispatch_tls_local_exclude_set()
"""The dispatch keys that a thread adds and takes away where nothing listens."""


class LinkedGradients(NamedTuple):
    """Gradients of a linked input: of y, and of the link's tensors."""

    x: Tensor
    stats: Tensor
    weight: Tensor
    bias: Tensor


def normalised(y: Tensor, link: Link | None) -> Tensor:
    """z of the input y; y itself without a link."""
    return y if link is None else nhwc(normalise(y, Affine(link.weight, link.bias), link.stats, link.act))


def _derived(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], d_out: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the ``inputs`` of a function."""
    # Called through torch's dispatcher, an op's body runs below autograd.
    with _C._ForceDispatchKeyGuard(*_PLAIN_KEYS), torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(function(*leaves), leaves, d_out)


def link_gradients(dz: Tensor, y: Tensor, link: Link) -> LinkedGradients:
    """Gradients of y and of the link's tensors from that of z."""

    def z(y: Tensor, stats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return normalise(y, Affine(weight, bias), stats, link.act)

    d_y, *others = _derived(z, (y, link.stats, link.weight, link.bias), dz)
    return LinkedGradients(nhwc(d_y), *others)


def through_statistics(d_y: Tensor, d_stats: Tensor | None, y: Tensor, stats: Tensor) -> Tensor:
    """The whole gradient of y: what it got itself, and through its statistics."""
    if d_stats is None or not y.numel():
        return d_y

    def of(y: Tensor) -> Tensor:
        biased, count = y.var(_DIMS, correction=0), y.numel() // y.shape[1]
        with_eps = biased + (stats[1] ** -2 - biased.detach())
        return torch.stack([y.mean(_DIMS), with_eps.rsqrt(), biased * (count / max(count - 1, 1))])

    (through,) = _derived(of, (y,), d_stats)
    return nhwc(d_y + through)
