# SPDX-License-Identifier: Apache-2.0
"""Zeros around an image that only a convolution reads become the convolution's own padding, four-sided."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from fastfer.engine.program import Call, Program, Ref


def paddings(program: Program) -> Program:
    """The program with such pairs as one call each, from modules and from files."""
    writers = {ref: call for call in program.calls for ref in call.outputs if ref is not None}
    uses = Counter([*(ref for call in program.calls for ref in call.refs()), *program.outputs])
    calls = []
    for call in program.calls:
        pad = writers.get(call.args[0]) if call.name == "aten.conv2d" and isinstance(call.args[0], Ref) else None
        sides = _zeros(pad, program) if pad is not None and uses[call.args[0]] == 1 else None
        calls.append((_padded(program, call, pad.args[0], sides) if pad is not None and sides else None) or call)
    return replace(program, calls=calls).only_needed()


def _zeros(call: Call, program: Program) -> list[int] | None:
    """Top, left, bottom, right of a call that puts zeros around height and width; None for another."""
    if call.name not in ("aten.pad", "aten.constant_pad_nd"):
        return None
    bound = call.bound()
    sides, source = list(bound["pad"]), bound.get("self")
    if bound.get("mode", "constant") != "constant" or bound.get("value") not in (None, 0) or source is None:
        return None
    sides += [0] * (4 - len(sides))
    if len(sides) != 4 or not all(type(n) is int and n >= 0 for n in sides) or len(program.sizes[source]) != 4:
        return None
    left, right, top, bottom = sides
    return [top, left, bottom, right]


def _padded(program: Program, call: Call, source: Ref, sides: list[int]) -> Call | None:
    """The convolution with the sides added to its own; None where a plan has none such."""
    bound = call.bound()
    weight, groups = program.constants.get(bound["weight"]), bound["groups"]
    own = bound["padding"]
    if weight is None or isinstance(own, str) or list(bound["dilation"]) not in ([1], [1, 1]):
        return None
    channels = program.sizes[source][1]
    depthwise = groups == channels == weight.shape[0]
    if groups != 1 and not depthwise:
        return None
    height, width = (list(own) * 2)[:2]
    strides = (list(bound["stride"]) * 2)[:2]
    top, left, bottom, right = sides
    around = [top + height, left + width, bottom + height, right + width]
    if depthwise and groups != 1:
        arguments = (source, bound["weight"], bound["bias"], strides, around)
        return Call(torch.ops.fastfer.depthwise_conv2d.default, arguments, {}, call.outputs, call.where)
    norm = (None, None, None, None, 1e-5)
    arguments = (source, bound["weight"], bound["bias"], *norm, 0, strides, around)  # type: ignore[assignment]
    return Call(torch.ops.fastfer.conv2d.default, arguments, {}, call.outputs, call.where)
