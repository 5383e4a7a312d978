# SPDX-License-Identifier: Apache-2.0
"""Contact sheet of a split: one labelled row of images per class, as a PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastfer.data.files import replace_atomically
from fastfer.data.split import Split

_LABEL_WIDTH = 110  # pixels left of the images, for the class name
_GAP = 4


def contact_sheet(split: Split, columns: int = 12, zoom: int = 2) -> Image.Image:
    """The first ``columns`` images of each class of ``split`` (grey or RGB), enlarged ``zoom`` times."""
    if split.channels not in (1, 3):
        raise ValueError(f"split: expected grey or RGB images, got {split.channels} channels")
    images = split.images.reshape(len(split), split.channels, *split.images.shape[-2:]).transpose(0, 2, 3, 1)
    images = images[..., 0] if split.channels == 1 else images
    height, width = (side * zoom + _GAP for side in images.shape[1:3])
    size = (_LABEL_WIDTH + columns * width, _GAP + len(split.names) * height)
    sheet = Image.new("L" if split.channels == 1 else "RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for row, name in enumerate(split.names):
        top = _GAP + row * height
        pen.text((8, top + (height - _GAP) // 2), name, fill="black", font=font, anchor="lm")
        for column, index in enumerate(np.flatnonzero(split.labels == row)[:columns]):
            image = Image.fromarray(images[index]).resize((width - _GAP, height - _GAP), Image.Resampling.BICUBIC)
            sheet.paste(image, (_LABEL_WIDTH + column * width, top))
    return sheet


def save_contact_sheet(split: Split, path: str | Path, columns: int = 12, zoom: int = 2) -> None:
    """Write ``contact_sheet`` to ``path`` as PNG."""
    sheet = contact_sheet(split, columns, zoom)
    with replace_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")
