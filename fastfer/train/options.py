# SPDX-License-Identifier: Apache-2.0
"""Groups of training options: schedules, stopping, stages, loss, distillation. Each checks its own values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fastfer.data import FaceCrop, Preprocess, Shards, Split
from fastfer.train.resolution import Phase, parse_resolution

Monitor = Literal["loss", "accuracy"]
ScheduleName = Literal["onecycle", "cosine", "plateau", "inverse_time", "constant"]
OptimizerName = Literal["adamw", "adam", "sgd"]


_LARGEST = 1 << 53  # whole numbers up to it are floats as well
_MOST_EPOCHS = 1_000_000


def number(name: str, value: float, least: float, below: float = math.inf) -> None:
    """ValueError unless ``least`` <= ``value`` < ``below``, and for numbers that no counter or float holds."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{name}: expected at most {_LARGEST}, got a number of {len(str(abs(value)))} digits")
    if not (least <= value < below):
        end = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{name}: expected {least:g} or more{end}, got {value}")


def epoch_count(value: int, least: int) -> None:
    """ValueError for fewer epochs than ``least``, or more than anyone waits for."""
    number("epochs", value, least)
    if value > _MOST_EPOCHS:
        raise ValueError(f"epochs: expected at most {_MOST_EPOCHS}, got {value}")


