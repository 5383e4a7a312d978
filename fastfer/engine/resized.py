# SPDX-License-Identifier: Apache-2.0
"""An engine file for images of another size, where the network has no size of its own. Needs no torch.

A network of convolutions, poolings and resizing by whole factors, such as a detector, makes maps that grow with its
input: the same weights fit any size, and only shapes and the tables of moved elements change.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfer.engine import metadata as fields
from fastfer.engine.file import to_bytes
from fastfer.engine.graph import OPS, Graph, GraphError, Node, Shape
from fastfer.runtime import native

_HEADER, _START = 96, 32
_GATHER_DIMS = 8
_SCALING = frozenset(
    {"conv", "max_pool", "avg_pool", "add", "mul", "act", "affine", "concat", "channel_pool", "gather"}
)
"""Operations whose outputs grow with their inputs."""


def resized(data: bytes, size: tuple[int, int]) -> bytes:
    """The bytes of an engine file whose images are (H, W) = ``size``; ``data`` itself where they are so already.

    Raises ValueError for a file that is damaged, of int8 ranges, or whose maps do not scale with its images.
    """
    if len(data) < _HEADER or data[:8] != b"FFENGINE":
        raise ValueError("engine file: expected FFENGINE and a header")
    sections = struct.unpack_from("<6Q", data, _START)
    if any(offset + length > len(data) for offset, length in zip(sections[::2], sections[1::2], strict=True)):
        raise ValueError(f"engine file: expected sections within its {len(data)} bytes, got {sections}")
    if struct.unpack_from("<Q", data, 24)[0] != native().engine_checksum(memoryview(data)[_START:]):
        raise ValueError("engine file: expected the checksum of its bytes, got another: it is damaged")
    parts = [memoryview(data)[at : at + length] for at, length in zip(sections[::2], sections[1::2], strict=True)]
    try:
        graph = _read(parts[1], np.frombuffer(parts[2], "<f4"))
    except (struct.error, LookupError, ValueError) as error:
        raise ValueError(f"engine file: graph: {error}") from None
    if graph.values[graph.input][1:] == size:
        return data
    if min(size) < 1:
        raise ValueError(f"engine file: expected a size of 1 or more, got {size}")
    other = _rebuilt(graph, size)
    known = fields.parsed(bytes(parts[0]))
    if "outputs" in known:
        pairs = [(graph.values[o], other.values[n]) for o, n in zip(graph.outputs, other.outputs, strict=True)]
        known["outputs"] = [_output(shape, *pair) for shape, pair in zip(known["outputs"], pairs, strict=True)]
    return bytes(to_bytes(other, known))


def _read(section: memoryview, floats: NDArray[np.float32]) -> Graph:
    """The graph section, whose weights are flat arrays."""
    values, nodes, entry, outputs = struct.unpack_from("<4I", section)
    at = 16 + 4 * outputs
    shapes = [Shape(*struct.unpack_from("<3I", section, at + 12 * i)) for i in range(values)]
    graph = Graph(shapes, entry, outputs=struct.unpack_from(f"<{outputs}I", section, 16))
    at += 12 * values
    names = {op.code: name for name, op in OPS.items()}
    for _ in range(nodes):
        code, inputs, attrs, weights, output = struct.unpack_from("<5I", section, at)
        at += 20
        ins = struct.unpack_from(f"<{inputs}I", section, at)
        numbers = struct.unpack_from(f"<{attrs}i", section, at + 4 * inputs)
        at += 4 * (inputs + attrs)
        places = [struct.unpack_from("<QQ", section, at + 16 * i) for i in range(weights)]
        at += 16 * weights
        arrays = tuple(floats[first : first + count] for first, count in places)
        graph.nodes.append(Node(names[code], ins, output, numbers, arrays))
    if at != len(section):
        raise ValueError("expected no ranges: a plan for int8 has those of one size")
    return graph


def _rebuilt(old: Graph, size: tuple[int, int]) -> Graph:
    """The same operations on images of that size."""
    new = Graph([Shape(old.values[old.input].channels, *size)], 0)
    numbers = {old.input: 0}
    for node in old.nodes:
        inputs = [numbers[i] for i in node.inputs]
        attrs, weights = node.attrs, node.weights
        if node.op not in _SCALING or old.values[node.output][1:] == (1, 1):
            raise ValueError(f"engine file: {node.op}: expected operations that scale with images, got one of one size")
        try:
            if node.op == "gather":
                attrs, weights = _gather(node, old.values[node.inputs[0]], new.values[inputs[0]])
            numbers[node.output] = new.add(node.op, inputs, attrs, weights)
        except GraphError as error:
            raise ValueError(f"engine file: expected maps that scale to {size}: {error}") from None
    new.outputs = tuple(numbers[output] for output in old.outputs)
    return new


def _gather(node: Node, old: Shape, new: Shape) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Attributes and weights of elements moved in a larger or smaller map: channels, rows, columns or all pixels."""
    counts, strides = node.attrs[3 : 3 + _GATHER_DIMS], node.attrs[3 + _GATHER_DIMS :]
    index, fill = node.weights
    dims, at = [], 0
    for count, stride in zip(counts, strides, strict=True):
        dims.append(_dim(index[at : at + count], stride, old, new))
        at += count
    new_counts = [len(table) for table, _ in dims]
    if any(count != 1 for count in counts[3:]) or node.attrs[:3] not in (counts[:3], (counts[0], *old[1:])):
        raise GraphError(f"a gather into {node.attrs[:3]} by {counts}")
    shape = new_counts[:3] if node.attrs[:3] == counts[:3] else (new_counts[0], *new[1:])
    if math.prod(shape) != math.prod(new_counts):
        raise GraphError(f"a gather into {tuple(shape)} by {new_counts}")
    return (*shape, *new_counts, *(stride for _, stride in dims)), (np.concatenate([t for t, _ in dims]), fill)


