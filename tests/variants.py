# SPDX-License-Identifier: Apache-2.0
"""Every variant of the five papers as constructor options, with its number of parameters from a formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = tuple[str, dict[str, Any], int]


def conv(i: int, o: int, kernel: int = 1, bias: bool = True) -> int:
    return i * o * kernel * kernel + o * bias


def _fgw() -> Iterator[Row]:
    yield "fgw_fer", {}, 64_176
    yield "fgw_fer", {"separable": False}, 321_816
    yield "fgw_fer", {"num_classes": 8, "in_chans": 3}, 64_176 + conv(128, 1, 3) + 2 + 2 * 8 * 9
    yield "fgw_fer", {"num_classes": 8, "separable": False}, 321_816 + conv(128, 1, 3) + 2


def _sepconv() -> Iterator[Row]:
    additive = conv(256, 128) + conv(128, 1)
    yield "sepconv_attention", {}, 183_688
    yield "sepconv_attention", {"num_classes": 8}, 183_688 + 129
    yield "sepconv_attention", {"attention": "dot"}, 183_688 - 128 * 128 - additive
    yield "sepconv_attention", {"attention": "additive"}, 183_688 - 128 * 128


_VGG_STAGES = ((64, 2, 3), (128, 2, 5), (256, 3, 5), (512, 3, 5), (512, 3, 5))
"""Channels, convolutions, kernel of the 1-D convolution."""


def _vgg_attention(kind: str, c: int, kernel: int) -> int:
    squeeze = conv(c, c // 16) + conv(c // 16, c)
    return {
        "none": 0,
        "ca": kernel,
        "eca": kernel,
        "sa": 3,
        "csa": kernel + 3,
        "se": squeeze,
        "cbam": squeeze + conv(2, 1, 7, bias=False) + 2,
        "scse": conv(c, c // 2) + conv(c // 2, c) + conv(c, 1),
    }[kind]


def _vgg() -> Iterator[Row]:
    none = 1_680_365 - sum(_vgg_attention("csa", c, k) for c, _, k in _VGG_STAGES)
    for classes, parameters in ((6, 1_679_852), (7, 1_680_365), (8, 1_680_878)):
        yield "vgg16_csa", {"num_classes": classes}, parameters
    for kind in ("none", "ca", "sa", "csa", "se", "eca", "cbam", "scse"):
        for position, counts in (("before_pool", (1,) * 5), ("after_pool", (1,) * 5), ("conv", (2, 2, 3, 3, 3))):
            extra = sum(
                count * _vgg_attention(kind, c, k) for count, (c, _, k) in zip(counts, _VGG_STAGES, strict=True)
            )
            yield "vgg16_csa", {"attention": kind, "position": position}, none + extra
    dense, i = 0, 1
    for c, depth, _ in _VGG_STAGES:
        dense += conv(i, c, 3) + (depth - 1) * conv(c, c, 3)
        i = c
    head = conv(512 * 16, 4096) + conv(4096, 4096) + conv(4096, 7)
    yield "vgg16_csa", {"plain": True, "attention": "none"}, dense + head


def _patt() -> Iterator[Row]:
    attended, pooled = conv(256, 32) + 2 * 32 + 1 + conv(32, 7), conv(256, 7)
    separable = 512 * 16 + conv(512, 256) + 256 * 4 + conv(256, 256) + conv(256, 256)
    backbone = 1_093_000 - attended - separable
    kernels = {"P4": 4, "P8": 8, "NP7": 7, "OP3": 3, "OP5": 5}
    extractions = {name: conv(512, 256, k) + conv(256, 256) for name, k in kernels.items()}
    extractions |= {"separable": separable, "attention": conv(512, 256) + conv(256, 1)}
    for kind, count in extractions.items():
        yield "patt_lite", {"extraction": kind}, backbone + count + attended
        yield "patt_lite", {"extraction": kind, "attention": "none"}, backbone + count + pooled
    mobilenet = 3_228_864 - 2 * 10_944  # Keras' count without the top, less the running statistics
    yield "patt_lite", {"extraction": "none", "attention": "none"}, mobilenet + conv(1024, 7)
    yield "patt_lite", {"extraction": "none"}, mobilenet + attended + (1024 - 256) * 32
    yield "patt_lite", {"num_classes": 8}, 1_093_033
    yield "patt_lite", {"attention": "batch"}, 1_093_000
    yield "patt_lite", {"keras_padding": True}, 1_093_000
    block = 512 * 512 + 2 * 512 + 512 * 9 + 2 * 512
    for depth in (7, 8, 10, 11):
        yield "patt_lite", {"depth": depth}, 1_093_000 + (depth - 9) * block
    sixth = 256 * 512 + 2 * 512 + 512 * 11 + 256 * 16 + 256 * 256  # what block 7's depthwise half and its patches add
    yield "patt_lite", {"depth": 6}, 1_093_000 - 2 * block - sixth


def _v3_attention(kind: str, c: int) -> int:
    squeezed, middle = {184: 48, 480: 120, 672: 168}[c], max(8, c // 32)
    coordinate = conv(c, middle) + 2 * middle + 2 * conv(middle, c)
    return {"none": 0, "se": conv(c, squeezed) + conv(squeezed, c)}.get(kind, coordinate)


def _v3() -> Iterator[Row]:
    name, kinds = "mobilenetv3_cpsca", ("none", "se", "ca", "maxca", "cpsca")
    high = (480, 672, 672, 480, 480)
    bare = 1_287_476 - sum(_v3_attention("ca", c) for c in high)
    yield name, {}, 1_297_092
    yield name, {"num_classes": 8}, 1_297_733
    for kind in kinds:
        for above in kinds:
            extra = 2 * _v3_attention(kind, 184) + sum(_v3_attention(above, c) for c in high)
            yield name, {"attention": kind, "high_attention": above}, bare + extra
    for act in ("relu", "hardswish"):
        squeezed = {"attention": "none", "high_attention": "se", "act": act}
        yield name, squeezed, 1_932_839
        yield name, {**squeezed, "halved": False}, 4_210_999


VARIANTS: list[Row] = [*_fgw(), *_sepconv(), *_vgg(), *_patt(), *_v3()]
