# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import NO_LINK, address, empty_nhwc, flat, link, nhwc
from fastfer.backends.reference.separable_conv import recomputes

links = True
"""A normalisation left to the next op saves passes over the activation here: see `fastfer.nn.Chain`."""


def _shape(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> list[int]:
    """n, h, w, c, oh, ow, kh, kw, sh, sw, top, left."""
    n, c, h, w = x.shape
    kh, kw = weight.shape[2:]
    (sh, sw), (top, left, bottom, right) = stride, padding
    return [n, h, w, c, (h + top + bottom - kh) // sh + 1, (w + left + right - kw) // sw + 1, kh, kw, sh, sw, top, left]


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    """Depthwise convolution."""
    shape = _shape(x, weight, stride, padding)
    x, weight, bias = nhwc(x), weight.contiguous(), flat(bias)
    y = empty_nhwc(x, shape[3], shape[4], shape[5])
    _C.depthwise_conv2d_fwd(
        x.dtype == torch.float64, shape, x.data_ptr(), weight.data_ptr(), address(bias), y.data_ptr(), num_threads()
    )
    return y


def _wanted(
    mask: list[bool], like: Tensor, weight: Tensor, size: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (
        empty_nhwc(like, like.shape[1], like.shape[2], like.shape[3]) if mask[0] else None,
        torch.empty_like(weight) if mask[1] else None,
        weight.new_empty(size) if mask[2] else None,
    )


def _or_empty(x: Tensor, *grads: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)


def depthwise_conv2d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], mask: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias; those not in ``mask`` are empty."""
    shape = _shape(x, weight, stride, padding)
    dy, x, weight = nhwc(dy), nhwc(x), weight.contiguous()
    dx, dw, db = _wanted(mask, x, weight, shape[3])
    _C.depthwise_conv2d_bwd(
        x.dtype == torch.float64, shape, dy.data_ptr(), x.data_ptr(), weight.data_ptr(),
        address(dx), address(dw), address(db), num_threads(),
    )  # fmt: skip
    return _or_empty(x, dx, dw, db)


def _norm_run(
    train: bool, batch_stats: bool, before: list[int], x: Tensor, weight: Tensor, bias: Tensor | None,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float, act: int,
    stride: list[int], padding: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape = _shape(x, weight, stride, padding)
    x, weight, bias = nhwc(x), weight.contiguous(), flat(bias)
    norm = [t.contiguous() for t in (n_weight, n_bias, n_mean, n_var)]
    out = empty_nhwc(x, shape[3], shape[4], shape[5])
    y = empty_nhwc(x, shape[3], shape[4], shape[5]) if train else out  # not written in inference
    stats = x.new_empty((3, shape[3])) if train else out
    _C.depthwise_norm_fwd(
        x.dtype == torch.float64, train, shape, x.data_ptr(), weight.data_ptr(), address(bias),
        [*(t.data_ptr() for t in norm), stats.data_ptr(), 0, 0], eps, act, batch_stats, out.data_ptr(), y.data_ptr(),
        num_threads(), before,
    )  # fmt: skip
    return out, y, stats


def depthwise_norm(*args: Any) -> Tensor:
    """act(norm(depthwise(x))) with running statistics, in one pass; arguments as the op's."""
    return _norm_run(False, False, NO_LINK, *args)[0]


def depthwise_norm_train(*args: Any) -> tuple[Tensor, ...]:
    """act(norm(y)), the depthwise output y, and statistics (3, C): mean, 1/sqrt(var + eps), unbiased variance."""
    *block, batch_stats = args
    return _norm_run(True, batch_stats, NO_LINK, *block)


def depthwise_norm_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of x; weight, bias and norm's two; ``mask`` is [x, the others], those not asked for are empty."""
    return _norm_backward(NO_LINK, *args)


def depthwise_norm_linked(
    x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *block: Any
) -> tuple[Tensor, ...]:
    """As `depthwise_norm_train` of the normalised x; see `fastfer.backends.reference._linked`."""
    before = l_stats, l_weight.contiguous(), l_bias.contiguous()
    return _norm_run(True, True, link(before, l_act, (), False, None), x, *block)


def depthwise_norm_linked_backward(
    dout: Tensor, x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *rest: Any
) -> tuple[Tensor, ...]:
    """Gradients as `depthwise_norm_backward`, then those of l_stats, l_weight and l_bias; always that of x."""
    *block, mask = rest
    before = l_stats, l_weight.contiguous(), l_bias.contiguous()
    grads = [torch.empty_like(t) for t in before]
    linked = link(before, l_act, grads, False, None)
    return *_norm_backward(linked, dout, x, *block, True, [True, mask[1]]), *grads  # type: ignore[call-arg]


def _norm_backward(
    before: list[int], dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor,
    stats: Tensor, act: int, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    shape = _shape(x, weight, stride, padding)
    dout, x, weight = nhwc(dout), nhwc(x), weight.contiguous()
    norm = n_weight.contiguous(), n_bias.contiguous()
    need_dx, need_dw = mask
    dx, dw, db = _wanted([need_dx, need_dw, need_dw], x, weight, shape[3])
    d_norm = [torch.empty_like(t) if need_dw else None for t in norm]
    _C.depthwise_norm_bwd(
        x.dtype == torch.float64, shape, dout.data_ptr(), x.data_ptr(), y.data_ptr(), weight.data_ptr(),
        [norm[0].data_ptr(), norm[1].data_ptr(), 0, 0, stats.data_ptr(), *map(address, d_norm)], act, batch_stats,
        address(dx), address(dw), address(db), num_threads(), before,
    )  # fmt: skip
    return _or_empty(x, dx, dw, db, *d_norm)


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution."""
    x, weight, bias = nhwc(x), weight.contiguous(), flat(bias)
    n, c, h, w = x.shape
    y = empty_nhwc(x, weight.shape[0], h, w)
    _C.pointwise_conv2d_fwd(
        x.dtype == torch.float64, n * h * w, c, weight.shape[0], x.data_ptr(), weight.data_ptr(), address(bias),
        y.data_ptr(), num_threads(),
    )  # fmt: skip
    return y


def pointwise_conv2d_backward(dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias; those not in ``mask`` are empty."""
    dy, x, weight = nhwc(dy), nhwc(x), weight.contiguous()
    n, c, h, w = x.shape
    dx, dw, db = _wanted(mask, x, weight, weight.shape[0])
    _C.pointwise_conv2d_bwd(
        x.dtype == torch.float64, n * h * w, c, weight.shape[0], dy.data_ptr(), x.data_ptr(), weight.data_ptr(),
        address(dx), address(dw), address(db), num_threads(),
    )  # fmt: skip
    return _or_empty(x, dx, dw, db)


def _run(
    train: bool, batch_stats: bool, before: list[int], deferred: bool, x: Tensor, dw: Tensor, dw_bias: Tensor | None,
    n1_weight: Tensor | None, n1_bias: Tensor | None, n1_mean: Tensor | None, n1_var: Tensor | None,
    eps1: float, act1: int,
    pw: Tensor, pw_bias: Tensor | None,
    n2_weight: Tensor | None, n2_bias: Tensor | None, n2_mean: Tensor | None, n2_var: Tensor | None,
    eps2: float, act2: int,
    stride: list[int], padding: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shape = _shape(x, dw, stride, padding)
    x, dw, pw, dw_bias, pw_bias = nhwc(x), dw.contiguous(), pw.contiguous(), flat(dw_bias), flat(pw_bias)
    n1 = [flat(t) for t in (n1_weight, n1_bias, n1_mean, n1_var)]
    n2 = [flat(t) for t in (n2_weight, n2_bias, n2_mean, n2_var)]
    channels, outputs = shape[3], pw.shape[0]
    out = empty_nhwc(x, outputs, shape[4], shape[5])
    follows = not deferred and (n2[0] is not None or act2 != 0)
    y1 = y2 = stats1 = stats2 = out  # not written in inference
    keeps = train and not recomputes(dw_bias, n1_weight, act1, channels, shape[4], shape[5])
    if train:
        y1 = empty_nhwc(x, channels, shape[4], shape[5]) if keeps else x.new_empty(0)
        y2 = empty_nhwc(x, outputs, shape[4], shape[5]) if follows else x.new_empty(0)
        stats1 = x.new_empty((3, channels) if n1[0] is not None else 0)
        stats2 = x.new_empty((3, outputs) if n2[0] is not None or deferred else 0)
    _C.separable_conv2d_fwd(
        x.dtype == torch.float64, train, shape, outputs, x.data_ptr(), dw.data_ptr(), address(dw_bias),
        [*map(address, n1), stats1.data_ptr(), 0, 0], eps1, act1, pw.data_ptr(), address(pw_bias),
        [*map(address, n2), stats2.data_ptr(), 0, 0], eps2, act2, batch_stats, out.data_ptr(),
        y1.data_ptr() if keeps else 0, y2.data_ptr() if train and follows else 0, num_threads(), before,
    )  # fmt: skip
    return out, y1, y2, stats1, stats2


def separable_conv2d(*args: Any) -> Tensor:
    """Output with running statistics, in one pass; arguments as the op's."""
    return _run(False, False, NO_LINK, False, *args)[0]


def separable_conv2d_train(*args: Any) -> tuple[Tensor, ...]:
    """Output, y1, y2, statistics (3, C) and (3, O): mean, 1/sqrt(var + eps), unbiased variance.

    The statistics are empty without a norm, y1 where backward computes it again (see `recomputes`), y2 where nothing
    follows the pointwise convolution.
    """
    *block, batch_stats = args
    return _run(True, batch_stats, NO_LINK, False, *block)


def separable_conv2d_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of x; dw, its bias, norm1's two; pw, its bias, norm2's two. Those not asked for are empty."""
    return _backward(NO_LINK, False, True, *args)


def separable_conv2d_linked(
    x: Tensor, l_stats: Tensor | None, l_weight: Tensor | None, l_bias: Tensor | None, l_act: int, *block: Any
) -> tuple[Tensor, ...]:
    """As `separable_conv2d_train` of the normalised x; deferred, the first result is y2, and y2 is empty."""
    *args, deferred = block
    before = l_stats, flat(l_weight), flat(l_bias)
    return _run(True, True, link(before, l_act, (), deferred, None), deferred, x, *args)


def separable_conv2d_linked_backward(
    dout: Tensor, d_stats: Tensor | None, x: Tensor, l_stats: Tensor | None, l_weight: Tensor | None,
    l_bias: Tensor | None, l_act: int, y1: Tensor, y2: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients as `separable_conv2d_backward`, then those of l_stats, l_weight and l_bias."""
    *block, stats2, act2, stride, padding, deferred, mask = rest
    before = l_stats, flat(l_weight), flat(l_bias)
    grads = [torch.empty_like(t) for t in before if t is not None]
    if deferred:
        d_stats = torch.zeros_like(stats2) if d_stats is None else d_stats.contiguous()
    linked = link(before, l_act, grads, deferred, d_stats)
    results = _backward(  # type: ignore[call-arg]
        linked, deferred, mask[3], dout, x, y1, y2, *block, stats2, act2, stride, padding, True, mask[:3]
    )
    return *results, *(grads or (x.new_empty(0) for _ in range(3)))


def _backward(
    before: list[int], deferred: bool, biased: bool, dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor,
    dw: Tensor, n1_weight: Tensor | None, n1_bias: Tensor | None, stats1: Tensor, act1: int,
    pw: Tensor, n2_weight: Tensor | None, n2_bias: Tensor | None, stats2: Tensor, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    shape = _shape(x, dw, stride, padding)
    dout, x, dw, pw = nhwc(dout), nhwc(x), dw.contiguous(), pw.contiguous()
    norms = [flat(t) for t in (n1_weight, n1_bias, n2_weight, n2_bias)]
    need_dx, need_dw, need_pw = mask
    d_x, d_dw, d_dwb = _wanted([need_dx, need_dw, need_dw and biased], x, dw, shape[3])
    _, d_pw, d_pwb = _wanted([False, need_pw, need_pw and biased], x, pw, pw.shape[0])
    d_n = [torch.empty_like(t) if t is not None else None for t in norms]
    _C.separable_conv2d_bwd(
        x.dtype == torch.float64, shape, pw.shape[0], dout.data_ptr(), x.data_ptr(),
        y1.data_ptr() if y1.dim() == 4 else 0,
        y2.data_ptr() if deferred or n2_weight is not None or act2 else 0, dw.data_ptr(),
        [address(norms[0]), address(norms[1]), 0, 0, stats1.data_ptr(), address(d_n[0]), address(d_n[1])], act1,
        pw.data_ptr(),
        [address(norms[2]), address(norms[3]), 0, 0, stats2.data_ptr(), address(d_n[2]), address(d_n[3])], act2,
        batch_stats, address(d_x), address(d_dw), address(d_dwb), address(d_pw), address(d_pwb), num_threads(), before,
    )  # fmt: skip
    n1, n2 = (d_n[:2] if need_dw else [None, None]), (d_n[2:] if need_pw else [None, None])
    return _or_empty(x, d_x, d_dw, d_dwb, *n1, d_pw, d_pwb, *n2)
