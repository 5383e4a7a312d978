# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM (Selvaraju et al. 2017) by captum."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.models import FerModel

LAYERS = {
    "fgw_fer": "blocks.3",
    "patt_lite": "backbone",
    "mobilenetv3_cpsca": "conv",
    "vgg16_csa": "stages.4.2",
    "sepconv_attention": "separable.2",
}
"""The last map of each network that is finer than 2×2; after FGW-FER's all is linear."""


def grad_cam(model: FerModel, x: Tensor, classes: Tensor, layer: str | None = None) -> Tensor:
    """Positive part of the layer's channels weighted by the mean gradient of each image's class: (N, H, W).

    x (N, C, H, W), classes (N,) int64; ``layer`` is a module's name with a map (N, C', H, W) as output, by default that
    of `LAYERS`. Raises ValueError for an unknown layer or one without a map, ImportError naming the extra for captum.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise ImportError(f"{error}; Grad-CAM needs more packages: pip install 'fastfer[explain]'") from error
    name = layer or LAYERS.get(model.name)
    modules = dict(model.named_modules())
    if name is None or name not in modules:
        raise ValueError(f"layer: expected a module of {model.name} such as {LAYERS.get(model.name)!r}, got {name!r}")
    model.eval()
    with torch.enable_grad():
        cam = LayerGradCam(model, modules[name]).attribute(x, classes, relu_attributions=True)
    if not isinstance(cam, Tensor) or cam.ndim != 4:
        raise ValueError(f"layer: expected one whose output is a map (N, C, H, W), got {name!r}")
    return cam.detach()[:, 0]
