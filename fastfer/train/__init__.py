# SPDX-License-Identifier: Apache-2.0
"""Training: ``python -m fastfer.train``, or ``train(TrainConfig(...))`` from Python."""

from fastfer.train.cli import configure
from fastfer.train.config import InputError, TrainConfig
from fastfer.train.folds import train_folds
from fastfer.train.loop import NonFiniteError
from fastfer.train.run import train

__all__ = ["InputError", "NonFiniteError", "TrainConfig", "configure", "train", "train_folds"]
