# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with normalisation and activation on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import CPU, NO_LINK, address, empty_nhwc, flat, link, nhwc

_CL = torch.channels_last
_NO_POOL = [0] * 8


def _shape(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> list[int]:
    """n, h, w, c, o, oh, ow, kh, kw, sh, sw, top, left."""
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    (sh, sw), (top, left, bottom, right) = stride, padding
    oh, ow = (h + top + bottom - kh) // sh + 1, (w + left + right - kw) // sw + 1
    return [n, h, w, c, o, oh, ow, kh, kw, sh, sw, top, left]


def _pool_shape(shape: list[int], kernel: list[int], stride: list[int], padding: list[int]) -> list[int]:
    """oh, ow, kh, kw, sh, sw, top, left of a pooling behind ``shape``."""
    oh = (shape[5] + padding[0] + padding[2] - kernel[0]) // stride[0] + 1
    ow = (shape[6] + padding[1] + padding[3] - kernel[1]) // stride[1] + 1
    return [oh, ow, *kernel, *stride, padding[0], padding[1]]


def _run(
    train: bool, batch_stats: bool, x: Tensor, weight: Tensor, bias: Tensor | None,
    n_weight: Tensor | None, n_bias: Tensor | None, n_mean: Tensor | None, n_var: Tensor | None,
    eps: float, act: int, stride: list[int], padding: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape = _shape(x, weight, stride, padding)
    x, weight, bias = nhwc(x), weight.contiguous(), flat(bias)
    norm = [flat(t) for t in (n_weight, n_bias, n_mean, n_var)]
    outputs, height, width = shape[4:7]
    out = empty_nhwc(x, outputs, height, width)
    follows = n_weight is not None or act != 0
    y = stats = out  # not written in inference
    if train:
        y = empty_nhwc(x, outputs, height, width) if follows else x.new_empty(0)
        stats = x.new_empty((3, outputs) if n_weight is not None else 0)
    _C.conv2d_fwd(
        x.dtype == torch.float64, train, shape, x.data_ptr(), weight.data_ptr(), address(bias),
        [*map(address, norm), stats.data_ptr(), 0, 0], eps, act, batch_stats, out.data_ptr(),
        y.data_ptr() if train and follows else 0, num_threads(), _NO_POOL, 0, 0, NO_LINK,
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


def conv2d_pool_train(
    x: Tensor, weight: Tensor, bias: Tensor | None, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor,
    eps: float, act: int, stride: list[int], padding: list[int],
    pool_kernel: list[int], pool_stride: list[int], pool_padding: list[int], batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, y, y at the maxima, their places in the windows, statistics (3, O) as `conv2d_train`."""
    shape = _shape(x, weight, stride, padding)
    pool = _pool_shape(shape, pool_kernel, pool_stride, pool_padding)
    x, weight, bias = nhwc(x), weight.contiguous(), flat(bias)
    norm = [t.contiguous() for t in (n_weight, n_bias, n_mean, n_var)]
    y = empty_nhwc(x, *shape[4:7])
    out, best = (empty_nhwc(x, shape[4], pool[0], pool[1]) for _ in range(2))
    positions = torch.empty(out.shape, dtype=torch.uint8, device=CPU, memory_format=_CL)
    stats = x.new_empty((3, shape[4]))
    _C.conv2d_fwd(
        x.dtype == torch.float64, True, shape, x.data_ptr(), weight.data_ptr(), address(bias),
        [*(t.data_ptr() for t in norm), stats.data_ptr(), 0, 0], eps, act, batch_stats, out.data_ptr(), y.data_ptr(),
        num_threads(), pool, best.data_ptr(), positions.data_ptr(), NO_LINK,
    )  # fmt: skip
    return out, y, best, positions, stats


def _backward(
    dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor | None, n_bias: Tensor | None, stats: Tensor,
    act: int, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
    pool: list[int] | None, best: Tensor | None, positions: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    shape = _shape(x, weight, stride, padding)
    windows = _NO_POOL if pool is None else _pool_shape(shape, pool[:2], pool[2:4], pool[4:])
    dout, x, weight = nhwc(dout), nhwc(x), weight.contiguous()
    n_weight, n_bias = flat(n_weight), flat(n_bias)
    norm = n_weight is not None
    need_dx, need_weight = mask
    sizes = [shape[4] if wanted else 0 for wanted in (need_weight, need_weight and norm, need_weight and norm)]
    dx = empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3]) if need_dx else x.new_empty(0)
    d_weight = torch.empty_like(weight) if need_weight else x.new_empty(0)
    d_bias, d_n_weight, d_n_bias = (x.new_empty(size) for size in sizes)
    _C.conv2d_bwd(
        x.dtype == torch.float64, shape, dout.data_ptr(), x.data_ptr(), y.data_ptr() if norm or act else 0,
        weight.data_ptr(),
        [address(n_weight), address(n_bias), 0, 0, stats.data_ptr(), d_n_weight.data_ptr(), d_n_bias.data_ptr()],
        act, batch_stats, dx.data_ptr(), d_weight.data_ptr(), d_bias.data_ptr(), num_threads(),
        windows, address(best), address(positions), NO_LINK,
    )  # fmt: skip
    return dx, d_weight, d_bias, d_n_weight, d_n_bias


def conv2d_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias, and the norm's weight and bias; those not asked for are empty."""
    return _backward(*(*args, None, None, None))


def conv2d_pool_backward(
    dout: Tensor, x: Tensor, y: Tensor, best: Tensor, positions: Tensor, weight: Tensor, n_weight: Tensor,
    n_bias: Tensor, stats: Tensor, act: int, stride: list[int], padding: list[int],
    pool_kernel: list[int], pool_stride: list[int], pool_padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients as `conv2d_backward`, ``dout`` that of the pooled output."""
    pool = [*pool_kernel, *pool_stride, *pool_padding]
    return _backward(
        dout, x, y, weight, n_weight, n_bias, stats, act, stride, padding, batch_stats, mask, pool, best, positions
    )  # fmt: skip


def conv2d_linked(
    x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float, stride: list[int],
    padding: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The convolution's output and its statistics (3, O); see `fastfer.backends.reference._linked`."""
    shape = _shape(x, weight, stride, padding)
    x, weight, bias = nhwc(x), weight.contiguous(), flat(bias)
    y, stats = empty_nhwc(x, *shape[4:7]), x.new_empty((3, shape[4]))
    _C.conv2d_fwd(
        x.dtype == torch.float64, True, shape, x.data_ptr(), weight.data_ptr(), address(bias),
        [0, 0, 0, 0, stats.data_ptr(), 0, 0], eps, 0, True, y.data_ptr(), 0, num_threads(), _NO_POOL, 0, 0,
        link((None,) * 3, 0, (), True, None),
    )  # fmt: skip
    return y, stats


def conv2d_linked_backward(
    dy: Tensor, d_stats: Tensor | None, x: Tensor, y: Tensor, weight: Tensor, stats: Tensor, stride: list[int],
    padding: list[int], mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, weight and bias; those not asked for are empty."""
    shape = _shape(x, weight, stride, padding)
    dy, x, weight = nhwc(dy), nhwc(x), weight.contiguous()
    d_stats = torch.zeros_like(stats) if d_stats is None else d_stats.contiguous()
    dx = empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3]) if mask[0] else x.new_empty(0)
    d_weight = torch.empty_like(weight) if mask[1] else x.new_empty(0)
    d_bias = x.new_empty(shape[4] if mask[2] else 0)
    _C.conv2d_bwd(
        x.dtype == torch.float64, shape, dy.data_ptr(), x.data_ptr(), y.data_ptr(), weight.data_ptr(),
        [0, 0, 0, 0, stats.data_ptr(), 0, 0], 0, True, dx.data_ptr(), d_weight.data_ptr(), d_bias.data_ptr(),
        num_threads(), _NO_POOL, 0, 0, link((None,) * 3, 0, (), True, d_stats),
    )  # fmt: skip
    return dx, d_weight, d_bias
