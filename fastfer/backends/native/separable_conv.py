# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block on the native kernels; NHWC, dense."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import address, addresses, empty_nhwc, flat, nhwc
from fastfer.backends.native.norms import NO_LINK, NO_NORM, dense_affine, dense_link, dense_norm, link, link_gradients
from fastfer.signatures.fields import LeftNorm
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


def _shape(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> list[int]:
    """n, h, w, c, oh, ow, kh, kw, sh, sw, top, left."""
    n, c, h, w = x.shape
    kh, kw = weight.shape[2:]
    (sh, sw), (top, left, bottom, right) = stride, padding
    return [n, h, w, c, (h + top + bottom - kh) // sh + 1, (w + left + right - kw) // sw + 1, kh, kw, sh, sw, top, left]


def depthwise_conv2d(a: Depthwise) -> Tensor:
    """Depthwise convolution."""
    shape = _shape(a.x, a.weight, a.stride, a.padding)
    x, weight, bias = nhwc(a.x), a.weight.contiguous(), flat(a.bias)
    y = empty_nhwc(x, shape[3], shape[4], shape[5])
    _C.depthwise_conv2d_fwd(
        x.dtype == torch.float64, shape, x.data_ptr(), weight.data_ptr(), address(bias), y.data_ptr(), num_threads()
    )
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
    shape = _shape(a.x, a.weight, a.stride, a.padding)
    dy, x, weight = nhwc(a.d_out), nhwc(a.x), a.weight.contiguous()
    d_x, d_weight, d_bias = _wanted(a.needs, x, weight)
    _C.depthwise_conv2d_bwd(
        x.dtype == torch.float64, shape, dy.data_ptr(), x.data_ptr(), weight.data_ptr(),
        address(d_x), address(d_weight), address(d_bias), num_threads(),
    )  # fmt: skip
    return ConvGradients(*_or_empty(x, d_x, d_weight, d_bias))


def _norm_forward(a: DepthwiseNorm, train: bool, batch_stats: bool, linked: list[int]) -> DepthwiseNormTrained:
    shape = _shape(a.x, a.weight, a.stride, a.padding)
    x, weight, bias = nhwc(a.x), a.weight.contiguous(), flat(a.bias)
    norm = dense_norm(a.norm)
    out = empty_nhwc(x, shape[3], shape[4], shape[5])
    y = empty_nhwc(x, shape[3], shape[4], shape[5]) if train else out  # not written in inference
    stats = x.new_empty((3, shape[3])) if train else out
    _C.depthwise_norm_fwd(
        x.dtype == torch.float64, train, shape, x.data_ptr(), weight.data_ptr(), address(bias),
        [*addresses(*norm), stats.data_ptr(), 0, 0], a.norm.eps, a.act, batch_stats, out.data_ptr(), y.data_ptr(),
        num_threads(), linked,
    )  # fmt: skip
    return DepthwiseNormTrained(out, y, stats)


def depthwise_norm(a: DepthwiseNorm) -> Tensor:
    """act(norm(depthwise(x))) with running statistics, in one pass."""
    return _norm_forward(a, False, False, NO_LINK).out


def depthwise_norm_train(a: DepthwiseNormTrain) -> DepthwiseNormTrained:
    """act(norm(y)), the depthwise output y, and statistics."""
    return _norm_forward(a.block, True, a.batch_stats, NO_LINK)


def depthwise_norm_backward(a: DepthwiseNormBackward) -> DepthwiseNormGradients:
    """Gradients of x; weight, bias and norm's two."""
    return _norm_backward(a, a.needs.x, NO_LINK)


def depthwise_norm_linked(a: DepthwiseNormLinked) -> DepthwiseNormTrained:
    """As `depthwise_norm_train` of the normalised x."""
    before = dense_link(a.link)
    return _norm_forward(a.block, True, True, link(before))


def depthwise_norm_linked_backward(a: DepthwiseNormLinkedBackward) -> DepthwiseNormLinkedGradients:
    """Gradients as `depthwise_norm_backward`, then the link's."""
    before = dense_link(a.link)
    of_link = link_gradients(before)
    return DepthwiseNormLinkedGradients(*_norm_backward(a.block, True, link(before, of_link)), *of_link)


def _norm_backward(a: DepthwiseNormBackward, need_dx: bool, linked: list[int]) -> DepthwiseNormGradients:
    shape = _shape(a.x, a.weight, a.stride, a.padding)
    dout, x, weight = nhwc(a.d_out), nhwc(a.x), a.weight.contiguous()
    n_weight, n_bias = a.norm.weight.contiguous(), a.norm.bias.contiguous()
    params = a.needs.params
    d_x, d_weight, d_bias = _wanted(ConvNeeds(need_dx, params, params), x, weight)
    d_norm = [torch.empty_like(t) if params else None for t in (n_weight, n_bias)]
    _C.depthwise_norm_bwd(
        x.dtype == torch.float64, shape, dout.data_ptr(), x.data_ptr(), a.y.data_ptr(), weight.data_ptr(),
        [n_weight.data_ptr(), n_bias.data_ptr(), 0, 0, a.stats.data_ptr(), *addresses(*d_norm)], a.act, a.batch_stats,
        address(d_x), address(d_weight), address(d_bias), num_threads(), linked,
    )  # fmt: skip
    return DepthwiseNormGradients(*_or_empty(x, d_x, d_weight, d_bias, *d_norm))


def pointwise_conv2d(a: Pointwise) -> Tensor:
    """1×1 convolution."""
    x, weight, bias = nhwc(a.x), a.weight.contiguous(), flat(a.bias)
    n, c, h, w = x.shape
    y = empty_nhwc(x, weight.shape[0], h, w)
    _C.pointwise_conv2d_fwd(
        x.dtype == torch.float64, n * h * w, c, weight.shape[0], x.data_ptr(), weight.data_ptr(), address(bias),
        y.data_ptr(), num_threads(),
    )  # fmt: skip
    return y


def pointwise_conv2d_backward(a: PointwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    dy, x, weight = nhwc(a.d_out), nhwc(a.x), a.weight.contiguous()
    n, c, h, w = x.shape
    d_x, d_weight, d_bias = _wanted(a.needs, x, weight)
    _C.pointwise_conv2d_bwd(
        x.dtype == torch.float64, n * h * w, c, weight.shape[0], dy.data_ptr(), x.data_ptr(), weight.data_ptr(),
        address(d_x), address(d_weight), address(d_bias), num_threads(),
    )  # fmt: skip
    return ConvGradients(*_or_empty(x, d_x, d_weight, d_bias))


def _forward(
    a: Separable, train: bool, batch_stats: bool, linked: list[int], left: LeftNorm | None = None
) -> SeparableTrained:  # fmt: skip
    shape = _shape(a.x, a.dw_weight, a.stride, a.padding)
    x, dw_weight, pw_weight = nhwc(a.x), a.dw_weight.contiguous(), a.pw_weight.contiguous()
    dw_bias, pw_bias = flat(a.dw_bias), flat(a.pw_bias)
    norm1, norm2 = dense_norm(a.norm1), dense_norm(a.norm2 or left)
    eps2 = (a.norm2 or left or NO_NORM).eps
    channels, outputs = shape[3], pw_weight.shape[0]
    out = empty_nhwc(x, outputs, shape[4], shape[5])
    follows = a.norm2 is not None or a.act2 != 0
    y1 = y2 = stats1 = stats2 = out  # not written in inference
    keeps = train and keeps_y1(a, shape[4], shape[5])
    if train:
        y1 = empty_nhwc(x, channels, shape[4], shape[5]) if keeps else x.new_empty(0)
        y2 = empty_nhwc(x, outputs, shape[4], shape[5]) if follows else x.new_empty(0)
        stats1 = x.new_empty((3, channels) if a.norm1 is not None else 0)
        stats2 = x.new_empty((3, outputs) if norm2.mean is not None else 0)
    _C.separable_conv2d_fwd(
        x.dtype == torch.float64, train, shape, outputs, x.data_ptr(), dw_weight.data_ptr(), address(dw_bias),
        [*addresses(*norm1), stats1.data_ptr(), 0, 0], (a.norm1 or NO_NORM).eps, a.act1,
        pw_weight.data_ptr(), address(pw_bias),
        [*addresses(*norm2), stats2.data_ptr(), 0, 0], eps2, a.act2, batch_stats, out.data_ptr(),
        y1.data_ptr() if keeps else 0, y2.data_ptr() if train and follows else 0, num_threads(), linked,
    )  # fmt: skip
    return SeparableTrained(out, y1, y2, stats1, stats2)


def separable_conv2d(a: Separable) -> Tensor:
    """Output with running statistics, in one pass."""
    return _forward(a, False, False, NO_LINK).out


def separable_conv2d_train(a: SeparableTrain) -> SeparableTrained:
    """Output, y1, y2 and statistics."""
    return _forward(a.block, True, a.batch_stats, NO_LINK)


def separable_conv2d_backward(a: SeparableBackward) -> SeparableGradients:
    """Gradients of x; the depthwise weight, its bias, norm1's two; the pointwise weight, its bias, norm2's two."""
    return _backward(a, a.needs.x, NO_LINK)


def separable_conv2d_linked(a: SeparableLinked) -> SeparableTrained:
    """As `separable_conv2d_train` of the normalised x; the last norm may be left to the next op."""
    before = None if a.link is None else dense_link(a.link)
    return _forward(a.block, True, True, link(before, leaves=a.leaves), a.left)


def separable_conv2d_linked_backward(a: SeparableLinkedBackward) -> SeparableLinkedGradients:
    """Gradients as `separable_conv2d_backward`, then the link's."""
    block, d_stats, before, of_link = a.block, None, None, None
    if a.link is not None:
        before = dense_link(a.link)
        of_link = link_gradients(before)
    if a.leaves:
        d_stats = torch.zeros_like(block.stats2) if a.d_stats2 is None else a.d_stats2.contiguous()
    grads = _backward(block, block.needs.x or before is not None, link(before, of_link, a.leaves, d_stats))
    return SeparableLinkedGradients(*grads, *_or_empty(block.x, *(of_link or (None, None, None))))


def _backward(a: SeparableBackward, need_dx: bool, linked: list[int]) -> SeparableGradients:
    shape = _shape(a.x, a.dw_weight, a.stride, a.padding)
    dout, x = nhwc(a.d_out), nhwc(a.x)
    dw_weight, pw_weight = a.dw_weight.contiguous(), a.pw_weight.contiguous()
    norm1, norm2 = dense_affine(a.norm1), dense_affine(a.norm2)
    needs = a.needs
    d_x, d_dw, d_dw_bias = _wanted(ConvNeeds(need_dx, needs.dw, needs.dw and needs.biases), x, dw_weight)
    _, d_pw, d_pw_bias = _wanted(ConvNeeds(False, needs.pw, needs.pw and needs.biases), x, pw_weight)
    d_norm1 = [torch.empty_like(t) if t is not None else None for t in norm1]
    d_norm2 = [torch.empty_like(t) if t is not None else None for t in norm2]
    _C.separable_conv2d_bwd(
        x.dtype == torch.float64, shape, pw_weight.shape[0], dout.data_ptr(), x.data_ptr(),
        a.y1.data_ptr() if a.y1.dim() == 4 else 0,
        a.y2.data_ptr() if a.y2.dim() == 4 else 0, dw_weight.data_ptr(),
        [*addresses(*norm1), 0, 0, a.stats1.data_ptr(), *addresses(*d_norm1)], a.act1, pw_weight.data_ptr(),
        [*addresses(*norm2), 0, 0, a.stats2.data_ptr(), *addresses(*d_norm2)], a.act2,
        a.batch_stats, address(d_x), address(d_dw), address(d_dw_bias), address(d_pw), address(d_pw_bias),
        num_threads(), linked,
    )  # fmt: skip
    of_norm1 = d_norm1 if needs.dw else (None, None)
    of_norm2 = d_norm2 if needs.pw else (None, None)
    return SeparableGradients(*_or_empty(x, d_x, d_dw, d_dw_bias, *of_norm1, d_pw, d_pw_bias, *of_norm2))
