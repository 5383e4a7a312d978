# SPDX-License-Identifier: Apache-2.0
"""From stored bytes to network input: the one conversion that training, evaluation, export and prediction share.

Its settings travel with the weights, as JSON under "preprocess" in the header of the file. The order is fixed: face
crop, grey, histogram equalisation, size, RGB, and (x / 255 - mean) / std. All steps but the last give bytes, the same
everywhere (`fastfer.data.pixels`). Settings are read without torch, which only the conversion itself needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastfer.data import planes
from fastfer.data.split import Split
from fastfer.faces.face import FaceCrop, FaceDetector, Picture

if TYPE_CHECKING:
    from torch import Tensor

Colour = Literal["stored", "grey", "rgb"]


@dataclass(frozen=True)
class Preprocess:
    """Settings and the conversion itself; by default only (x / 255 - mean) / std per channel.

    Args:
        mean: per channel, on the scale 0..1
        std: per channel, on the scale 0..1
        size: (H, W) that every image is resized to; None leaves the stored size
        colour: "grey" or "rgb" converts to it, "stored" takes what there is
        equalise: equalise the histogram of the grey image
        crop: square around the face that a whole picture is cut to; images stored as crops need none
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    colour: Colour = "stored"
    equalise: bool = False
    crop: FaceCrop | None = None

    def __post_init__(self) -> None:
        channels = {"grey": 1, "rgb": 3}
        numbers = [*self.mean, *self.std]
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"mean and std: expected one of each per channel, got {self.mean} and {self.std}")
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers) or min(self.std) <= 0:
            raise ValueError(f"mean and std: expected finite numbers, std above 0, got {self.mean} and {self.std}")
        if self.colour not in ("stored", *channels):
            raise ValueError(f"colour: expected one of stored, {', '.join(channels)}, got {self.colour!r}")
        if channels.get(self.colour, len(self.mean)) != len(self.mean):
            raise ValueError(f"mean: expected {channels[self.colour]} for {self.colour}, got {len(self.mean)}")
        if self.size is not None and (
            len(self.size) != 2 or not all(isinstance(n, int) and 1 <= n <= 4096 for n in self.size)
        ):
            raise ValueError(f"size: expected (height, width) of 1 to 4096, got {self.size}")
        if not isinstance(self.equalise, bool):
            raise TypeError(f"equalise: expected a bool, got {type(self.equalise).__name__}")

    @classmethod
    def of(cls, source: Split | Iterable[Tensor], **settings: Any) -> Preprocess:
        """Mean and standard deviation over the pixels of a split, from integer counts, hence exactly repeatable.

        ``source`` may also be batches of stored images, as a loader gives them. ``settings`` are the other fields;
        pixels are counted after grey and equalisation, before the change of size.
        """
        import torch

        from fastfer.data import pixels

        colour, equalise = settings.get("colour", "stored"), settings.get("equalise", False)
        counts = torch.zeros(1, 1, dtype=torch.int64)
        for batch in _batches(source) if isinstance(source, Split) else source:
            counts = counts + pixels.histogram(_tone(as_batch(batch), colour, equalise)).cpu()
        if not counts.any():
            raise ValueError("source: expected images to take mean and standard deviation of, got none")
        mean, std = [], []
        for channel in counts.numpy():
            total, first, second = (int((channel * np.arange(256) ** power).sum()) for power in range(3))
            mean.append(round(first / total / 255, 6))
            # Blank images alone would give 0; one grey level keeps the division defined.
            std.append(round(max(math.sqrt(total * second - first * first) / total, 1.0) / 255, 6))
        repeats = 3 if colour == "rgb" and len(mean) == 1 else 1
        return cls(tuple(mean) * repeats, tuple(std) * repeats, **settings)

    @classmethod
    def symmetric(cls, channels: int, **settings: Any) -> Preprocess:
        """x / 127.5 - 1, as MobileNetV1 was trained with in Keras and timm."""
        return cls((0.5,) * channels, (0.5,) * channels, **settings)

    @classmethod
    def imagenet(cls, **settings: Any) -> Preprocess:
        """Mean and standard deviation of ImageNet's RGB pixels, as torchvision's networks expect them."""
        return cls((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), **settings)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Preprocess:
        """What `to_json` gave. ValueError or TypeError for unknown, missing or unfit settings."""
        values = dict(entry)
        method = values.pop("resize", planes.RESIZE)
        if method != planes.RESIZE:
            raise ValueError(f"preprocess.resize: expected {planes.RESIZE!r}, got {method!r}")
        unknown = sorted(values.keys() - cls.__dataclass_fields__.keys())
        missing = sorted({"mean", "std"} - values.keys())
        if unknown or missing:
            raise ValueError(f"preprocess: expected its settings, got unknown {unknown}, missing {missing}")
        for key in ("mean", "std", "size"):
            if isinstance(values.get(key), list):
                values[key] = tuple(values[key])
        if values.get("crop") is not None:
            values["crop"] = FaceCrop(**values["crop"])
        return cls(**values)

    @classmethod
    def from_metadata(cls, header: Mapping[str, Any]) -> Preprocess:
        """Of a weight file's header: its "preprocess", or in files without one "mean" and "std"."""
        if "preprocess" in header:
            return cls.from_json(header["preprocess"])
        if "mean" not in header or "std" not in header:
            raise ValueError(f"weight file: expected preprocess, or mean and std, got {', '.join(sorted(header))}")
        return cls(tuple(header["mean"]), tuple(header["std"]))

    def to_json(self) -> dict[str, Any]:
        """JSON values of every setting, and the name of the resampling."""
        entry = asdict(self)
        for key in ("mean", "std", "size"):
            entry[key] = None if entry[key] is None else list(entry[key])
        return {**entry, "resize": planes.RESIZE}

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W) or (N, C, H, W) -> float32 (N, C, H, W), channels_last, on the same device."""
        return self.normalise(self.pixels(images))

    def pixels(self, images: Tensor) -> Tensor:
        """All but the last step, for images of one size: uint8 (N, H, W) or (N, C, H, W) -> uint8 (N, C, H, W)."""
        from fastfer.data import pixels

        x = _tone(as_batch(images), self.colour, self.equalise)
        if self.size is not None:
            x = pixels.resize(x, self.size)
        if self.colour == "rgb" and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if x.shape[1] != len(self.mean):
            raise ValueError(f"images: expected {len(self.mean)} channels, got {x.shape[1]}")
        return x

    def normalise(self, x: Tensor) -> Tensor:
        """(x / 255 - mean) / std: uint8 (N, C, H, W) -> float32, channels_last."""
        import torch

        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        n, c, h, w = x.shape
        # Interleaved as bytes, then worked on in rows: 3 colours are too short an axis to be quick.
        y = torch.stack(x.unbind(1), -1).to(torch.float32).view(n, h, w * c)
        y.mul_((1 / (255 * std)).repeat(w).to(x.device)).sub_((mean / std).repeat(w).to(x.device))
        return y.view(n, h, w, c).permute(0, 3, 1, 2)

    def picture(self, picture: Picture, detector: FaceDetector | None = None) -> Tensor:
        """One picture, uint8 RGB (H, W, 3) or grey (H, W), cut to its face -> uint8 (C, H, W), as `pixels` of a batch.

        ``detector`` is needed where the settings crop. FaceNotFoundError as the crop's ``missing`` says.
        """
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
            raise ValueError(f"picture: expected uint8 (H, W) or (H, W, 3), got {picture.dtype} {picture.shape}")
        if not picture.size:
            raise ValueError(f"picture: expected pixels, got shape {picture.shape}")
        if self.crop is not None:
            if detector is None:
                raise ValueError("detector: expected one, because the preprocessing cuts out faces; got None")
            picture = self.crop(picture, detector)
        # A copy, as decoded pictures are read-only.
        channels = np.array(np.atleast_3d(picture).transpose(2, 0, 1), order="C")
        return self.pixels(as_batch(channels[None]))[0]


def _batches(split: Split) -> Iterator[Tensor]:
    """Of few images, as the histogram makes int64 of its input."""
    for start in range(0, len(split), 1024):
        yield as_batch(split.images[start : start + 1024])


def as_batch(images: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """Stored images as (N, C, H, W)."""
    import torch

    x = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if x.dtype != torch.uint8 or x.ndim not in (3, 4):
        raise ValueError(f"images: expected uint8 (N, H, W) or (N, C, H, W), got {x.dtype} {tuple(x.shape)}")
    return x.unsqueeze(1) if x.ndim == 3 else x


def _tone(x: Tensor, colour: Colour, equalise: bool) -> Tensor:
    from fastfer.data import pixels

    if x.shape[1] not in (1, 3) and colour != "stored":
        raise ValueError(f"images: expected 1 or 3 channels for colour {colour!r}, got {x.shape[1]}")
    if colour == "grey" and x.shape[1] == 3:
        x = pixels.grey(x)
    if not equalise:
        return x
    if x.shape[1] != 1:
        raise ValueError(f"equalise: expected grey images, or colour='grey', got {x.shape[1]} channels")
    return pixels.equalise(x)
