# SPDX-License-Identifier: Apache-2.0
"""Decoding: from a file, encoded bytes or pixels to uint8 arrays of one form."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastfer.data.files import LFS_MARK, printable
from fastfer.data.formats import open_image
from fastfer.data.manifest import Sample
from fastfer.data.split import DataError

Pixels = NDArray[np.uint8]
Transform = Callable[[Pixels], Pixels]
Cache = dict[str, Pixels]
_T = TypeVar("_T")

_DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_GREY_MODES = frozenset({"1", "L", "LA", "F", *_DEEP_MODES})


def decode(sample: Sample, channels: int | None = None) -> Pixels:
    """uint8 (H, W) for grey, (H, W, 3) in RGB order; ``channels`` 1 or 3 converts. DataError naming what is corrupt."""
    if isinstance(sample.image, np.ndarray):
        return np.asarray(_convert(Image.fromarray(sample.image), channels)) if channels == 3 else sample.image
    return opened(sample, lambda image: upright(image, channels))


def opened(sample: Sample, then: Callable[[Image.Image], _T]) -> _T:
    """What ``then`` makes of the image, whose header alone is read. DataError naming what is corrupt."""
    try:
        with _opened(sample) as image:
            return then(image)
    except FileNotFoundError:
        raise DataError(f"{_place(sample)} is missing") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything for damaged files: struct.error, KeyError, ...
        raise DataError(f"{_place(sample)} is not a readable image ({_reason(sample, error)})") from error


def upright(image: Image.Image, channels: int | None = None) -> Pixels:
    """An opened image as `decode` gives it, turned as its Exif tag says. Raises nearly anything for a damaged one."""
    return np.asarray(upright_image(image, channels))


def upright_image(image: Image.Image, channels: int | None = None) -> Image.Image:
    """As `upright`, as a Pillow image of mode L or RGB, decoded."""
    # Photographs that a camera held sideways say so; JAFFE and the like carry no such tag.
    if orientation(image) > 1:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    return _convert(image, channels)


def probe(sample: Sample) -> tuple[bool, tuple[int, int]] | None:
    """(is grey, (height, width)) from the header alone; None where it cannot be read (``decode`` will say why)."""
    if isinstance(sample.image, np.ndarray):
        return True, (sample.image.shape[0], sample.image.shape[1])
    try:
        with _opened(sample) as image:
            size = (image.width, image.height) if orientation(image) >= 5 else (image.height, image.width)
            return image.mode in _GREY_MODES, size
    except Exception:  # as in decode
        return None


def resize(image: Pixels, side: int) -> Pixels:
    """(H, W) or (H, W, 3) -> the same with ``side`` rows and columns, as `fastfer.data.pixels.resize`."""
    if image.shape[:2] == (side, side):
        return image
    import torch  # decoding needs none

    from fastfer.data import pixels

    planes = torch.tensor(image).reshape(*image.shape[:2], -1).permute(2, 0, 1).unsqueeze(0)
    resized = pixels.resize(planes, (side, side))[0].permute(1, 2, 0).reshape(side, side, *image.shape[2:])
    return np.ascontiguousarray(resized.numpy())


@dataclass(frozen=True)
class Form:
    """What all images of a data set come to.

    channels   1 or 3
    shape      (height, width), None where only ``transform`` knows it
    size       side that images are resized to; None where they are one size already
    transform  comes before the resize
    note       for the protocol
    """

    channels: int
    shape: tuple[int, int] | None
    size: int | None = None
    transform: Transform | None = None
    note: str = ""


def load(sample: Sample, form: Form) -> Pixels:
    """The image as a network's data set holds it: (H, W) grey or (3, H, W)."""
    image = decode(sample, form.channels)
    if form.transform is not None:
        try:
            image = form.transform(image)
        except (ValueError, RuntimeError) as error:  # no face found, for one
            raise DataError(f"{_place(sample)}: {error}") from error
    if form.size is not None:
        image = resize(image, form.size)
    return image if form.channels == 1 else np.ascontiguousarray(image.transpose(2, 0, 1))


