# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with normalisation and activation on the native kernels; NHWC, dense."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import CPU, empty_nhwc, flat, nhwc
from fastfer.backends.native.norms import NormGradients, backward_norm, forward_norm, norm_gradients
from fastfer.signatures.conv2d import (
    Conv2d,
    Conv2dBackward,
    Conv2dGradients,
    Conv2dLinked,
    Conv2dLinkedBackward,
    Conv2dLinkedTrained,
    Conv2dPoolBackward,
    Conv2dPoolTrain,
    Conv2dPoolTrained,
    Conv2dTrain,
    Conv2dTrained,
)
from fastfer.signatures.fields import Window
from fastfer.signatures.separable_conv import ConvGradients

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


def _pool_shape(shape: _C.ConvShape, pool: Window) -> _C.PoolShape:
    """Of a pooling after the convolution of ``shape``."""
    (kh, kw), (sh, sw), (top, left, bottom, right) = pool
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


def _or_empty(x: Tensor, *grads: Tensor | None) -> Iterator[Tensor]:
    return (x.new_empty(0) if grad is None else grad for grad in grads)


def _forward(a: Conv2d, train: bool, batch_stats: bool) -> Conv2dTrained:
    shape = _shape(a.x, a.weight, a.stride, a.padding)
    out = empty_nhwc(a.x, shape.o, shape.oh, shape.ow)
    follows = train and (a.norm is not None or a.act != 0)
    y = stats = out  # not written in inference
    if train:
        y = empty_nhwc(a.x, shape.o, shape.oh, shape.ow) if follows else a.x.new_empty(0)
        stats = a.x.new_empty((3, shape.o) if a.norm is not None else 0)
    params = _C.Conv2dParams(
        shape=shape,
        x=nhwc(a.x),
        weight=a.weight.contiguous(),
        bias=flat(a.bias),
        norm=forward_norm(a.norm, stats),
        act=a.act,
        batch_stats=batch_stats,
        out=out,
        y=y if follows else None,
        threads=num_threads(),
    )
    run = _C.conv2d_train if train else _C.conv2d_fwd
    run(a.x.dtype == torch.float64, params)
    return Conv2dTrained(out, y, stats)


def conv2d(a: Conv2d) -> Tensor:
    """Output with running statistics, in one pass."""
    return _forward(a, False, False).out


def conv2d_train(a: Conv2dTrain) -> Conv2dTrained:
    """Output, y where norm or activation follows, statistics with a norm."""
    return _forward(a.block, True, a.batch_stats)


def conv2d_pool_train(a: Conv2dPoolTrain) -> Conv2dPoolTrained:
    """Output, y, y at the maxima, their places in the windows, statistics as `conv2d_train`."""
    b = a.block
    shape = _shape(b.x, b.weight, b.stride, b.padding)
    pool = _pool_shape(shape, a.pool)
    y = empty_nhwc(b.x, shape.o, shape.oh, shape.ow)
    out, best = (empty_nhwc(b.x, shape.o, pool.oh, pool.ow) for _ in range(2))
    positions = torch.empty(out.shape, dtype=torch.uint8, device=CPU, memory_format=_CL)
    stats = b.x.new_empty((3, shape.o))
    params = _C.Conv2dParams(
        shape=shape,
        x=nhwc(b.x),
        weight=b.weight.contiguous(),
        bias=flat(b.bias),
        norm=forward_norm(b.norm, stats),
        act=b.act,
        batch_stats=a.batch_stats,
        out=out,
        y=y,
        pool=pool,
        best=best,
        positions=positions,
        threads=num_threads(),
    )
    _C.conv2d_train(b.x.dtype == torch.float64, params)
    return Conv2dPoolTrained(out, y, best, positions, stats)


def conv2d_backward(a: Conv2dBackward) -> Conv2dGradients:
    """Gradients of x, weight, bias, and the norm's weight and bias."""
    return _backward(a, None, None, None)


def conv2d_pool_backward(a: Conv2dPoolBackward) -> Conv2dGradients:
    """Gradients as `conv2d_backward`, ``d_out`` that of the pooled output."""
    return _backward(a, a.pool, a.best, a.positions)


def _backward(
    a: Conv2dBackward | Conv2dPoolBackward, pool: Window | None, best: Tensor | None, positions: Tensor | None
) -> Conv2dGradients:
    shape = _shape(a.x, a.weight, a.stride, a.padding)
    x, weight = nhwc(a.x), a.weight.contiguous()
    d_x = empty_nhwc(x, shape.c, shape.h, shape.w) if a.needs.x else None
    # The bias's gradient is a by-product of the weight's.
    d_weight, d_bias = (torch.empty_like(weight), x.new_empty(shape.o)) if a.needs.params else (None, None)
    d_norm = norm_gradients(a.norm, a.needs.params)
    params = _C.Conv2dParams(
        shape=shape,
        x=x,
        weight=weight,
        norm=backward_norm(a.norm, a.stats, d_norm),
        act=a.act,
        batch_stats=a.batch_stats,
        y=a.y if a.norm is not None or a.act else None,
        dout=nhwc(a.d_out),
        dx=d_x,
        d_weight=d_weight,
        d_bias=d_bias,
        pool=None if pool is None else _pool_shape(shape, pool),
        best=best,
        positions=positions,
        threads=num_threads(),
    )
    _C.conv2d_bwd(x.dtype == torch.float64, params)
    return Conv2dGradients(*_or_empty(x, d_x, d_weight, d_bias if a.needs.bias else None, *d_norm))


def conv2d_linked(a: Conv2dLinked) -> Conv2dLinkedTrained:
    """The convolution and its statistics."""
    shape = _shape(a.x, a.weight, a.stride, a.padding)
    y, stats = empty_nhwc(a.x, shape.o, shape.oh, shape.ow), a.x.new_empty((3, shape.o))
    params = _C.Conv2dParams(
        shape=shape,
        x=nhwc(a.x),
        weight=a.weight.contiguous(),
        bias=flat(a.bias),
        norm=forward_norm(a.left, stats),
        act=0,
        batch_stats=True,
        out=y,
        y=None,
        linked_output=_C.LinkedOutputParams(on=True),
        threads=num_threads(),
    )
    _C.conv2d_train(a.x.dtype == torch.float64, params)
    return Conv2dLinkedTrained(y, stats)


def conv2d_linked_backward(a: Conv2dLinkedBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    shape, needs = _shape(a.x, a.weight, a.stride, a.padding), a.needs
    x, weight = nhwc(a.x), a.weight.contiguous()
    d_stats = torch.zeros_like(a.stats) if a.d_stats is None else a.d_stats.contiguous()
    d_x = empty_nhwc(x, shape.c, shape.h, shape.w) if needs.x else None
    d_weight = torch.empty_like(weight) if needs.weight else None
    d_bias = x.new_empty(shape.o) if needs.bias else None
    params = _C.Conv2dParams(
        shape=shape,
        x=x,
        weight=weight,
        norm=backward_norm(None, a.stats, NormGradients()),
        act=0,
        batch_stats=True,
        y=a.y,
        dout=nhwc(a.d_y),
        dx=d_x,
        d_weight=d_weight,
        d_bias=d_bias,
        linked_output=_C.LinkedOutputParams(on=True, d_stats=d_stats),
        threads=num_threads(),
    )
    _C.conv2d_bwd(x.dtype == torch.float64, params)
    return ConvGradients(*_or_empty(x, d_x, d_weight, d_bias))
