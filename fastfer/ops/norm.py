# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with a fused activation. torch saves the input and, with an activation, the normalised output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastfer import _checks
from fastfer.reference import norm as reference

BACKENDS = ("reference",)


class Norm(NamedTuple):
    """A batch normalisation's tensors, (C,) each; training updates the running statistics in place."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float = 0.1
    eps: float = 1e-5


def check_norm(op: str, arg: str, norm: object, ref: Tensor, channels: int) -> Norm:
    """A Norm whose tensors are (``channels``,) with the dtype and device of ``ref``."""
    if not isinstance(norm, Norm):
        raise TypeError(f"{op}: {arg}: expected fastfer.ops.Norm, got {type(norm).__name__}")
    for field in ("weight", "bias", "running_mean", "running_var"):
        _checks.like(op, f"{arg}.{field}", getattr(norm, field), ref, (channels,))
    return norm


def check_batch(op: str, shape: Sequence[int]) -> None:
    """Batch statistics over (N, H, W) of ``shape`` (N, C, H, W) need more than one value: one has no variance."""
    if shape[0] * shape[2] * shape[3] == 1:
        raise ValueError(f"{op}: x: expected more than one value per channel in training, got {tuple(shape)}")


@torch.no_grad()
def update_running(norm: Norm | None, stats: Tensor) -> None:
    """running = (1 - momentum) · running + momentum · batch, in place; ``stats`` (3, C): mean, -, unbiased variance."""
    if norm is not None:
        norm.running_mean.lerp_(stats[0].to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_(stats[2].to(norm.running_var.dtype), norm.momentum)


def batch_norm(x: Tensor, norm: Norm, *, act: str | None = None, training: bool = False) -> Tensor:
    """act((x - mean) / sqrt(var + eps) · weight + bias): x (N, C, H, W) -> the same shape, channels_last.

    x is float32 or float64 with C channels, norm a `Norm` of C.
    ``training`` normalises with the statistics of the batch and updates the running ones in place (momentum, unbiased
    variance, as torch); otherwise the running statistics are constants. Gradients flow to x, weight and bias.
    Raises TypeError or ValueError naming the argument, and ValueError for one value per channel in training.
    """
    op = "batch_norm"
    _checks.image(op, "x", x)
    check_norm(op, "norm", norm, x, x.shape[1])
    code = _checks.act_code(op, act)
    if training:
        check_batch(op, x.shape)
    return reference.batch_norm(x, *norm, code, training)
