# SPDX-License-Identifier: Apache-2.0
"""A sequence of blocks that leave normalisations to each other in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastfer import backend
from fastfer.nn._lookup import child
from fastfer.nn._plain import fused, replaceable
from fastfer.nn.conv2d import Conv2d
from fastfer.nn.gate import CSA
from fastfer.nn.norm import BatchNorm2d
from fastfer.nn.separable_conv import DepthwiseConv2d, SeparableConv2d
from fastfer.ops._linked import Linked


@fused()
class Chain(nn.Sequential):
    """``nn.Sequential``, with fewer passes over the activations in training on the native kernels of the CPU.

    There a `Conv2d` or `SeparableConv2d` before a `SeparableConv2d`, `DepthwiseConv2d` or `CSA` leaves its last
    normalisation and activation to that one: y is written once, and act(norm(y)) never. Results and gradients are
    the same up to rounding. A block that is not plain (see `fastfer.nn._plain`), or whose norm does not train, is
    called as any module. ``entry`` is the block that a call begins with: who has the output of the blocks before it
    at hand puts that in.
    """

    entry = 0

    def forward(self, input: Tensor) -> Tensor:
        return chained(input, list(self._modules.values())[self.entry :])


def chained(x: Tensor, blocks: Sequence[Any]) -> Tensor:
    """Blocks one after the other, as a `Chain` of them."""
    if not (isinstance(x, Tensor) and x.is_cpu and torch.is_grad_enabled() and _links()):
        for block in blocks:
            x = block(x)
        return x
    y: Any = x
    plain = [replaceable(block) for block in blocks]
    for i, block in enumerate(blocks):
        links = i + 1 < len(blocks) and plain[i] and plain[i + 1] and _leaves(block) and _takes(blocks[i + 1])
        y = _call(block, y, links)
    result: Tensor = y
    return result


def _links() -> bool:
    """Whether the backend links ops, and none but torch's own gradients looks at the calls between them."""
    return not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu") and backend.links("cpu")


def _trains(norm: BatchNorm2d | None) -> bool:
    return norm is not None and norm.training


def _leaves(block: Any) -> bool:
    """Whether a plain block can leave its last normalisation to the next."""
    if isinstance(block, Conv2d):
        return child(block, "pool") is None and _trains(child(block, "norm"))
    return _separable(block) and _trains(child(block, "norm2"))


def _takes(block: Any) -> bool:
    """Whether a plain block can take a normalisation over from the one before."""
    if isinstance(block, DepthwiseConv2d):
        return _trains(child(block, "norm"))
    return isinstance(block, CSA) or _separable(block)


def _separable(block: Any) -> bool:
    """A separable block that takes batch statistics, if any."""
    return isinstance(block, SeparableConv2d) and all(
        norm is None or norm.training for norm in (child(block, "norm1"), child(block, "norm2"))
    )


def _call(block: Any, x: Tensor | Linked, leaves: bool) -> Tensor | Linked:
    y: Tensor | Linked
    if isinstance(block, Conv2d) and leaves:
        y = block.linked(x)  # type: ignore[arg-type]
    elif isinstance(block, CSA | DepthwiseConv2d) and isinstance(x, Linked):
        y = block.linked(x)
    elif isinstance(block, SeparableConv2d) and (leaves or isinstance(x, Linked)):
        y = block.linked(x, leaves)
    else:
        y = block(x)
    return y
