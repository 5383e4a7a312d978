# SPDX-License-Identifier: Apache-2.0
"""An engine file for images of another size, where the network has no size of its own. Needs no torch.

A network of convolutions, poolings and products pixel by pixel, such as a detector, makes maps that grow with its
input: the same weights fit any size, and only the shapes in the file change.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from fastfer.engine import metadata as fields
from fastfer.runtime import native

_HEADER, _START = 96, 32
_Map = tuple[int, int, int]


def resized(data: bytes, size: tuple[int, int]) -> bytes:
    """The bytes of an engine file whose images are (H, W) = ``size``; ``data`` itself where they are so already.

    Raises ValueError for a file that is damaged, or whose maps do not scale with its images. Ranges for int8 stay.
    """
    if len(data) < _HEADER or data[:8] != b"FFENGINE":
        raise ValueError("engine file: expected FFENGINE and a header")
    sections = struct.unpack_from("<6Q", data, _START)
    if any(offset + length > len(data) for offset, length in zip(sections[::2], sections[1::2], strict=True)):
        raise ValueError(f"engine file: expected sections within its {len(data)} bytes, got {sections}")
    graph = bytearray(data[sections[2] : sections[2] + sections[3]])
    try:
        maps = _rescaled(graph, size)
    except struct.error as error:
        raise ValueError(f"engine file: graph: {error}") from None
    if all(old == new for old, new in maps):
        return data
    known = fields.parsed(data[sections[0] : sections[0] + sections[1]])
    if "outputs" in known:
        count, first = struct.unpack_from("<I", graph, 12)[0], 16
        numbers = struct.unpack_from(f"<{count}I", graph, first)
        known["outputs"] = [
            _output(shape, *maps[number]) for shape, number in zip(known["outputs"], numbers, strict=True)
        ]  # fmt: skip
    return _written(json.dumps(known, ensure_ascii=False).encode(), bytes(graph), data[sections[4] :][: sections[5]])


def _rescaled(graph: bytearray, size: tuple[int, int]) -> list[tuple[_Map, _Map]]:
    """Changes the shapes of all values in the graph section; each before and after."""
    values, _, entry, outputs = struct.unpack_from("<4I", graph)
    first = 16 + 4 * outputs
    before: list[_Map] = [struct.unpack_from("<3I", graph, first + 12 * i) for i in range(values)]
    if entry >= values or min(size) < 1:
        raise ValueError(f"engine file: expected a size of 1 or more and an input below {values}, got {size}, {entry}")
    whole, maps = before[entry][1:], []
    if whole == size:
        return [(each, each) for each in before]
    for number, old in enumerate(before):
        sides = [side * new for side, new in zip(old[1:], size, strict=True)]
        # A map of one pixel may be a vector, whose layers have weights for one size alone.
        if any(side % full for side, full in zip(sides, whole, strict=True)) or (old[1:] == (1, 1) != whole):
            raise ValueError(f"engine file: expected maps that scale from {whole} to {size}, got one of {old[1:]}")
        new = (old[0], *(side // full for side, full in zip(sides, whole, strict=True)))
        struct.pack_into("<3I", graph, first + 12 * number, *new)
        maps.append((old, new))
    return maps


def _output(shape: Any, old: _Map, new: _Map) -> list[int]:
    """An output's shape with the sides of its map, or their product, replaced."""
    channels, height, width = old
    changed = {(channels, height, width): [*new], (height * width, channels): [new[1] * new[2], channels]}
    changed[height, width, channels] = [*new[1:], channels]
    if not isinstance(shape, list) or tuple(shape) not in changed:
        raise ValueError(f"engine file: expected an output that is a map or its pixels, got {shape!r} of {old}")
    return changed[tuple(shape)]


def _written(*parts: bytes) -> bytes:
    """A file of these sections."""
    sections, end = [], _HEADER
    for part in parts:
        start = end + -end % 64
        sections += [start, len(part)]
        end = start + len(part)
    out = bytearray(end)
    for part, start in zip(parts, sections[::2], strict=True):
        out[start : start + len(part)] = part
    struct.pack_into("<6Q", out, _START, *sections)
    struct.pack_into("<8sIIQ", out, 0, b"FFENGINE", 1, 0, end)
    struct.pack_into("<Q", out, 24, native().engine_checksum(memoryview(out)[_START:]))
    return bytes(out)
