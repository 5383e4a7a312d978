# SPDX-License-Identifier: Apache-2.0
"""How often an engine of lower precision answers as the float32 network does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfer.engine.compiler import compile
from fastfer.models import FerModel

_PRECISIONS = ("float32", "bfloat16", "int8")
_CALIBRATION, _BATCH = 512, 64


def agreement(
    model: FerModel, images: Tensor, calibration: Tensor, logits: Tensor, order: Sequence[int]
) -> dict[str, Any]:
    """Share of the same classes by precision, or the reason why this CPU cannot say.

    Args:
        images: (N, C, H, W) float32, as the network takes them
        calibration: images of the training that int8 finds its ranges on
        logits: (N, K) of the network in float32
        order: place among the network's outputs of each of the K classes
    """
    classes = logits.argmax(1).numpy()
    found: dict[str, Any] = {}
    for precision in _PRECISIONS:
        ranges = [calibration[:_CALIBRATION].numpy()] if precision == "int8" else None
        try:
            engine = compile(model, tuple(images.shape[1:]), dtype=precision, calibration=ranges)
        except (RuntimeError, ValueError) as error:
            found[precision] = str(error).splitlines()[0]
            continue
        answers = [engine(batch.numpy())[:, order].argmax(1) for batch in torch.split(images, _BATCH)]
        found[precision] = round(float((np.concatenate(answers) == classes).mean()), 6)
    return found
