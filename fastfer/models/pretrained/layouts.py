# SPDX-License-Identifier: Apache-2.0
"""Which tensor of a stock MobileNet belongs where in our networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from fastfer.models.base import FerModel
from fastfer.models.mobilenetv3_cpsca import MobileNetV3Cpsca
from fastfer.models.patt_lite import PattLite
from fastfer.nn import Conv2d, SeparableConv2d, SqueezeExcite

Pairs = Iterator[tuple[str, str]]
"""(our module, their module): prefixes of keys in the two state dicts."""


@dataclass(frozen=True)
class Layout:
    """One library's network: a key that tells its files, BatchNorm's eps, what its input was normalised with."""

    name: str
    network: type[FerModel]
    key: str
    eps: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pairs: Callable[[FerModel], Pairs]
    keras_padding: bool | None = None


def _separable(ours: str, block: object) -> tuple[str, str, str, str]:
    """Depthwise convolution, its norm, pointwise convolution, its norm, however the block is put together."""
    if isinstance(block, SeparableConv2d):
        return f"{ours}.depthwise", f"{ours}.norm1", f"{ours}.pointwise", f"{ours}.norm2"
    return f"{ours}.0", f"{ours}.0.norm", f"{ours}.2", f"{ours}.2.norm"


def _mobilenet_v1(model: FerModel, stem: tuple[str, str], block: Callable[[int], tuple[str, str, str, str]]) -> Pairs:
    """``block(i)`` names convolution, norm, convolution, norm of block i, counted from 1."""
    assert isinstance(model, PattLite)
    yield from zip(("backbone.0", "backbone.0.norm"), stem, strict=True)
    for index, module in enumerate(model.backbone):
        ours = f"backbone.{index}"
        if isinstance(module, SeparableConv2d):
            yield from zip(_separable(ours, module), block(index), strict=True)
        elif index:  # the last block without its pointwise half
            yield from zip((ours, f"{ours}.norm"), block(index)[:2], strict=True)


def _keras(model: FerModel) -> Pairs:
    def block(i: int) -> tuple[str, str, str, str]:
        return f"conv_dw_{i}", f"conv_dw_{i}_bn", f"conv_pw_{i}", f"conv_pw_{i}_bn"

    return _mobilenet_v1(model, ("conv1", "conv1_bn"), block)


_TIMM_STAGES = (1, 2, 2, 6, 2)


def _timm(model: FerModel) -> Pairs:
    places = [f"blocks.{stage}.{at}" for stage, count in enumerate(_TIMM_STAGES) for at in range(count)]

    def block(i: int) -> tuple[str, str, str, str]:
        place = places[i - 1]
        return f"{place}.conv_dw", f"{place}.bn1", f"{place}.conv_pw", f"{place}.bn2"

    return _mobilenet_v1(model, ("conv_stem", "bn1"), block)


_SQUEEZED = (4, 5, 6, 11, 12, 13, 14, 15)
_KEPT_WHEN_HALVED = 12


def _torchvision(model: FerModel) -> Pairs:
    """Features 0 to 12, and where the channels are not halved 13 to 16 and the first linear layer."""
    assert isinstance(model, MobileNetV3Cpsca)
    whole = not model.options["halved"]
    yield from (("stem", "features.0.0"), ("stem.norm", "features.0.1"))
    for index, module in enumerate(list(model.blocks)[: None if whole else _KEPT_WHEN_HALVED]):
        ours, theirs = f"blocks.{index}", f"features.{index + 1}.block"
        expands, squeezed = isinstance(module.expand, Conv2d), index + 1 in _SQUEEZED
        expand, depthwise, pointwise = accumulate((0, int(expands), 1 + squeezed))
        if expands:
            yield from ((f"{ours}.expand", f"{theirs}.{expand}.0"), (f"{ours}.expand.norm", f"{theirs}.{expand}.1"))
        parts = _separable(f"{ours}.body", module.body)
        yield from zip(parts, (f"{theirs}.{at}.{i}" for at in (depthwise, pointwise) for i in (0, 1)), strict=True)
        body = module.body
        if squeezed and isinstance(body, nn.Sequential) and isinstance(body[1], SqueezeExcite):
            yield from ((f"{ours}.body.1.{fc}", f"{theirs}.{depthwise + 1}.{fc}") for fc in ("fc1", "fc2"))
    if whole:
        yield from (("conv", "features.16.0"), ("conv.norm", "features.16.1"), ("fc", "classifier.0"))


_HALF = (0.5, 0.5, 0.5)
LAYOUTS = (
    Layout(
        "torchvision mobilenet_v3_large",
        MobileNetV3Cpsca,
        "features.0.0.weight",
        1e-3,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        _torchvision,
    ),
    Layout("Keras MobileNet", PattLite, "conv_dw_1.weight", 1e-3, _HALF, _HALF, _keras, keras_padding=True),
    Layout("timm mobilenetv1_100", PattLite, "conv_stem.weight", 1e-5, _HALF, _HALF, _timm, keras_padding=False),
)
