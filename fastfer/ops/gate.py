# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and on pixels: squeeze-and-excitation, ECA, CSA, its pixel part alone, and scSE, one op for all.

Evaluation without gradients reads x twice, the second time from the cache where an image fits, and writes the output
(with ``pool`` a quarter of it: the product before the maximum is never written). Training keeps x, and of each image
C means and of each pixel 3 values (scSE: 1); backward computes the gates, and with ``pool`` the product, again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _library

_FAMILY = "gate"
_CL = torch.channels_last
_ARGS = (
    "Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, int act, int gate_act, Tensor? sw, Tensor? sb, bool linear, "
    "bool pool"
)
_SIGMOID = _checks.ACTIVATIONS.index("sigmoid")


def _fake_gate(x: Tensor, *rest: Any) -> Tensor:
    n, c, h, w = x.shape
    size = (n, c, h // 2, w // 2) if rest[9] else (n, c, h, w)
    return x.new_empty(size).contiguous(memory_format=_CL)


def _fake_gate_train(x: Tensor, w1: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    sw, linear = rest[5], rest[7]
    means = x.new_empty((n, c) if w1 is not None else 0)
    pixels = x.new_empty((n, 1 if linear else 3, h, w) if sw is not None else 0)
    return _fake_gate(x, w1, *rest), means, pixels


def _fake_gate_backward(
    dout: Tensor, x: Tensor, means: Tensor, pixels: Tensor,
    w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int, gate_act: int,
    sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    grads = [torch.empty_like(x, memory_format=_CL) if mask[0] else x.new_empty(0)]
    for wanted, param in ((mask[1], w1), (mask[1], b1), (mask[1], w2), (mask[1], b2), (mask[2], sw), (mask[2], sb)):
        grads.append(torch.empty_like(param) if wanted and param is not None else x.new_empty(0))
    return tuple(grads)


_gate = _library.define_flat(f"gate(Tensor x, {_ARGS}) -> Tensor", _FAMILY, _fake_gate)
_gate_train = _library.define_flat(
    f"gate_train(Tensor x, {_ARGS}) -> (Tensor, Tensor, Tensor)", _FAMILY, _fake_gate_train
)
_gate_backward = _library.define_flat(
    f"gate_backward(Tensor dout, Tensor x, Tensor means, Tensor pixels, {_ARGS}, bool[3] mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_gate_backward,
)  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w1, b1, w2, b2, ctx.act, ctx.gate_act, sw, sb, ctx.linear, ctx.pool = inputs
    ctx.save_for_backward(x, *output[1:], w1, b1, w2, b2, sw, sb)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return _library.placed(ctx.needs_input_grad)
    *saved, sw, sb = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [needs[0], any(needs[1:5]), any(needs[7:9])]
    grads = _gate_backward(dout, *saved, ctx.act, ctx.gate_act, sw, sb, ctx.linear, ctx.pool, mask)
    return _library.placed(needs, (0, 1, 2, 3, 4, 7, 8), grads)


_library.autograd_flat(_gate_train, _setup, _grad)
for _op in (_gate, _gate_train):
    _library.autocast_flat(_op, "x")


def _run(*args: Any) -> Tensor:
    differentiable = _library.gradients_on() and any(t.requires_grad for t in args if isinstance(t, Tensor))
    out: Tensor = _gate_train(*args)[0] if differentiable else _gate(*args)
    return out


def _check_input(op: str, x: Tensor, least: int = 1) -> None:
    _checks.image(op, "x", x)
    if x.shape[1] == 0 or min(x.shape[2:]) < least:
        raise ValueError(f"{op}: x: expected C >= 1, H and W >= {least}, got shape {tuple(x.shape)}")


def _check_mlp(op: str, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    channels = x.shape[1]
    hidden = w1.shape[0] if _checks.is_tensor(op, "w1", w1).dim() else 0
    if hidden == 0:
        raise ValueError(f"{op}: w1: expected shape (H, {channels}), got {tuple(w1.shape)}")
    for name, weight, shape in (("w1", w1, (hidden, channels)), ("w2", w2, (channels, hidden))):
        square = _checks.is_tensor(op, name, weight).dim() == 4
        _checks.like(op, name, weight, x, (*shape, 1, 1) if square else shape)
    _checks.like(op, "b1", b1, x, (hidden,))
    _checks.like(op, "b2", b2, x, (channels,))


def _check_conv(op: str, x: Tensor, name: str, weight: Tensor) -> None:
    size = weight.shape[-1] if _checks.is_tensor(op, name, weight).dim() else 0
    if size % 2 == 0:
        raise ValueError(f"{op}: {name}: expected shape (1, 1, K) with K odd, got {tuple(weight.shape)}")
    _checks.like(op, name, weight, x, (1, 1, size))


def squeeze_excite(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *, act: str | None = "relu", gate: str = "hardsigmoid"
) -> Tensor:
    """x · gate(w2 · act(w1 · mean_hw x + b1) + b2): (N, C, H, W) -> the same shape, channels_last.

    x is float32 or float64; w1 (H, C) and w2 (C, H), or the same as 1×1 convolutions (.., .., 1, 1), b1 (H,), b2 (C,),
    H hidden units; ``gate`` is an activation's name. Raises TypeError or ValueError naming the argument.
    Source: Hu et al. 2018, eq. 2-4; Howard et al. 2019, section 5.3 (hard-sigmoid).
    """
    op = "squeeze_excite"
    _check_input(op, x)
    _check_mlp(op, x, w1, b1, w2, b2)
    codes = _checks.act_code(op, act), _checks.act_code(op, gate, "gate")
    return _run(x, w1, b1, w2, b2, *codes, None, None, False, False)


def eca(x: Tensor, weight: Tensor) -> Tensor:
    """x · sigmoid(convolution of mean_hw x over the channels): (N, C, H, W) -> the same shape, channels_last.

    x is float32 or float64; weight (1, 1, K), K odd, zeros beside the channels, no bias. Raises TypeError or ValueError
    naming the argument. Source: Wang et al. 2020, eq. 9.
    """
    _check_input("eca", x)
    _check_conv("eca", x, "weight", weight)
    return _run(x, weight, None, None, None, 0, _SIGMOID, None, None, False, False)


def check_csa(x: Tensor, channel_weight: Tensor, spatial_weight: Tensor, spatial_bias: Tensor, pool: bool) -> None:
    """Errors that name the argument of `csa`."""
    _check_input("csa", x, 2 if pool else 1)
    _check_conv("csa", x, "channel_weight", channel_weight)
    _checks.like("csa", "spatial_weight", spatial_weight, x, (1, 2, 1, 1))
    _checks.like("csa", "spatial_bias", spatial_bias, x, (1,))


def csa(
    x: Tensor, channel_weight: Tensor, spatial_weight: Tensor, spatial_bias: Tensor, *, pool: bool = False
) -> Tensor:
    """x · (eca gate + sigmoid(spatial_weight · [max_c x; mean_c x] + spatial_bias)): (N, C, H, W), channels_last.

    x is float32 or float64; channel_weight (1, 1, K) as `eca`, spatial_weight (1, 2, 1, 1), the maximum's first,
    spatial_bias (1,). ``pool`` adds the 2×2 maximum, stride 2: -> (N, C, H // 2, W // 2); among equals the first, row
    by row, gets the gradient. Raises TypeError or ValueError naming the argument. Source: light VGG16, eq. 1-4.
    """
    check_csa(x, channel_weight, spatial_weight, spatial_bias, pool)
    return _run(x, channel_weight, None, None, None, 0, _SIGMOID, spatial_weight, spatial_bias, False, bool(pool))


def sa(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x · sigmoid(weight · [max_c x; mean_c x] + bias), the spatial part of `csa`: -> the same shape, channels_last.

    x (N, C, H, W) float32 or float64, weight (1, 2, 1, 1), the maximum's first, bias (1,). Raises TypeError or
    ValueError naming the argument. Source: light VGG16, eq. 2.
    """
    _check_input("sa", x)
    _checks.like("sa", "weight", weight, x, (1, 2, 1, 1))
    _checks.like("sa", "bias", bias, x, (1,))
    return _run(x, None, None, None, None, 0, _SIGMOID, weight, bias, False, False)


def scse(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, spatial_weight: Tensor, spatial_bias: Tensor
) -> Tensor:
    """x · (sigmoid(w2 · relu(w1 · mean_hw x + b1) + b2) + sigmoid(spatial_weight · x + spatial_bias)), as it came.

    x (N, C, H, W) float32 or float64; w1, b1, w2, b2 as `squeeze_excite`; spatial_weight (1, C, 1, 1), spatial_bias
    (1,). The two are added, as in the first publication and as CSA does after it; a later version of the paper also
    tries the maximum. Returns the same shape, channels_last. Raises TypeError or ValueError naming the argument.
    Source: Roy et al. 2018 (MICCAI), section 2.
    """
    _check_input("scse", x)
    _check_mlp("scse", x, w1, b1, w2, b2)
    _checks.like("scse", "spatial_weight", spatial_weight, x, (1, x.shape[1], 1, 1))
    _checks.like("scse", "spatial_bias", spatial_bias, x, (1,))
    relu = _checks.ACTIVATIONS.index("relu")
    return _run(x, w1, b1, w2, b2, relu, _SIGMOID, spatial_weight, spatial_bias, True, False)
