# SPDX-License-Identifier: Apache-2.0
"""The sum of a block's input, or of its skip, and its body's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastfer.nn._plain import unseen


def residual(x: Tensor, y: Tensor, body: nn.Module) -> Tensor:
    """x + y, where ``body`` has just returned y; in training in the memory of y, which no op of fastfer keeps.

    New pages for the sum took 2.4 of 104 ms of a training step of MobileNetV3. y is left as it is while a graph is
    recorded, in evaluation, and where a hook or somebody's own forward has seen it and may look at it again.
    """
    own = (
        body.training
        and not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and y.grad_fn is not None
        and y.shape == x.shape
        and y.dtype == x.dtype
        and unseen(body)
    )
    return y.add_(x) if own else x + y
