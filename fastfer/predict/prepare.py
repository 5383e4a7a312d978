# SPDX-License-Identifier: Apache-2.0
"""From a picture and a face to what a network takes: `fastfer.data.InputSpec` in numpy, the same bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastfer.data import planes
from fastfer.data.input_spec import InputSpec
from fastfer.faces.face import Face, FaceCrop, Picture


class Prepare:
    """The conversion of one network: crop, grey, equalisation and size as its header says.

    shape  (C, H, W) of the network's input
    crop   the square around a face that it is shown
    least  pixels of the square's side from which on more of them make no difference to speak of
    """

    def __init__(self, spec: InputSpec, shape: tuple[int, int, int], crop: FaceCrop | None = None) -> None:
        """``crop`` by default that of the training, or `FaceCrop` as it is where training images were faces already.

        ValueError where the settings are for other channels than the network's.
        """
        channels = len(spec.preprocess.mean)
        if channels != shape[0]:
            raise ValueError(f"preprocess: expected mean and std of {shape[0]} channels, got {channels}")
        if spec.size not in (None, shape[1:]):
            raise ValueError(f"preprocess: expected the network's size {shape[1:]}, got {spec.size}")
        self.spec, self.shape = spec, shape
        self.crop = crop or spec.preprocess.crop or FaceCrop()
        self.least = 2 * max(spec.stored[1:] if spec.stored is not None else shape[1:])

    def __call__(self, picture: Picture, face: Face | None) -> NDArray[np.uint8]:
        """uint8 (C, H, W): ``face`` cut out of the picture, or the whole picture."""
        settings, stored = self.spec.preprocess, self.spec.stored
        x = picture if face is None else self.crop.cut(picture, face)
        # The order is that of InputSpec, as rounding makes another one other bytes. Grey stays one channel throughout:
        # three equal ones would go through every step alike.
        if stored is not None:
            x = planes.resize(x, stored[1:], grey=stored[0] == 1)
        if settings.equalise:
            x = planes.equalise(x if x.ndim == 2 else planes.grey(x))
        x = planes.resize(x, self.shape[1:], grey=settings.colour == "grey" or self.shape[0] == 1)
        if x.ndim == 2:
            return np.broadcast_to(x, (self.shape[0], *x.shape))
        return x.transpose(2, 0, 1)

    def batch(self, crops: list[NDArray[np.uint8]], as_bytes: bool) -> NDArray[np.uint8] | NDArray[np.float32]:
        """(N, C, H, W): ``as_bytes`` for an engine that normalises by itself, else float32, normalised."""
        pixels = np.empty((len(crops), *self.shape), np.uint8)
        for row, crop in zip(pixels, crops, strict=True):
            row[:] = crop
        if as_bytes:
            return pixels
        settings = self.spec.preprocess
        mean, std = (np.array(values)[:, None, None] for values in (settings.mean, settings.std))
        scaled: NDArray[np.float32] = pixels * (1 / (255 * std)).astype(np.float32) - (mean / std).astype(np.float32)
        return scaled
