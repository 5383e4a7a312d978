# SPDX-License-Identifier: Apache-2.0
"""The attention maps of the networks' own modules, computed beside an ordinary forward pass.

A module's op does not give its map away, so it is computed again, in plain torch, from what goes into the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfer._checks import act_code
from fastfer.backends.reference.attention import additive_attention_train
from fastfer.backends.reference.coordinate import KINDS as COORDINATE_KINDS
from fastfer.backends.reference.coordinate import coordinate_attention_train
from fastfer.models.patt_lite import PatchAttention
from fastfer.nn import CBAM, CSA, AdditiveAttention, CoordinateAttention, DotProductAttention, ScSE, SpatialAttention
from fastfer.nn._lookup import weight_and_bias
from fastfer.signatures.attention import Additive
from fastfer.signatures.coordinate import Coordinate, CoordinateTrain
from fastfer.signatures.fields import RunningNorm

Maps = dict[str, dict[str, Tensor]]
"""Kind of attention -> module's name -> maps (N, H, W), each at the module's own resolution."""


def attention_maps(model: nn.Module, x: Tensor) -> Maps:
    """Maps of every module of ``model`` that weighs places, for images x (N, C, H, W), in evaluation.

    Values of gates are in (0, 1); those of token attention are shares times the number of tokens, 1 where all weigh the
    same. Empty for a network that has none: SE and ECA weigh channels alone, PAtt-Lite as published weighs images.
    """
    found: Maps = {}
    handles = []
    for name, module in model.named_modules():
        for kind, (cls, read) in _READERS.items():
            if type(module) is cls:
                hook = _keeper(found.setdefault(kind, {}), name, read, x.shape)
                handles.append(module.register_forward_hook(hook))
    model.eval()
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {kind: maps for kind, maps in found.items() if maps}


def _keeper(maps: dict[str, Tensor], name: str, read: Callable[..., Tensor], shape: torch.Size) -> Callable[..., None]:
    """A forward hook that puts the map into ``maps``; ``shape`` is that of the network's input."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        found = read(module, *inputs)
        if found.ndim == 3 or len(found) == shape[0]:  # PAtt-Lite as published has one sequence, of images
            maps[name] = found if found.ndim == 3 else _as_grid(found, shape[2] / shape[3])

    return hook


def _as_grid(tokens: Tensor, aspect: float) -> Tensor:
    """Weights of tokens (N, T), row by row of a map of the image's aspect, as (N, H, W) times T."""
    count = tokens.shape[1]
    height = round(math.sqrt(count * aspect))
    if not height or count % height:
        raise ValueError(f"attention: expected the tokens of a map of aspect {aspect:g}, got {count}")
    return (tokens * count).view(-1, height, count // height)


def _extremes(x: Tensor) -> Tensor:
    """[max; mean] over the channels: (N, 2, H, W)."""
    return torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)


def _cbam(module: CBAM, x: Tensor) -> Tensor:
    """The spatial gate after the channel gate (Woo et al. 2018)."""
    spatial = module.spatial
    y = F.conv2d(_extremes(module.channel(x)), spatial.weight, padding=spatial.weight.shape[-1] // 2)
    return torch.sigmoid(spatial.norm(y))[:, 0]


def _pixel_gate(module: SpatialAttention, x: Tensor) -> Tensor:
    return torch.sigmoid(F.conv2d(_extremes(x), module.weight, module.bias))[:, 0]


def _csa(module: CSA, x: Tensor) -> Tensor:
    return _pixel_gate(module.spatial, x)


def _scse(module: ScSE, x: Tensor) -> Tensor:
    return torch.sigmoid(F.conv2d(x, *weight_and_bias(module.spatial)))[:, 0]


def _coordinate(module: CoordinateAttention, x: Tensor) -> Tensor:
    """g_h · g_w, the mean over the channels."""
    norm = module.norm.step()
    (weight, bias), (h_weight, h_bias), (w_weight, w_bias) = map(
        weight_and_bias, (module.conv, module.conv_h, module.conv_w)
    )
    block = Coordinate(
        x=x,
        weight=weight,
        bias=bias,
        norm=RunningNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps),
        act=act_code("explain", "hardswish"),
        h_weight=h_weight,
        h_bias=h_bias,
        w_weight=w_weight,
        w_bias=w_bias,
        kind=COORDINATE_KINDS.index(module.kind),
    )
    gates = coordinate_attention_train(CoordinateTrain(block, False)).gates
    images, channels, height, width = x.shape
    rows = gates[: images * height].view(images, height, channels)
    columns = gates[images * height :].view(images, width, channels)
    return torch.einsum("nhc,nwc->nhw", rows, columns) / channels


def _dot_product(module: DotProductAttention, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
    """What each token gets of all queries: the mean over the queries."""
    k = q if k is None else k
    scale = q.shape[-1] ** -0.5 * (1 if module.scale is None else module.scale)
    return torch.softmax(q @ k.transpose(1, 2) * scale, 2).mean(1)


def _additive(module: AdditiveAttention, x: Tensor, h: Tensor | None = None) -> Tensor:
    proj, score = module.proj, module.score
    fields = Additive(x, x if h is None else h, proj.weight, proj.bias, score.weight, score.bias)
    return additive_attention_train(fields).weights


def _patches(module: PatchAttention, x: Tensor) -> Tensor:
    gate: Tensor = module.gate(module.proj(module.pool(x)))
    return gate[:, 0]


_READERS: dict[str, tuple[type[nn.Module], Callable[..., Tensor]]] = {
    "cbam": (CBAM, _cbam),
    "csa": (CSA, _csa),
    "spatial": (SpatialAttention, _pixel_gate),
    "scse": (ScSE, _scse),
    "coordinate": (CoordinateAttention, _coordinate),
    "patches": (PatchAttention, _patches),
    "dot_product": (DotProductAttention, _dot_product),
    "additive": (AdditiveAttention, _additive),
}
