# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with normalisation and activation on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.native.memory import empty_nhwc

_CL = torch.channels_last


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _shape(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> list[int]:
    """n, h, w, c, o, oh, ow, kh, kw, sh, sw, top, left."""
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    (sh, sw), (top, left, bottom, right) = stride, padding
    oh, ow = (h + top + bottom - kh) // sh + 1, (w + left + right - kw) // sw + 1
    return [n, h, w, c, o, oh, ow, kh, kw, sh, sw, top, left]


def _run(
    train: bool, batch_stats: bool, x: Tensor, weight: Tensor, bias: Tensor | None,
    n_weight: Tensor | None, n_bias: Tensor | None, n_mean: Tensor | None, n_var: Tensor | None,
    eps: float, act: int, stride: list[int], padding: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape = _shape(x, weight, stride, padding)
    x, weight, bias = x.contiguous(memory_format=_CL), weight.contiguous(), _flat(bias)
    norm = [_flat(t) for t in (n_weight, n_bias, n_mean, n_var)]
    outputs, height, width = shape[4:7]
    out = empty_nhwc(x, outputs, height, width)
    follows = n_weight is not None or act != 0
    y = stats = out  # not written in inference
    if train:
        y = empty_nhwc(x, outputs, height, width) if follows else x.new_empty(0)
        stats = x.new_empty((3, outputs) if n_weight is not None else 0)
    _C.conv2d_fwd(
        x.dtype == torch.float64, train, shape, x.data_ptr(), weight.data_ptr(), _address(bias),
        [*map(_address, norm), stats.data_ptr(), 0, 0], eps, act, batch_stats, out.data_ptr(),
        y.data_ptr() if train and follows else 0, num_threads(),
    )  # fmt: skip
    return out, y, stats


def conv2d(*args: Any) -> Tensor:
    """Output with running statistics, in one pass; arguments as the op's."""
    return _run(False, False, *args)[0]


def conv2d_train(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, y, statistics (3, O): mean, 1/sqrt(var + eps), unbiased variance.

    The statistics are empty without a norm, y where nothing follows the convolution.
    """
    *layer, batch_stats = args
    return _run(True, batch_stats, *layer)


def conv2d_backward(
    dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor | None, n_bias: Tensor | None, stats: Tensor,
    act: int, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, weight, bias, and the norm's weight and bias; those not asked for are empty."""
    shape = _shape(x, weight, stride, padding)
    dout, x, weight = dout.contiguous(memory_format=_CL), x.contiguous(memory_format=_CL), weight.contiguous()
    n_weight, n_bias = _flat(n_weight), _flat(n_bias)
    norm = n_weight is not None
    need_dx, need_weight = mask
    sizes = [shape[4] if wanted else 0 for wanted in (need_weight, need_weight and norm, need_weight and norm)]
    dx = empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3]) if need_dx else x.new_empty(0)
    d_weight = torch.empty_like(weight) if need_weight else x.new_empty(0)
    d_bias, d_n_weight, d_n_bias = (x.new_empty(size) for size in sizes)
    _C.conv2d_bwd(
        x.dtype == torch.float64, shape, dout.data_ptr(), x.data_ptr(), y.data_ptr() if norm or act else 0,
        weight.data_ptr(),
        [_address(n_weight), _address(n_bias), 0, 0, stats.data_ptr(), d_n_weight.data_ptr(), d_n_bias.data_ptr()],
        act, batch_stats, dx.data_ptr(), d_weight.data_ptr(), d_bias.data_ptr(), num_threads(),
    )  # fmt: skip
    return dx, d_weight, d_bias, d_n_weight, d_n_bias
