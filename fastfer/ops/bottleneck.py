# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck: expansion, depthwise convolution and projection, each with its norm, as one op.

Evaluation without gradients is one pass over the activations. Training keeps x, the depthwise and the projection's
output before their norms (4 bytes an element of each in float32), 3 statistics a channel, and on a CPU with batch
statistics the covariance of the expansion with x: 4 bytes for each of the expansion's weights. The expansion, the
largest activation of a network made of these blocks, is not kept, and natively neither it nor its gradient is ever in
memory: its statistics follow from mean and covariance of x, and backward computes its rows again while they are in
cache. On a GPU it is, for as long as the op runs: backward computes it again with one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.ops.norm import Norm, check_batch, check_norm, update_running

_FAMILY = "bottleneck"
_CL = torch.channels_last
_ARGS = (
    "Tensor x, Tensor expand, Tensor n1_weight, Tensor n1_bias, Tensor n1_mean, Tensor n1_var, float eps1, "
    "Tensor dw, Tensor n2_weight, Tensor n2_bias, Tensor n2_mean, Tensor n2_var, float eps2, "
    "Tensor? project, Tensor? n3_weight, Tensor? n3_bias, Tensor? n3_mean, Tensor? n3_var, float eps3, "
    "int act, bool residual, int[2] stride, int[4] padding"
)
_LEAVES = (0, 1, 2, 3, 7, 8, 9, 13, 14, 15)
"""Places of x and the parameters among the arguments, in the order of their gradients."""


def pays(channels: int) -> bool:
    """Whether one op trains faster than the expansion, then the others: ``channels`` of x are few.

    Computing the expansion again then takes less time than writing and reading it and its gradient. Of the blocks of
    MobileNetV3, forward and backward, those of 16 to 40 channels take 0.75 to 0.87 of the time, of 80 as long, of 112
    1.05 of it.
    """
    return channels <= 64


def _image(x: Tensor, channels: int, height: Any, width: Any) -> Tensor:
    return x.new_empty((x.shape[0], channels, height, width)).contiguous(memory_format=_CL)