def common_form(
    samples: Sequence[Sample],
    channels: int | None,
    size: int | None,
    transform: Transform | None,
    mixed_size: int | None = None,
) -> Form:
    """The form that all images get: that of ``channels`` and ``size`` where given, else their own.

    ``mixed_size`` is the size where none is given and they differ; DataError where that is None too.
    """
    if size is not None and channels is not None:
        return Form(channels, (size, size), size, transform)
    found = [header for sample in samples if (header := probe(sample)) is not None]
    channels = channels or (1 if all(grey for grey, _ in found) else 3)
    if size is not None:
        return Form(channels, (size, size), size, transform)
    if transform is not None:
        return Form(channels, None if mixed_size is None else (mixed_size, mixed_size), mixed_size, transform)
    shapes = sorted({shape for _, shape in found})
    if len(shapes) < 2:
        return Form(channels, shapes[0] if shapes else None)
    shown = ", ".join(f"{width}x{height}" for height, width in shapes[:4]) + (", ..." if len(shapes) > 4 else "")
    if mixed_size is None:
        raise DataError(
            f"size: the images differ in size ({shown}); give the side in pixels to which they are resized (option "
            "size of the data set: --data-options.size in training, --option size=... elsewhere)"
        )
    note = f"images of several sizes ({shown}) resized to {mixed_size}x{mixed_size}"
    return Form(channels, (mixed_size, mixed_size), mixed_size, note=note)


def load_all(
    samples: Sequence[Sample], form: Form, unusable: list[str], cache: Cache | None = None
) -> tuple[Pixels, NDArray[np.int64]]:
    """All images as one array (N, H, W) or (N, 3, H, W), and the indices of the samples they are.

    What cannot be read is left out and named in ``unusable``; ``cache`` keeps images by id.
    """
    _check_memory(len(samples), form.channels, form.shape)
    images: list[Pixels] = []
    kept: list[int] = []
    for index, sample in enumerate(samples):
        try:
            image = cache[sample.id] if cache and sample.id in cache else load(sample, form)
        except DataError as error:
            unusable.append(str(error))
            continue
        if cache is not None:
            cache[sample.id] = image
        if images and image.shape != images[0].shape:
            raise DataError(f"{_place(sample)}: shape {image.shape} after {images[0].shape}; give a size")
        images.append(image)
        kept.append(index)
    empty = (0, *(form.shape or (1, 1))) if form.channels == 1 else (0, 3, *(form.shape or (1, 1)))
    return np.stack(images) if images else np.empty(empty, np.uint8), np.array(kept, np.int64)


def _opened(sample: Sample) -> Image.Image:
    return Image.fromarray(sample.image) if isinstance(sample.image, np.ndarray) else open_image(sample.image)


def orientation(image: Image.Image) -> int:
    """1 to 8 as in Exif, from the header alone: ``getexif`` would decode a whole PNG to look after its pixels."""
    if "exif" not in image.info and image.format != "TIFF":
        return 1
    return int(image.getexif().get(0x0112, 1))


def _convert(image: Image.Image, channels: int | None) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose black and white are not known")
    if image.mode in _DEEP_MODES:  # 16 bits per pixel: Pillow would clip them at 255
        deep = np.asarray(image, np.int64)
        if deep.size and not 0 <= deep.min() <= deep.max() <= 65535:
            raise ValueError(f"pixels of {deep.min()} to {deep.max()}, expected 8 or 16 bits")
        image = Image.fromarray((deep >> 8 if deep.max(initial=0) > 255 else deep).astype(np.uint8))
    grey = image.mode in _GREY_MODES if channels is None else channels == 1
    wanted = "L" if grey else "RGB"
    if image.mode != wanted:
        return image.convert(wanted)
    image.load()  # ``convert`` would copy it
    return image


def _place(sample: Sample) -> str:
    return str(sample.image) if isinstance(sample.image, Path) else sample.id


def _reason(sample: Sample, error: Exception) -> str:
    if isinstance(sample.image, Path) and isfile(sample.image):
        with sample.image.open("rb") as file:
            start = file.read(len(LFS_MARK))
        if not start or start == LFS_MARK:
            return "a Git-LFS pointer: run `git lfs pull`" if start else "the file is empty"
    return "no known format" if "cannot identify" in str(error) else printable(str(error))[:80] or type(error).__name__


def _check_memory(count: int, channels: int, shape: tuple[int, int] | None) -> None:
    """DataError where the decoded images would not fit in this machine's memory."""
    if shape is None or not hasattr(os, "sysconf"):
        return
    needed, available = count * channels * shape[0] * shape[1], os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available // 2:
        raise DataError(
            f"{count} images of {shape[1]}x{shape[0]} take {needed / 1e9:.1f} GB decoded, more than half of this "
            "machine's memory: give a smaller size, or load them one by one with load_lazily"
        )
