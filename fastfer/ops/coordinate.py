# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention (CA, MAXCA, CPSCA) as one op, and the pooling of rows and columns that it starts with.

Evaluation without gradients reads x twice, the second time from the cache, and writes the output. Training keeps x and,
for each of the N·(H + W) rows and columns, the C pooled values, C places of maxima ("ca": none), M values before the
norm and C gates: 3·C + M elements a position, for 14×14 images 3/7 of the bytes of x. Backward reads x once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.ops.norm import Norm, running_norm, update_running
from fastfer.signatures.coordinate import (
    Coordinate,
    CoordinateBackward,
    CoordinateGradients,
    CoordinateTrain,
    CoordinateTrained,
    LinePool,
    LinePoolBackward,
    LinePooled,
)

KINDS = ("ca", "maxca", "cpsca")
"""What rows and columns are pooled by: mean, maximum, or both crosswise; the index is the code kernels receive."""


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _last(x: Tensor, length: Any) -> Tensor:
    """(N, C, length), its channels adjoining."""
    return x.new_empty((x.shape[0], length, x.shape[1])).transpose(1, 2)


def _fake_pool(a: LinePool) -> LinePooled:
    x, height, width = a.x, a.x.shape[2], a.x.shape[3]
    return LinePooled(_last(x, height), _last(x, height), _last(x, width), _last(x, width))


def _fake(a: Coordinate | LinePoolBackward) -> Tensor:
    return _like(a.x)


def _fake_train(a: CoordinateTrain) -> CoordinateTrained:
    x, block = a.block.x, a.block
    n, c, h, w = x.shape
    positions, middle = n * (h + w), block.weight.shape[0]
    pooled = x.new_empty((positions, c))
    at = torch.empty_like(pooled) if block.kind else x.new_empty(0)
    y, stats = x.new_empty((positions, middle)), x.new_empty((3, middle))
    return CoordinateTrained(_like(x), pooled, at, y, torch.empty_like(pooled), stats)


def _fake_backward(a: CoordinateBackward) -> CoordinateGradients:
    middle, channels = a.weight.shape[:2]

    def like(t: Tensor) -> Tensor:
        return torch.empty_like(t) if a.needs.params else t.new_empty(0)

    def vector(size: Any) -> Tensor:
        return a.x.new_empty(size if a.needs.params else 0)

    return CoordinateGradients(
        d_x=_like(a.x) if a.needs.x else a.x.new_empty(0),
        d_weight=like(a.weight),
        d_bias=vector(middle),
        d_norm_weight=vector(middle),
        d_norm_bias=vector(middle),
        d_h_weight=like(a.h_weight),
        d_h_bias=vector(channels),
        d_w_weight=like(a.w_weight),
        d_w_bias=vector(channels),
    )


_pool = _library.define("cpsca_pool", "coordinate", LinePool, LinePooled, _fake_pool)
_pool_backward = _library.define("cpsca_pool_backward", "coordinate", LinePoolBackward, Tensor, _fake)
_attention = _library.define("coordinate_attention", "coordinate", Coordinate, Tensor, _fake)
_attention_train = _library.define(
    "coordinate_attention_train", "coordinate", CoordinateTrain, CoordinateTrained, _fake_train
)
_attention_backward = _library.define(
    "coordinate_attention_backward", "coordinate", CoordinateBackward, CoordinateGradients, _fake_backward
)
_library.autograd(_pool, _pool_backward)
_library.autograd(_attention_train, _attention_backward)
for _op in (_pool, _attention, _attention_train):
    _library.autocast(_op)


def _check_input(op: str, x: Tensor) -> None:
    _checks.image(op, "x", x)
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x: expected C, H and W >= 1, got shape {tuple(x.shape)}")


def kind_code(op: str, kind: str) -> int:
    """Code of a pooling's name."""
    if kind not in KINDS:
        raise ValueError(f"{op}: kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS.index(kind)


def cpsca_pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and maximum of each row and of each column: x (N, C, H, W) -> (N, C, H) twice, then (N, C, W) twice.

    x is float32 or float64; the results' channels adjoin in memory. A maximum's gradient goes to its first place, as
    that of ``torch.max(x, dim)``. Raises TypeError or ValueError naming the argument.
    Source: improved MobileNetV3, section 3.2.
    """
    _check_input("cpsca_pool", x)
    pooled = _pool(LinePool(x))
    return pooled.row_mean, pooled.row_max, pooled.col_mean, pooled.col_max


def coordinate_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Norm,
    h_weight: Tensor,
    h_bias: Tensor,
    w_weight: Tensor,
    w_bias: Tensor,
    *,
    kind: str = "ca",
    act: str | None = "hardswish",
    training: bool = False,
) -> Tensor:
    """x · g_h · g_w, gates of rows and columns, as one op with one backward: (N, C, H, W) -> the same, channels_last.

    The H rows and W columns of an image are pooled and go through one 1×1 convolution, weight (M, C, 1, 1) and bias
    (M,), norm and act; then the rows through h_weight (C, M, 1, 1) and h_bias (C,), the columns through w_weight and
    w_bias, and sigmoid. ``kind`` "ca" pools by the mean, "maxca" by the maximum; "cpsca" sends [row mean; column max]
    and [row max; column mean] through the convolution and adds them before the norm, so that bias counts twice.
    With ``training`` the norm takes the statistics of the N·(H + W) positions and updates its running ones in place.
    Raises TypeError or ValueError naming the argument.
    Source: Hou et al. 2021, eq. 4-9; improved MobileNetV3, section 3.2.
    """
    op = "coordinate_attention"
    _check_input(op, x)
    channels = x.shape[1]
    if _checks.is_tensor(op, "weight", weight).dim() != 4 or weight.shape[0] == 0:
        raise ValueError(f"{op}: weight: expected shape (M, {channels}, 1, 1), got {tuple(weight.shape)}")
    middle = weight.shape[0]
    _checks.like(op, "weight", weight, x, (middle, channels, 1, 1))
    _checks.like(op, "bias", bias, x, (middle,))
    running = running_norm(op, "norm", norm, x, middle)
    for name, matrix, vector in (("h", h_weight, h_bias), ("w", w_weight, w_bias)):
        _checks.like(op, f"{name}_weight", matrix, x, (channels, middle, 1, 1))
        _checks.like(op, f"{name}_bias", vector, x, (channels,))
    block = Coordinate(
        x=x,
        weight=weight,
        bias=bias,
        norm=running,
        act=_checks.act_code(op, act),
        h_weight=h_weight,
        h_bias=h_bias,
        w_weight=w_weight,
        w_bias=w_bias,
        kind=kind_code(op, kind),
    )
    if not training and not _attention.needs_gradient(block):
        return _attention(block)
    trained = _attention_train(CoordinateTrain(block, training))
    if training and x.shape[0]:
        update_running(norm, trained.stats)
    return trained.out
