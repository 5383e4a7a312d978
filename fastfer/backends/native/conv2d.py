# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with normalisation and activation on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import CPU, empty_nhwc, flat, nhwc
from fastfer.backends.native.norms import NormGradients, backward_norm, forward_norm, norm_gradients
from fastfer.signatures.fields import Affine, LeftNorm, RunningNorm

_CL = torch.channels_last


def _shape(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> _C.ConvShape:
    (n, c, h, w), (o, _, kh, kw) = x.shape, weight.shape
    (sh, sw), (top, left, bottom, right) = stride, padding
    return _C.ConvShape(
        n=n,
        h=h,
        w=w,
        c=c,
        o=o,
        oh=(h + top + bottom - kh) // sh + 1,
        ow=(w + left + right - kw) // sw + 1,
        kh=kh,
        kw=kw,
        sh=sh,
        sw=sw,
        top=top,
        left=left,
    )


def _pool_shape(shape: _C.ConvShape, kernel: list[int], stride: list[int], padding: list[int]) -> _C.PoolShape:
    """Of a pooling after the convolution of ``shape``."""
    (kh, kw), (sh, sw), (top, left, bottom, right) = kernel, stride, padding
    return _C.PoolShape(
        oh=(shape.oh + top + bottom - kh) // sh + 1,
        ow=(shape.ow + left + right - kw) // sw + 1,
        kh=kh,
        kw=kw,
        sh=sh,
        sw=sw,
        top=top,
        left=left,
    )


def _running(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, eps: float
) -> RunningNorm | None:
    if weight is None or bias is None or mean is None or var is None:
        return None
    return RunningNorm(weight, bias, mean, var, eps)


def _affine(weight: Tensor | None, bias: Tensor | None) -> Affine | None:
    return None if weight is None or bias is None else Affine(weight, bias)


def _run(
    train: bool, batch_stats: bool, x: Tensor, weight: Tensor, bias: Tensor | None,
    n_weight: Tensor | None, n_bias: Tensor | None, n_mean: Tensor | None, n_var: Tensor | None,
    eps: float, act: int, stride: list[int], padding: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape = _shape(x, weight, stride, padding)
    out = empty_nhwc(x, shape.o, shape.oh, shape.ow)
    follows = train and (n_weight is not None or act != 0)
    y = stats = out  # not written in inference
    if train:
        y = empty_nhwc(x, shape.o, shape.oh, shape.ow) if follows else x.new_empty(0)
        stats = x.new_empty((3, shape.o) if n_weight is not None else 0)
    params = _C.Conv2dParams(
        shape=shape,
        x=nhwc(x),
        weight=weight.contiguous(),
        bias=flat(bias),
        norm=forward_norm(_running(n_weight, n_bias, n_mean, n_var, eps), stats),
        act=act,
        batch_stats=batch_stats,
        out=out,
        y=y if follows else None,
        threads=num_threads(),
    )
    run = _C.conv2d_train if train else _C.conv2d_fwd
    run(x.dtype == torch.float64, params)
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
    y = empty_nhwc(x, shape.o, shape.oh, shape.ow)
    out, best = (empty_nhwc(x, shape.o, pool.oh, pool.ow) for _ in range(2))
    positions = torch.empty(out.shape, dtype=torch.uint8, device=CPU, memory_format=_CL)
    stats = x.new_empty((3, shape.o))
    params = _C.Conv2dParams(
        shape=shape,
        x=nhwc(x),
        weight=weight.contiguous(),
        bias=flat(bias),
        norm=forward_norm(RunningNorm(n_weight, n_bias, n_mean, n_var, eps), stats),
        act=act,
        batch_stats=batch_stats,
        out=out,
        y=y,
        pool=pool,
        best=best,
        positions=positions,
        threads=num_threads(),
    )
    _C.conv2d_train(x.dtype == torch.float64, params)
    return out, y, best, positions, stats


def _backward(
    dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor | None, n_bias: Tensor | None, stats: Tensor,
    act: int, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
    pool: list[int] | None, best: Tensor | None, positions: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    shape = _shape(x, weight, stride, padding)
    windows = None if pool is None else _pool_shape(shape, pool[:2], pool[2:4], pool[4:])
    x, weight, norm = nhwc(x), weight.contiguous(), _affine(n_weight, n_bias)
    need_dx, need_weight = mask
    dx = empty_nhwc(x, shape.c, shape.h, shape.w) if need_dx else None
    d_weight, d_bias = (torch.empty_like(weight), x.new_empty(shape.o)) if need_weight else (None, None)
    d_norm = norm_gradients(norm, need_weight)
    params = _C.Conv2dParams(
        shape=shape,
        x=x,
        weight=weight,
        norm=backward_norm(norm, stats, d_norm),
        act=act,
        batch_stats=batch_stats,
        y=y if norm is not None or act else None,
        dout=nhwc(dout),
        dx=dx,
        d_weight=d_weight,
        d_bias=d_bias,
        pool=windows,
        best=best,
        positions=positions,
        threads=num_threads(),
    )
    _C.conv2d_bwd(x.dtype == torch.float64, params)
    return tuple(x.new_empty(0) if grad is None else grad for grad in (dx, d_weight, d_bias, *d_norm))


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
    y, stats = empty_nhwc(x, shape.o, shape.oh, shape.ow), x.new_empty((3, shape.o))
    params = _C.Conv2dParams(
        shape=shape,
        x=nhwc(x),
        weight=weight.contiguous(),
        bias=flat(bias),
        norm=forward_norm(LeftNorm(mean, var, eps), stats),
        act=0,
        batch_stats=True,
        out=y,
        y=None,
        linked_output=_C.LinkedOutputParams(on=True),
        threads=num_threads(),
    )
    _C.conv2d_train(x.dtype == torch.float64, params)
    return y, stats


def conv2d_linked_backward(
    dy: Tensor, d_stats: Tensor | None, x: Tensor, y: Tensor, weight: Tensor, stats: Tensor, stride: list[int],
    padding: list[int], mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, weight and bias; those not asked for are empty."""
    shape = _shape(x, weight, stride, padding)
    x, weight = nhwc(x), weight.contiguous()
    d_stats = torch.zeros_like(stats) if d_stats is None else d_stats.contiguous()
    need_dx, need_weight, need_bias = mask
    dx = empty_nhwc(x, shape.c, shape.h, shape.w) if need_dx else None
    d_weight = torch.empty_like(weight) if need_weight else None
    d_bias = x.new_empty(shape.o) if need_bias else None
    params = _C.Conv2dParams(
        shape=shape,
        x=x,
        weight=weight,
        norm=backward_norm(None, stats, NormGradients()),
        act=0,
        batch_stats=True,
        y=y,
        dout=nhwc(dy),
        dx=dx,
        d_weight=d_weight,
        d_bias=d_bias,
        linked_output=_C.LinkedOutputParams(on=True, d_stats=d_stats),
        threads=num_threads(),
    )
    _C.conv2d_bwd(x.dtype == torch.float64, params)
    return tuple(x.new_empty(0) if grad is None else grad for grad in (dx, d_weight, d_bias))
