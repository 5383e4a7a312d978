# SPDX-License-Identifier: Apache-2.0
"""``python tests/web_screenshot.py WEIGHTS docs/web.webp``: the picture of the page in the README, with drawn faces.

WEIGHTS are those of ``python -m fastfer.train`` on drawn faces. Needs Chromium.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from chromium import opened
from PIL import Image
from predict_cases import Picture
from test_web_browser import LABELS, drop
from web_cases import encoded, running

from fastfer.data import drawn
from fastfer.faces.face import Face
from fastfer.web.recognizers import Recognizers

SIDE, PLACES = 180, [(50 + 330 * column, 50 + 235 * row) for row in range(2) for column in range(3)]
EDGE = SIDE / 12  # a network's crop is a tenth larger on each side than the face


def picture() -> Picture:
    """Six faces on a wall, RGB."""
    faces = drawn.draw_faces(np.array([1, 2, 0, 3, 4, 6]), 5)
    wall = np.linspace((222, 214, 202), (176, 164, 150), 500).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(wall[:, None], (500, 940, 3)).copy())
    for face, place in zip(faces, PLACES, strict=True):
        image.paste(Image.fromarray(face).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), place)
    return np.asarray(image)


def found(image: Picture) -> list[Face]:
    """Where they hang."""
    side = SIDE - 2 * EDGE
    return [Face((x + EDGE, y + EDGE, side, side), 1.0 - 0.01 * index) for index, (x, y) in enumerate(PLACES)]


async def shot(url: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with opened(url, Path(folder)) as tab:
            await tab.size(1240, 790)
            await tab.wait("document.getElementById('state')?.textContent === 'connected'")
            await tab.run(drop(encoded(picture()), "faces.png", "image/png"))
            await tab.wait(f"{LABELS}.length === {len(PLACES)}")
            for _ in range(5):  # the first ones warm up
                await tab.run(drop(encoded(picture()), "faces.png", "image/png"))
                await asyncio.sleep(0.5)
            await tab.screenshot(Path(folder) / "page.png")
            content = io.BytesIO()
            Image.open(Path(folder) / "page.png").convert("RGB").save(content, "WEBP", quality=82, method=6)
    out.write_bytes(content.getvalue())


if __name__ == "__main__":
    recognizers = Recognizers(sys.argv[1], detector=found, threads=1)
    with running(recognizers) as address:
        asyncio.run(shot(address, Path(sys.argv[2])))
