# SPDX-License-Identifier: Apache-2.0
"""Which image files are read, and how one is opened: the only place that hands a file to Pillow.

Pillow knows some forty formats, and one of them, EPS, starts Ghostscript on the file's program. So the formats are
named here, all of them plain rasters, and a file of another format is unreadable whatever its suffix says.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

FORMATS: dict[str, tuple[str, ...]] = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PCX": (".pcx",),
    "PNG": (".png", ".apng"),
    "PPM": (".pgm", ".ppm", ".pbm", ".pnm", ".pfm"),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's name of each format that is read, and its suffixes."""

_MARKS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
"""How files of the two commonest begin."""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

MAX_SIDE = 20_000
MAX_PIXELS = 1 << 27
"""What an image may have; Pillow itself refuses 179 million. A picture of 1 x 10**8 pixels takes 100 MB, but the table
of weights that resizes it has a row of 10**8 numbers for each pixel of the result."""


def open_image(source: Path | bytes) -> Image.Image:
    """The image with its header read, its pixels not yet.

    Raises OSError, ValueError or nearly anything else that Pillow's readers raise for damaged files; ValueError for an
    image larger than MAX_SIDE and MAX_PIXELS allow.
    """
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats(source))
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(
            f"{image.width}x{image.height} pixels, expected at most {MAX_SIDE} a side and {MAX_PIXELS} in all"
        )
    return image


def _formats(source: Path | bytes) -> tuple[str, ...]:
    """Those to try: the one that the first bytes tell, else all, whose modules take 30 ms to import."""
    if isinstance(source, bytes):
        start = source[:8]
    else:
        with source.open("rb") as file:
            start = file.read(8)
    told = tuple(name for mark, name in _MARKS.items() if start.startswith(mark))
    return told or _known()


@lru_cache(maxsize=1)
def _known() -> tuple[str, ...]:
    """Those of FORMATS that this version of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
