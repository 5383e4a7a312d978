# SPDX-License-Identifier: Apache-2.0
"""One evaluation of one network on one split."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastfer.data import Preprocess, Split
from fastfer.data.audit import duplicate_mask
from fastfer.evaluate.metrics import Metrics, measure, require_torchmetrics
from fastfer.evaluate.predict import predict
from fastfer.models import FerModel


@dataclass(frozen=True)
class Evaluation:
    """``without_duplicates`` leaves out the images that are in the training set too; None without a training set.

    ``duplicates`` counts them by their pixels, ``trained_on`` by their names, None where the images have none.
    ``groups``: of each attribute the groups and their metrics. ``logits`` (N, K) are in the order of ``classes``, those
    of the split.
    """

    classes: tuple[str, ...]
    metrics: Metrics
    trained_on: int | None
    duplicates: int | None
    without_duplicates: Metrics | None
    groups: dict[str, dict[str, Metrics]]
    images_per_second: float
    logits: Tensor = field(repr=False, compare=False)


def evaluate(
    model: FerModel,
    split: Split,
    preprocess: Preprocess,
    *,
    train: Split | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    flip: bool = False,
    batch_size: int = 256,
) -> Evaluation:
    """Score ``model`` on ``split``.

    Args:
        train: the training set; the scores are then also given without its exact pixel duplicates
        groups: attribute -> group of each image, N names; "" where an image has none
        flip: average the logits of each image and its mirror image

    Classes are matched by name: the model's may be in another order than the split's. ValueError where they are other
    classes, where the model cannot take the images, or for an empty split.
    """
    require_torchmetrics()
    if not len(split):
        raise ValueError("split: expected images, got none")
    order = class_order(model, split.names)
    _probe(model, split, preprocess)
    start = time.perf_counter()
    logits = predict(model, torch.from_numpy(split.images), preprocess, flip=flip, batch_size=batch_size)
    seconds = time.perf_counter() - start
    logits, labels, classes = logits[:, order], torch.from_numpy(split.labels), len(split.names)
    copies, trained_on = None, None
    if train is not None:
        copies, trained_on = duplicate_mask(split, train), _named_alike(split, train)
    kept = None if copies is None else torch.from_numpy(~copies)
    return Evaluation(
        classes=split.names,
        metrics=measure(logits, labels, classes),
        trained_on=trained_on,
        duplicates=None if copies is None else int(copies.sum()),
        without_duplicates=None if kept is None or not kept.any() else measure(logits[kept], labels[kept], classes),
        groups={name: _by_group(logits, labels, classes, members) for name, members in (groups or {}).items()},
        images_per_second=len(split) / seconds,
        logits=logits,
    )


def _named_alike(split: Split, train: Split) -> int | None:
    if split.ids is None or train.ids is None:
        return None
    known = set(train.ids)
    return sum(each in known for each in split.ids)


def class_order(model: FerModel, names: Sequence[str]) -> list[int]:
    """Place among the model's logits of each of the classes ``names``. ValueError where they are not the same set."""
    own = model.class_names
    if own is None:
        if model.num_classes != len(names):
            raise ValueError(f"classes: expected {len(names)} as the data has, got a model of {model.num_classes}")
        raise ValueError(f"classes: expected a weight file that names its classes ({', '.join(names)}), got none")
    if set(own) != set(names):
        raise ValueError(f"classes: expected those of the data ({', '.join(names)}), got a model for {', '.join(own)}")
    return [own.index(name) for name in names]


def _probe(model: FerModel, split: Split, preprocess: Preprocess) -> None:
    """ValueError where the model cannot take the split's images."""
    try:
        predict(model, torch.from_numpy(split.images[:1]).repeat_interleave(2, 0), preprocess)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the model cannot take images of {split.images.shape[1:]}: {error}") from error


def _by_group(logits: Tensor, labels: Tensor, classes: int, members: Sequence[str]) -> dict[str, Metrics]:
    if len(members) != len(labels):
        raise ValueError(f"groups: expected {len(labels)} names, got {len(members)}")
    found: dict[str, Any] = {}
    for name in sorted(set(members) - {""}):
        chosen = torch.tensor([member == name for member in members])
        found[name] = measure(logits[chosen], labels[chosen], classes)
    return found
