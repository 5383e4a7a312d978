# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with fused normalisation and activation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastfer import _checks
from fastfer.ops.norm import Norm, check_batch, check_norm
from fastfer.reference import elementwise
from fastfer.reference.conv2d import conv2d as _conv2d
from fastfer.reference.norm import batch_norm as _batch_norm

BACKENDS = ("reference",)


def _check_weight(op: str, x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """(O, KH, KW) of a weight that fits ``x``."""
    _checks.is_tensor(op, "weight", weight)
    if weight.dim() != 4 or 0 in weight.shape[2:]:
        raise ValueError(f"{op}: weight: expected shape (O, C, KH, KW), got {tuple(weight.shape)}")
    _checks.image(op, "x", x, weight.shape[1])
    _checks.like(op, "weight", weight, x, weight.shape)
    return weight.shape[0], weight.shape[2], weight.shape[3]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    act: str | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    training: bool = False,
) -> Tensor:
    """act(norm(convolution(x) + bias)): x (N, C, H, W), weight (O, C, KH, KW) -> (N, O, OH, OW), channels_last.

    float32 or float64; bias (O,); stride an int or (vertical, horizontal); padding zeros as an int,
    (vertical, horizontal) or (top, left, bottom, right); norm a `Norm` or None, ``training`` as in `batch_norm`.
    Raises TypeError or ValueError naming the argument.
    """
    op = "conv2d"
    _checks.image(op, "x", x)
    out, kh, kw = _check_weight(op, x, weight)
    if bias is not None:
        _checks.like(op, "bias", bias, x, (out,))
    strides, pads = _checks.pair(op, "stride", stride), _checks.padding4(op, padding)
    code = _checks.act_code(op, act)
    height = _checks.out_size(op, x.shape[2], pads[0], pads[2], kh, strides[0], "height")
    width = _checks.out_size(op, x.shape[3], pads[1], pads[3], kw, strides[1], "width")
    if norm is None:
        y = _conv2d(x, weight, bias, strides, pads)
        return elementwise.apply(y, code) if code else y
    check_norm(op, "norm", norm, x, out)
    if training:
        check_batch(op, (x.shape[0], out, height, width))
    return _batch_norm(_conv2d(x, weight, bias, strides, pads), *norm, code, training)
