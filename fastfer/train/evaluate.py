# SPDX-License-Identifier: Apache-2.0
"""Scores of a network on a split."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastfer.data import Preprocess, Split
from fastfer.evaluate.metrics import measure, require_torchmetrics
from fastfer.evaluate.predict import predict
from fastfer.models import FerModel
from fastfer.train.features import FrozenFeatures


@dataclass(frozen=True)
class Scores:
    """What one evaluation found. recall and the rows of confusion are in the order of the class names.

    confusion[t][p] counts images of class t taken for class p. See `fastfer.evaluate.Metrics` for absent classes.
    """

    loss: float
    accuracy: float
    macro_f1: float
    recall: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]
    images_per_second: float


class Evaluator:
    """Evaluates networks on one split: float32, channels_last, running statistics.

    flip_test averages the logits of each image and its mirror image. Raises ImportError where torchmetrics is missing.
    """

    def __init__(self, split: Split, preprocess: Preprocess, flip_test: bool = False, batch_size: int = 256) -> None:
        require_torchmetrics()
        self._split, self._images = split, torch.from_numpy(split.images)
        self._labels = torch.from_numpy(split.labels)
        self._classes = len(split.names)
        self._preprocess = preprocess
        self._flip_test = flip_test
        self._batch_size = batch_size

    def __call__(self, model: FerModel, features: FrozenFeatures | None = None) -> Scores:
        """Of the images, or of what ``features`` keeps of them."""
        start = time.perf_counter()
        logits = self._logits(model, features)
        seconds = time.perf_counter() - start
        found = measure(logits, self._labels, self._classes)
        return Scores(
            loss=found.loss,
            accuracy=found.accuracy,
            macro_f1=found.macro_f1,
            recall=found.recall,
            confusion=found.confusion,
            images_per_second=len(self._labels) / seconds,
        )

    def _logits(self, model: FerModel, features: FrozenFeatures | None) -> Tensor:
        if features is not None:
            return features.logits(model, self._split, self._flip_test, self._batch_size)
        images, size = self._images, self._batch_size
        return predict(model, images, self._preprocess, flip=self._flip_test, batch_size=size)

    def probe(self, model: nn.Module, size: int | None = None) -> None:
        """ValueError where the model cannot take the split's images or does not give a logit per class.

        With ``size``: images of that side instead of the preprocessing's.
        """
        preprocess = self._preprocess if size is None else replace(self._preprocess, size=(size, size))
        what = f"images of {tuple(self._images.shape[1:])}" if size is None else f"images of the resolution {size}"
        model.eval()
        with torch.inference_mode():
            try:
                logits = model(preprocess(self._images[:2]))[:1]  # some networks refuse a single image
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"the model cannot take {what}: {error}") from error
        if logits.shape != (1, self._classes):
            raise ValueError(f"the model's logits: expected shape (1, {self._classes}), got {tuple(logits.shape)}")
