# SPDX-License-Identifier: Apache-2.0
"""What a training run is made of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import yaml

from fastfer.data import Augment, DataOptions
from fastfer.train.options import (
    Distill,
    EarlyStop,
    Input,
    InverseTime,
    LossOptions,
    OptimizerName,
    Plateau,
    ScheduleName,
    Stage,
    epoch_count,
    number,
    one_of,
    positive,
    require_features,
)
from fastfer.train.resolution import parse_resolution, require_fit, total_epochs

CONFIG_FILE = "config.yaml"
_EPOCHS = {"drawn": 5, "fer2013": 60}
_LEARNING_RATES = {"onecycle": 5e-3, "cosine": 2e-3, "plateau": 1e-3, "inverse_time": 1e-3, "constant": 1e-3}
_PLANNED = ("onecycle", "cosine")  # schedules that are laid out over all epochs

_MOST_FOLDS = 9999  # as a split rule can name

# What may differ between a run and its continuation: nothing that decides what is computed.
_FREE_ON_RESUME = (
    "out",
    "root",
    "threads",
    "backend",
    "device",
    "compile",
    "cuda_graph",
    "resident",
    "on_nan",
    "recipe",
    "feature_folder",
    "from_weights",
    "pretrained",
    "face_model",
)


class InputError(ValueError):
    """Options, data or a saved run that training cannot start from; nothing has been written."""


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run. The defaults train FGW-FER on the drawn faces in about a minute.

    Args:
        recipe: the recipe whose values stand where none is given, by name (paper, best) or name/data set; applied by
            the command line and by `configure`, here only a record
        model: network, one of fastfer.list_models()
        model_options: options of the network's class, e.g. dropout
        data: data set, one of fastfer.data.list_datasets(), or auto to recognise it
        root: where the data set lies; the drawn faces need none
        shards: folder of shards to stream the training images from, for sets larger than memory; the data set then
            gives the validation images alone
        data_options: labels, split and form of the images
        folds: one run for each of so many folds, in folders of their own, and their mean and standard deviation; the
            split is N-fold unless data_options.split says leave-one-subject-out
        input: how images become the network's input
        face_model: file of YuNet (.onnx or .ffe), which finds the faces that input.crop_margin cuts out
        out: output folder (default: runs/MODEL-DATA)
        epochs: passes over the training images (default: those of resolution, else 5 for drawn, 60 for other data)
        resolution: sizes of the training images and epochs with each, such as 112:40,224:10 or 112:40,224 for all that
            are left; validation and the weights are of the last size, which is input.size; stop counts its epochs
            alone (default: one size)
        batch_size: images per step
        optimizer: adamw, adam (weight decay as a gradient) or sgd (with Nesterov momentum)
        momentum: momentum of sgd
        weight_decay: weight decay
        clip_norm: largest norm of all gradients together; longer ones are scaled down to it; 0 for no limit
        lr: learning rate: the peak for onecycle, else the first (default: 5e-3 for onecycle, 2e-3 for cosine, else
            1e-3)
        schedule: learning rate over the run; onecycle and cosine are planned over all epochs
        plateau: options of the schedule plateau
        inverse_time: options of the schedule inverse_time
        stop: early end of the run, or of its first stage
        pretrained: start from ImageNet weights: a file of torchvision, timm or Keras, or a published one's name
        from_weights: start from the weights of this file (on the command line also --from); classes are mapped by name
        head: keep the rows of the last layer whose classes the file knows, or start it fresh
        teacher: weight file of a network to learn from as well
        distill: how
        unfreeze: train only the last so many layers of the backbone, counted as Keras counts them, 0 for none; its
            norms stay frozen (default: everything trains)
        feature_copies: compute the frozen layers once for so many augmented copies of each image, which the epochs
            take in turn, and once for each validation image; 0 computes them in every step
        feature_folder: keep these features in files of this folder, where later runs with the same images, layers and
            augmentation find them (default: in memory)
        feature_precision: bf16 halves their size; with fp32 losses are those of feature_copies 0 up to rounding
        fine_tune: a second stage
        loss: the loss
        label_smoothing: share of the target spread evenly over the classes
        ema: decay of the moving average of the weights, which is then what is evaluated and kept; 0 for none
        augment: random changes of the training images
        flip_test: average the logits of each validation image and its mirror image
        seed: decides weights, order and augmentation
        device: auto (CUDA where there is one), cpu or cuda; torchrun starts one process per device
        precision: fp32, or mixed: bf16, or on CUDA fp16 with loss scaling; fastfer's own ops follow on
            CUDA and on the backend reference, other kernels of the CPU compute and store float32
        compile: on the CPU record a step for each shape of batch and replay it, without Python between the kernels; the
            same bits; in fp32, with fastfer's own networks
        cuda_graph: record a step on CUDA once and replay it, which saves the launches; not with fp16, on_nan skip,
            onecycle (it moves the momentum) or several processes
        resident: keep the training images on the device: auto (on CUDA, where they take at most a quarter of its free
            memory), always or never; from memory, not from shards
        sync_norms: with several processes BatchNorm takes the statistics of the whole batch; on the backend reference
        threads: CPU threads (default: torch's choice)
        backend: auto, native, numba or reference (default: FASTFER_BACKEND, else auto)
        quantize: int8 fine-tunes for it: the network computes with bytes as the engine's int8 plan does, norms keep
            their statistics, ranges are observed for some steps and go with the weights; from trained weights, on one
            process in fp32, at a learning rate of 1e-4 or so (default: none)
        on_nan: at a loss that is not finite, stop with an error, or skip the step
        train_images: use so many training images instead of all
        validation_images: use so many validation images instead of all
    """

    recipe: str | None = None
    model: str = "fgw_fer"
    model_options: dict[str, Any] = field(default_factory=dict)
    data: str = "drawn"
    root: str | None = None
    shards: str | None = None
    data_options: DataOptions = field(default_factory=DataOptions)
    folds: int = 0
    input: Input = field(default_factory=Input)
    face_model: str | None = None
    out: str | None = None
    epochs: int | None = None
    resolution: str | None = None
    batch_size: int = 64
    optimizer: OptimizerName = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    clip_norm: float = 0.0
    lr: float | None = None
    schedule: ScheduleName = "onecycle"
    plateau: Plateau = field(default_factory=Plateau)
    inverse_time: InverseTime = field(default_factory=InverseTime)
    stop: EarlyStop = field(default_factory=EarlyStop)
    pretrained: str | None = None
    from_weights: str | None = None
    head: Literal["keep", "fresh"] = "keep"
    teacher: str | None = None
    distill: Distill = field(default_factory=Distill)
    unfreeze: int | None = None
    feature_copies: int = 0
    feature_folder: str | None = None
    feature_precision: Literal["bf16", "fp32"] = "bf16"
    fine_tune: Stage = field(default_factory=Stage)
    loss: LossOptions = field(default_factory=LossOptions)
    label_smoothing: float = 0.0
    ema: float = 0.0
    augment: Augment = field(default_factory=Augment)
    flip_test: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    cuda_graph: bool = False
    resident: Literal["auto", "always", "never"] = "auto"
    sync_norms: bool = False
    threads: int | None = None
    backend: str | None = None
    quantize: Literal["none", "int8"] = "none"
    on_nan: Literal["stop", "skip"] = "stop"
    train_images: int | None = None
    validation_images: int | None = None

    def __post_init__(self) -> None:
        counts = {
            "epochs": 1,
            "batch_size": 2,
            "threads": 1,
            "seed": 0,
            "unfreeze": 0,
            "train_images": 1,
            "validation_images": 1,
        }
        for name, least in counts.items():
            value = getattr(self, name)
            if value is not None:
                number(name, value, least)
        if self.epochs is not None:
            epoch_count(self.epochs, 1)
        if self.lr is not None:
            positive("lr", self.lr)
        for name in ("weight_decay", "clip_norm"):
            number(name, getattr(self, name), 0)
        for name in ("label_smoothing", "ema", "momentum"):
            number(name, getattr(self, name), 0, 1)
        one_of("optimizer", self.optimizer, ("adamw", "adam", "sgd"))
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("precision", self.precision, ("fp32", "bf16", "fp16"))
        one_of("feature_precision", self.feature_precision, ("bf16", "fp32"))
        one_of("resident", self.resident, ("auto", "always", "never"))
        one_of("head", self.head, ("keep", "fresh"))
        if self.shards is not None and (self.train_images is not None or self.folds):
            raise ValueError("shards: expected neither train_images nor folds beside them")
        if self.shards is not None and self.resident == "always":
            raise ValueError("resident: expected auto or never for images from shards, got always")
        if self.sync_norms and self.backend != "reference":
            raise ValueError(
                f"sync_norms: expected backend reference, whose norms alone can be synchronised; got {self.backend!r}"
            )
        if self.folds == 1 or not 0 <= self.folds <= _MOST_FOLDS:
            raise ValueError(f"folds: expected 0, or 2 to {_MOST_FOLDS}, got {self.folds}")
        if (self.face_model is None) != (self.input.crop_margin is None):
            raise ValueError("face_model and input.crop_margin: expected both or neither, got one")
        if self.from_weights is not None and self.pretrained is not None:
            raise ValueError("from_weights and pretrained: expected one of them, got both")
        frozen = self.unfreeze is not None or self.fine_tune.unfreeze is not None
        if frozen and self.from_weights is None and self.pretrained is None:
            raise ValueError(
                "unfreeze: expected a start from pretrained or from_weights, because frozen layers would keep random "
                "weights; got neither (null for unfreeze and fine_tune.unfreeze trains everything)"
            )
        self._check_resolution()
        self._check_features()
        self._check_quantize()
        for schedule in (self.schedule, self.fine_tune.schedule):
            one_of("schedule", schedule, tuple(_LEARNING_RATES))

    def _check_resolution(self) -> None:
        for stage in (self, self.fine_tune):
            require_fit(parse_resolution(stage.resolution), stage.epochs, self.input.size)
        if self.fine_tune.resolution is not None and not self.fine_tune.epochs:
            raise ValueError("fine_tune.resolution: expected fine_tune.epochs beside it, got 0")

    def _check_features(self) -> None:
        require_features(self.feature_copies, self.unfreeze, self.resolution)
        copies = self.feature_copies or self.fine_tune.feature_copies
        refused = {"shards": self.shards, "teacher": self.teacher}  # of images that are gone, or seen by others, too
        found = [name for name, value in refused.items() if value is not None]
        if copies and found:
            raise ValueError(f"feature_copies: expected 0 beside {' and '.join(found)}, got {copies}")
        if self.feature_folder is not None and not copies:
            raise ValueError("feature_folder: expected feature_copies beside it, got 0")

    def _check_quantize(self) -> None:
        one_of("quantize", self.quantize, ("none", "int8"))
        if self.quantize == "none":
            return
        if self.from_weights is None:
            raise ValueError("quantize: expected trained weights to start from, as from_weights; got none")
        others = ("compile", "cuda_graph", "feature_copies", "resolution", "ema")
        found = [name for name in others if getattr(self, name)]
        found += ["fine_tune"] if self.fine_tune.epochs else []
        found += [f"precision {self.precision}"] if self.precision != "fp32" else []
        if found:
            raise ValueError(f"quantize: expected no {', '.join(found)} beside it")

    def resolved(self) -> TrainConfig:
        """With the defaults that depend on other options filled in."""
        sizes = [parse_resolution(stage.resolution) for stage in (self, self.fine_tune)]
        last = next((phases[-1].size for phases in sizes if phases), None)
        return replace(
            self,
            out=self.out or f"runs/{self.model}-{self.data}",
            epochs=self.epochs or total_epochs(sizes[0]) or _EPOCHS.get(self.data, 60),
            lr=self.lr or _LEARNING_RATES[self.schedule],
            input=self.input if last is None else replace(self.input, size=last),
        )

    def stages(self) -> tuple[Stage, ...]:
        """The stages in order, of a resolved configuration."""
        first = Stage(**{f.name: getattr(self, f.name) for f in fields(Stage) if hasattr(self, f.name)})
        return (first, self.fine_tune) if self.fine_tune.epochs else (first,)

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Options that bar this run from continuing one of the options ``other``: "name: this, other"."""
        extensible = self.schedule not in _PLANNED and not self.fine_tune.epochs
        free = {*_FREE_ON_RESUME, *(("epochs",) if extensible else ())}
        mine = json.loads(json.dumps(asdict(self)))  # as it was saved: lists for tuples
        return [
            f"{k}: {mine[k]!r} instead of {other.get(k)!r}" for k in mine if k not in free and mine[k] != other.get(k)
        ]


def to_yaml(config: TrainConfig) -> str:
    """The file that --config reads."""
    return str(yaml.safe_dump(asdict(config), sort_keys=False))
