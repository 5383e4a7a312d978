# SPDX-License-Identifier: Apache-2.0
"""Logits of stored images, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def predict(
    model: nn.Module,
    images: Tensor,
    preprocess: Callable[[Tensor], Tensor],
    *,
    flip: bool = False,
    batch_size: int = 256,
) -> Tensor:
    """Logits (N, K) on the CPU of images, on the model's device, in evaluation.

    ``preprocess``, a `Preprocess` of uint8 images (N, H, W) or (N, C, H, W), makes the network's input of a batch.
    ``flip`` averages the logits of each image and its mirror image.
    """
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    parts = []
    with torch.inference_mode():
        for batch in _batches(images, batch_size):
            x = preprocess(batch.to(device, non_blocking=True)).to(device)
            logits = model(x)
            if flip:
                logits = (logits + model(x.flip(3))) / 2
            parts.append(logits)
        return torch.cat(parts).cpu()


def _batches(images: Tensor, size: int) -> list[Tensor]:
    """Of ``size`` images; a single one left over joins the batch before: PAtt-Lite as published refuses it alone."""
    parts = list(torch.split(images, size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        last = parts.pop()
        parts[-1] = torch.cat([parts[-1], last])
    return parts
