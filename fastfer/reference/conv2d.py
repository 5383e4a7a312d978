# SPDX-License-Identifier: Apache-2.0
"""Dense 2-D convolution (cross-correlation, as torch) with four-sided zero padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """y[n, o, i, j] = bias[o] + sum_c,p,q x[n, c, i·sh + p - top, j·sw + q - left] · weight[o, c, p, q].

    x (N, C, H, W), weight (O, C, KH, KW), bias (O,) or None, stride (sh, sw), padding (top, left, bottom, right) zeros
    -> (N, O, (H + top + bottom - KH) // sh + 1, (W + left + right - KW) // sw + 1), channels_last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    top, left, bottom, right = padding
    if (top, left) == (bottom, right):
        y = F.conv2d(x, weight, bias, tuple(stride), (top, left))
    else:
        y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, tuple(stride))
    return y.contiguous(memory_format=torch.channels_last)
