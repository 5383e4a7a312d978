# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, flat, nhwc


def _units(w1: Tensor | None, w2: Tensor | None) -> int:
    """Hidden units, or taps of the convolution."""
    return 0 if w1 is None else w1.shape[2] if w2 is None else w1.shape[0]


def _run(
    train: bool,
    linked: _C.LinkedInputParams | None,
    x: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    act: int,
    gate_act: int,
    sw: Tensor | None,
    sb: Tensor | None,
    linear: bool,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    out = empty_nhwc(x, c, h // 2, w // 2) if pool else empty_nhwc(x, c, h, w)
    means = pixels = out  # not written in inference
    if train:
        means = x.new_empty((n, c) if w1 is not None else 0)
        pixels = x.new_empty((n, 1 if linear else 3, h, w) if sw is not None else 0)
    params = _C.GateParams(
        n=n,
        h=h,
        w=w,
        c=c,
        hidden=_units(w1, w2),
        act=act,
        gate_act=gate_act,
        linear=linear,
        pool=pool,
        x=nhwc(x),
        w1=flat(w1),
        b1=flat(b1),
        w2=flat(w2),
        b2=flat(b2),
        sw=flat(sw),
        sb=flat(sb),
        out=out,
        means=means,
        pixels=pixels,
        linked_input=linked,
        threads=num_threads(),
    )
    run = _C.gate_train if train else _C.gate_fwd
    run(x.dtype == torch.float64, params)
    return out, means, pixels


def gate(*args: Any) -> Tensor:
    """Output; arguments as the op's."""
    return _run(False, None, *args)[0]


def gate_train(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, the images' means (N, C), the pixels' values (N, 3 or 1, H, W); the last two empty where not used."""
    return _run(True, None, *args)


def gate_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of x; w1, b1, w2, b2; sw, sb. Those not asked for (x, channel, pixel side) or not there are empty."""
    return _backward(None, *args)


def gate_linked(
    x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *args: Any
) -> tuple[Tensor, ...]:
    """As `gate_train` of the normalised x; see `fastfer.backends.reference._linked`."""
    linked = _C.LinkedInputParams(weight=l_weight.contiguous(), bias=l_bias.contiguous(), stats=l_stats, act=l_act)
    return _run(True, linked, x, *args)


def gate_linked_backward(
    dout: Tensor, x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *rest: Any
) -> tuple[Tensor, ...]:
    """Gradients as `gate_backward`, then those of l_stats, l_weight and l_bias; x's is always computed."""
    *args, mask = rest
    weight, bias = l_weight.contiguous(), l_bias.contiguous()
    d_stats, d_weight, d_bias = torch.empty_like(l_stats), torch.empty_like(weight), torch.empty_like(bias)
    linked = _C.LinkedInputParams(
        weight=weight, bias=bias, stats=l_stats, act=l_act, d_weight=d_weight, d_bias=d_bias, d_stats=d_stats
    )
    results = _backward(linked, dout, x, *args, [True, *mask[1:]])  # type: ignore[call-arg]
    return *results, d_stats, d_weight, d_bias


def _backward(
    linked: _C.LinkedInputParams | None,
    dout: Tensor,
    x: Tensor,
    means: Tensor,
    pixels: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    act: int,
    gate_act: int,
    sw: Tensor | None,
    sb: Tensor | None,
    linear: bool,
    pool: bool,
    mask: list[bool],
) -> tuple[Tensor, ...]:
    need_dx, need_channel, need_pixel = mask
    (n, c, h, w), units = x.shape, _units(w1, w2)
    w1, b1, w2, b2, sw, sb = flat(w1), flat(b1), flat(w2), flat(b2), flat(sw), flat(sb)
    d_w1, d_b1, d_w2, d_b2 = (torch.empty_like(t) if need_channel and t is not None else None for t in (w1, b1, w2, b2))
    d_sw, d_sb = (torch.empty_like(t) if need_pixel and t is not None else None for t in (sw, sb))
    dx = empty_nhwc(x, c, h, w) if need_dx else None
    params = _C.GateParams(
        n=n,
        h=h,
        w=w,
        c=c,
        hidden=units,
        act=act,
        gate_act=gate_act,
        linear=linear,
        pool=pool,
        x=nhwc(x),
        w1=w1,
        b1=b1,
        w2=w2,
        b2=b2,
        sw=sw,
        sb=sb,
        means=means,
        pixels=pixels,
        dout=nhwc(dout),
        dx=dx,
        d_w1=d_w1,
        d_b1=d_b1,
        d_w2=d_w2,
        d_b2=d_b2,
        d_sw=d_sw,
        d_sb=d_sb,
        linked_input=linked,
        threads=num_threads(),
    )
    _C.gate_bwd(x.dtype == torch.float64, params)
    grads = (dx, d_w1, d_b1, d_w2, d_b2, d_sw, d_sb)
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)
