# SPDX-License-Identifier: Apache-2.0
"""Quantisation-aware fine-tuning: a network's calls with bytes as the engine's int8 plan has them.

Weights of dense convolutions, and what convolutions read where a plan keeps it as bytes, are rounded as its kernels
round (`fastfer.engine.rounding`); gradients go straight through. Norms keep their running statistics, so that a norm's
factor scales a channel's weights and their scale alike: what is rounded here is what the plan rounds once it is folded.
Ranges are observed for the first steps, then frozen, and go with the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfer import _library
from fastfer.engine.program import Call, Program, Ref, mapped
from fastfer.engine.record import recorded
from fastfer.engine.rounding import map_scale
from fastfer.engine.rules import RULES, USUAL, Seen
from fastfer.models import FerModel

OBSERVED = 32
"""Steps in which ranges are observed."""
_FEW = 8
"""Channels up to which a plan computes in planes of float32."""
_IN_REGISTERS = 5
"""Activations before this one are those after which a kernel can write bytes."""


class _Stored(torch.autograd.Function):
    """The numbers that bytes keep; the gradient is that of the clamp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero: float) -> Tensor:
        level = torch.round(x * (1 / scale) + zero)
        ctx.save_for_backward((level >= 0) & (level <= 255))
        return (level.clamp(0, 255) - zero) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def stored_weights(weight: Tensor) -> Tensor:
    """The weights (O, ...) as bytes keep them, one scale an output channel; the gradient is theirs."""
    most = weight.detach().flatten(1).abs().amax(1).view(-1, *(1,) * (weight.ndim - 1))
    scale = torch.where(most > 0, most / 127, torch.ones_like(most))
    rounded: Tensor = torch.round(weight.detach() / scale) * scale
    return weight + (rounded - weight.detach())


@dataclass
class _Read:
    """What a convolution reads: the extremes of images seen so far, and the range once that is frozen."""

    least: list[Tensor] = field(default_factory=list)
    largest: list[Tensor] = field(default_factory=list)
    range: tuple[float, float] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.range is None:
            self.least.append(x.detach().amin((1, 2, 3)))
            self.largest.append(x.detach().amax((1, 2, 3)))
            return x
        scale, zero = map_scale(*self.range)
        result: Tensor = _Stored.apply(x, float(scale), float(zero))  # type: ignore[no-untyped-call]
        return result

    def freeze(self) -> None:
        least, largest = (torch.cat(part).cpu().numpy() for part in (self.least, self.largest))
        self.range = RULES[USUAL](Seen(least, largest, np.empty(0, np.float32)))
        self.least, self.largest = [], []


class Quantised:
    """A network whose calls compute with bytes where an int8 plan does: images -> (logits, None).

    ``shape`` is that of an image. ValueError for a network whose calls cannot be recorded.
    """

    def __init__(self, model: FerModel, shape: tuple[int, ...]) -> None:
        program = recorded(model, shape)
        if program is None:
            raise ValueError(f"quantize: expected one of fastfer's networks as they are, got {model.name} with others")
        self.model, self._program = model, program
        self._reads: dict[int, _Read] = {}
        self._kinds: list[list[int]] = []
        self._steps = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, None]:
        self._steps += 1
        if self._steps == OBSERVED + 1:
            self.freeze()
        return _Pass(self._program, self._reads, self._kinds, x).run(), None

    def freeze(self) -> None:
        """End the observation: from now on maps are rounded, and the model has the ranges."""
        for read in self._reads.values():
            if read.range is None:
                read.freeze()
        self.model.int8_ranges = self.ranges()

    def ranges(self) -> list[list[float]]:
        """Of each convolution of a map, in order, its kernel, groups and output channels, and the range of what it
        reads: least and largest, both 0 where it reads no bytes."""
        return [
            [*kind, *((self._reads[number].range if number in self._reads else None) or (0.0, 0.0))]
            for number, kind in enumerate(self._kinds)
        ]


