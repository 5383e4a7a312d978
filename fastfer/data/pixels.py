# SPDX-License-Identifier: Apache-2.0
"""Steps on batches of stored pixels: uint8 in, uint8 out, the same bytes on every device and with every thread count.

All sums are exact, of int64 or of multiples of 2⁻²² in float64, so no order of addition and no fused multiply changes
them. `fastfer.data.planes` has the same steps for one picture, without torch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_BITS = 22  # fraction of a weight, as Pillow's
_PIECE = 1 << 24  # bytes of pixels that are resized at a time, whose float64 copy takes eight times as much
_KEPT = 1 << 20  # numbers of a table of weights that is kept


def grey(images: Tensor) -> Tensor:
    """Luma of RGB, ITU-R 601 as in Pillow's "L": (N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = images.to(torch.int32).unbind(1)
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.unsqueeze(1).to(torch.uint8)


def histogram(images: Tensor) -> Tensor:
    """Pixels of each level by channel, over the batch: (N, C, H, W) -> int64 (C, 256)."""
    planes = images.transpose(0, 1).reshape(images.shape[1], -1)
    return _counts(planes)


def _counts(rows: Tensor) -> Tensor:
    """(R, pixels) -> int64 (R, 256)."""
    first = 256 * torch.arange(len(rows), device=rows.device).unsqueeze(1)
    return torch.bincount((rows.long() + first).flatten(), minlength=256 * len(rows)).view(-1, 256)


def equalise(images: Tensor) -> Tensor:
    """Histogram equalisation of each image and channel, as OpenCV's equalizeHist: (N, C, H, W) -> the same shape.

    level -> round(255 · (pixels at most that dark - darkest) / (all - darkest)), where "darkest" counts the pixels of
    the darkest level present; an image of one level stays as it is.
    """
    n, c, h, w = images.shape
    if not images.numel():
        return images
    flat = images.reshape(n * c, h * w)
    counts = _counts(flat)
    darkest = counts.gather(1, (counts > 0).to(torch.uint8).argmax(1, keepdim=True))
    rest = h * w - darkest
    # float32 and one division, as in OpenCV, so that ties round alike; 255.0 / tensor would take a reciprocal.
    scale = torch.div(torch.full_like(rest, 255).float(), rest.clamp_min(1).float())
    below = (counts.cumsum(1) - darkest).clamp_min(0).float()
    table = torch.where(rest > 0, (below * scale).round().clamp_max(255), torch.arange(256.0, device=images.device))
    return table.to(torch.uint8).gather(1, flat.long()).view(n, c, h, w)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, C, *size): along W, then along H, each rounded to a byte.

    Either step is Pillow's BILINEAR to the bit; Pillow itself picks the order by size, so both together need not be.
    """
    # float64 holds every sum exactly; lower precisions of matmul (TF32, bfloat16) do not concern it.
    with torch.autocast(images.device.type, enabled=False):
        if images.shape[3] != size[1]:
            weights = resize_weights(images.shape[3], size[1], images.device).T
            images = torch.cat([_rounded(rows.double() @ weights) for rows in _pieces(images, 2)], 2)
        if images.shape[2] != size[0]:
            weights = resize_weights(images.shape[2], size[0], images.device)
            images = torch.cat([_rounded(weights @ columns.double()) for columns in _pieces(images, 3)], 3)
    return images


def _pieces(images: Tensor, axis: int) -> tuple[Tensor, ...]:
    """``images`` in pieces along ``axis`` whose float64 copies stay small: a photograph's would take gigabytes."""
    length = images.shape[axis]
    step = max(1, _PIECE * length // max(images.numel(), 1))
    return torch.split(images, min(step, max(length, 1)), axis)


def _rounded(sums: Tensor) -> Tensor:
    return sums.add_(0.5).to(torch.uint8)


def resize_weights(source: int, target: int, device: torch.device) -> Tensor:
    """As `_make_weights`, and kept where it is small: photographs are of many sizes."""
    return (_kept_weights if source * target <= _KEPT else _make_weights)(source, target, device)


def _make_weights(source: int, target: int, device: torch.device) -> Tensor:
    """float64 (target, source): the weight of each source pixel in each target pixel, a multiple of 2⁻²²."""
    scale = source / target
    reach = max(scale, 1.0)
    centre = (np.arange(target)[:, None] + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), source)
    at = np.arange(source)[None]
    weight = np.maximum(1 - np.abs((at - centre + 0.5) * (1.0 / reach)), 0)
    weight[(at < first) | (at >= last)] = 0
    weight /= np.cumsum(weight, 1)[:, -1:]  # cumsum adds in order, as Pillow does; sum does not
    with torch.inference_mode(False):
        return torch.from_numpy(np.floor(0.5 + weight * 2.0**_BITS) * 2.0**-_BITS).to(device)


_kept_weights = lru_cache(maxsize=32)(_make_weights)
