# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import NO_LINK, address, addresses, empty_nhwc, flat, link, nhwc


def _shape(x: Tensor, w1: Tensor | None, w2: Tensor | None, *codes: int) -> list[int]:
    """n, h, w, c, hidden units or taps, act, gate_act, linear, pool."""
    n, c, h, w = x.shape
    units = 0 if w1 is None else w1.shape[2] if w2 is None else w1.shape[0]
    return [n, h, w, c, units, *codes]


def _run(
    train: bool, before: list[int], x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor | None,
    b2: Tensor | None, act: int, gate_act: int, sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, params = nhwc(x), [flat(t) for t in (w1, b1, w2, b2, sw, sb)]
    n, c, h, w = x.shape
    out = empty_nhwc(x, c, h // 2, w // 2) if pool else empty_nhwc(x, c, h, w)
    means = pixels = out  # not written in inference
    if train:
        means = x.new_empty((n, c) if w1 is not None else 0)
        pixels = x.new_empty((n, 1 if linear else 3, h, w) if sw is not None else 0)
    _C.gate_fwd(
        x.dtype == torch.float64, train, _shape(x, w1, w2, act, gate_act, linear, pool), x.data_ptr(),
        addresses(*params), out.data_ptr(), means.data_ptr(), pixels.data_ptr(), num_threads(), before,
    )  # fmt: skip
    return out, means, pixels


def gate(*args: Any) -> Tensor:
    """Output; arguments as the op's."""
    return _run(False, NO_LINK, *args)[0]


def gate_train(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, the images' means (N, C), the pixels' values (N, 3 or 1, H, W); the last two empty where not used."""
    return _run(True, NO_LINK, *args)


def gate_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of x; w1, b1, w2, b2; sw, sb. Those not asked for (x, channel, pixel side) or not there are empty."""
    return _backward(NO_LINK, *args)


def gate_linked(
    x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *args: Any
) -> tuple[Tensor, ...]:
    """As `gate_train` of the normalised x; see `fastfer.backends.reference._linked`."""
    before = l_stats, l_weight.contiguous(), l_bias.contiguous()
    return _run(True, link(before, l_act, (), False, None), x, *args)


def gate_linked_backward(
    dout: Tensor, x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *rest: Any
) -> tuple[Tensor, ...]:
    """Gradients as `gate_backward`, then those of l_stats, l_weight and l_bias; x's is always computed."""
    *args, mask = rest
    before = l_stats, l_weight.contiguous(), l_bias.contiguous()
    grads = [torch.empty_like(t) for t in before]
    before_link = link(before, l_act, grads, False, None)
    results = _backward(before_link, dout, x, *args, [True, *mask[1:]])  # type: ignore[call-arg]
    return *results, *grads


def _backward(
    before: list[int], dout: Tensor, x: Tensor, means: Tensor, pixels: Tensor,
    w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int, gate_act: int,
    sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    dout, x, params = nhwc(dout), nhwc(x), [flat(t) for t in (w1, b1, w2, b2, sw, sb)]
    sides = (mask[1], mask[1], mask[1], mask[1], mask[2], mask[2])
    grads = [torch.empty_like(t) if wanted and t is not None else None for wanted, t in zip(sides, params, strict=True)]
    dx = empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3]) if mask[0] else None
    _C.gate_bwd(
        x.dtype == torch.float64, _shape(x, w1, w2, act, gate_act, linear, pool), dout.data_ptr(), x.data_ptr(),
        means.data_ptr(), pixels.data_ptr(), addresses(*params), address(dx), addresses(*grads),
        num_threads(), before,
    )  # fmt: skip
    return tuple(x.new_empty(0) if grad is None else grad for grad in (dx, *grads))
