# SPDX-License-Identifier: Apache-2.0
"""Scores of a network on a split."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfer.data import Preprocess, Split


@dataclass(frozen=True)
class Scores:
    """What one evaluation found. recall and the rows of confusion are in the order of the class names.

    confusion[t][p] counts images of class t taken for class p; macro_f1 and recall count absent classes as 0.
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
        try:
            import torchmetrics.functional.classification as metrics
        except (ImportError, RuntimeError) as error:  # RuntimeError: an installed torchvision does not fit torch
            raise ImportError(f"cannot import torchmetrics ({error})") from error
        self._metrics = metrics
        self._images = torch.from_numpy(split.images)
        self._labels = torch.from_numpy(split.labels)
        self._classes = len(split.names)
        self._preprocess = preprocess
        self._flip_test = flip_test
        self._batch_size = batch_size

    def __call__(self, model: nn.Module) -> Scores:
        model.eval()
        start = time.perf_counter()
        with torch.inference_mode():
            logits = torch.cat(list(self._logits(model)))
        seconds = time.perf_counter() - start
        labels, predicted = self._labels, logits.argmax(1)
        recall = self._metrics.multiclass_recall(predicted, labels, self._classes, average="none")
        macro_f1 = self._metrics.multiclass_f1_score(predicted, labels, self._classes, average="macro")
        confusion = self._metrics.multiclass_confusion_matrix(predicted, labels, self._classes)
        return Scores(
            loss=float(F.cross_entropy(logits, labels)),
            accuracy=float((predicted == labels).double().mean()),
            macro_f1=round(float(macro_f1), 6),
            recall=tuple(round(value, 6) for value in recall.tolist()),
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            images_per_second=len(labels) / seconds,
        )

    def probe(self, model: nn.Module) -> None:
        """ValueError where the model cannot take the split's images or does not give a logit per class."""
        model.eval()
        with torch.inference_mode():
            try:
                logits = model(self._preprocess(self._images[:2]))[:1]  # some networks refuse a single image
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"the model cannot take images of {tuple(self._images.shape[1:])}: {error}") from error
        if logits.shape != (1, self._classes):
            raise ValueError(f"the model's logits: expected shape (1, {self._classes}), got {tuple(logits.shape)}")

    def _logits(self, model: nn.Module) -> Iterator[Tensor]:
        for batch in torch.split(self._images, self._batch_size):
            x = self._preprocess(batch)
            logits = model(x)
            if self._flip_test:
                logits = (logits + model(x.flip(3))) / 2
            yield logits
