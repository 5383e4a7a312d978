# SPDX-License-Identifier: Apache-2.0
"""Activations on the native kernels, in storage order."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.signatures.elementwise import Activation, ActivationBackward


def _like(x: Tensor, y: Tensor) -> Tensor:
    """x itself when its storage order is that of ``y``, else a copy that has it."""
    return x if x.stride() == y.stride() else torch.empty_like(y).copy_(x)


def activation(a: Activation) -> Tensor:
    """act(x)."""
    y = torch.empty_like(a.x)
    x = _like(a.x, y)
    params = _C.ActivationParams(x=x, out=y, count=x.numel(), act=a.act, threads=num_threads())
    _C.activation_fwd(x.dtype == torch.float64, params)
    return y


def activation_backward(a: ActivationBackward) -> Tensor:
    """d_out · act'(x)."""
    dx = torch.empty_like(a.x)
    x, dy = _like(a.x, dx), _like(a.d_out, dx)
    params = _C.ActivationParams(x=x, dy=dy, out=dx, count=x.numel(), act=a.act, threads=num_threads())
    _C.activation_bwd(x.dtype == torch.float64, params)
    return dx
