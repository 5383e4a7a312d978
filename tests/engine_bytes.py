# SPDX-License-Identifier: Apache-2.0
"""Engine files by hand: a graph of a few nodes as bytes, with float64 torch beside it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfer import _C
from fastfer.engine import file, graph

ISAS = [isa for isa in _C.isas(True) if isa != "amxemulated" or "amxemulated512" not in _C.isas(True)]
"""What engines are run on: of emulated tiles the quicker ones alone, as the self-test runs both."""


_FACTOR, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
_HEADER, _START = 96, 32

OPS = {
    "conv": 1, "max_pool": 2, "avg_pool": 3, "global_pool": 4, "add": 5, "mul": 6, "act": 7, "affine": 8, "concat": 9,
    "channel_pool": 10, "line_pool": 11, "cbam": 20, "se": 21, "eca": 22, "scse": 23, "sa": 24, "csa": 25,
    "coordinate": 26, "dot_attention": 27, "additive_attention": 28, "gather": 40, "constant": 41, "join": 42,
    "unary": 43, "binary": 44, "select": 45, "reduce": 46, "softmax": 47, "resample": 48, "normalise": 49, "matmul": 50,
    "dilated_conv": 51, "sample": 52,
}  # fmt: skip


class Network:
    """Nodes, added one by one with what they compute in float64, as a file and as a function."""

    def __init__(self, channels: int, height: int, width: int, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.shapes = [(channels, height, width)]
        self.nodes: list[tuple[str, list[int], list[int], list[Any]]] = []
        self.functions: list[Callable[..., Tensor]] = []

    def weight(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Random float32 values, as a float64 tensor."""
        values = (self.random.standard_normal(shape) * scale).astype(np.float32)
        return torch.from_numpy(values.astype(np.float64))

    def add(
        self, op: str, inputs: Sequence[int], attrs: Sequence[int], weights: Sequence[Tensor],
        function: Callable[..., Tensor],
    ) -> int:  # fmt: skip
        """Appends a node; ``function`` computes it on float64 (1, C, H, W). Returns the number of its output."""
        self.nodes.append((op, list(inputs), list(attrs), list(weights)))
        self.functions.append(function)
        zeros = [torch.zeros(1, *self.shapes[i], dtype=torch.float64) for i in inputs]
        self.shapes.append(tuple(function(*zeros).shape[1:]))  # type: ignore[arg-type]
        return len(self.shapes) - 1

    def expected(self, x: np.ndarray[Any, Any], outputs: Sequence[int]) -> list[np.ndarray[Any, Any]]:
        """Outputs for a batch of images."""
        values = [torch.from_numpy(x.astype(np.float64))]
        for (_, inputs, _, _), function in zip(self.nodes, self.functions, strict=True):
            values.append(function(*(values[i] for i in inputs)))
        return [values[i].numpy() for i in outputs]

    def graph(self, outputs: Sequence[int]) -> tuple[bytes, bytes]:
        """The graph section and the data section."""
        data = np.concatenate(
            [np.zeros(0, np.float32), *(w.numpy().astype(np.float32).ravel() for n in self.nodes for w in n[3])]
        )
        words = [struct.pack(f"<4I{len(outputs)}I", len(self.shapes), len(self.nodes), 0, len(outputs), *outputs)]
        words += [struct.pack("<3I", *shape) for shape in self.shapes]
        first = 0
        for number, (op, inputs, attrs, weights) in enumerate(self.nodes):
            words.append(struct.pack("<5I", OPS.get(op, 99), len(inputs), len(attrs), len(weights), number + 1))
            words.append(struct.pack(f"<{len(inputs)}I{len(attrs)}i", *inputs, *attrs))
            for weight in weights:
                words.append(struct.pack("<2Q", first, weight.numel()))
                first += weight.numel()
        return b"".join(words), data.tobytes()

    def file(
        self, outputs: Sequence[int] | None = None, metadata: bytes = b"{}",
        ranges: Sequence[tuple[float, float]] = (), notes: bytes = b"",
    ) -> bytes:  # fmt: skip
        """The bytes of the file; by default the last node's output is the only one. ``notes`` stand behind ranges."""
        graph, data = self.graph([len(self.shapes) - 1] if outputs is None else outputs)
        if ranges:
            graph += struct.pack("<I", len(ranges)) + b"".join(struct.pack("<2f", *r) for r in ranges)
        graph += notes
        return pack(graph, data, metadata)