def _dim(table: Any, stride: int, old: Shape, new: Shape) -> tuple[Any, int]:
    """Of a gather's dimension the indices and the distance of their elements. Channels do not scale, so any will do."""
    count, pixels, new_pixels = len(table), old.height * old.width, new.height * new.width
    if count == 1:
        if table[0] <= 0 or stride == 0:
            return table, stride
        if stride % pixels:  # where a slice begins; it is one of the channels
            raise GraphError(f"a gather from element {stride} on in a map of {tuple(old)}")
        return table, stride // pixels * new_pixels
    if stride == pixels and count <= old.channels:
        return table, new_pixels
    if stride == 1 and count == pixels:
        length, new_stride, new_length = count, 1, new_pixels
    elif stride == old.width:
        length, new_stride, new_length = old.height, new.width, new.height
    elif stride == 1:
        length, new_stride, new_length = old.width, 1, new.width
    elif stride == pixels:
        length, new_stride, new_length = old.channels, new_pixels, new.channels
    else:
        raise GraphError(f"a gather in steps of {stride} in a map of {tuple(old)}")
    if not np.array_equal(table, np.arange(count) * length // count) or count % length:
        raise GraphError("a gather that is no repetition by a whole number")
    new_count = count // length * new_length
    return np.arange(new_count) * new_length // new_count, new_stride


def _output(shape: Any, old: Shape, new: Shape) -> list[int]:
    """An output's shape with the sides of its map, or their product, replaced."""
    channels, height, width = old
    changed = {
        tuple(old): [*new],
        (height * width, channels): [new.height * new.width, new.channels],
        (channels, height): [new.channels, new.height],  # pixels by channels, moved to the map's first two axes
    }
    if not isinstance(shape, list) or tuple(shape) not in changed:
        raise ValueError(f"engine file: expected an output that is a map or its pixels, got {shape!r} of {tuple(old)}")
    return changed[tuple(shape)]
