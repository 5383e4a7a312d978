# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with a fused activation.

Saved for backward: the input (4 bytes an element in float32) and 3 statistics a channel; the normalised and the
activated values are computed again.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastfer import _checks, _library, backend
from fastfer.signatures.fields import RunningNorm
from fastfer.signatures.norm import (
    BatchNorm,
    BatchNormBackward,
    BatchNormGradients,
    BatchNormTrain,
    BatchNormTrained,
)

_FAMILY = "norm"
_native: Any = (
    importlib.import_module("fastfer.backends.native.statistics")
    if backend.list_backends()["native"].available
    else None
)


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
    """A Norm whose tensors are (``channels``,) on the device of ``ref``, in the dtype that it is computed in."""
    if not isinstance(norm, Norm):
        raise TypeError(f"{op}: {arg}: expected fastfer.ops.Norm, got {type(norm).__name__}")
    shape, dtype, device = (channels,), _checks.compute_dtype(ref), ref.device
    for field, t in zip(_FIELDS, norm, strict=False):
        if not isinstance(t, Tensor) or t.shape != shape or t.dtype != dtype or t.device != device:
            _checks.like(op, f"{arg}.{field}", t, ref, shape)
    return norm


def running_norm(op: str, arg: str, norm: Norm, ref: Tensor, channels: int) -> RunningNorm:
    """The fields of a Norm that `check_norm` accepts."""
    check_norm(op, arg, norm, ref, channels)
    return RunningNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


def check_batch(op: str, shape: Sequence[int]) -> None:
    """Batch statistics over (N, H, W) of ``shape`` (N, C, H, W) need more than one value: one has no variance."""
    if shape[0] * shape[2] * shape[3] == 1:
        raise ValueError(f"{op}: x: expected more than one value per channel in training, got {tuple(shape)}")


class _Updates(threading.local):
    """Updates of running statistics and batch counters that wait for the end of a network's forward pass."""

    waits = False

    def __init__(self) -> None:
        self.running: dict[float, list[tuple[Tensor, Tensor]]] = {}
        self.counters: list[Tensor] = []
        self.seen: set[int] = set()

    def first(self, t: Tensor) -> None:
        """Make those that wait now, if one of them is of ``t``."""
        if id(t) in self.seen:
            self.make()
        self.seen.add(id(t))

    def make(self) -> None:
        """Make them all: a launch for up to 64 tensors, in place of one each."""
        running, counters = self.running, self.counters
        self.running, self.counters, self.seen = {}, [], set()
        with torch.no_grad():
            for momentum, pairs in running.items():
                torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], momentum)
            if counters:
                torch._foreach_add_(counters, 1)


_updates = _Updates()


@contextmanager
def updates_together(x: object) -> Iterator[None]:
    """Norms on a GPU inside update their running statistics and batch counters at the end, all together.

    On the CPU, where an update costs no launch, and under torch.func each updates its own.
    """
    wanted = isinstance(x, Tensor) and not x.is_cpu
    if not wanted or _updates.waits or torch._C._functorch.peek_interpreter_stack() is not None:
        yield
        return
    _updates.waits = True
    try:
        yield
    finally:
        _updates.waits = False
        _updates.make()


def count_batch(counter: Tensor) -> None:
    """counter += 1"""
    if not _updates.waits:
        counter.add_(1)
        return
    _updates.first(counter)
    _updates.counters.append(counter)


def update_running(norm: Norm | None, stats: Tensor) -> None:
    """running = (1 - momentum) · running + momentum · batch, in place; ``stats`` (3, C): mean, -, unbiased variance."""
    if norm is None:
        return
    mean, var = norm.running_mean, norm.running_var
    eager = _native is not None and not torch.compiler.is_compiling()
    if eager and _native.update_running(mean, var, stats, norm.momentum):
        return
    with torch.no_grad():
        pairs = [(mean, stats[0].to(mean.dtype)), (var, stats[2].to(var.dtype))]
        if _updates.waits:
            _updates.first(mean)
            _updates.running.setdefault(norm.momentum, []).extend(pairs)
            return
        for old, new in pairs:
            old.lerp_(new, norm.momentum)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _fake(a: BatchNorm) -> Tensor:
    return _like(a.x)


def _fake_train(a: BatchNormTrain) -> BatchNormTrained:
    return BatchNormTrained(_like(a.block.x), a.block.x.new_empty((3, a.block.x.shape[1])))


def _fake_backward(a: BatchNormBackward) -> BatchNormGradients:
    params = (a.x.new_empty(a.x.shape[1] if a.needs.params else 0) for _ in range(2))
    return BatchNormGradients(_like(a.x) if a.needs.x else a.x.new_empty(0), *params)


_batch_norm = _library.define("batch_norm", _FAMILY, BatchNorm, Tensor, _fake)
_batch_norm_train = _library.define("batch_norm_train", _FAMILY, BatchNormTrain, BatchNormTrained, _fake_train)
_batch_norm_backward = _library.define(
    "batch_norm_backward", _FAMILY, BatchNormBackward, BatchNormGradients, _fake_backward
)
_library.autograd(_batch_norm_train, _batch_norm_backward)
for _op in (_batch_norm, _batch_norm_train):
    _library.autocast(_op)


def batch_norm(x: Tensor, norm: Norm, *, act: str | None = None, training: bool = False) -> Tensor:
    """act((x - mean) / sqrt(var + eps) · weight + bias): x (N, C, H, W) -> the same shape, channels_last.

    x is float32 or float64 with C channels, norm a `Norm` of C.
    ``training`` normalises with the statistics of the batch and updates the running ones in place (momentum, unbiased
    variance, as torch); otherwise the running statistics are constants. Gradients flow to x, weight and bias.
    Raises TypeError or ValueError naming the argument, and ValueError for one value per channel in training.
    Source: Ioffe and Szegedy 2015, algorithm 1.
    """
    op = "batch_norm"
    _checks.image(op, "x", x)
    running = running_norm(op, "norm", norm, x, x.shape[1])
    block = BatchNorm(x, running, _checks.act_code(op, act))
    if training:
        check_batch(op, x.shape)
    elif not _batch_norm.needs_gradient(block):
        return _batch_norm(block)
    trained = _batch_norm_train(BatchNormTrain(block, training))
    if training and trained.out.numel():
        update_running(norm, trained.stats)
    return trained.out
