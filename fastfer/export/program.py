# SPDX-License-Identifier: Apache-2.0
"""torch.export of a network: standard operators only, any batch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastfer.data import InputSpec, pixels
from fastfer.models import FerModel


class FromPixels(nn.Module):
    """A network after its preprocessing: uint8 images in the form of the training images, (N, C, H, W) -> logits.

    All steps but the face crop, in operators that any runtime has and with the bytes of `Preprocess.pixels`: grey,
    equalisation, resize, RGB, then (x / 255 - mean) / std.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: FerModel, spec: InputSpec) -> None:
        super().__init__()
        like = next(model.parameters())
        settings = spec.preprocess
        self.taken, target = pixel_shape(model, spec), spec.shape(model.in_chans, model.input_size)[1:]
        means, deviations = (
            torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (settings.mean, settings.std)
        )
        self.model = model
        self.grey = settings.colour == "grey" and self.taken[0] == 3
        self.copies = settings.colour == "rgb" and self.taken[0] == 1
        self.equalise = settings.equalise
        self.resize = target != self.taken[1:]
        if self.resize:  # sums of bytes times multiples of 2⁻²² are exact in float64
            for name, source, sides in zip(("rows", "columns"), self.taken[1:], target, strict=True):
                self.register_buffer(name, pixels.resize_weights(source, sides, torch.device("cpu")))
        self.register_buffer("scale", (1 / (255 * deviations)).to(like))
        self.register_buffer("shift", (means / deviations).to(like))

    def forward(self, images: Tensor) -> Tensor:
        x = pixels.grey(images) if self.grey else images
        if self.equalise:
            x = _equalised(x)
        if self.resize:
            x = torch.floor(x.double() @ self.get_buffer("columns").T + 0.5)
            x = torch.floor(self.get_buffer("rows") @ x + 0.5)
        if self.copies:
            x = torch.cat([x, x, x], 1)
        logits: Tensor = self.model(x.to(self.scale.dtype) * self.scale - self.shift)
        return logits


def _equalised(images: Tensor) -> Tensor:
    """`fastfer.data.pixels.equalise` of grey images (N, 1, H, W), without the bincount that exporters lack."""
    n, _, h, w = images.shape
    flat = images.reshape(n, h * w).long()
    counts = torch.zeros(n, 256, dtype=torch.int64).scatter_add(1, flat, torch.ones_like(flat))
    below = counts.cumsum(1)
    # The pixels of the darkest level are all there are up to it.
    darkest = torch.where(below > 0, below, h * w).amin(1, keepdim=True)
    rest = h * w - darkest
    scale = torch.div(torch.full_like(rest, 255).float(), rest.clamp_min(1).float())  # one division, as there
    table = ((below - darkest).clamp_min(0).float() * scale).round().clamp_max(255)
    table = torch.where(rest > 0, table, torch.arange(256.0))
    return table.gather(1, flat).view(n, 1, h, w)


def pixel_shape(model: FerModel, spec: InputSpec) -> tuple[int, int, int]:
    """(C, H, W) of the bytes that `FromPixels` takes: as the training images were stored, or as the network's input."""
    return spec.stored or spec.shape(model.in_chans, model.input_size)


def prepared(model: FerModel, spec: InputSpec | None = None) -> nn.Module:
    """A copy on the CPU, in evaluation, after its preprocessing where ``spec`` is given."""
    if not isinstance(model, FerModel):
        raise TypeError(f"model: expected a fastfer model, got {type(model).__name__}")
    twin = copy.deepcopy(model).cpu().eval()
    return twin if spec is None else FromPixels(twin, spec).eval()


def example(model: FerModel, batch: int, shape: tuple[int, int, int], bytes_: bool, seed: int = 0) -> Tensor:
    """Images (batch, *shape): uint8, or standard normal in the network's dtype."""
    generator = torch.Generator().manual_seed(seed)
    if bytes_:
        return torch.randint(0, 256, (batch, *shape), generator=generator, dtype=torch.uint8)
    return torch.randn((batch, *shape), generator=generator).to(next(model.parameters()).dtype)


def smallest_batch(model: FerModel) -> int:
    """1, but 2 for PAtt-Lite as published, which attends over the images of a batch."""
    return 2 if model.options.get("attention") == "batch" else 1


def to_program(model: FerModel, spec: InputSpec | None = None, *, size: tuple[int, int] | None = None) -> Any:
    """``torch.export.ExportedProgram`` of images (N, C, H, W), any N, of one ``size`` (H, W), to logits (N, K).

    ``size`` is by default the published one. The program holds a copy of the weights and runs without this package: no
    operator of it is left. With ``spec`` it takes uint8 pixels in the form of the training images and does all of the
    preprocessing but the face crop, else float images that are preprocessed already. Raises TypeError or ValueError
    for a model or a ``spec`` that do not fit.
    """
    module = prepared(model, spec)
    least = smallest_batch(model)
    shape = (model.in_chans, *(size or model.input_size)) if spec is None else pixel_shape(model, spec)
    images = example(model, least + 1, shape, spec is not None)
    with torch.no_grad():
        return torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=least)},))