def positive(name: str, value: float) -> None:
    """ValueError unless ``value`` is finite and above 0."""
    number(name, value, 0)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a positive number, got {value}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """ValueError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def require_features(copies: int, unfreeze: int | None, resolution: str | None) -> None:
    """ValueError where a stage would keep features of layers that train, or of images of several sizes."""
    number("feature_copies", copies, 0)
    if copies and (unfreeze is None or resolution is not None):
        got = "no unfreeze" if unfreeze is None else "resolution"
        raise ValueError(f"feature_copies: expected unfreeze and no resolution beside it, got {got}")


@dataclass(frozen=True)
class Input:
    """How stored images become the network's input; the same in training, evaluation and prediction.

    Args:
        normalise: mean and standard deviation of data (the training images), symmetric (x / 127.5 - 1, as MobileNetV1
            was trained with), or imagenet (as torchvision's networks were)
        size: side in pixels to resize to (default: as stored)
        colour: grey or rgb converts, stored takes what there is
        equalise: equalise the histogram of the grey image
        crop_margin: for whole pictures: cut to the face with so much on each side, as a fraction of its longer side;
            needs face_model (default: the images are faces already)
    """

    normalise: Literal["data", "symmetric", "imagenet"] = "data"
    size: int | None = None
    colour: Literal["stored", "grey", "rgb"] = "stored"
    equalise: bool = False
    crop_margin: float | None = None

    def __post_init__(self) -> None:
        one_of("input.normalise", self.normalise, ("data", "symmetric", "imagenet"))
        one_of("input.colour", self.colour, ("stored", "grey", "rgb"))
        if self.size is not None:
            number("input.size", self.size, 1)
        if self.crop_margin is not None:
            FaceCrop(self.crop_margin)

    def preprocess(self, source: Split | Shards) -> Preprocess:
        """The conversion, with the statistics of the training images where they are asked for, which shards lack."""
        size = None if self.size is None else (self.size, self.size)
        crop = None if self.crop_margin is None else FaceCrop(self.crop_margin)
        settings: dict[str, Any] = {"size": size, "colour": self.colour, "equalise": self.equalise, "crop": crop}
        if self.normalise == "imagenet":
            return Preprocess.imagenet(**settings)
        if self.normalise == "symmetric":
            return Preprocess.symmetric(self._channels(source), **settings)
        if isinstance(source, Shards):
            raise ValueError("input.normalise: expected symmetric or imagenet for images from shards, got data")
        return Preprocess.of(source, **settings)

    def _channels(self, source: Split | Shards) -> int:
        if self.colour != "stored":
            return 1 if self.colour == "grey" else 3
        if isinstance(source, Shards):
            raise ValueError("input.colour: expected grey or rgb for images from shards, got stored")
        return source.channels


@dataclass(frozen=True)
class Plateau:
    """The schedule plateau: the rate is lowered when a validation score stops improving.

    Args:
        monitor: loss or accuracy on the validation images
        factor: the rate is multiplied by this
        patience: after so many epochs in a row without improvement (Keras counts so; torch bears one more)
        min_lr: the rate never falls below this
        min_delta: a smaller change is no improvement
    """

    monitor: Monitor = "loss"
    factor: float = 0.1
    patience: int = 10
    min_lr: float = 0.0
    min_delta: float = 1e-4

    def __post_init__(self) -> None:
        one_of("plateau.monitor", self.monitor, ("loss", "accuracy"))
        number("plateau.factor", self.factor, 0, 1)
        number("plateau.patience", self.patience, 1)
        number("plateau.min_lr", self.min_lr, 0)
        number("plateau.min_delta", self.min_delta, 0)


@dataclass(frozen=True)
class InverseTime:
    """The schedule inverse_time: in epoch e, counted from 0, the rate is lr / (1 + rate · e / epochs).

    Args:
        rate: the decay rate
        epochs: the epochs after which the divisor has grown by rate
    """

    rate: float = 1.0
    epochs: float = 80.0

    def __post_init__(self) -> None:
        number("inverse_time.rate", self.rate, 0)
        positive("inverse_time.epochs", self.epochs)


@dataclass(frozen=True)
class EarlyStop:
    """End of a stage before its last epoch; the best weights are kept in any case.

    Args:
        patience: stop after so many epochs in a row without improvement; 0 never stops
        monitor: loss or accuracy on the validation images
        min_delta: a smaller change is no improvement
    """

    patience: int = 0
    monitor: Monitor = "accuracy"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        number("stop.patience", self.patience, 0)
        one_of("stop.monitor", self.monitor, ("loss", "accuracy"))
        number("stop.min_delta", self.min_delta, 0)


@dataclass(frozen=True)
class Stage:
    """A second stage, from the first one's best weights, with a fresh optimiser; other options are the first's.

    Args:
        epochs: passes over the training images; 0 for no such stage
        resolution: sizes of the training images and epochs with each, such as 112:40,224:10 (default: one size)
        lr: learning rate: the peak for onecycle, else the first
        schedule: learning rate over the stage
        plateau: options of the schedule plateau
        inverse_time: options of the schedule inverse_time
        stop: early end of the stage
        unfreeze: train only the last so many layers of the backbone, counted as Keras counts them; its norms stay
            frozen (default: everything trains)
        feature_copies: compute the frozen layers once for so many augmented copies of each image, which the epochs
            take in turn; 0 computes them in every step
        dropout: rate of the network's dropout layers (default: as it was built)
        spatial_dropout: rate of dropping whole channels of the patches
        attention_dropout: rate of dropout after the attention, on the embedding that the last layer reads
    """

    epochs: int = 0
    resolution: str | None = None
    lr: float = 1e-3
    schedule: ScheduleName = "constant"
    plateau: Plateau = field(default_factory=Plateau)
    inverse_time: InverseTime = field(default_factory=InverseTime)
    stop: EarlyStop = field(default_factory=EarlyStop)
    unfreeze: int | None = None
    feature_copies: int = 0
    dropout: float | None = None
    spatial_dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        epoch_count(self.epochs, 0)
        parse_resolution(self.resolution)
        require_features(self.feature_copies, self.unfreeze, self.resolution)
        positive("lr", self.lr)
        number("spatial_dropout", self.spatial_dropout, 0, 1)
        number("attention_dropout", self.attention_dropout, 0, 1)
        for name in ("unfreeze", "dropout"):
            value = getattr(self, name)
            if value is not None:
                number(name, value, 0, 1 if name == "dropout" else math.inf)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The sizes of `resolution` in order; empty where the images have one size."""
        return parse_resolution(self.resolution)


@dataclass(frozen=True)
class LossOptions:
    """The loss: a weighted sum of terms, each a mean over the batch unless center_reduction says otherwise.

    Args:
        softmax: weight of the cross-entropy
        softmax_trains: all, or only the last layer, which then learns to read an embedding that the other terms shape
        center: weight of the centre loss (Wen et al. 2016), the λ of a joint loss
        center_reduction: mean of the centre loss over the batch, or its sum, as the joint loss of the improved
            MobileNetV3 is written: with batches of 64 the same weight then counts 64-fold
        center_on: the centre loss' feature: the embedding or the logits
        center_alpha: learning rate of the centres
        triplet: weight of the batch-hard triplet loss on the embedding (Hermans et al. 2017)
        triplet_margin: its margin
        class_weights: balanced multiplies each class's cross-entropy by N / (K · its number of training images)
    """

    softmax: float = 1.0
    softmax_trains: Literal["all", "head"] = "all"
    center: float = 0.0
    center_reduction: Literal["mean", "sum"] = "mean"
    center_on: Literal["embedding", "logits"] = "embedding"
    center_alpha: float = 0.5
    triplet: float = 0.0
    triplet_margin: float = 0.3
    class_weights: Literal["none", "balanced"] = "none"

    def __post_init__(self) -> None:
        for name in ("softmax", "center", "triplet", "triplet_margin"):
            number(f"loss.{name}", getattr(self, name), 0)
        if not 0 <= self.center_alpha <= 1:
            raise ValueError(f"loss.center_alpha: expected 0 to 1, got {self.center_alpha}")
        if self.softmax + self.center + self.triplet == 0:
            raise ValueError("loss: expected a term with a weight above 0, got softmax, center and triplet of 0")
        one_of("loss.softmax_trains", self.softmax_trains, ("all", "head"))
        if self.softmax_trains == "head" and not (self.triplet or (self.center and self.center_on == "embedding")):
            raise ValueError("loss.softmax_trains: expected all without a term on the embedding, got head")
        one_of("loss.center_reduction", self.center_reduction, ("mean", "sum"))
        one_of("loss.center_on", self.center_on, ("embedding", "logits"))
        one_of("loss.class_weights", self.class_weights, ("none", "balanced"))

    def __str__(self) -> str:
        """In words, for reports: "cross-entropy (mean over the batch) + 0.4 · ½ |x - c|² (sum over the batch)"."""
        terms = {
            "cross-entropy (mean over the batch)": self.softmax,
            f"½ |x - c|² on the {self.center_on} ({self.center_reduction} over the batch)": self.center,
            f"batch-hard triplet loss of margin {self.triplet_margin:g} (mean over the batch)": self.triplet,
        }
        return " + ".join(f"{weight:g} · {term}" for term, weight in terms.items() if weight)


@dataclass(frozen=True)
class Distill:
    """Learning from a teacher: (1 - weight) · loss + weight · T² · KL(teacher / T, network / T) (Hinton et al. 2015).

    Args:
        temperature: T, which softens both distributions
        weight: the teacher's share of the loss
    """

    temperature: float = 4.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        positive("distill.temperature", self.temperature)
        if not 0 <= self.weight <= 1:
            raise ValueError(f"distill.weight: expected 0 to 1, got {self.weight}")
