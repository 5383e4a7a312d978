# SPDX-License-Identifier: Apache-2.0
"""Batched augmentation, on the device that the batch is on.

The draws come from a generator of the CPU, the same for every device, so that a resumed run sees the same images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Random changes, drawn per image.

    Args:
        flip: probability of a mirror image
        degrees: rotation by up to so many degrees either way
        shift: translation by up to this fraction of the side, each axis
        zoom: scale by 1 +- zoom
        contrast: contrast by a factor 1 +- contrast, brightness by +- contrast / 2 standard deviations
        erase: probability of blanking a rectangle (0.1 to 0.4 of each side) with the mean
        crop: a window of 1 - crop to 1 of each side, anywhere in the image, enlarged to the image's size
        image_contrast: contrast by a factor 1 +- image_contrast about each channel's own mean (Keras' RandomContrast)
        noise: Gaussian noise, its standard deviation drawn from 0 to this, in units of the normalised image
    """

    flip: float = 0.5
    degrees: float = 10.0
    shift: float = 0.08
    zoom: float = 0.1
    contrast: float = 0.2
    erase: float = 0.0
    crop: float = 0.0
    image_contrast: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        limits = {
            "flip": 1.0,
            "degrees": 180.0,
            "shift": 1.0,
            "zoom": 0.9,
            "contrast": 1.0,
            "erase": 1.0,
            "crop": 0.9,
            "image_contrast": 1.0,
            "noise": 10.0,
        }
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(f"augment.{name}: expected 0 to {limit:g}, got {value}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """float (N, C, H, W), normalised -> the same shape.

        Takes 12 numbers per image from ``generator``, and with crop, image_contrast or noise 6 more; the noise itself
        is drawn on the device of ``x``, from a seed taken from ``generator``.
        """
        draws = _draws(x, 12, generator)
        extra = _draws(x, 6, generator) if self.crop or self.image_contrast or self.noise else None
        x = self._warp(x, draws[:5], extra[:3] if extra and self.crop else None)
        if self.contrast:
            factor = 1 + self.contrast * (2 * draws[5] - 1)
            offset = self.contrast * (draws[6] - 0.5)
            x = x * _each(factor) + _each(offset)
        if extra and self.image_contrast:
            mean = x.mean((2, 3), keepdim=True)
            x = (x - mean) * _each(1 + self.image_contrast * (2 * extra[3] - 1)) + mean
        if extra and self.noise:
            x = x + _gaussian(x, generator) * _each(self.noise * extra[4])
        if self.erase:
            x = self._erase(x, *draws[7:])
        return x.contiguous(memory_format=torch.channels_last)

    def _warp(self, x: Tensor, draws: tuple[Tensor, ...], window: tuple[Tensor, ...] | None) -> Tensor:
        """One bilinear sampling for flip, rotation, shift, zoom and crop; outside pixels repeat the border."""
        mirror, turn, right, down, zoom = draws
        angle = math.radians(self.degrees) * (2 * turn - 1)
        scale = 1 + self.zoom * (2 * zoom - 1)
        sign = torch.where(mirror < self.flip, -1.0, 1.0)
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        # affine_grid counts in half sides, hence the factor 2.
        x_shift, y_shift = 2 * self.shift * (2 * right - 1), 2 * self.shift * (2 * down - 1)
        if window is not None:
            side = 1 - self.crop * window[0]
            cos, sin = cos * side, sin * side
            x_shift, y_shift = (
                s + (1 - side) * (2 * at - 1) for s, at in zip((x_shift, y_shift), window[1:], strict=True)
            )
        rows = torch.stack([cos * sign, -sin, x_shift, sin * sign, cos, y_shift], 1)
        grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _erase(self, x: Tensor, chance: Tensor, high: Tensor, wide: Tensor, top: Tensor, left: Tensor) -> Tensor:
        rows = _interval(x.shape[2], 0.1 + 0.3 * high, top) & (chance < self.erase).view(-1, 1)
        columns = _interval(x.shape[3], 0.1 + 0.3 * wide, left)
        return x.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)


def _draws(x: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """``count`` uniform numbers for each image: tensors (N,) on the device of ``x``."""
    table = torch.rand(len(x), count, generator=generator, dtype=torch.float32)
    return table.to(x.device, non_blocking=True).unbind(1)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _gaussian(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers like ``x``; those of two devices differ."""
    seed = int(torch.randint(2**62, (), generator=generator))
    own = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=own, device=x.device, dtype=x.dtype)


def _interval(length: int, fraction: Tensor, position: Tensor) -> Tensor:
    """bool (N, length): a run of ``fraction`` of the length, at ``position`` (0..1) of where it can start."""
    start = (position * (1 - fraction) * length).view(-1, 1)
    at = torch.arange(length, device=fraction.device).view(1, -1) + 0.5
    return (at >= start) & (at < start + (fraction * length).view(-1, 1))