def values_of(file: bytes, x: np.ndarray[Any, Any], shapes: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """Each value of the float32 network for a batch of images."""
    plan = _C.EnginePlan(file, apart=True, strict=True)
    found = [np.zeros((len(x), *shape), np.float32) for shape in shapes]
    for i, image in enumerate(np.ascontiguousarray(x)):
        plan.values(image.ctypes.data, str(x.dtype), [value[i].ctypes.data for value in found])
    found[0][:] = x  # no step of the plan writes it
    return found


def ranges_of(file: bytes, x: np.ndarray[Any, Any], shapes: Sequence[Any]) -> list[tuple[float, float]]:
    """Least and largest number of each value for a batch of images."""
    return [(float(value.min()), float(value.max())) for value in values_of(file, x, shapes)]


def pack(graph: bytes, data: bytes, metadata: bytes = b"{}") -> bytes:
    """Header, metadata, graph, data."""
    body = metadata + graph
    start = -(-(96 + len(body)) // 64) * 64
    body = body.ljust(start - 96, b"\0") + data
    sections = struct.pack("<6Q16x", 96, len(metadata), 96 + len(metadata), len(graph), start, len(data))
    return seal(b"FFENGINE" + struct.pack("<IIQQ", 1, 0, 96 + len(body), 0) + sections + body)


def seal(file: bytes) -> bytes:
    """The file with the right checksum."""
    return file[:24] + struct.pack("<Q", _C.engine_checksum(file[32:])) + file[32:]


def run(plan: Any, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Outputs of a plan for a batch of images."""
    x = np.ascontiguousarray(x)
    outputs = [np.full((len(x), *shape), np.nan, np.float32) for shape in plan.outputs]
    plan.run(x.ctypes.data, str(x.dtype), len(x), [y.ctypes.data for y in outputs])
    return outputs


def _mix(lane: int, word: int) -> int:
    lane = ((lane ^ word) * _FACTOR) & _MASK
    return lane ^ (lane >> 32)


def checksum(data: bytes | memoryview) -> int:
    """Word i of 64 bits goes into lane i mod 4; the lanes, which start at 1 to 4, go into one that starts at the size.

    lane = (lane xor word) · 0x9E3779B97F4A7C15, lane ^= lane >> 32; the last word is padded with zeros.
    """
    text = bytes(data)
    words = np.frombuffer(text + bytes(-len(text) % 8), dtype="<u8")
    whole = len(words) // 4 * 4
    factor, shift = np.uint64(_FACTOR), np.uint64(32)
    lanes = np.arange(1, 5, dtype=np.uint64)
    for row in words[:whole].reshape(-1, 4):
        lanes = (lanes ^ row) * factor
        lanes ^= lanes >> shift
    sums = [int(lane) for lane in lanes]
    for index, word in enumerate(words[whole:]):
        sums[index] = _mix(sums[index], int(word))
    total = len(text)
    for lane in sums:
        total = _mix(total, lane)
    return total


def from_bytes(data: bytes | bytearray) -> tuple[graph.Graph, dict[str, Any]]:
    """Graph and metadata. Raises ValueError for bytes that `to_bytes` did not write."""
    if data[:8] != file.MAGIC or len(data) < _HEADER:
        raise ValueError(f"engine file: expected {file.MAGIC!r} and a header, got {data[:8]!r} in {len(data)} bytes")
    version, _, size, total = struct.unpack_from("<IIQQ", data, 8)
    if (version, size, total) != (file.VERSION, len(data), checksum(memoryview(data)[_START:])):
        raise ValueError(f"engine file: expected version {file.VERSION} and {size} bytes with their checksum")
    (text, text_size, body, body_size, start, data_size) = struct.unpack_from("<6Q", data, _START)
    floats = np.frombuffer(data, dtype="<f4", count=data_size // 4, offset=start)
    metadata: dict[str, Any] = json.loads(data[text : text + text_size])
    return _read_graph(memoryview(data)[body : body + body_size], floats), metadata


def _read_graph(body: memoryview, floats: np.ndarray) -> graph.Graph:
    at = 0

    def take(form: str) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, body, at)
        at += struct.calcsize("<" + form)
        return values

    codes = {spec.code: name for name, spec in graph.OPS.items()}
    n_values, n_nodes, first, n_outputs = take("4I")
    outputs = take(f"{n_outputs}I")
    found = graph.Graph([graph.Shape(*take("3I")) for _ in range(n_values)], first, [], outputs)
    for _ in range(n_nodes):
        code, n_inputs, n_attrs, n_weights, output = take("5I")
        inputs, attrs = take(f"{n_inputs}I"), take(f"{n_attrs}i")
        spans = [take("QQ") for _ in range(n_weights)]
        weights = tuple(floats[a : a + count].astype(np.float64) for a, count in spans)
        found.nodes.append(graph.Node(codes[code], inputs, output, attrs, weights))
    found.check()
    return found
