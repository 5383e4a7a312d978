# SPDX-License-Identifier: Apache-2.0
"""A sequence of blocks that hand normalisations on to each other in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastfer import backend
from fastfer.nn._lookup import child
from fastfer.nn.conv2d import Conv2d
from fastfer.nn.gate import CSA
from fastfer.nn.norm import BatchNorm2d
from fastfer.nn.separable_conv import DepthwiseConv2d, SeparableConv2d
from fastfer.ops._linked import Deferred


class Chain(nn.Sequential):
    """``nn.Sequential``, with fewer passes over the activations in training on the native kernels of the CPU.

    There a `Conv2d` or `SeparableConv2d` before a `SeparableConv2d`, `DepthwiseConv2d` or `CSA` leaves its last
    normalisation and activation to that one: y is written once, and act(norm(y)) never. Results and gradients are
    the same up to rounding. A block with hooks, or a norm that does not train, is called as any module.
    """

    def forward(self, input: Tensor) -> Tensor:
        return chained(input, *self._modules.values())


def chained(x: Tensor, *blocks: Any) -> Tensor:
    """Blocks behind each other, as a `Chain` of them."""
    if not (x.is_cpu and torch.is_grad_enabled() and _links()):
        for block in blocks:
            x = block(x)
        return x
    y: Any = x
    for block, behind in zip(blocks, [*blocks[1:], None], strict=True):
        y = _call(block, y, behind is not None and _defers(block) and _takes(behind))
    result: Tensor = y
    return result


def _links() -> bool:
    """Whether the backend links ops, and none but torch's own gradients looks at the calls between them."""
    return not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu") and backend.links("cpu")


def hooked(block: Any) -> bool:
    """Whether calling the module does more than its forward."""
    return bool(block._forward_hooks or block._forward_pre_hooks or block._backward_hooks or block._backward_pre_hooks)


def _trains(norm: BatchNorm2d | None) -> bool:
    return norm is not None and norm.training


def _defers(block: Any) -> bool:
    if hooked(block):
        return False
    if isinstance(block, Conv2d):
        return child(block, "pool") is None and _trains(child(block, "norm"))
    return _separable(block) and _trains(child(block, "norm2"))


def _separable(block: Any) -> bool:
    """A separable block that takes batch statistics, if any."""
    return isinstance(block, SeparableConv2d) and all(
        norm is None or norm.training for norm in (child(block, "norm1"), child(block, "norm2"))
    )


def _takes(block: Any) -> bool:
    if hooked(block):
        return False
    if isinstance(block, DepthwiseConv2d):
        return _trains(child(block, "norm"))
    return isinstance(block, CSA) or _separable(block)


def _call(block: Any, x: Tensor | Deferred, defer: bool) -> Tensor | Deferred:
    y: Tensor | Deferred
    if isinstance(block, Conv2d) and defer:
        y = block.deferred(x)  # type: ignore[arg-type]
    elif isinstance(block, CSA | DepthwiseConv2d) and isinstance(x, Deferred):
        y = block.linked(x)
    elif isinstance(block, SeparableConv2d) and (defer or isinstance(x, Deferred)):
        y = block.linked(x, defer)
    else:
        y = block(x)
    return y
