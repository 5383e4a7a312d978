# SPDX-License-Identifier: Apache-2.0
"""Maps of chosen images, kind by kind, and the files made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastfer.data import Preprocess, Split
from fastfer.data.files import replace_atomically, write_text
from fastfer.evaluate.predict import predict
from fastfer.evaluate.run import class_order
from fastfer.explain.attention import attention_maps
from fastfer.explain.choose import Example, Row, choose
from fastfer.explain.grad_cam import LAYERS, grad_cam
from fastfer.explain.sheet import combined, example_sheet, layer_sheet, stretched
from fastfer.models import FerModel

GRAD_CAM = "grad_cam"
TITLES = {
    "cbam": "CBAM, spatial gates",
    "csa": "CSA, spatial gates",
    "spatial": "spatial attention",
    "scse": "scSE, spatial gates",
    "coordinate": "coordinate attention, both gates",
    "patches": "patch attention",
    "dot_product": "dot-product attention, over its queries",
    "additive": "additive attention",
    GRAD_CAM: "Grad-CAM of what was predicted",
}
REPORT_FILE = "explanations.json"
_BATCH = 32
_Heat = dict[int, NDArray[np.float32]]


@dataclass(frozen=True)
class Explanation:
    """Rows of images, and of each kind the maps in 0..1 by the image's index: all layers in one, and layer by layer."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    maps: dict[str, _Heat]
    layers: dict[str, dict[str, _Heat]]


def explain(
    model: FerModel, split: Split, preprocess: Preprocess, *, right: int = 5, seed: int = 0, layer: str | None = None
) -> Explanation:
    """Attention maps and Grad-CAM of right and wrong predictions of every class of ``split``.

    ``right`` hits a class are drawn by ``seed``; ``layer`` is that of Grad-CAM. Grad-CAM explains what was predicted.
    ValueError for classes that are not the split's and for an unknown layer, ImportError without captum.
    """
    order, device = class_order(model, split.names), next(model.parameters()).device
    images = torch.from_numpy(split.images)
    logits = predict(model, images, preprocess)[:, order]
    rows = choose(logits, torch.from_numpy(split.labels), right, seed)
    shown = sorted((example for row in rows for example in row.examples()), key=lambda example: example.index)
    layers: dict[str, dict[str, _Heat]] = {}
    maps: dict[str, _Heat] = {}
    for start in range(0, len(shown), _BATCH):
        part = shown[start : start + _BATCH]
        indices = [example.index for example in part]
        x = preprocess(images[indices]).to(device)
        classes = torch.tensor([order[example.predicted] for example in part], device=device)
        found: dict[str, dict[str, Tensor]] = {
            **attention_maps(model, x),
            GRAD_CAM: {layer or LAYERS[model.name]: grad_cam(model, x, classes, layer)},
        }
        for kind, of_layer in found.items():
            size = (int(x.shape[2]), int(x.shape[3]))
            _store(maps.setdefault(kind, {}), indices, combined(list(of_layer.values()), size))
            for name, each in of_layer.items():
                _store(layers.setdefault(kind, {}).setdefault(name, {}), indices, stretched(each))
    return Explanation(split.names, tuple(rows), maps, layers)


def _store(heat: _Heat, indices: Sequence[int], maps: Tensor) -> None:
    heat.update(zip(indices, maps.float().cpu().numpy(), strict=True))


def write(
    out: Path, found: Explanation, split: Split, about: Mapping[str, Any], ids: Sequence[str] | None
) -> list[Path]:
    """A sheet of examples per kind, one of the layers where a kind has several, and explanations.json."""
    out.mkdir(parents=True, exist_ok=True)
    what = f"{about['model']} on {about['data']}, {about['split']}"
    shown = found.rows, found.names, split.images
    paths = []
    for kind, layers in found.layers.items():
        paths.append(_save(out / f"{kind}.png", example_sheet(f"{TITLES[kind]}: {what}", *shown, found.maps[kind])))
        if len(layers) > 1:
            sheet = layer_sheet(f"{TITLES[kind]}, layer by layer: {what}", *shown, layers)
            paths.append(_save(out / f"{kind}_layers.png", sheet))
    report = {
        **about,
        "classes": list(found.names),
        "kinds": {kind: list(layers) for kind, layers in found.layers.items()},
        "examples": [_entry(found, example, ids) for row in found.rows for example in row.examples()],
    }
    write_text(out / REPORT_FILE, json.dumps(report, indent=1) + "\n")
    return [*paths, out / REPORT_FILE]


def _entry(found: Explanation, example: Example, ids: Sequence[str] | None) -> dict[str, Any]:
    """An image with names of its classes, and where each kind's map is hottest and how it is spread."""
    return {
        **asdict(example),
        "id": None if ids is None else ids[example.index],
        "truth": found.names[example.truth],
        "predicted": found.names[example.predicted],
        "confidence": round(example.confidence, 6),
        "maps": {kind: _summary(heat[example.index]) for kind, heat in found.maps.items()},
    }


def _summary(heat: NDArray[np.float32]) -> dict[str, Any]:
    """Peak and centre of mass as fractions (down, right) of the image, and the share of it above half the peak."""
    height, width = heat.shape
    down, right = np.unravel_index(int(heat.argmax()), heat.shape)
    total = float(heat.sum()) or 1.0
    rows, columns = (np.arange(n) + 0.5 for n in heat.shape)
    centre = (float(heat.sum(1) @ rows) / total / height, float(heat.sum(0) @ columns) / total / width)
    return {
        "peak": [round((int(down) + 0.5) / height, 4), round((int(right) + 0.5) / width, 4)],
        "centre": [round(value, 4) for value in centre],
        "area": round(float((heat > 0.5).mean()), 4),
    }


def _save(path: Path, sheet: Any) -> Path:
    with replace_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path
