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

_CL = torch.channels_last


def _starts(x: Tensor, outputs: int, stride: int, before: int, axis: int) -> Tensor:
    """First row (axis 2) or column (axis 3) of each window, shaped to broadcast over (N, C, OH, OW)."""
    starts = torch.arange(outputs, device=x.device) * stride - before
    return starts.view(-1, 1) if axis == 2 else starts.view(1, -1)


def max_pool2d_train(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> tuple[Tensor, Tensor]:
    """y[n, c, i, j] = max_p,q x[n, c, i·sh + p - top, j·sw + q - left], x minus infinity outside; and its place (p, q).

    x (N, C, H, W), kernel (KH, KW), stride (sh, sw), padding (top, left, bottom, right) at most half the kernel
    -> two of (N, C, (H + top + bottom - KH) // sh + 1, (W + left + right - KW) // sw + 1), channels_last.
    """
    top, left, bottom, right = padding
    padded = dense(F.pad(x, (left, right, top, bottom), value=float("-inf")))
    y, found = F.max_pool2d(padded, tuple(kernel), tuple(stride), return_indices=True)
    rows, columns = (_starts(x, y.shape[axis], stride[axis - 2], 0, axis) for axis in (2, 3))
    row, column = found // padded.shape[3] - rows, found % padded.shape[3] - columns
    # A window of minus infinities finds its first element, which may be padding: the first of the image is meant.
    row, column = row.maximum(top - rows), column.maximum(left - columns)
    dtype = torch.uint8 if kernel[0] * kernel[1] <= 256 else torch.int32
    places = (row * kernel[1] + column).to(dtype)
    return dense(y), nhwc(places)


def max_pool2d(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """The output of `max_pool2d_train`."""
    top, left, bottom, right = padding
    x = dense(x)
    if (top, left) == (bottom, right):
        y = F.max_pool2d(x, tuple(kernel), tuple(stride), (top, left))
    else:
        y = F.max_pool2d(F.pad(x, (left, right, top, bottom), value=float("-inf")), tuple(kernel), tuple(stride))
    return dense(y)


def max_pool2d_backward(
    dy: Tensor, positions: Tensor, size: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """dx (N, C, *size): each element of dy added where its window's maximum was."""
    place = positions.long()
    rows, columns = (_starts(dy, dy.shape[axis], stride[axis - 2], padding[axis - 2], axis) for axis in (2, 3))
    pixel = (rows + place // kernel[1]) * size[1] + columns + place % kernel[1]
    dx = dy.new_zeros((*dy.shape[:2], size[0] * size[1]))
    dx.scatter_add_(2, pixel.flatten(2), dy.flatten(2))
    return dx.view(*dy.shape[:2], *size).contiguous(memory_format=_CL)


def at_maxima(x: Tensor, positions: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """x at the ``positions`` that `max_pool2d_train` found in another image of its shape."""
    place = positions.long()
    rows, columns = (_starts(x, place.shape[axis], stride[axis - 2], padding[axis - 2], axis) for axis in (2, 3))
    pixel = (rows + place // kernel[1]) * x.shape[3] + columns + place % kernel[1]
    return dense(x.flatten(2).gather(2, pixel.flatten(2)).view(place.shape))


def global_avg_pool(x: Tensor) -> Tensor:
    """Mean over (H, W): (N, C, H, W) -> (N, C)."""
    return x.mean((2, 3))


def global_avg_pool_backward(davg: Tensor, size: list[int]) -> Tensor:
    """dx (N, C, *size) = davg / (H·W)."""
    dx = davg.new_empty((*davg.shape, *size)).contiguous(memory_format=_CL)
    return dx.copy_((davg / max(size[0] * size[1], 1))[:, :, None, None])


def global_max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over (H, W) and its pixel: (N, C, H, W) -> two of (N, C)."""
    largest, pixels = F.adaptive_max_pool2d(x, 1, return_indices=True)
    return largest.flatten(1), pixels.flatten(1).int()


def global_max_pool_backward(dmax: Tensor, positions: Tensor, size: list[int]) -> Tensor:
    """dx (N, C, *size): dmax at the maxima, else 0."""
    dx = dmax.new_zeros((*dmax.shape, size[0] * size[1]))
    dx.scatter_(2, positions.long()[:, :, None], dmax[:, :, None])
    return dx.view(*dmax.shape, *size).contiguous(memory_format=_CL)


def global_avg_max_pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, maximum, the maximum's pixel: (N, C, H, W) -> three of (N, C)."""
    return global_avg_pool(x), *global_max_pool(x)


def global_avg_max_pool_backward(davg: Tensor, dmax: Tensor, positions: Tensor, size: list[int]) -> Tensor:
    """dx (N, C, *size): the two gradients together."""
    return global_avg_pool_backward(davg, size) + global_max_pool_backward(dmax, positions, size)
