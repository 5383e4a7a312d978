# SPDX-License-Identifier: Apache-2.0
"""Max pooling and the two global poolings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastfer import _checks
from fastfer.reference import pool as reference

BACKENDS = ("reference",)


def max_pool2d(
    x: Tensor,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
) -> Tensor:
    """Largest element of each window: x (N, C, H, W) -> (N, C, H', W'), channels_last; the padding is minus infinity.

    stride defaults to the kernel; padding is an int, (vertical, horizontal) or (top, left, bottom, right), at most half
    the kernel, so that every window holds an element. NaN wins; among equals the first, row by row, gets the gradient.
    """
    _checks.image("max_pool2d", "x", x)
    kernels = _checks.pair("max_pool2d", "kernel", kernel)
    strides = kernels if stride is None else _checks.pair("max_pool2d", "stride", stride)
    pads = _checks.padding4("max_pool2d", padding)
    if max(pads[0], pads[2]) > kernels[0] // 2 or max(pads[1], pads[3]) > kernels[1] // 2:
        raise ValueError(f"max_pool2d: padding: expected at most half the kernel {tuple(kernels)}, got {padding!r}")
    _check_pixels("max_pool2d", x)
    _checks.out_size("max_pool2d", x.shape[2], pads[0], pads[2], kernels[0], strides[0], "height")
    _checks.out_size("max_pool2d", x.shape[3], pads[1], pads[3], kernels[1], strides[1], "width")
    return reference.max_pool2d(x, kernels, strides, pads)


def global_avg_pool(x: Tensor) -> Tensor:
    """Mean over the image: x (N, C, H, W) -> (N, C); NaN where H or W is 0."""
    _checks.image("global_avg_pool", "x", x)
    return reference.global_avg_pool(x)


def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over the image: x (N, C, H, W), H and W at least 1 -> (N, C); NaN and equals as in `max_pool2d`."""
    _checks.image("global_max_pool", "x", x)
    _check_pixels("global_max_pool", x)
    return reference.global_max_pool(x)


def _check_pixels(op: str, x: Tensor) -> None:
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{op}: x: expected H and W >= 1, got shape {tuple(x.shape)}")
