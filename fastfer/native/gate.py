# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.native.memory import address, addresses, empty_nhwc, flat, nhwc


def _shape(x: Tensor, w1: Tensor | None, w2: Tensor | None, *codes: int) -> list[int]:
    """n, h, w, c, hidden units or taps, act, gate_act, linear, pool."""
    n, c, h, w = x.shape
    units = 0 if w1 is None else w1.shape[2] if w2 is None else w1.shape[0]
    return [n, h, w, c, units, *codes]


def _run(
    train: bool, x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int,
    gate_act: int, sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool,
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
        addresses(*params), out.data_ptr(), means.data_ptr(), pixels.data_ptr(), num_threads(),
    )  # fmt: skip
    return out, means, pixels


def gate(*args: Any) -> Tensor:
    """Output; arguments as the op's."""
    return _run(False, *args)[0]


def gate_train(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, the images' means (N, C), the pixels' values (N, 3 or 1, H, W); the last two empty where not used."""
    return _run(True, *args)


def gate_backward(
    dout: Tensor, x: Tensor, means: Tensor, pixels: Tensor,
    w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int, gate_act: int,
    sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2; sw, sb. Those not asked for (x, channel, pixel side) or not there are empty."""
    dout, x, params = nhwc(dout), nhwc(x), [flat(t) for t in (w1, b1, w2, b2, sw, sb)]
    sides = (mask[1], mask[1], mask[1], mask[1], mask[2], mask[2])
    grads = [torch.empty_like(t) if wanted and t is not None else None for wanted, t in zip(sides, params, strict=True)]
    dx = empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3]) if mask[0] else None
    _C.gate_bwd(
        x.dtype == torch.float64, _shape(x, w1, w2, act, gate_act, linear, pool), dout.data_ptr(), x.data_ptr(),
        means.data_ptr(), pixels.data_ptr(), addresses(*params), address(dx), addresses(*grads),
        num_threads(),
    )  # fmt: skip
    return tuple(x.new_empty(0) if grad is None else grad for grad in (dx, *grads))
