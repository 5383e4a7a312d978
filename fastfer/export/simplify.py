# SPDX-License-Identifier: Apache-2.0
"""Passes over an ONNX graph that torch's exporter leaves undone, on ``onnx_ir`` models.

The plain torch of an op keeps what backward would need in stacked tensors and normalises in three steps. In a graph
for inference the stacks are copies, and the three steps belong into the convolution before them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AFFINE = ("Add", "Sub", "Mul")


def simplify(model: Any) -> None:
    """All passes, and the removal of what they leave unused."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    _unstack(model.graph)
    _cut_concat(model.graph)
    _fold_affine(model.graph)
    RemoveUnusedNodesPass()(model)


def _unstack(graph: Any) -> None:
    """Gather(Concat(Unsqueeze(a), Unsqueeze(b), ...), i) along one axis is a, b, ..."""
    for node in list(graph):
        stack = node.inputs[0].producer() if node.op_type == "Gather" else None
        if stack is None or stack.op_type != "Concat":
            continue
        index, axis = _constant(node.inputs[1]), _attribute(node, "axis", 0)
        parts = [value.producer() for value in stack.inputs]
        if index is None or index.ndim or _attribute(stack, "axis", None) != axis:
            continue
        if all(part is not None and part.op_type == "Unsqueeze" and _axes(part) == [axis] for part in parts):
            _replace(graph, node.outputs[0], parts[int(index)].inputs[0])


def _cut_concat(graph: Any) -> None:
    """Slice(Concat(a, b, ...), 0, length) along one axis is the Concat of those parts that make up the length."""
    import onnx_ir

    for node in list(graph):
        joint = node.inputs[0].producer() if node.op_type == "Slice" and len(node.inputs) >= 4 else None
        if joint is None or joint.op_type != "Concat":
            continue
        start, end, axes = (_scalar(value) for value in node.inputs[1:4])
        step = _scalar(node.inputs[4]) if len(node.inputs) > 4 else 1
        axis = _attribute(joint, "axis", None)
        lengths = [value.shape[axis] if value.shape is not None else None for value in joint.inputs]
        if (start, axes, step) != (0, axis, 1) or not all(isinstance(length, int) for length in lengths):
            continue
        ends = list(accumulate(lengths))
        if end not in ends[:-1]:
            continue
        parts = joint.inputs[: ends.index(end) + 1]
        shorter = onnx_ir.node("Concat", parts, {"axis": axis})
        shorter.outputs[0].name = f"{node.outputs[0].name}_parts"
        graph.insert_before(node, shorter)
        _replace(graph, node.outputs[0], shorter.outputs[0])


def _fold_affine(graph: Any) -> None:
    """Additions and multiplications of a constant a channel after a convolution go into its weight and bias."""
    for conv in list(graph):
        weight = _constant(conv.inputs[1]) if conv.op_type == "Conv" else None
        if weight is None:
            continue
        bias = _constant(conv.inputs[2]) if len(conv.inputs) > 2 else np.zeros(len(weight))
        if bias is None:
            continue
        scale, shift, last = np.ones(len(weight)), bias.astype(np.float64), conv
        while (step := _next_affine(graph, last, len(weight))) is not None:
            last, values = step
            if last.op_type == "Mul":
                scale, shift = scale * values, shift * values
            else:
                shift = shift + (values if last.op_type == "Add" else -values)
        if last is not conv:
            scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            _set_parameters(graph, conv, scaled.astype(weight.dtype), shift.astype(weight.dtype))
            _replace(graph, last.outputs[0], conv.outputs[0])


def _next_affine(graph: Any, node: Any, channels: int) -> tuple[Any, NDArray[Any]] | None:
    """The only reader of ``node``'s output, with its constant as float64 (channels,), if it is such a step."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return None
    reader = uses[0].node
    if reader.op_type not in _AFFINE or (reader.op_type == "Sub" and uses[0].idx != 0):
        return None
    values = _constant(reader.inputs[1 - uses[0].idx])
    if values is None or values.size not in (1, channels):
        return None
    if values.size > 1 and (values.ndim < 3 or values.shape[-3] != channels or values.ndim > 4):
        return None
    return reader, np.broadcast_to(values.astype(np.float64).ravel(), channels)


def _set_parameters(graph: Any, conv: Any, weight: NDArray[Any], bias: NDArray[Any]) -> None:
    import onnx_ir

    values = []
    for role, array in (("weight", weight), ("bias", bias)):
        name = f"{conv.outputs[0].name}_{role}"
        tensor = onnx_ir.tensor(array, name=name)
        shape = onnx_ir.Shape(array.shape)
        value = onnx_ir.Value(name=name, shape=shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        values.append(value)
    conv.resize_inputs(3)
    for place, value in enumerate(values, start=1):
        conv.replace_input_with(place, value)


def _replace(graph: Any, old: Any, new: Any) -> None:
    import onnx_ir

    onnx_ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _constant(value: Any) -> NDArray[Any] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _scalar(value: Any) -> int | None:
    values = _constant(value)
    return None if values is None or values.size != 1 else int(values.ravel()[0])


def _attribute(node: Any, name: str, default: int | None) -> int | None:
    return node.attributes[name].as_int() if name in node.attributes else default


def _axes(node: Any) -> list[int]:
    values = _constant(node.inputs[1])
    return [] if values is None else [int(axis) for axis in values]
