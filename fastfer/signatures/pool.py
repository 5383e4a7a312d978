# SPDX-License-Identifier: Apache-2.0
"""Signatures of pooling; formulas in ``csrc/pool/op.h``.

A maximum's place in its window is p·KW + q, uint8 where a window has at most 256 elements, else int32; in an image it
is the pixel i·W + j, int32. All activations are channels_last.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from fastfer.signatures.fields import Size, Stored, Window
from fastfer.signatures.shapes import Index, shapes

_PIXEL = Index("n c", torch.int32, "h*w")


def _places(a: MaxPoolBackward) -> Index:
    kernel = a.window.kernel
    return Index("n c oh ow", torch.uint8 if kernel[0] * kernel[1] <= 256 else torch.int32)


@shapes(x="n c h w")
class MaxPool(NamedTuple):
    """The largest element of each window of x (N, C, H, W), which is minus infinity outside."""

    x: Stored
    window: Annotated[Window, "inline"]

    @property
    def size(self) -> Size:
        """Height and width of x."""
        return list(self.x.shape[2:])


class MaxPoolTrained(NamedTuple):
    """The output (N, C, H', W'), and the place of each maximum in its window."""

    out: Stored
    positions: Tensor


@shapes(d_out="n c oh ow", positions=_places)
class MaxPoolBackward(NamedTuple):
    """Backward of `MaxPool`: the gradient of x."""

    d_out: Stored
    positions: Tensor
    size: Size
    window: Annotated[Window, "inline"]


@shapes(x="n c h w")
class GlobalPool(NamedTuple):
    """A pooling of x (N, C, H, W) over H and W."""

    x: Stored

    @property
    def size(self) -> Size:
        """Height and width of x."""
        return list(self.x.shape[2:])


@shapes(d_out="n c")
class GlobalAvgBackward(NamedTuple):
    """Backward of the mean: the gradient of x."""

    d_out: Stored
    size: Size


class GlobalMaxTrained(NamedTuple):
    """Maxima (N, C), and their pixels."""

    max: Stored
    positions: Tensor


@shapes(d_max="n c", positions=_PIXEL)
class GlobalMaxBackward(NamedTuple):
    """Backward of the maximum: the gradient of x."""

    d_max: Stored
    positions: Tensor
    size: Size


class GlobalAvgMaxTrained(NamedTuple):
    """Means and maxima (N, C), and the maxima's pixels."""

    avg: Stored
    max: Stored
    positions: Tensor


@shapes(d_avg="n c", d_max="n c", positions=_PIXEL)
class GlobalAvgMaxBackward(NamedTuple):
    """Backward of mean and maximum together: the gradient of x."""

    d_avg: Stored
    d_max: Stored
    positions: Tensor
    size: Size
