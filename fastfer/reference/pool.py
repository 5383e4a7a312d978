# SPDX-License-Identifier: Apache-2.0
"""Pooling. A maximum's gradient goes to the first largest element of its window, row by row; NaN is the largest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool2d(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """y[n, c, i, j] = max_p,q x[n, c, i·sh + p - top, j·sw + q - left], x minus infinity outside.

    x (N, C, H, W), kernel (KH, KW), stride (sh, sw), padding (top, left, bottom, right)
    -> (N, C, (H + top + bottom - KH) // sh + 1, (W + left + right - KW) // sw + 1), channels_last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    top, left, bottom, right = padding
    if (top, left) == (bottom, right):
        y = F.max_pool2d(x, tuple(kernel), tuple(stride), (top, left))
    else:
        y = F.max_pool2d(F.pad(x, (left, right, top, bottom), value=float("-inf")), tuple(kernel), tuple(stride))
    return y.contiguous(memory_format=torch.channels_last)


def global_avg_pool(x: Tensor) -> Tensor:
    """Mean over (H, W): (N, C, H, W) -> (N, C)."""
    return x.mean((2, 3))


def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over (H, W): (N, C, H, W) -> (N, C)."""
    # Not amax: it shares the gradient out among equal elements, max pooling gives it to one.
    return F.adaptive_max_pool2d(x, 1).flatten(1)
