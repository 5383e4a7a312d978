# SPDX-License-Identifier: Apache-2.0
"""What a training run is made of, and its command line (jsonargparse: options, --config YAML, --help)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from fastfer.data import Augment

CONFIG_FILE = "config.yaml"
_EPOCHS = {"drawn": 5, "fer2013": 60}
_LEARNING_RATES = {"onecycle": 5e-3, "cosine": 2e-3, "plateau": 1e-3}

# What may differ between a run and its continuation: nothing that decides what is computed.
_FREE_ON_RESUME = ("out", "root", "threads", "backend", "on_nan")


class InputError(ValueError):
    """Options, data or a saved run that training cannot start from; nothing has been written."""


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run. The defaults train FGW-FER on the drawn faces in about a minute.

    Args:
        model: network, one of fastfer.list_models()
        data: data set, drawn or fer2013
        root: where the data set lies; the drawn faces need none
        out: output folder (default: runs/MODEL-DATA)
        epochs: passes over the training images (default: 5 for drawn, 60 for fer2013)
        batch_size: images per step
        schedule: learning rate over the run; onecycle and cosine are planned over all epochs, plateau is the FGW-FER
            paper's (a tenth when the validation loss has not improved for 10 epochs)
        lr: learning rate of AdamW: the peak for onecycle, else the first (default: 5e-3 for onecycle, 2e-3 for cosine,
            1e-3 for plateau)
        weight_decay: weight decay of AdamW
        label_smoothing: share of the target spread evenly over the classes
        ema: decay of the moving average of the weights, which is then what is evaluated and kept; 0 for none
        augment: random changes of the training images
        flip_test: average the logits of each validation image and its mirror image
        seed: decides weights, order and augmentation
        threads: CPU threads (default: torch's choice)
        backend: auto, native, numba or reference (default: FASTFER_BACKEND, else auto)
        on_nan: at a loss that is not finite, stop with an error, or skip the step
        train_images: use so many training images instead of all
        validation_images: use so many validation images instead of all
    """

    model: str = "fgw_fer"
    data: str = "drawn"
    root: str | None = None
    out: str | None = None
    epochs: int | None = None
    batch_size: int = 64
    schedule: Literal["onecycle", "cosine", "plateau"] = "onecycle"
    lr: float | None = None
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    ema: float = 0.0
    augment: Augment = field(default_factory=Augment)
    flip_test: bool = False
    seed: int = 0
    threads: int | None = None
    backend: str | None = None
    on_nan: Literal["stop", "skip"] = "stop"
    train_images: int | None = None
    validation_images: int | None = None

    def __post_init__(self) -> None:
        counts = {"epochs": 1, "batch_size": 2, "threads": 1, "seed": 0, "train_images": 1, "validation_images": 1}
        for name, least in counts.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected {least} or more, got {value}")
        if self.lr is not None and not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr: expected a positive number, got {self.lr}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        for name in ("label_smoothing", "ema"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected 0 or more and below 1, got {value}")

    def resolved(self) -> TrainConfig:
        """With the defaults that depend on other options filled in."""
        return replace(
            self,
            out=self.out or f"runs/{self.model}-{self.data}",
            epochs=self.epochs or _EPOCHS.get(self.data, 60),
            lr=self.lr or _LEARNING_RATES[self.schedule],
        )

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Options that bar this run from continuing one of the options ``other``: "name: this, other"."""
        free = {*_FREE_ON_RESUME, *(("epochs",) if self.schedule == "plateau" else ())}
        mine = asdict(self)
        return [
            f"{k}: {mine[k]!r} instead of {other.get(k)!r}" for k in mine if k not in free and mine[k] != other.get(k)
        ]


@dataclass(frozen=True)
class Invocation:
    """A command line: the run's options, and what to do with an output folder that holds a run already."""

    config: TrainConfig
    resume: bool = False
    overwrite: bool = False


def parse_args(argv: Sequence[str]) -> Invocation:
    """Parse the command line; options not given come from --config, or with --resume from the run in ``out``.

    Raises InputError for bad options; --help exits as argparse does.
    """
    parser = ArgumentParser(
        prog="python -m fastfer.train",
        description="Train a network on faces. Options may be spelt with - for _.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of options, e.g. the config.yaml of another run")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder, bit for bit")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in the output folder")
    parser.add_class_arguments(TrainConfig)
    arguments = [_underscored(argument) for argument in argv]
    try:
        invocation = _invocation(parser.parse_args(arguments))
        if invocation.resume and invocation.overwrite:
            raise ValueError("resume and overwrite: expected one of them, got both")
        out = str(invocation.config.out)
        saved = Path(out, CONFIG_FILE)
        if invocation.resume and saved.is_file():
            again = _invocation(parser.parse_args(["--config", str(saved), *arguments]))
            return replace(again, config=replace(again.config, out=out))
        return invocation
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(str(error)) from None


def _invocation(parsed: Any) -> Invocation:
    values = parsed.as_dict()
    values.pop("config", None)
    resume, overwrite = values.pop("resume"), values.pop("overwrite")
    config = TrainConfig(**{**values, "augment": Augment(**values["augment"])})
    return Invocation(config.resolved(), resume, overwrite)


def _underscored(argument: str) -> str:
    """--batch-size=64 -> --batch_size=64: both spellings work."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def to_yaml(config: TrainConfig) -> str:
    """The file that --config reads."""
    return str(yaml.safe_dump(asdict(config), sort_keys=False))
