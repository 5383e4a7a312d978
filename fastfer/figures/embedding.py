# SPDX-License-Identifier: Apache-2.0
"""Figures of a network looking at faces: maps over right and wrong predictions, embeddings in the plane."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastfer.data import DataError, Split
from fastfer.evaluate.source import Weights, load, load_parts
from fastfer.figures.figure import Faces, FigureError

_BATCH = 128


def maps(sources: Sequence[Path], faces: Faces) -> Figure:
    """A column a kind of map (Grad-CAM and what the network's attention gives), as `fastfer.explain` lays them out."""
    from fastfer.explain.run import TITLES, explain
    from fastfer.explain.sheet import example_sheet

    weights, split = _loaded(sources, faces)
    found = explain(weights.model, split, weights.preprocess, right=4, seed=faces.seed)
    sheets = {
        kind: example_sheet(TITLES[kind], found.rows, found.names, split.images, found.maps[kind])
        for kind in found.maps
    }
    width, height = max(s.width for s in sheets.values()) / 90, max(s.height for s in sheets.values()) / 90
    figure = Figure(figsize=(width, height * len(sheets)), layout="constrained")
    for axes, sheet in zip(figure.subplots(len(sheets), 1, squeeze=False)[:, 0], sheets.values(), strict=True):
        axes.imshow(np.asarray(sheet))
        axes.axis("off")
    return figure


def tsne(sources: Sequence[Path], faces: Faces) -> Figure:
    """t-SNE (van der Maaten and Hinton 2008) of the embeddings, a colour a class; the layout depends on the seed."""
    try:
        manifold: Any = importlib.import_module("sklearn.manifold")
    except ImportError as error:
        raise ImportError(f"t-SNE needs scikit-learn: pip install 'fastfer[figures]' ({error})") from error
    weights, split = _loaded(sources, faces)
    features = _features(weights, split)
    if len(features) < 5:
        raise FigureError(f"faces: expected at least 5, got {len(features)}")
    perplexity = min(30.0, (len(features) - 1) / 3)
    places = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=faces.seed).fit_transform(features)
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.add_subplot()
    for label, name in enumerate(split.names):
        mine = split.labels == label
        axes.scatter(places[mine, 0], places[mine, 1], s=6, color=f"C{label}", label=f"{name} ({int(mine.sum())})")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"{weights.model.name}: embeddings of {len(features)} faces, t-SNE, seed {faces.seed}", fontsize=10)
    axes.legend(fontsize=8, markerscale=2)
    return figure


def _features(weights: Weights, split: Split) -> NDArray[np.float32]:
    model = weights.model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(split), _BATCH):
            x = weights.preprocess(torch.from_numpy(split.images[start : start + _BATCH]))
            parts.append(model.forward_features(x).flatten(1).numpy())
    return np.concatenate(parts)


def _loaded(sources: Sequence[Path], faces: Faces) -> tuple[Weights, Split]:
    if len(sources) != 1:
        raise FigureError(f"sources: expected one weight file or run folder, got {len(sources)}")
    path = sources[0] / "best.safetensors" if sources[0].is_dir() else sources[0]
    if faces.data is None:
        raise FigureError("data: expected the data set of the faces (--data, --root), got none")
    try:
        weights = load(path)
        split = load_parts(weights, faces.data, faces.root, faces.split, {}, with_train=False).split
    except (DataError, ValueError, OSError) as error:
        raise FigureError(str(error)) from error
    if len(split) <= faces.limit:
        return weights, split
    chosen = np.random.default_rng(faces.seed).choice(len(split), faces.limit, replace=False)
    return weights, split.take(np.sort(chosen).astype(np.int64))
