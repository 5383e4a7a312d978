# SPDX-License-Identifier: Apache-2.0
"""Convolutional block attention: the channel gate, the spatial gate, and both one after the other, each as one op.

out = x · g · s with g (N, C) from the poolings of x over pixels, s (N, H, W) from those of x · g over channels.
Saved for backward, in float32: x, 16 bytes a channel of an image (mean, maximum and its pixel, g) and 16 a pixel
(maximum and its channel, mean, convolution): at 8 channels of 48×48 half of x, at 128 of 6×6 a tenth. x · g, its
gradient and the gates' planes of gradients are recomputed: backward reads x and the output's gradient twice, the second
time (and without batch statistics the first) image by image in cache, and writes dx.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.ops.norm import Norm, check_batch, check_norm, update_running

_FAMILY = "cbam"
_CL = torch.channels_last
_MLP = "Tensor w1, Tensor b1, Tensor w2, Tensor b2"
_SPATIAL = "Tensor weight, Tensor n_weight, Tensor n_bias, Tensor n_mean, Tensor n_var, float eps"


def _image(x: Tensor) -> Tensor:
    return x.new_empty(x.shape).contiguous(memory_format=_CL)


def _fake_out(x: Tensor, *rest: Any) -> Tensor:
    return _image(x)


def _fake_channel_kept(x: Tensor) -> tuple[Tensor, ...]:
    return x.new_empty((3, *x.shape[:2])), x.new_empty(x.shape[:2], dtype=torch.int32)


def _fake_spatial_kept(x: Tensor) -> tuple[Tensor, ...]:
    n, _, h, w = x.shape
    return x.new_empty((3, n, h, w)), x.new_empty((n, h, w), dtype=torch.int32), x.new_empty((3, 1))


def _fake_cbam_train(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _image(x), *_fake_channel_kept(x), *_fake_spatial_kept(x)


def _fake_channel_train(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _image(x), *_fake_channel_kept(x)


def _fake_spatial_train(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _image(x), *_fake_spatial_kept(x)


def _grads(mask: Sequence[bool], sizes: Sequence[int], *like: Tensor) -> tuple[Tensor, ...]:
    """Tensors as ``like``, in groups of ``sizes``, empty where ``mask`` does not ask for the group."""
    wanted = [flag for flag, size in zip(mask, sizes, strict=True) for _ in range(size)]
    return tuple(t.new_empty(t.shape if flag else 0) for flag, t in zip(wanted, like, strict=True))


def _fake_backward(x: Tensor, mlp: Sequence[Tensor], spatial: Sequence[Tensor], mask: Sequence[bool]) -> Any:
    params = [*mlp, *([mlp[2][:, 0]] if mlp else []), *spatial]
    sizes = [size for size in (4 if mlp else 0, 3 if spatial else 0) if size]
    dx, *rest = _grads(mask, [1, *sizes], x, *params)
    return _image(x) if mask[0] else dx, *rest


def _fake_cbam_backward(dout: Tensor, x: Tensor, *rest: Any) -> Any:
    return _fake_backward(x, rest[5:8], rest[8:11], rest[12])


def _fake_channel_backward(dout: Tensor, x: Tensor, *rest: Any) -> Any:
    return _fake_backward(x, rest[2:5], (), rest[5])


def _fake_spatial_backward(dout: Tensor, x: Tensor, *rest: Any) -> Any:
    return _fake_backward(x, (), rest[3:6], rest[7])


_cbam = _library.define_flat(f"cbam(Tensor x, {_MLP}, {_SPATIAL}) -> Tensor", _FAMILY, _fake_out)
_cbam_train = _library.define_flat(
    f"cbam_train(Tensor x, {_MLP}, {_SPATIAL}, bool batch_stats) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY,
    _fake_cbam_train,
)
_cbam_backward = _library.define_flat(
    "cbam_backward(Tensor dout, Tensor x, Tensor pooled, Tensor positions, Tensor planes, Tensor channels, "
    "Tensor stats, Tensor w1, Tensor b1, Tensor w2, Tensor weight, Tensor n_weight, Tensor n_bias, bool batch_stats, "
    "bool[3] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY,
    _fake_cbam_backward,
)
_channel = _library.define_flat(f"channel_gate(Tensor x, {_MLP}) -> Tensor", _FAMILY, _fake_out)
_channel_train = _library.define_flat(
    f"channel_gate_train(Tensor x, {_MLP}) -> (Tensor, Tensor, Tensor)", _FAMILY, _fake_channel_train
)
_channel_backward = _library.define_flat(
    "channel_gate_backward(Tensor dout, Tensor x, Tensor pooled, Tensor positions, Tensor w1, Tensor b1, Tensor w2, "
    "bool[2] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY,
    _fake_channel_backward,
)
_spatial = _library.define_flat(f"spatial_gate(Tensor x, {_SPATIAL}) -> Tensor", _FAMILY, _fake_out)
_spatial_train = _library.define_flat(
    f"spatial_gate_train(Tensor x, {_SPATIAL}, bool batch_stats) -> (Tensor, Tensor, Tensor, Tensor)",
    _FAMILY,
    _fake_spatial_train,
)
_spatial_backward = _library.define_flat(
    "spatial_gate_backward(Tensor dout, Tensor x, Tensor planes, Tensor channels, Tensor stats, Tensor weight, "
    "Tensor n_weight, Tensor n_bias, bool batch_stats, bool[2] mask) -> (Tensor, Tensor, Tensor, Tensor)",
    _FAMILY,
    _fake_spatial_backward,
)


def _keep(ctx: Any, inputs: Sequence[Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], *output[1:], *inputs[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _cbam_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w1, b1, w2, _, weight, n_weight, n_bias, _, _, _, ctx.batch_stats = inputs
    _keep(ctx, (x, w1, b1, w2, weight, n_weight, n_bias), output)


def _cbam_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 12
    needs = ctx.needs_input_grad
    mask = [needs[0], any(needs[1:5]), any(needs[5:8])]
    grads = _cbam_backward(dout, *ctx.saved_tensors, ctx.batch_stats, mask)
    return *(grad if need else None for need, grad in zip(needs[:8], grads, strict=True)), None, None, None, None


def _channel_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _keep(ctx, inputs[:4], output)


def _channel_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 5
    needs = ctx.needs_input_grad
    grads = _channel_backward(dout, *ctx.saved_tensors, [needs[0], any(needs[1:])])
    return tuple(grad if need else None for need, grad in zip(needs, grads, strict=True))


def _spatial_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.batch_stats = inputs[7]
    _keep(ctx, inputs[:4], output)


def _spatial_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 8
    needs = ctx.needs_input_grad
    grads = _spatial_backward(dout, *ctx.saved_tensors, ctx.batch_stats, [needs[0], any(needs[1:4])])
    return *(grad if need else None for need, grad in zip(needs[:4], grads, strict=True)), None, None, None, None


_library.autograd_flat(_cbam_train, _cbam_setup, _cbam_grad)
_library.autograd_flat(_channel_train, _channel_setup, _channel_grad)
_library.autograd_flat(_spatial_train, _spatial_setup, _spatial_grad)
for _op in (_cbam, _cbam_train, _channel, _channel_train, _spatial, _spatial_train):
    _library.autocast_flat(_op, "x")


def _check_input(op: str, x: Tensor) -> None:
    _checks.image(op, "x", x)
    if min(x.shape[1:]) == 0:
        raise ValueError(f"{op}: x: expected C, H and W >= 1, got shape {tuple(x.shape)}")


def _check_mlp(op: str, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    channels = x.shape[1]
    if _checks.is_tensor(op, "w1", w1).dim() != 2:
        raise ValueError(f"{op}: w1: expected 2 dimensions (H, C), got shape {tuple(w1.shape)}")
    hidden = w1.shape[0]
    _checks.like(op, "w1", w1, x, (hidden, channels))
    _checks.like(op, "b1", b1, x, (hidden,))
    _checks.like(op, "w2", w2, x, (channels, hidden))
    _checks.like(op, "b2", b2, x, (channels,))


def _check_spatial(op: str, x: Tensor, weight: Tensor, norm: Norm, name: str, training: bool) -> None:
    _checks.is_tensor(op, "spatial_weight", weight)
    size = weight.shape[-1] if weight.dim() else 0
    if size % 2 == 0:
        raise ValueError(f"{op}: spatial_weight: expected shape (1, 2, K, K) with K odd, got {tuple(weight.shape)}")
    _checks.like(op, "spatial_weight", weight, x, (1, 2, size, size))
    check_norm(op, name, norm, x, 1)
    if training:
        check_batch(op, x.shape)


def _differentiable(args: Sequence[Any]) -> bool:
    return _library.gradients_on() and any(isinstance(t, Tensor) and t.requires_grad for t in args)


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """x · sigmoid(mlp(mean) + mlp(max)), the two poolings over (H, W): x (N, C, H, W) -> the same shape, channels_last.

    mlp(v) = w2 · relu(w1 · v + b1) + b2 with w1 (H, C), b1 (H,), w2 (C, H), b2 (C,), H hidden units.
    """
    _check_input("channel_gate", x)
    _check_mlp("channel_gate", x, w1, b1, w2, b2)
    args = (x, w1, b1, w2, b2)
    out: Tensor = _channel_train(*args)[0] if _differentiable(args) else _channel(*args)
    return out


def spatial_gate(x: Tensor, spatial_weight: Tensor, norm: Norm, *, training: bool = False) -> Tensor:
    """x · sigmoid(norm(conv([max_c; mean_c]))): x (N, C, H, W) -> the same shape, channels_last.

    spatial_weight (1, 2, K, K), K odd (7 in CBAM), "same" padding; norm over one channel, ``training`` as `batch_norm`.
    """
    _check_input("spatial_gate", x)
    _check_spatial("spatial_gate", x, spatial_weight, norm, "norm", training)
    args = (x, spatial_weight, *norm[:4], norm.eps)
    out: Tensor
    if not training and not _differentiable(args):
        out = _spatial(*args)
        return out
    out, *_, stats = _spatial_train(*args, training)
    if training and out.numel():
        update_running(norm, stats)
    return out


def cbam(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    spatial_weight: Tensor,
    spatial_norm: Norm,
    *,
    training: bool = False,
) -> Tensor:
    """spatial_gate(channel_gate(x)): x (N, C, H, W) -> the same shape, channels_last (Woo et al. 2018).

    Arguments as in `channel_gate` and `spatial_gate`. TypeError or ValueError for a wrong dtype, device or shape.
    """
    _check_input("cbam", x)
    _check_mlp("cbam", x, w1, b1, w2, b2)
    _check_spatial("cbam", x, spatial_weight, spatial_norm, "spatial_norm", training)
    args = (x, w1, b1, w2, b2, spatial_weight, *spatial_norm[:4], spatial_norm.eps)
    out: Tensor
    if not training and not _differentiable(args):
        out = _cbam(*args)
        return out
    out, *_, stats = _cbam_train(*args, training)
    if training and out.numel():
        update_running(spatial_norm, stats)
    return out
