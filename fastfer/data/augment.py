# SPDX-License-Identifier: Apache-2.0
"""From stored bytes to network input, and batched augmentation.

``Preprocess`` is the one conversion that training, evaluation and prediction share; its numbers travel with the
weights. ``Augment`` works on whole batches and draws from a generator of its own, so that a resumed run sees the same
images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfer.data.split import Split


@dataclass(frozen=True)
class Preprocess:
    """(x / 255 - mean) / std per channel; mean and std on the scale 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, split: Split) -> Preprocess:
        """Mean and standard deviation over the pixels of ``split``, from integer counts, hence exactly repeatable."""
        images = split.images.reshape(len(split), split.channels, -1)
        level = np.arange(256)
        mean, std = [], []
        for channel in range(split.channels):
            counts = np.zeros(256, np.int64)
            for start in range(0, len(split), 1024):  # bincount makes int64 of its input
                counts += np.bincount(images[start : start + 1024, channel].ravel(), minlength=256)
            total, first, second = (int((counts * level**power).sum()) for power in range(3))
            mean.append(round(first / total / 255, 6))
            # Blank images alone would give 0; one grey level keeps the division defined.
            std.append(round(max(math.sqrt(total * second - first * first) / total, 1.0) / 255, 6))
        return cls(tuple(mean), tuple(std))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W) or (N, C, H, W) -> float32 (N, C, H, W), channels_last."""
        if images.dtype != torch.uint8 or images.ndim not in (3, 4):
            raise ValueError(f"images: expected uint8 (N, H, W) or (N, C, H, W), got {images.dtype} {images.shape}")
        x = images.unsqueeze(1) if images.ndim == 3 else images
        if x.shape[1] != len(self.mean):
            raise ValueError(f"images: expected {len(self.mean)} channels, got {x.shape[1]}")
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        x = x.to(torch.float32, memory_format=torch.channels_last)
        return x.mul_(1 / (255 * std)).sub_(mean / std)


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
    """

    flip: float = 0.5
    degrees: float = 10.0
    shift: float = 0.08
    zoom: float = 0.1
    contrast: float = 0.2
    erase: float = 0.0

    def __post_init__(self) -> None:
        limits = {"flip": 1.0, "degrees": 180.0, "shift": 1.0, "zoom": 0.9, "contrast": 1.0, "erase": 1.0}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(f"augment.{name}: expected 0 to {limit:g}, got {value}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """float (N, C, H, W), normalised -> the same shape. Always takes 12 numbers per image from ``generator``."""
        draws = torch.rand(len(x), 12, generator=generator, dtype=torch.float32).unbind(1)
        x = self._warp(x, *draws[:5])
        if self.contrast:
            factor = 1 + self.contrast * (2 * draws[5] - 1)
            offset = self.contrast * (draws[6] - 0.5)
            x = x * factor.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)
        if self.erase:
            x = self._erase(x, *draws[7:])
        return x.contiguous(memory_format=torch.channels_last)

    def _warp(self, x: Tensor, mirror: Tensor, turn: Tensor, right: Tensor, down: Tensor, zoom: Tensor) -> Tensor:
        """One bilinear sampling for flip, rotation, shift and zoom; outside pixels repeat the border."""
        angle = math.radians(self.degrees) * (2 * turn - 1)
        scale = 1 + self.zoom * (2 * zoom - 1)
        sign = torch.where(mirror < self.flip, -1.0, 1.0)
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        # affine_grid counts in half sides, hence the factor 2.
        rows = torch.stack(
            [cos * sign, -sin, 2 * self.shift * (2 * right - 1), sin * sign, cos, 2 * self.shift * (2 * down - 1)], 1
        )
        grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _erase(self, x: Tensor, chance: Tensor, high: Tensor, wide: Tensor, top: Tensor, left: Tensor) -> Tensor:
        rows = _interval(x.shape[2], 0.1 + 0.3 * high, top) & (chance < self.erase).view(-1, 1)
        columns = _interval(x.shape[3], 0.1 + 0.3 * wide, left)
        return x.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)


def _interval(length: int, fraction: Tensor, position: Tensor) -> Tensor:
    """bool (N, length): a run of ``fraction`` of the length, at ``position`` (0..1) of where it can start."""
    start = (position * (1 - fraction) * length).view(-1, 1)
    at = torch.arange(length).view(1, -1) + 0.5
    return (at >= start) & (at < start + (fraction * length).view(-1, 1))
