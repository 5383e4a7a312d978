# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation as a module whose tensors a fused op can take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer.nn._plain import fused, replaceable
from fastfer.ops.elementwise import activation
from fastfer.ops.norm import Norm, batch_norm, count_batch
from fastfer.ops.norm import updates_together as updates_together


@fused()
class BatchNorm2d(torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, affine and with running statistics: (N, C, H, W) -> (N, C, H, W), channels_last.

    A block without hooks on it calls `step` and hands the tensors to its op; this module's train or eval mode still
    decides whether the batch's statistics are used. ``momentum=None`` averages over all batches, as torch, and reads
    the batch counter, which ``torch.compile(fullgraph=True)`` cannot trace.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("affine", affine), ("track_running_stats", track_running_stats)):
            if not value:
                raise ValueError(f"BatchNorm2d: {name}: expected True, got {value!r}")
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)

    def norm(self) -> Norm:
        """The tensors, momentum and eps, for a fused op."""
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / max(int(self.num_batches_tracked), 1)
        parameters, buffers = self._parameters, self._buffers
        if "weight" not in parameters or "bias" not in parameters:  # pruned or parametrised ones
            parameters = {"weight": self.weight, "bias": self.bias}
        weight, bias = parameters["weight"], parameters["bias"]
        return Norm(weight, bias, buffers["running_mean"], buffers["running_var"], momentum, self.eps)  # type: ignore[arg-type]

    def step(self) -> Norm:
        """`norm` for one forward pass: in training it counts the batch first, as torch does."""
        counter = self._buffers["num_batches_tracked"]
        if self.training and counter is not None:
            if self.momentum is None:  # which is read from the counter at once
                counter.add_(1)
            else:
                count_batch(counter)
        return self.norm()

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm(input, self.step(), training=self.training)


def normalised(x: Tensor, norm: Any, act: str | None) -> Tensor:
    """act(norm(x)) after a convolution: one op of a plain `BatchNorm2d`, a call of another norm, or none for None."""
    if type(norm) is BatchNorm2d and replaceable(norm):
        return batch_norm(x, norm.step(), act=act, training=norm.training)
    return activation(x if norm is None else norm(x), act)


def make_norm(
    op: str, arg: str, norm: bool | BatchNorm2d, channels: int, factory: dict[str, Any]
) -> BatchNorm2d | None:
    """The norm of a block: a default one for True, none for False, or a given module of ``channels`` features."""
    if isinstance(norm, BatchNorm2d):
        if norm.num_features != channels:
            raise ValueError(f"{op}: {arg}: expected a BatchNorm2d of {channels} features, got {norm.num_features}")
        return norm
    if not isinstance(norm, bool):
        raise TypeError(f"{op}: {arg}: expected a bool or a fastfer.nn.BatchNorm2d, got {type(norm).__name__}")
    return BatchNorm2d(channels, **factory) if norm else None
