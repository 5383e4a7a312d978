# SPDX-License-Identifier: Apache-2.0
"""Pooling. A maximum's gradient goes to the first largest element of its window, row by row; NaN is the largest.

Backward finds the maxima by the places that forward kept: in a window p·KW + q for its element (p, q), uint8 where a
window has at most 256 elements and int32 beyond; in an image the pixel i·W + j, int32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfer.backends.reference._layout import dense, nhwc
from fastfer.signatures.fields import Window
from fastfer.signatures.pool import (
    GlobalAvgBackward,
    GlobalAvgMaxBackward,
    GlobalAvgMaxTrained,
    GlobalMaxBackward,
    GlobalMaxTrained,
    GlobalPool,
    MaxPool,
    MaxPoolBackward,
    MaxPoolTrained,
)

_CL = torch.channels_last


def _starts(like: Tensor, outputs: int, stride: int, pad: int, axis: int) -> Tensor:
    """First row (axis 2) or column (axis 3) of each window, shaped to broadcast over (N, C, OH, OW)."""
    starts = torch.arange(outputs, device=like.device) * stride - pad
    return starts.view(-1, 1) if axis == 2 else starts.view(1, -1)


def max_pool2d_train(a: MaxPool) -> MaxPoolTrained:
    """y[n, c, i, j] = max_p,q x[n, c, i·sh + p - top, j·sw + q - left], x minus infinity outside; and its place (p, q).

    x (N, C, H, W), kernel (KH, KW), stride (sh, sw), padding (top, left, bottom, right) at most half the kernel
    -> two of (N, C, (H + top + bottom - KH) // sh + 1, (W + left + right - KW) // sw + 1), channels_last.
    """
    (kh, kw), (sh, sw), (top, left, bottom, right) = a.window
    padded = dense(F.pad(a.x, (left, right, top, bottom), value=float("-inf")))
    y, found = F.max_pool2d(padded, (kh, kw), (sh, sw), return_indices=True)
    rows, columns = _starts(y, y.shape[2], sh, 0, 2), _starts(y, y.shape[3], sw, 0, 3)
    row, column = found // padded.shape[3] - rows, found % padded.shape[3] - columns
    # A window of minus infinities finds its first element, which may be padding: the first of the image is meant.
    row, column = row.maximum(top - rows), column.maximum(left - columns)
    places = (row * kw + column).to(torch.uint8 if kh * kw <= 256 else torch.int32)
    return MaxPoolTrained(dense(y), nhwc(places))


def max_pool2d(a: MaxPool) -> Tensor:
    """The output of `max_pool2d_train`."""
    (kh, kw), stride, (top, left, bottom, right) = a.window
    x = dense(a.x)
    if (top, left) == (bottom, right):
        y = F.max_pool2d(x, (kh, kw), tuple(stride), (top, left))
    else:
        y = F.max_pool2d(F.pad(x, (left, right, top, bottom), value=float("-inf")), (kh, kw), tuple(stride))
    return dense(y)


def _pixels(positions: Tensor, window: Window, width: int) -> Tensor:
    """The pixels (N, C, H'·W') of an image of that ``width`` that places in windows stand for."""
    place = positions.long()
    rows = _starts(place, place.shape[2], window.stride[0], window.padding[0], 2)
    columns = _starts(place, place.shape[3], window.stride[1], window.padding[1], 3)
    return ((rows + place // window.kernel[1]) * width + columns + place % window.kernel[1]).flatten(2)


def max_pool2d_backward(a: MaxPoolBackward) -> Tensor:
    """dx: each element of d_out added where its window's maximum was."""
    (height, width), d_out = a.size, a.d_out
    dx = d_out.new_zeros((*d_out.shape[:2], height * width))
    dx.scatter_add_(2, _pixels(a.positions, a.window, width), d_out.flatten(2))
    return dx.view(*d_out.shape[:2], height, width).contiguous(memory_format=_CL)


def at_maxima(x: Tensor, positions: Tensor, window: Window) -> Tensor:
    """x at the ``positions`` that `max_pool2d_train` found in another image of its shape."""
    return dense(x.flatten(2).gather(2, _pixels(positions, window, x.shape[3])).view(positions.shape))


def global_avg_pool(a: GlobalPool) -> Tensor:
    """Mean over (H, W): (N, C, H, W) -> (N, C)."""
    return a.x.mean((2, 3))


def _spread(d_avg: Tensor, size: list[int]) -> Tensor:
    dx = d_avg.new_empty((*d_avg.shape, *size)).contiguous(memory_format=_CL)
    return dx.copy_((d_avg / max(size[0] * size[1], 1))[:, :, None, None])


def _scattered(d_max: Tensor, positions: Tensor, size: list[int]) -> Tensor:
    dx = d_max.new_zeros((*d_max.shape, size[0] * size[1]))
    dx.scatter_(2, positions.long()[:, :, None], d_max[:, :, None])
    return dx.view(*d_max.shape, *size).contiguous(memory_format=_CL)


def global_avg_pool_backward(a: GlobalAvgBackward) -> Tensor:
    """dx (N, C, *size) = d_out / (H·W)."""
    return _spread(a.d_out, a.size)


def global_max_pool(a: GlobalPool) -> GlobalMaxTrained:
    """Maximum over (H, W) and its pixel: (N, C, H, W) -> two of (N, C)."""
    largest, pixels = F.adaptive_max_pool2d(a.x, 1, return_indices=True)
    return GlobalMaxTrained(largest.flatten(1), pixels.flatten(1).int())


def global_max_pool_backward(a: GlobalMaxBackward) -> Tensor:
    """dx (N, C, *size): d_max at the maxima, else 0."""
    return _scattered(a.d_max, a.positions, a.size)


def global_avg_max_pool(a: GlobalPool) -> GlobalAvgMaxTrained:
    """Mean, maximum, the maximum's pixel: (N, C, H, W) -> three of (N, C)."""
    return GlobalAvgMaxTrained(global_avg_pool(a), *global_max_pool(a))


def global_avg_max_pool_backward(a: GlobalAvgMaxBackward) -> Tensor:
    """dx (N, C, *size): the two gradients together."""
    return _spread(a.d_avg, a.size) + _scattered(a.d_max, a.positions, a.size)