def _fake_train(
    x: Tensor, expand: Tensor, w1: Tensor, b1: Tensor, m1: Tensor, v1: Tensor, eps1: float, dw: Tensor,
    w2: Tensor, b2: Tensor, m2: Tensor, v2: Tensor, eps2: float, project: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    stride, padding, batch_stats = rest[-3:]
    height = (x.shape[2] + padding[0] + padding[2] - dw.shape[2]) // stride[0] + 1
    width = (x.shape[3] + padding[1] + padding[3] - dw.shape[3]) // stride[1] + 1
    hidden = dw.shape[0]
    y1 = _image(x, hidden, height, width)
    out = torch.empty_like(y1) if project is None else _image(x, project.shape[0], height, width)
    y2 = x.new_empty(0) if project is None else torch.empty_like(out)
    covariance = x.new_empty((hidden + 1, x.shape[1]) if batch_stats and x.device.type == "cpu" else 0)
    stats3 = x.new_empty(0 if project is None else (3, project.shape[0]))
    return out, y1, y2, covariance, x.new_empty((3, hidden)), x.new_empty((3, hidden)), stats3


def _fake(*args: Any) -> Tensor:
    return _fake_train(*args, False)[0]


def _fake_backward(
    dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor, covariance: Tensor, expand: Tensor, w1: Tensor, b1: Tensor,
    stats1: Tensor, dw: Tensor, w2: Tensor, b2: Tensor, stats2: Tensor,
    project: Tensor | None, w3: Tensor | None, b3: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    need_dx, need_params = rest[-1]
    nothing = x.new_empty(0)
    params = (expand, w1, b1, dw, w2, b2, project, w3, b3)
    return (
        _image(x, x.shape[1], x.shape[2], x.shape[3]) if need_dx else nothing,
        *(x.new_empty(t.shape if need_params and t is not None else 0) for t in params),
    )


_inverted_bottleneck = _library.define(f"inverted_bottleneck({_ARGS}) -> Tensor", _FAMILY, _fake)
_inverted_bottleneck_train = _library.define(
    f"inverted_bottleneck_train({_ARGS}, bool batch_stats)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_train, stored=3,
)  # fmt: skip
_inverted_bottleneck_backward = _library.define(
    "inverted_bottleneck_backward(Tensor dout, Tensor x, Tensor y1, Tensor y2, Tensor covariance, "
    "Tensor expand, Tensor n1_weight, Tensor n1_bias, Tensor stats1, "
    "Tensor dw, Tensor n2_weight, Tensor n2_bias, Tensor stats2, "
    "Tensor? project, Tensor? n3_weight, Tensor? n3_bias, Tensor stats3, "
    "int act, bool residual, int[2] stride, int[4] padding, bool batch_stats, bool[2] mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_backward,
)  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, expand, w1, b1, _, _, _, dw, w2, b2, _, _, _, project, w3, b3, _, _, _, *ctx.options = inputs
    _, y1, y2, covariance, stats1, stats2, stats3 = output
    ctx.save_for_backward(
        x, y1, y2, covariance, expand, w1, b1, stats1, dw, w2, b2, stats2, project, w3, b3, stats3
    )  # fmt: skip
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return _library.placed(ctx.needs_input_grad)
    needs = ctx.needs_input_grad
    mask = [needs[0], any(needs[i] for i in _LEAVES[1:])]
    grads = _inverted_bottleneck_backward(dout, *ctx.saved_tensors, *ctx.options, mask)
    return _library.placed(needs, _LEAVES, grads)


_library.autograd(_inverted_bottleneck_train, _setup, _grad)
for _op in (_inverted_bottleneck, _inverted_bottleneck_train):
    _library.autocast(_op, "x", lower=True)


def _check_weights(
    op: str, x: Tensor, expand: Tensor, dw: Tensor, project: Tensor | None, strides: list[int], pads: list[int]
) -> tuple[int, int]:
    """Height and width of the output."""
    _checks.is_tensor(op, "expand_weight", expand)
    if expand.dim() != 4 or tuple(expand.shape[1:]) != (x.shape[1], 1, 1) or 0 in expand.shape:
        raise ValueError(f"{op}: expand_weight: expected shape (E, {x.shape[1]}, 1, 1), got {tuple(expand.shape)}")
    _checks.like(op, "expand_weight", expand, x, expand.shape)
    hidden = expand.shape[0]
    _checks.is_tensor(op, "dw_weight", dw)
    if dw.dim() != 4 or tuple(dw.shape[:2]) != (hidden, 1) or 0 in dw.shape:
        raise ValueError(f"{op}: dw_weight: expected shape ({hidden}, 1, KH, KW), got {tuple(dw.shape)}")
    _checks.like(op, "dw_weight", dw, x, dw.shape)
    if project is not None:
        _checks.is_tensor(op, "project_weight", project)
        if project.dim() != 4 or tuple(project.shape[1:]) != (hidden, 1, 1) or project.shape[0] == 0:
            raise ValueError(f"{op}: project_weight: expected shape (O, {hidden}, 1, 1), got {tuple(project.shape)}")
        _checks.like(op, "project_weight", project, x, project.shape)
    return (
        _checks.out_size(op, x.shape[2], pads[0], pads[2], dw.shape[2], strides[0], "height"),
        _checks.out_size(op, x.shape[3], pads[1], pads[3], dw.shape[3], strides[1], "width"),
    )


def inverted_bottleneck(
    x: Tensor, expand_weight: Tensor, norm1: Norm, dw_weight: Tensor, norm2: Norm,
    project_weight: Tensor | None = None, norm3: Norm | None = None, *, act: str | None = None,
    stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0, residual: bool = False, training: bool = False,
) -> Tensor:  # fmt: skip
    """norm3(project(a)) (+ x with ``residual``), a = act(norm2(depthwise(act(norm1(expand(x)))))); a without project.

    x (N, C, H, W) float32 or float64; expand_weight (E, C, 1, 1), dw_weight (E, 1, KH, KW), project_weight
    (O, E, 1, 1) with norm3, or None where an attention follows a; each norm a `Norm`; stride and padding as
    `depthwise_conv2d`. ``residual`` needs the output's shape to be x's. With ``training`` the norms use the statistics
    of this batch and update their running ones in place (unbiased variance, momentum), else the running ones are
    constants. Returns channels_last (N, O or E, OH, OW). Raises TypeError or ValueError naming the argument, and
    ValueError for one value per channel in training.
    Source: Sandler et al. 2018, section 3.3; Ioffe and Szegedy 2015.
    """
    op = "inverted_bottleneck"
    _checks.image(op, "x", x)
    strides, pads = _checks.pair(op, "stride", stride), _checks.padding4(op, padding)
    height, width = _check_weights(op, x, expand_weight, dw_weight, project_weight, strides, pads)
    hidden, outputs = expand_weight.shape[0], project_weight.shape[0] if project_weight is not None else 0
    check_norm(op, "norm1", norm1, x, hidden)
    check_norm(op, "norm2", norm2, x, hidden)
    if (norm3 is None) != (project_weight is None):
        expected = "a Norm with" if norm3 is None else "None without"
        raise ValueError(f"{op}: norm3: expected {expected} project_weight, got {norm3}")
    if norm3 is not None:
        check_norm(op, "norm3", norm3, x, outputs)
    if residual and (outputs, height, width) != tuple(x.shape[1:]):
        got = (outputs or hidden, height, width)
        raise ValueError(f"{op}: residual: expected a projection of x's shape {tuple(x.shape[1:])}, got {got}")
    args = (
        x, expand_weight, *norm1[:4], norm1.eps, dw_weight, *norm2[:4], norm2.eps,
        project_weight, *(norm3[:4] if norm3 else (None,) * 4), norm3.eps if norm3 else 0.0,
        _checks.act_code(op, act), residual, strides, pads,
    )  # fmt: skip
    out: Tensor
    if not training and not (
        torch.is_grad_enabled() and any(args[i] is not None and args[i].requires_grad for i in _LEAVES)
    ):
        out = _inverted_bottleneck(*args)
        return out
    if training:
        check_batch(op, x.shape)
        check_batch(op, (x.shape[0], hidden, height, width))
    out, _, _, _, *stats = _inverted_bottleneck_train(*args, training)
    if training and out.numel():
        for norm, of_batch in zip((norm1, norm2, norm3), stats, strict=True):
            update_running(norm, of_batch)
    return out
