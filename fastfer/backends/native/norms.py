# SPDX-License-Identifier: Apache-2.0
"""Normalisations as the extension takes them: params of dense tensors, and memory for gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastfer import _C
from fastfer.signatures.fields import Affine, LeftNorm, Link, LinkGradients, RunningNorm


class NormGradients(NamedTuple):
    """Gradients of a norm's weight and bias; None where not wanted."""

    weight: Tensor | None = None
    bias: Tensor | None = None


def forward_norm(norm: RunningNorm | LeftNorm | None, stats: Tensor | None = None) -> _C.NormParams | None:
    """A norm for a forward pass, which in training writes ``stats``. Of a norm that is left to the next op the pass
    computes the statistics alone."""
    if norm is None:
        return None
    if isinstance(norm, LeftNorm):
        return _C.NormParams(eps=norm.eps, stats=stats)
    return _C.NormParams(
        weight=norm.weight.contiguous(),
        bias=norm.bias.contiguous(),
        mean=norm.mean.contiguous(),
        var=norm.var.contiguous(),
        eps=norm.eps,
        stats=stats,
    )


def backward_norm(norm: Affine | None, stats: Tensor, grads: NormGradients) -> _C.NormParams:
    """A norm for a backward pass. Without one the statistics are those of a norm that was left to the next op."""
    if norm is None:
        return _C.NormParams(stats=stats)
    return _C.NormParams(
        weight=norm.weight.contiguous(),
        bias=norm.bias.contiguous(),
        stats=stats,
        d_weight=grads.weight,
        d_bias=grads.bias,
    )


def norm_gradients(norm: Affine | None, needed: bool = True) -> NormGradients:
    """Memory for the gradients of a norm's weight and bias."""
    if norm is None or not needed:
        return NormGradients()
    like = norm.weight
    return NormGradients(like.new_empty(like.shape), like.new_empty(like.shape))


def dense_link(link: Link) -> Link:
    """The link with dense tensors."""
    return Link(link.stats.contiguous(), link.weight.contiguous(), link.bias.contiguous(), link.act)


def link_gradients(link: Link) -> LinkGradients:
    """Memory for the gradients of the link's tensors."""
    return LinkGradients(*map(torch.empty_like, (link.stats, link.weight, link.bias)))


def linked_input(link: Link | None, grads: LinkGradients | None = None) -> _C.LinkedInputParams | None:
    """The norm that an op takes over from the op before it; the link has dense tensors."""
    if link is None:
        return None
    d_stats, d_weight, d_bias = (None, None, None) if grads is None else grads
    return _C.LinkedInputParams(
        weight=link.weight,
        bias=link.bias,
        stats=link.stats,
        act=link.act,
        d_weight=d_weight,
        d_bias=d_bias,
        d_stats=d_stats,
    )
