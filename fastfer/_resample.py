# SPDX-License-Identifier: Apache-2.0
"""Pictures of bytes at another size, of other colours, as planes: by the extension, or the same bytes by Pillow.

A picture is uint8 (H, W) or (H, W, 3); a view of one whose pixels take four bytes, or whose colours stand the other
way round, costs no copy.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def resized(picture: Pixels, size: tuple[int, int], grey: bool = False) -> Pixels:
    """(H, W) or (H, W, 3) -> (*size) or (*size, 3): along W, then along H, each rounded to a byte; new memory.

    ``grey``: luma of the picture first, ITU-R 601 as in Pillow's "L". Sizes of at least 1.
    """
    grey = grey or picture.ndim == 2
    extension = _extension()
    if extension is None:
        return _by_pillow(picture, size, grey)
    out = np.empty(size if grey else (*size, 3), np.uint8)
    _resize(extension, picture, size, out, (0, 1, 1) if grey else (1, 3, 3), swapped=False)
    return out


def to_planes(picture: Pixels, size: tuple[int, int], out: Pixels) -> None:
    """The picture at that size as planes blue, green, red into ``out`` (3, H', W'), black beyond it."""
    height, width = size
    extension = _extension()
    if extension is None:
        small = _by_pillow(picture, size, picture.ndim == 2)
        out[:, :height, :width] = small[..., ::-1].transpose(2, 0, 1) if small.ndim == 3 else small
    else:
        _resize(extension, picture, size, out, (out.strides[0], 1, 3), swapped=True)
    out[:, height:], out[:, :height, width:] = 0, 0


def seen(image: Image.Image) -> Pixels:
    """The pixels of a decoded image of mode RGB or L: its own memory, read-only, where Pillow shows it, else a copy."""
    extension = _extension()
    if extension is not None and hasattr(image, "__arrow_c_array__") and image.mode in ("RGB", "L"):
        try:
            _, array = image.__arrow_c_array__()
            address, count = extension.arrow_bytes(array)
        except ValueError:  # of an image in several pieces of memory
            return np.asarray(image)
        step = 4 if image.mode == "RGB" else 1
        if count == image.width * image.height * step:
            shape = (image.height, image.width, step) if step == 4 else (image.height, image.width)
            pixels = np.asarray(_Shown(array, address, shape))
            return pixels[..., :3] if step == 4 else pixels
    return np.asarray(image)


class _Shown:
    """Memory of somebody else as numpy takes it."""

    def __init__(self, owner: Any, address: int, shape: tuple[int, ...]) -> None:
        self.owner = owner
        self.__array_interface__ = {"data": (address, True), "shape": shape, "typestr": "|u1", "version": 3}


class _Layout(NamedTuple):
    """Where a picture's pixels are: the address of the first, bytes from row to row and from pixel to pixel."""

    address: int
    row: int
    step: int
    swapped: bool


def _layout(picture: Pixels) -> _Layout | None:
    """None for a picture that has to be copied first."""
    row, step, *colour = picture.strides
    address = picture.ctypes.data
    if not colour:
        return _Layout(address, row, 1, False) if step == 1 else None
    if step not in (3, 4) or colour[0] not in (1, -1):
        return None
    return _Layout(address, row, step, False) if colour[0] == 1 else _Layout(address - 2, row, step, True)


def _resize(
    extension: Any, picture: Pixels, size: tuple[int, int], out: Pixels, places: tuple[int, int, int], swapped: bool
) -> None:
    """``places``: bytes from colour to colour and from pixel to pixel, and how many colours."""
    layout = _layout(picture)
    if layout is None:
        picture = np.ascontiguousarray(picture)
        layout = _layout(picture)
        assert layout is not None
    plane, step, channels = places
    row = out.strides[-2] if swapped else out.strides[0]
    source = (*layout, picture.shape[0], picture.shape[1])
    extension.resize_picture(source, (out.ctypes.data, row, step, swapped, *size, plane, channels))


def _by_pillow(picture: Pixels, size: tuple[int, int], grey: bool) -> Pixels:
    """As `resized`; each step is Pillow's BILINEAR: both at once would let Pillow pick the order."""
    image = Image.fromarray(picture)
    if grey and image.mode != "L":
        image = image.convert("L")
    for sides in ((size[1], image.height), (size[1], size[0])):
        if image.size != sides:
            image = image.resize(sides, Image.Resampling.BILINEAR)
    return np.array(image)


@cache
def _extension() -> Any:
    """None where it was not built."""
    from fastfer.runtime import native

    try:
        return native()
    except ImportError:
        return None
