# SPDX-License-Identifier: Apache-2.0
"""Normalisations as the extension takes them: dense tensors, None where there is no norm, and their addresses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastfer.backends.native.memory import address, addresses
from fastfer.signatures.fields import Affine, LeftNorm, Link, LinkGradients, RunningNorm


class DenseNorm(NamedTuple):
    """Weight, bias, running mean and variance, dense; None without a norm."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None


class DenseAffine(NamedTuple):
    """Weight and bias, dense; None without a norm."""

    weight: Tensor | None = None
    bias: Tensor | None = None


NO_NORM = LeftNorm(torch.empty(0, device="cpu"), torch.empty(0, device="cpu"), 0.0)
"""For its eps, where there is no norm."""


def dense_norm(norm: RunningNorm | LeftNorm | None) -> DenseNorm:
    """The norm's tensors, dense; one that is left to the next op has neither weight nor bias here."""
    if norm is None:
        return DenseNorm()
    mean, var = norm.mean.contiguous(), norm.var.contiguous()
    if isinstance(norm, LeftNorm):
        return DenseNorm(None, None, mean, var)
    return DenseNorm(norm.weight.contiguous(), norm.bias.contiguous(), mean, var)


def dense_affine(norm: Affine | None) -> DenseAffine:
    """Weight and bias, dense."""
    return DenseAffine() if norm is None else DenseAffine(norm.weight.contiguous(), norm.bias.contiguous())


def dense_link(link: Link) -> Link:
    """The link with dense tensors."""
    return Link(link.stats, link.weight.contiguous(), link.bias.contiguous(), link.act)


def link_gradients(link: Link) -> LinkGradients:
    """Memory for the gradients of the link's tensors."""
    return LinkGradients(*map(torch.empty_like, (link.stats, link.weight, link.bias)))


NO_LINK = [0] * 9
"""No normalisation is taken over from the op before, or left to the one after; see `link`."""


def link(
    before: Link | None, grads: LinkGradients | None = None, leaves: bool = False, d_stats: Tensor | None = None
) -> list[int]:
    """Addresses for the extension: the norm taken over from the op before, and in backward its gradients; whether the
    last norm is left to the next op, and in backward the gradient of its statistics."""
    norm = [0, 0, 0] if before is None else addresses(before.weight, before.bias, before.stats)
    of_norm = [0, 0, 0] if grads is None else addresses(grads.weight, grads.bias, grads.stats)
    return [*norm, *of_norm, 0 if before is None else before.act, int(leaves), address(d_stats)]
