# SPDX-License-Identifier: Apache-2.0
"""Separable, depthwise and pointwise layers of the five networks, derived from their tables.

``shapes/<network>.txt`` holds them as rows of numbers; ``python -m bench.layers`` writes the files anew from the
builders here and checks each network's multiply-adds against the published total.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from fastfer._checks import ACTIVATIONS

SHAPES = Path(__file__).parent / "shapes"
TRAIN_BATCH = {"fgw_fer": 64, "sepconv_attention": 64, "vgg16_csa": 16, "patt_lite": 16, "mobilenetv3_cpsca": 16}
INFERENCE_BATCHES: tuple[int, ...] = (1, 32)
RELU, RELU6, HARDSWISH = (ACTIVATIONS.index(name) for name in ("relu", "relu6", "hardswish"))


@dataclass(frozen=True)
class Layer:
    """One row: ``kernel`` 0 is a pointwise layer, ``outputs`` 0 a depthwise one, else act2(norm2(pw(act1(norm1(dw))))).

    ``height`` and ``width`` are the input's; norms and ``bias`` (of the pointwise convolution) are flags; activations
    are codes, the index into `fastfer._checks.ACTIVATIONS`; ``count`` is how often the network has the layer.
    """

    count: int
    kernel: int
    stride: int
    top: int
    left: int
    bottom: int
    right: int
    inputs: int
    outputs: int
    height: int
    width: int
    norm1: int = 0
    act1: int = 0
    norm2: int = 0
    act2: int = 0
    bias: int = 0

    @property
    def padding(self) -> tuple[int, int, int, int]:
        return self.top, self.left, self.bottom, self.right

    @property
    def out_size(self) -> tuple[int, int]:
        if not self.kernel:
            return self.height, self.width
        return (
            (self.height + self.top + self.bottom - self.kernel) // self.stride + 1,
            (self.width + self.left + self.right - self.kernel) // self.stride + 1,
        )

    @property
    def macs(self) -> int:
        """Multiply-adds of the convolutions for one image."""
        height, width = self.out_size
        return height * width * self.inputs * (self.kernel**2 + self.outputs)

    @property
    def label(self) -> str:
        window = f"{self.kernel}x{self.kernel}s{self.stride}" if self.kernel else "1x1"
        channels = f"{self.inputs}-{self.outputs}" if self.outputs else f"{self.inputs}"
        return f"{window} {channels} @{self.height}x{self.width}"

    def depthwise(self) -> Layer:
        """The depthwise convolution alone."""
        return replace(self, outputs=0, norm1=0, act1=0, norm2=0, act2=0, bias=0)

    def pointwise(self) -> Layer:
        """The pointwise convolution alone, on the depthwise output."""
        height, width = self.out_size
        bare = dict.fromkeys(("kernel", "top", "left", "bottom", "right", "norm1", "act1", "norm2", "act2"), 0)
        return replace(self, **bare, stride=1, height=height, width=width)


def _dw(kernel: int, stride: int, channels: int, size: int, pad: int | None = None) -> Layer:
    p = kernel // 2 if pad is None else pad
    return Layer(1, kernel, stride, p, p, p, p, channels, 0, size, size)


def _pw(inputs: int, outputs: int, size: int, bias: int = 0) -> Layer:
    return Layer(1, 0, 1, 0, 0, 0, 0, inputs, outputs, size, size, bias=bias)


def _dense(kernel: int, inputs: int, outputs: int, size: int) -> int:
    return kernel * kernel * inputs * outputs * size * size


def _fgw_fer() -> tuple[list[Layer], int]:
    rows, other = [], _dense(3, 1, 8, 48) + _dense(3, 8, 8, 48) + _dense(7, 2, 1, 48)
    size = 48
    for inputs, outputs in ((8, 16), (16, 32), (32, 64), (64, 128)):
        flags = {"norm1": 1, "act1": RELU, "norm2": 1, "act2": RELU}
        rows.append(replace(_dw(3, 2, inputs, size), outputs=outputs, **flags))
        rows.append(replace(_dw(3, 1, outputs, size // 2), outputs=outputs, **flags))
        rows.append(_pw(inputs, outputs, size, bias=1))
        size //= 2
        other += _dense(7, 2, 1, size) + 4 * outputs * outputs // 8
    return rows, other + _dense(3, 128, 7, size)


def _sepconv_attention() -> tuple[list[Layer], int]:
    rows, other, size, inputs = [], 0, 48, 1
    for outputs in (32, 64, 128):
        other += _dense(3, inputs, outputs, size)
        size, inputs = size // 2, outputs
        rows.append(replace(_dw(3, 1, outputs, size), outputs=outputs, norm2=1, act2=RELU))
    tokens = size * size
    return rows, other + 2 * tokens * tokens * 128 + tokens * (256 * 128 + 2 * 128) + 256 * 128 + 128 * 7


def _vgg16_csa() -> tuple[list[Layer], int]:
    rows, size, inputs = [], 128, 64
    for stage, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for _ in range(depth - (stage == 0)):
            rows.append(replace(_dw(3, 1, inputs, size), outputs=width, norm2=1, act2=RELU))
            inputs = width
        size //= 2
    return rows, _dense(3, 1, 64, 128)


def _patt_lite() -> tuple[list[Layer], int]:
    rows, size, inputs = [], 112, 32
    flags = {"norm1": 1, "act1": RELU6, "norm2": 1, "act2": RELU6}
    for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1)):
        block = replace(_dw(3, stride, inputs, size), outputs=outputs, **flags)
        rows.append(replace(block, top=0, left=0) if stride == 2 else block)
        size, inputs = size // stride, outputs
    rows.append(_dw(3, 1, 512, size))
    rows.append(replace(_dw(4, 4, 512, size, pad=1), outputs=256, bias=1, act2=RELU))
    rows.append(replace(_dw(2, 2, 256, 4, pad=0), outputs=256, bias=1, act2=RELU))
    rows.append(_pw(256, 256, 2, bias=1))
    return rows, _dense(3, 3, 32, 112) + 4 * 256 * 32 + 2 * 16 * 32 + 32 * 7


_MOBILENET = (  # kernel, expanded, out, attention, stride
    (3, 16, 16, "", 1), (3, 64, 24, "", 2), (3, 72, 24, "", 1), (5, 72, 40, "SE", 2), (5, 120, 40, "SE", 1),
    (5, 120, 40, "SE", 1), (3, 240, 80, "", 2), (3, 200, 80, "", 1), (3, 184, 80, "CPSCA", 1), (3, 184, 80, "CPSCA", 1),
    (3, 480, 112, "CA", 1), (3, 672, 112, "CA", 1), (5, 672, 80, "CA", 2), (5, 480, 80, "CA", 1), (5, 480, 80, "CA", 1),
)  # fmt: skip


def _attention(kind: str, channels: int, size: int) -> int:
    """Multiply-adds of squeeze-and-excitation, or of the convolutions over pooled rows and columns."""
    if kind == "SE":
        return 2 * channels * (-(-channels // 32) * 8)
    passes = 3 if kind == "CPSCA" else 2
    return passes * 2 * size * channels * max(8, channels // 32)


def _mobilenetv3_cpsca() -> tuple[list[Layer], int]:
    rows, other, size, inputs = [], _dense(3, 3, 16, 112) + 480 * 640 + 640 * 7, 112, 16
    for kernel, hidden, outputs, attention, stride in _MOBILENET:
        if hidden != inputs:
            rows.append(_pw(inputs, hidden, size))
        depthwise = _dw(kernel, stride, hidden, size)
        size, inputs = size // stride, outputs
        if attention:
            rows += [depthwise, _pw(hidden, outputs, size)]
            other += _attention(attention, hidden, size)
        else:
            rows.append(replace(depthwise, outputs=outputs, norm1=1, act1=HARDSWISH, norm2=1))
    rows.append(_pw(inputs, 480, size))
    return rows, other


_BUILDERS: dict[str, tuple[Callable[[], tuple[list[Layer], int]], float]] = {
    "fgw_fer": (_fgw_fer, 4.17),
    "sepconv_attention": (_sepconv_attention, 25.5),
    "vgg16_csa": (_vgg16_csa, 589.4),
    "patt_lite": (_patt_lite, 336.8),
    "mobilenetv3_cpsca": (_mobilenetv3_cpsca, 183.1),
}
NETWORKS = tuple(_BUILDERS)
MACS = {network: round(1e6 * millions) for network, (_, millions) in _BUILDERS.items()}
"""Multiply-adds of a network's forward pass for one image."""
_HEADER = """\
# {network}: {macs:.2f} million multiply-adds an image in the layers below, {total:.2f} in the network.
# kernel 0: pointwise; outputs 0: depthwise; activations: {acts}
# {columns}
"""


