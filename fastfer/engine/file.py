# SPDX-License-Identifier: Apache-2.0
"""Graphs as the bytes of an engine file (.ffe), which the native plan reads; little endian.

    0 "FFENGINE"   8 u32 version   12 u32 zero   16 u64 bytes of the file   24 u64 checksum of the bytes from 32 on
    32, 48, 64 u64 offset and u64 bytes of metadata (UTF-8 JSON), graph and data (float32, 64-aligned)   80 zeros to 96

The graph is u32 but for attributes (i32) and weights (u64): counts of values and nodes, the input, the outputs' count
and numbers; channels, height and width of each value; of each node the code of its op, counts of inputs, attributes and
weights, its output, inputs, attributes, and of each weight the first float in the data and their count. Behind it may
stand what int8 plans need: the count of ranges, that of the values, and of each value f32 least and largest element;
then, where there are any, the count and numbers of values that stay bfloat16, and the count of convolutions whose
biases are corrected there, of each its number, the count of its channels, and f32 what each adds.

The checksum: word i of 64 bits goes into lane i mod 4; the lanes, which start at 1 to 4, go into one that starts at the
size; lane = (lane xor word) · 0x9E3779B97F4A7C15, lane ^= lane >> 32; the last word is padded with zeros.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastfer.engine.graph import OPS, Array, Graph, GraphError, Node
from fastfer.runtime import native

MAGIC = b"FFENGINE"
VERSION = 1
_HEADER, _START = 96, 32
Ranges = Sequence[tuple[float, float]]
_ALIGNMENT = 16
"""Floats at which each weight starts: a cache line."""


@dataclass(frozen=True)
class ByteNotes:
    """What an int8 plan needs: a range of each value, of no width for one that no bytes are to hold; values that stay
    bfloat16 (the others of no range stay float32); by a convolution's number, what its biases lack."""

    ranges: Ranges
    halves: frozenset[int] = frozenset()
    corrections: Mapping[int, Array] = field(default_factory=dict)

    def packed(self) -> bytes:
        """The bytes behind the graph's nodes."""
        bounds = [bound for pair in self.ranges for bound in pair]
        parts = [struct.pack(f"<I{len(bounds)}f", len(self.ranges), *bounds)]
        if self.halves or self.corrections:
            parts.append(struct.pack(f"<I{len(self.halves)}I", len(self.halves), *sorted(self.halves)))
            parts.append(struct.pack("<I", len(self.corrections)))
            for node, shifts in self.corrections.items():
                parts.append(struct.pack(f"<2I{len(shifts)}f", node, len(shifts), *shifts))
        return b"".join(parts)


def _description(graph: Graph, notes: ByteNotes | None) -> tuple[bytes, list[tuple[int, Node, Array]]]:
    """The graph section, and of each weight its first float in the data."""
    head = [len(graph.values), len(graph.nodes), graph.input, len(graph.outputs), *graph.outputs]
    for shape in graph.values:
        head += shape
    parts, places, count = [struct.pack(f"<{len(head)}I", *head)], [], 0
    for node in graph.nodes:
        counts = (len(node.inputs), len(node.attrs), len(node.weights))
        numbers = (OPS[node.op].code, *counts, node.output, *node.inputs)
        parts.append(struct.pack(f"<{len(numbers)}I{len(node.attrs)}i", *numbers, *node.attrs))
        for weight in node.weights:
            parts.append(struct.pack("<QQ", count, weight.size))
            places.append((count, node, weight))
            count += weight.size + -weight.size % _ALIGNMENT
    if notes is not None:
        parts.append(notes.packed())
    return b"".join(parts), places


def _write(data: Array, places: list[tuple[int, Node, Array]]) -> None:
    """The weights in float32; GraphError where one is no number or too large for that."""
    for first, node, weight in places:
        part = data[first : first + weight.size]
        with np.errstate(over="ignore"):
            part[:] = weight.reshape(-1)
        if not np.isfinite(part).all():
            raise GraphError(f"{node.op}: expected finite weights within float32, got NaN or infinity")


def to_bytes(graph: Graph, metadata: Mapping[str, Any], notes: ByteNotes | None = None) -> bytearray:
    """The file's bytes, with what int8 plans need where that is known.

    Raises TypeError for metadata that JSON cannot hold, GraphError for weights that are not finite.
    """
    graph.check()
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"compile: metadata: expected JSON values, got {dict(metadata)!r} ({error})") from None
    body, places = _description(graph, notes)
    floats = sum(weight.size + -weight.size % _ALIGNMENT for _, _, weight in places)
    sections, end = [], _HEADER
    for size in (len(text), len(body), 4 * floats):
        start = end + -end % 64
        sections += [start, size]
        end = start + size
    out = bytearray(end)
    for section, start in ((text, sections[0]), (body, sections[2])):
        out[start : start + len(section)] = section
    _write(np.frombuffer(out, dtype="<f4", count=floats, offset=sections[4]), places)
    struct.pack_into("<6Q", out, _START, *sections)
    struct.pack_into("<8sIIQ", out, 0, MAGIC, VERSION, 0, end)
    struct.pack_into("<Q", out, 24, native().engine_checksum(memoryview(out)[_START:]))
    return out