class _Pass:
    """One pass over the calls: which convolution is next, and which values come from one of bytes."""

    def __init__(self, program: Program, reads: dict[int, _Read], kinds: list[list[int]], image: Tensor) -> None:
        self._program, self._reads, self._kinds, self._image = program, reads, kinds, image
        self._number = 0
        self._of_bytes: dict[int, Tensor] = {}  # by id, which holds while they are here

    def run(self) -> Tensor:
        values: dict[Ref, Any] = {self._program.input: self._image, **self._program.constants}
        for call in self._program.calls:
            results = self._called(call, values)
            for ref, result in zip(call.outputs, results, strict=True):
                if ref is not None:
                    values[ref] = result
        logits: Tensor = values[self._program.outputs[0]]
        return logits

    def _called(self, call: Call, values: dict[Ref, Any]) -> tuple[Any, ...]:
        space, _, name = call.name.partition(".")
        if name == "dropout":  # recorded in evaluation
            return (values[call.args[0]],)
        if space != "fastfer":
            return call.run(values)
        op = _library.op(name)
        a = op.signature.unflatten(*(mapped(call.args, Ref, values.__getitem__)))
        if name in _BLOCKS:
            return (_BLOCKS[name](self, a),)
        result = op.reference(a)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def block(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, norm: Any, act: int, stride: Any = (1, 1),
        padding: Any = (0, 0, 0, 0), groups: int = 1,
    ) -> Tensor:  # fmt: skip
        """Convolution, norm, activation."""
        top, left, bottom, right = padding
        height = (x.shape[2] + top + bottom - weight.shape[2]) // stride[0] + 1
        width = (x.shape[3] + left + right - weight.shape[3]) // stride[1] + 1
        dense = groups == 1 and x is not self._image and height * width > 1 and max(weight.shape[:2]) > _FEW
        if height * width > 1:
            if self._number == len(self._kinds):
                self._kinds.append([*weight.shape[2:], groups, len(weight)])
            if dense or id(x) in self._of_bytes:
                x = self._reads.setdefault(self._number, _Read())(x)
            self._number += 1
        if any(padding):
            x = F.pad(x, (left, right, top, bottom))
        y = F.conv2d(x, stored_weights(weight) if dense else weight, bias, tuple(stride), groups=groups)
        if norm is not None:
            y = F.batch_norm(y, norm.mean, norm.var, norm.weight, norm.bias, False, 0.0, norm.eps)
        activation = _library.op("activation")
        y = cast(Tensor, activation.reference(activation.signature.unflatten(y, act)))
        if dense and act < _IN_REGISTERS:
            self._of_bytes[id(y)] = y
        return y


def _conv2d(run: _Pass, a: Any) -> Tensor:
    return run.block(a.x, a.weight, a.bias, a.norm, a.act, a.stride, a.padding)


def _separable(run: _Pass, a: Any) -> Tensor:
    y = run.block(a.x, a.dw_weight, a.dw_bias, a.norm1, a.act1, a.stride, a.padding, len(a.dw_weight))
    return run.block(y, a.pw_weight, a.pw_bias, a.norm2, a.act2)


def _bottleneck(run: _Pass, a: Any) -> Tensor:
    y = run.block(a.x, a.expand_weight, None, a.norm1, a.act)
    y = run.block(y, a.dw_weight, None, a.norm2, a.act, a.stride, a.padding, len(a.dw_weight))
    if a.project_weight is None:
        return y
    y = run.block(y, a.project_weight, None, a.norm3, 0)
    return y + a.x if a.residual else y


def _depthwise(run: _Pass, a: Any) -> Tensor:
    norm, act = getattr(a, "norm", None), getattr(a, "act", 0)
    return run.block(a.x, a.weight, a.bias, norm, act, a.stride, a.padding, len(a.weight))


_BLOCKS: dict[str, Callable[[_Pass, Any], Tensor]] = {
    "conv2d": _conv2d,
    "separable_conv2d": _separable,
    "inverted_bottleneck": _bottleneck,
    "depthwise_norm": _depthwise,
    "depthwise_conv2d": _depthwise,
    "pointwise_conv2d": lambda run, a: run.block(a.x, a.weight, a.bias, None, 0),
}
