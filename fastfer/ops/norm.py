# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with a fused activation. torch saves the input and, with an activation, the normalised output."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastfer import _checks, backend
from fastfer.reference import norm as reference

BACKENDS = ("reference",)
_native: Any = importlib.import_module("fastfer.native.statistics") if backend.backends()["native"].available else None


class Norm(NamedTuple):
    """A batch normalisation's tensors, (C,) each; training updates the running statistics in place."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float = 0.1
    eps: float = 1e-5


_FIELDS = ("weight", "bias", "running_mean", "running_var")


def check_norm(op: str, arg: str, norm: object, ref: Tensor, channels: int) -> Norm:
    """A Norm whose tensors are (``channels``,) with the dtype and device of ``ref``."""
    if not isinstance(norm, Norm):
        raise TypeError(f"{op}: {arg}: expected fastfer.ops.Norm, got {type(norm).__name__}")
    shape, dtype, device = (channels,), ref.dtype, ref.device
    for field, t in zip(_FIELDS, norm, strict=False):
        if not isinstance(t, Tensor) or t.shape != shape or t.dtype != dtype or t.device != device:
            _checks.like(op, f"{arg}.{field}", t, ref, shape)
    return norm


def check_batch(op: str, shape: Sequence[int]) -> None:
    """Batch statistics over (N, H, W) of ``shape`` (N, C, H, W) need more than one value: one has no variance."""
    if shape[0] * shape[2] * shape[3] == 1:
        raise ValueError(f"{op}: x: expected more than one value per channel in training, got {tuple(shape)}")


def update_running(norm: Norm | None, stats: Tensor) -> None:
    """running = (1 - momentum) · running + momentum · batch, in place; ``stats`` (3, C): mean, -, unbiased variance."""
    if norm is None:
        return
    mean, var = norm.running_mean, norm.running_var
    if _native is not None and not torch.compiler.is_compiling():
        if _native.update_running(mean, var, stats, norm.momentum):
            return
    with torch.no_grad():
        mean.lerp_(stats[0].to(mean.dtype), norm.momentum)
        var.lerp_(stats[2].to(var.dtype), norm.momentum)


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
