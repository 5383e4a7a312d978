# SPDX-License-Identifier: Apache-2.0
"""What a weight file's header says of its images, in one place for everything that runs the weights.

A network is right only for images that come to it as in training: decoded to the same channels, at the same size before
equalisation, equalised or not, resized, normalised. The header holds all of that in three entries: "preprocess" (the
settings of `Preprocess`), "stored" (the form of the images before it) and "input" (the size after it). Evaluation,
explanation, distillation, export and the engine read them here, do every step, or refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastfer.data.preprocess import Preprocess, as_batch
from fastfer.data.split import Split

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 4096  # rows or columns; more are no face


@dataclass(frozen=True)
class InputSpec:
    """How images become the input of one network.

    preprocess  the conversion, with the face crop where whole pictures were cut
    size        (H, W) of the network's input; None where the header does not say
    stored      (C, H, W) of the training images as the data set gave them to ``preprocess``; other images are brought
                to this form first, because equalisation and resizing give other pixels at another size. None where the
                header does not say, and then images are taken as they are
    """

    preprocess: Preprocess
    size: tuple[int, int] | None = None
    stored: tuple[int, int, int] | None = None

    @classmethod
    def from_metadata(cls, header: Mapping[str, Any]) -> InputSpec:
        """Of the header of a weight file. TypeError or ValueError where it does not say, or contradicts itself."""
        try:
            return cls._read(header)
        except (ArithmeticError, AttributeError, LookupError) as error:  # of values that are no settings at all
            raise ValueError(f"preprocess: expected settings, got {type(error).__name__}: {error}") from error

    @classmethod
    def _read(cls, header: Mapping[str, Any]) -> InputSpec:
        preprocess = Preprocess.from_metadata(header)
        said = input_size(header)
        form = None if header.get("stored") is None else _sides("stored", header["stored"], (3,))
        stored = None if form is None else (form[0], form[1], form[2])
        size = preprocess.size or (None if stored is None else stored[1:])  # what is not resized stays as it was stored
        if None not in (said, size) and said != size:
            raise ValueError(f"input: expected {size} as preprocess.size or stored says, got {said}")
        return cls(preprocess, size or said, stored or _guessed(header, preprocess, said))

    def shape(self, channels: int, usual: tuple[int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the network's input: ``channels`` are the network's, ``usual`` its size where none is said."""
        if channels != len(self.preprocess.mean):
            raise ValueError(f"preprocess: expected mean and std of {channels} channels, got {self.preprocess.mean}")
        return (channels, *(self.size or usual))

    def form(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W) or (N, C, H, W) of any size -> (N, C, H, W) in the form of the training images."""
        x = as_batch(images)
        if self.stored is None:
            return x
        from fastfer.data import pixels  # settings are read without torch

        channels, *sides = self.stored
        if x.shape[1] != channels:
            if {x.shape[1], channels} != {1, 3}:
                raise ValueError(f"images: expected {channels} channels, got {x.shape[1]}")
            x = pixels.grey(x) if channels == 1 else x.expand(-1, 3, -1, -1)
        return pixels.resize(x, (sides[0], sides[1]))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images of any size -> float32 (N, C, H, W) as the network takes them."""
        return self.preprocess(self.form(images))

    def split(self, split: Split) -> Split:
        """The same images in the form of the training images; the split itself where they are so already."""
        shape = split.images.shape[1:] if split.images.ndim == 4 else (1, *split.images.shape[1:])
        if self.stored is None or tuple(shape) == self.stored:
            return split
        import torch

        parts = torch.split(torch.from_numpy(split.images), 1024)
        images = torch.cat([self.form(part) for part in parts]).numpy()
        return replace(split, images=images[:, 0] if self.stored[0] == 1 else images)

    def options(self) -> dict[str, int]:
        """Options of `load_dataset` with which a data set of image files gives the form of the training images."""
        if self.stored is None:
            return {}
        channels, height, width = self.stored
        return {"channels": channels, **({"size": height} if height == width else {})}

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std for a consumer of bytes that can do no other step; None where that would leave out a step.

        Such a consumer takes bytes of the network's own size and channels, so that a missing resize or conversion to
        grey cannot pass unnoticed. A missing equalisation could: the answer is None then, and bytes must be refused.
        """
        return None if self.preprocess.equalise else (self.preprocess.mean, self.preprocess.std)

    def to_stored(self) -> tuple[str, ...]:
        """In words what makes an image one as the training images were stored."""
        steps = []
        if self.preprocess.crop is not None:
            steps.append(f"cut out the face with a margin of {self.preprocess.crop.margin:g}")
        if self.stored is not None:
            channels, height, width = self.stored
            steps.append("convert to grey" if channels == 1 else "three channels")
            steps.append(f"resize to {height}×{width}")
        return tuple(steps)

    def before(self, pixels: bool) -> tuple[str, ...]:
        """In words what has to be done to an image before a network that takes it as float, or as bytes of its size.

        With ``pixels`` the network itself does (x / 255 - mean) / std.
        """
        settings, steps = self.preprocess, []
        if settings.crop is not None:
            steps.append(f"cut out the face with a margin of {settings.crop.margin:g}")
        if self.stored is not None and (settings.equalise or self.stored[1:] != self.size):
            steps.append(f"resize to {self.stored[1]}×{self.stored[2]}")
        if settings.colour == "grey" or (self.stored is not None and self.stored[0] == 1):
            steps.append("convert to grey")
        if settings.equalise:
            steps.append("equalise the histogram")
        if self.size is not None:
            steps.append(f"resize to {self.size[0]}×{self.size[1]}")
        if settings.colour == "rgb":
            steps.append("three channels")
        if not pixels:
            mean, std = (" ".join(f"{value:g}" for value in values) for values in (settings.mean, settings.std))
            steps.append(f"(x / 255 - {mean}) / {std}")
        return tuple(steps)


def input_size(header: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) of the network's input by the entry "input", (H, W) or (C, H, W); None without one."""
    if header.get("input") is None:
        return None
    *_, height, width = _sides("input", header["input"], (2, 3))
    return height, width


def _guessed(
    header: Mapping[str, Any], preprocess: Preprocess, said: tuple[int, int] | None
) -> tuple[int, int, int] | None:
    """The form of the training images where the header, of an older file, does not name it: from what it does say."""
    grey = preprocess.colour == "grey" or preprocess.equalise
    channels = 1 if grey else len(preprocess.mean)
    if preprocess.size is None:  # so the input had the size of the images
        return None if said is None else (channels, *said)
    config = header.get("config")
    options = config.get("data_options") if isinstance(config, Mapping) else None
    side = options.get("size") if isinstance(options, Mapping) else None
    return None if side is None else (channels, *_sides("data_options.size", [side, side], (2,)))  # type: ignore[return-value]


def _sides(name: str, value: object, lengths: tuple[int, ...]) -> tuple[int, ...]:
    right = isinstance(value, (list, tuple)) and len(value) in lengths
    if not right or not all(type(n) is int and 1 <= n <= _LARGEST for n in value):  # type: ignore[attr-defined]
        raise ValueError(f"{name}: expected {' or '.join(map(str, lengths))} numbers of 1 to {_LARGEST}, got {value!r}")
    return tuple(value)  # type: ignore[arg-type]
