# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block on the native kernels; NHWC, dense."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, flat, nhwc
from fastfer.backends.native.norms import (
    backward_norm,
    dense_link,
    forward_norm,
    link_gradients,
    linked_input,
    norm_gradients,
)
from fastfer.signatures.fields import LeftNorm, Link, LinkGradients
from fastfer.signatures.separable_conv import (
    ConvGradients,
    ConvNeeds,
    Depthwise,
    DepthwiseBackward,
    DepthwiseNorm,
    DepthwiseNormBackward,
    DepthwiseNormGradients,
    DepthwiseNormLinked,
    DepthwiseNormLinkedBackward,
    DepthwiseNormLinkedGradients,
    DepthwiseNormTrain,
    DepthwiseNormTrained,
    Pointwise,
    PointwiseBackward,
    Separable,
    SeparableBackward,
    SeparableGradients,
    SeparableLinked,
    SeparableLinkedBackward,
    SeparableLinkedGradients,
    SeparableTrain,
    SeparableTrained,
    keeps_y1,
)

links = True
"""A normalisation left to the next op saves passes over the activation here: see `fastfer.nn.Chain`."""


def depthwise_shape(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> _C.DepthwiseShape:
    """Of the depthwise convolution by ``weight`` of images as large as those of ``x``."""
    (n, _, h, w), (c, _, kh, kw) = x.shape, weight.shape
    (sh, sw), (top, left, bottom, right) = stride, padding
    return _C.DepthwiseShape(
        n=n,
        h=h,
        w=w,
        c=c,
        oh=(h + top + bottom - kh) // sh + 1,
        ow=(w + left + right - kw) // sw + 1,
        kh=kh,
        kw=kw,
        sh=sh,
        sw=sw,
        top=top,
        left=left,
    )


def depthwise_conv2d(a: Depthwise) -> Tensor:
    """Depthwise convolution."""
    shape = depthwise_shape(a.x, a.weight, a.stride, a.padding)
    y = empty_nhwc(a.x, shape.c, shape.oh, shape.ow)
    params = _C.DepthwiseParams(
        shape=shape, x=nhwc(a.x), weight=a.weight.contiguous(), bias=flat(a.bias), y=y, threads=num_threads()
    )
    _C.depthwise_conv2d_fwd(y.dtype == torch.float64, params)
    return y


def _wanted(needs: ConvNeeds, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Memory for the gradients of x, weight and bias."""
    return (
        empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3]) if needs.x else None,
        torch.empty_like(weight) if needs.weight else None,
        weight.new_empty(weight.shape[0]) if needs.bias else None,
    )


def _or_empty(x: Tensor, *grads: Tensor | None) -> Iterator[Tensor]:
    return (x.new_empty(0) if grad is None else grad for grad in grads)


def depthwise_conv2d_backward(a: DepthwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    x, weight = nhwc(a.x), a.weight.contiguous()
    d_x, d_weight, d_bias = _wanted(a.needs, x, weight)
    params = _C.DepthwiseParams(
        shape=depthwise_shape(x, weight, a.stride, a.padding),
        x=x,
        weight=weight,
        dy=nhwc(a.d_out),
        dx=d_x,
        d_weight=d_weight,
        d_bias=d_bias,
        threads=num_threads(),
    )
    _C.depthwise_conv2d_bwd(x.dtype == torch.float64, params)
    return ConvGradients(*_or_empty(x, d_x, d_weight, d_bias))


def _norm_forward(
    a: DepthwiseNorm, train: bool, batch_stats: bool = False, link: Link | None = None
) -> DepthwiseNormTrained:
    shape = depthwise_shape(a.x, a.weight, a.stride, a.padding)
    out = empty_nhwc(a.x, shape.c, shape.oh, shape.ow)
    y = stats = out  # not written in inference
    if train:
        y, stats = empty_nhwc(a.x, shape.c, shape.oh, shape.ow), a.x.new_empty((3, shape.c))
    params = _C.DepthwiseParams(
        shape=shape,
        x=nhwc(a.x),
        weight=a.weight.contiguous(),
        bias=flat(a.bias),
        y=y,
        norm=forward_norm(a.norm, stats),
        act=a.act,
        batch_stats=batch_stats,
        out=out,
        linked_input=linked_input(link),
        threads=num_threads(),
    )
    run = _C.depthwise_norm_train if train else _C.depthwise_norm_fwd
    run(out.dtype == torch.float64, params)
    return DepthwiseNormTrained(out, y, stats)


def depthwise_norm(a: DepthwiseNorm) -> Tensor:
    """act(norm(depthwise(x))) with running statistics, in one pass."""
    return _norm_forward(a, False).out


def depthwise_norm_train(a: DepthwiseNormTrain) -> DepthwiseNormTrained:
    """act(norm(y)), the depthwise output y, and statistics."""
    return _norm_forward(a.block, True, a.batch_stats)


def depthwise_norm_backward(a: DepthwiseNormBackward) -> DepthwiseNormGradients:
    """Gradients of x; weight, bias and norm's two."""
    return _norm_backward(a, a.needs.x)


def depthwise_norm_linked(a: DepthwiseNormLinked) -> DepthwiseNormTrained:
    """As `depthwise_norm_train` of the normalised x."""
    return _norm_forward(a.block, True, True, dense_link(a.link))


def depthwise_norm_linked_backward(a: DepthwiseNormLinkedBackward) -> DepthwiseNormLinkedGradients:
    """Gradients as `depthwise_norm_backward`, then the link's."""
    link = dense_link(a.link)
    of_link = link_gradients(link)
    return DepthwiseNormLinkedGradients(*_norm_backward(a.block, True, link, of_link), *of_link)


def _norm_backward(
    a: DepthwiseNormBackward, need_dx: bool, link: Link | None = None, of_link: LinkGradients | None = None
) -> DepthwiseNormGradients:
    x, weight, needed = nhwc(a.x), a.weight.contiguous(), a.needs.params
    d_x, d_weight, d_bias = _wanted(ConvNeeds(need_dx, needed, needed), x, weight)
    d_norm = norm_gradients(a.norm, needed)
    params = _C.DepthwiseParams(
        shape=depthwise_shape(x, weight, a.stride, a.padding),
        x=x,
        weight=weight,
        y=a.y,
        dx=d_x,
        d_weight=d_weight,
        d_bias=d_bias,
        norm=backward_norm(a.norm, a.stats, d_norm),
        act=a.act,
        batch_stats=a.batch_stats,
        dout=nhwc(a.d_out),
        linked_input=linked_input(link, of_link),
        threads=num_threads(),
    )
    _C.depthwise_norm_bwd(x.dtype == torch.float64, params)
    # The bias's gradient is a by-product of the weight's.
    return DepthwiseNormGradients(*_or_empty(x, d_x, d_weight, d_bias if a.needs.bias else None, *d_norm))


def pointwise_conv2d(a: Pointwise) -> Tensor:
    """1×1 convolution."""
    (n, c, h, w), outputs = a.x.shape, a.weight.shape[0]
    y = empty_nhwc(a.x, outputs, h, w)
    params = _C.PointwiseParams(
        rows=n * h * w,
        in_channels=c,
        out_channels=outputs,
        x=nhwc(a.x),
        weight=a.weight.contiguous(),
        bias=flat(a.bias),
        y=y,
        threads=num_threads(),
    )
    _C.pointwise_conv2d_fwd(y.dtype == torch.float64, params)
    return y


def pointwise_conv2d_backward(a: PointwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    x, weight = nhwc(a.x), a.weight.contiguous()
    n, c, h, w = x.shape
    d_x, d_weight, d_bias = _wanted(a.needs, x, weight)
    params = _C.PointwiseParams(
        rows=n * h * w,
        in_channels=c,
        out_channels=weight.shape[0],
        x=x,
        weight=weight,
        dy=nhwc(a.d_out),
        dx=d_x,
        d_weight=d_weight,
        d_bias=d_bias,
        threads=num_threads(),
    )
    _C.pointwise_conv2d_bwd(x.dtype == torch.float64, params)
    return ConvGradients(*_or_empty(x, d_x, d_weight, d_bias))


def _forward(
    a: Separable, train: bool, batch_stats: bool = False, link: Link | None = None, left: LeftNorm | None = None
) -> SeparableTrained:
    shape, outputs = depthwise_shape(a.x, a.dw_weight, a.stride, a.padding), a.pw_weight.shape[0]
    norm2 = a.norm2 or left
    out = empty_nhwc(a.x, outputs, shape.oh, shape.ow)
    keeps = train and keeps_y1(a, shape.oh, shape.ow)
    follows = train and (a.norm2 is not None or a.act2 != 0)
    nothing = a.x.new_empty(0) if train else out  # not written in inference
    y1 = empty_nhwc(a.x, shape.c, shape.oh, shape.ow) if keeps else nothing
    y2 = empty_nhwc(a.x, outputs, shape.oh, shape.ow) if follows else nothing
    stats1 = stats2 = out
    if train:
        stats1 = a.x.new_empty((3, shape.c) if a.norm1 is not None else 0)
        stats2 = a.x.new_empty((3, outputs) if norm2 is not None else 0)
    params = _C.SeparableParams(
        shape=shape,
        out_channels=outputs,
        x=nhwc(a.x),
        dw_weight=a.dw_weight.contiguous(),
        dw_bias=flat(a.dw_bias),
        pw_weight=a.pw_weight.contiguous(),
        pw_bias=flat(a.pw_bias),
        norm1=forward_norm(a.norm1, stats1),
        norm2=forward_norm(norm2, stats2),
        act1=a.act1,
        act2=a.act2,
        batch_stats=batch_stats,
        out=out,
        y1=y1 if keeps else None,
        y2=y2 if follows else None,
        linked_input=linked_input(link),
        linked_output=None if left is None else _C.LinkedOutputParams(on=True),
        threads=num_threads(),
    )
    run = _C.separable_conv2d_train if train else _C.separable_conv2d_fwd
    run(out.dtype == torch.float64, params)
    return SeparableTrained(out, y1, y2, stats1, stats2)


def separable_conv2d(a: Separable) -> Tensor:
    """Output with running statistics, in one pass."""
    return _forward(a, False).out


def separable_conv2d_train(a: SeparableTrain) -> SeparableTrained:
    """Output, y1, y2 and statistics."""
    return _forward(a.block, True, a.batch_stats)


def separable_conv2d_backward(a: SeparableBackward) -> SeparableGradients:
    """Gradients of x; the depthwise weight, its bias, norm1's two; the pointwise weight, its bias, norm2's two."""
    return _backward(a, a.needs.x)


def separable_conv2d_linked(a: SeparableLinked) -> SeparableTrained:
    """As `separable_conv2d_train` of the normalised x; the last norm may be left to the next op."""
    return _forward(a.block, True, True, None if a.link is None else dense_link(a.link), a.left)


def separable_conv2d_linked_backward(a: SeparableLinkedBackward) -> SeparableLinkedGradients:
    """Gradients as `separable_conv2d_backward`, then the link's."""
    block, link, of_link, linked_output = a.block, None, None, None
    if a.link is not None:
        link = dense_link(a.link)
        of_link = link_gradients(link)
    if a.leaves:
        d_stats = torch.zeros_like(block.stats2) if a.d_stats2 is None else a.d_stats2.contiguous()
        linked_output = _C.LinkedOutputParams(on=True, d_stats=d_stats)
    grads = _backward(block, block.needs.x or link is not None, link, of_link, linked_output)
    return SeparableLinkedGradients(*grads, *_or_empty(block.x, *(of_link or (None, None, None))))


def _backward(
    a: SeparableBackward,
    need_dx: bool,
    link: Link | None = None,
    of_link: LinkGradients | None = None,
    linked_output: _C.LinkedOutputParams | None = None,
) -> SeparableGradients:
    x, dw_weight, pw_weight = nhwc(a.x), a.dw_weight.contiguous(), a.pw_weight.contiguous()
    needs = a.needs
    d_x, d_dw, d_dw_bias = _wanted(ConvNeeds(need_dx, needs.dw, needs.dw and needs.biases), x, dw_weight)
    _, d_pw, d_pw_bias = _wanted(ConvNeeds(False, needs.pw, needs.pw and needs.biases), x, pw_weight)
    d_norm1, d_norm2 = norm_gradients(a.norm1), norm_gradients(a.norm2)
    params = _C.SeparableParams(
        shape=depthwise_shape(x, dw_weight, a.stride, a.padding),
        out_channels=pw_weight.shape[0],
        x=x,
        dw_weight=dw_weight,
        pw_weight=pw_weight,
        norm1=backward_norm(a.norm1, a.stats1, d_norm1),
        norm2=backward_norm(a.norm2, a.stats2, d_norm2),
        act1=a.act1,
        act2=a.act2,
        batch_stats=a.batch_stats,
        y1=a.y1 if a.y1.dim() == 4 else None,
        y2=a.y2 if a.y2.dim() == 4 else None,
        dout=nhwc(a.d_out),
        dx=d_x,
        d_dw_weight=d_dw,
        d_dw_bias=d_dw_bias,
        d_pw_weight=d_pw,
        d_pw_bias=d_pw_bias,
        linked_input=linked_input(link, of_link),
        linked_output=linked_output,
        threads=num_threads(),
    )
    _C.separable_conv2d_bwd(x.dtype == torch.float64, params)
    of_norm1 = d_norm1 if needs.dw else (None, None)
    of_norm2 = d_norm2 if needs.pw else (None, None)
    return SeparableGradients(*_or_empty(x, d_x, d_dw, d_dw_bias, *of_norm1, d_pw, d_pw_bias, *of_norm2))
