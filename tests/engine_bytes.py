# SPDX-License-Identifier: Apache-2.0
"""Engine files by hand: a graph of a few nodes as bytes, with float64 torch beside it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfer import _C

OPS = {
    "conv": 1, "max_pool": 2, "avg_pool": 3, "global_pool": 4, "add": 5, "mul": 6, "act": 7, "affine": 8, "concat": 9,
    "channel_pool": 10, "line_pool": 11, "cbam": 20, "se": 21, "eca": 22, "scse": 23, "sa": 24, "csa": 25,
    "coordinate": 26, "dot_attention": 27, "additive_attention": 28,
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
        ranges: Sequence[tuple[float, float]] = (),
    ) -> bytes:  # fmt: skip
        """The bytes of the file; by default the last node's output is the only one."""
        graph, data = self.graph([len(self.shapes) - 1] if outputs is None else outputs)
        if ranges:
            graph += struct.pack("<I", len(ranges)) + b"".join(struct.pack("<2f", *r) for r in ranges)
        return pack(graph, data, metadata)


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
