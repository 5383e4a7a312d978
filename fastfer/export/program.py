# SPDX-License-Identifier: Apache-2.0
"""torch.export of a network: standard operators only, any batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastfer.models import FerModel


class FromPixels(nn.Module):
    """A network behind its preprocessing: uint8 (N, C, H, W) -> logits. x / 255, then mean and std of each channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: FerModel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        like = next(model.parameters())
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != model.in_chans:
                raise ValueError(f"{name}: expected {model.in_chans} numbers, one a channel, got {list(values)}")
        means, deviations = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
        self.model = model
        self.register_buffer("scale", (1 / (255 * deviations)).to(like))
        self.register_buffer("shift", (means / deviations).to(like))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.to(self.scale.dtype) * self.scale - self.shift)
        return logits


def prepared(model: FerModel, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> nn.Module:
    """A copy on the CPU, in evaluation, behind its preprocessing where ``mean`` and ``std`` are given."""
    if not isinstance(model, FerModel):
        raise TypeError(f"model: expected a fastfer model, got {type(model).__name__}")
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std: expected both or none, got {mean!r} and {std!r}")
    twin = copy.deepcopy(model).cpu().eval()
    return twin if mean is None or std is None else FromPixels(twin, mean, std).eval()


def example(model: FerModel, batch: int, size: tuple[int, int], pixels: bool, seed: int = 0) -> Tensor:
    """Images (batch, C, *size): uint8, or standard normal in the network's dtype."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, model.in_chans, *size)
    if pixels:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator).to(next(model.parameters()).dtype)


def smallest_batch(model: FerModel) -> int:
    """1, but 2 for PAtt-Lite as published, which attends over the images of a batch."""
    return 2 if model.options.get("attention") == "batch" else 1


def to_program(
    model: FerModel,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> Any:
    """``torch.export.ExportedProgram`` of images (N, C, H, W), any N, of one ``size`` (H, W), to logits (N, K).

    ``size`` is by default the published one. The program holds a copy of the weights and runs without this package: no
    operator of it is left. With ``mean`` and ``std`` (one number a channel, on the scale 0..1) it takes uint8 pixels,
    else float images that are preprocessed already. Raises TypeError or ValueError for a model or numbers that do not
    fit.
    """
    module = prepared(model, mean, std)
    least = smallest_batch(model)
    images = example(model, least + 1, size or model.input_size, mean is not None)
    with torch.no_grad():
        return torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=least)},))