def _merge(rows: list[Layer]) -> list[Layer]:
    """Equal layers as one row with their number, in order of first appearance."""
    merged: dict[Layer, int] = {}
    for row in rows:
        merged[replace(row, count=1)] = merged.get(replace(row, count=1), 0) + row.count
    return [replace(row, count=count) for row, count in merged.items()]


def _text(network: str) -> str:
    """Contents of the shape file; ValueError where the multiply-adds are not the network's (within 1 %)."""
    builder, published = _BUILDERS[network]
    rows, other = builder()
    macs = sum(row.macs for row in rows) / 1e6
    total = macs + other / 1e6
    if abs(total / published - 1) > 0.01:
        raise ValueError(f"{network}: expected {published} million multiply-adds, got {total:.2f}")
    acts = " ".join(f"{code} {name}" for code, name in enumerate(ACTIVATIONS))
    header = _HEADER.format(
        network=network, macs=macs, total=total, acts=acts, columns=" ".join(f.name for f in fields(Layer))
    )
    return header + "".join(" ".join(map(str, astuple(row))) + "\n" for row in _merge(rows))


def read(network: str) -> list[Layer]:
    """Rows of ``shapes/<network>.txt``; ValueError with the line number for a malformed one."""
    path, rows = SHAPES / f"{network}.txt", []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if words and not line.startswith("#"):
            if len(words) != len(fields(Layer)) or not all(word.isdigit() for word in words):
                raise ValueError(f"{path.name}:{number}: expected {len(fields(Layer))} numbers, got {line!r}")
            rows.append(Layer(*map(int, words)))
    return rows


def separable() -> Iterator[tuple[str, Layer]]:
    """(network, layer) of every fused block."""
    return ((network, row) for network in NETWORKS for row in read(network) if row.kernel and row.outputs)


def depthwise() -> Iterator[tuple[str, Layer]]:
    """(network, layer) of every depthwise convolution, those inside blocks included."""
    return (
        (network, row)
        for network in NETWORKS
        for row in _merge([row.depthwise() for row in read(network) if row.kernel])
    )


def pointwise() -> Iterator[tuple[str, Layer]]:
    """(network, layer) of every pointwise convolution, those inside blocks included."""
    return (
        (network, row)
        for network in NETWORKS
        for row in _merge([row.pointwise() for row in read(network) if row.outputs])
    )


def main() -> None:
    for network in NETWORKS:
        path = SHAPES / f"{network}.txt"
        partial = path.with_suffix(".partial")
        partial.write_text(_text(network))
        os.replace(partial, path)
        print(path.read_text().splitlines()[0].removeprefix("# "))


if __name__ == "__main__":
    main()
