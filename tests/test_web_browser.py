# SPDX-License-Identifier: Apache-2.0
"""The page of `fastfer.web` in headless Chromium, where one is installed: a picture, and a fake camera."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp")  # the extra web
from chromium import Tab, browser, opened
from PIL import Image
from predict_cases import Picture, drawn_faces
from web_cases import encoded, fitted, framed, running, scene

from fastfer import Recognizer
from fastfer.data import BASIC_NAMES
from fastfer.web.recognizers import Recognizers

pytestmark = pytest.mark.skipif(browser() is None, reason="needs Chromium or Chrome (apt-get install chromium)")
SHOTS = os.environ.get("FASTFER_SCREENSHOTS")
"""A folder that gets the screenshots; by default a temporary one."""

LABELS = "[...document.querySelectorAll('#faces button')].map((button) => button.textContent)"
# A canvas whose picture is drawn: the share of its pixels in the colour of a frame of the scene, and in that of a box.
PIXELS = """(() => {
  const canvas = document.getElementById('canvas');
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const near = (at, colour) => colour.every((value, index) => Math.abs(data[at + index] - value) < 40);
  let frames = 0, boxes = 0;
  for (let at = 0; at < data.length; at += 4) {
    frames += near(at, [255, 0, 255]);
    boxes += BOXES.some((colour) => near(at, colour));
  }
  return [frames, boxes];
})()"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def url(engine: Path) -> Iterator[str]:
    with running(Recognizers(engine, detector=framed, threads=1)) as address:
        yield address


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(SHOTS) if SHOTS else tmp_path / "shots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def drop(data: bytes, name: str, kind: str) -> str:
    """The script that drops a file on the page."""
    return f"""(() => {{
      const bytes = Uint8Array.from(atob('{base64.b64encode(data).decode()}'), (letter) => letter.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], '{name}', {{type: '{kind}'}}));
      document.dispatchEvent(new DragEvent('drop', {{dataTransfer: transfer, bubbles: true, cancelable: true}}));
    }})()"""


def browse(url: str, folder: Path, steps: Callable[[Tab], Coroutine[Any, Any, None]], *options: str) -> None:
    async def run() -> None:
        async with opened(url, folder, *options) as tab:
            await tab.wait("document.getElementById('state')?.textContent === 'connected'")
            await steps(tab)
            assert not tab.problems  # neither an exception nor something that the page's own policy forbids

    asyncio.run(run())


def test_a_dropped_picture(url: str, engine: Path, tmp_path: Path, shots: Path) -> None:
    data = encoded(scene(drawn_faces(4)))
    wanted = Recognizer(engine, detector=framed, threads=1)(data).faces
    assert [face.label for face in wanted] == list(BASIC_NAMES[:4])

    async def steps(tab: Tab) -> None:
        await tab.run(drop(data, "faces.png", "image/png"))
        await tab.wait(f"{LABELS}.length === 4")
        assert await tab.run(LABELS) == [face.label for face in wanted]
        assert await tab.run("document.getElementById('label').textContent") == wanted[0].label
        assert await tab.run("document.getElementById('count').textContent") == "4 faces"
        names = [face.label for face in wanted]
        numbers = "[1, 3, 5].map((at) => parseInt(colour(name, []).slice(at, at + 2), 16))"
        colours = await tab.run(f"import('./draw.js').then(({{colour}}) => {names}.map((name) => {numbers}))")
        frames, boxes = await tab.run(PIXELS.replace("BOXES", str(colours)))
        assert frames > 1000
        assert boxes > 1000
        rows = await tab.run("[...document.querySelectorAll('#bars span')].map((row) => row.textContent)")
        assert rows == list(wanted[0].classes)
        for name in ("decode", "detect", "classify", "total"):
            assert float(await tab.run(f"document.getElementById('{name}').textContent")) > 0
        await tab.run("document.querySelectorAll('#faces button')[2].click()")
        assert await tab.run("document.getElementById('label').textContent") == wanted[2].label
        await tab.size(1280, 800)
        await tab.screenshot(shots / "picture.png")
        assert Image.open(shots / "picture.png").size[0] == 1280

        await tab.run(drop(b"no picture", "no.png", "image/png"))
        assert "not a readable image" in await tab.wait("document.getElementById('message').textContent")
        await tab.run(drop(data, "faces.png", "image/png"))
        await tab.wait("document.getElementById('message').hidden")

        mode = "const mode = document.getElementById('faces-mode'); mode.value = 'whole'"
        await tab.run(f"(() => {{ {mode}; mode.dispatchEvent(new Event('change')); }})()")
        await tab.wait("document.getElementById('count').textContent === '1 face'")

    browse(url, tmp_path, steps)


def y4m(path: Path, picture: Picture, frames: int = 10) -> Path:
    """A video of the same picture in the form that Chromium's fake camera plays."""
    height, width = picture.shape[:2]
    planes = Image.fromarray(picture).convert("YCbCr").split()
    small = [np.asarray(plane.resize((width // 2, height // 2), Image.Resampling.BOX)) for plane in planes[1:]]
    # From the full range of JPEG to that of video.
    levels = [np.asarray(planes[0]) * (219 / 255) + 16, *((plane - 128.0) * (224 / 255) + 128 for plane in small)]
    frame = b"FRAME\n" + b"".join(level.round().astype(np.uint8).tobytes() for level in levels)
    path.write_bytes(f"YUV4MPEG2 W{width} H{height} F20:1 Ip A1:1 C420\n".encode() + frame * frames)
    return path


def test_a_camera(url: str, engine: Path, tmp_path: Path, shots: Path) -> None:
    picture = np.full((480, 640, 3), 90, np.uint8)
    faces = scene(drawn_faces(3)[1:])
    picture[100 : 100 + faces.shape[0], 80 : 80 + faces.shape[1]] = faces
    video = y4m(tmp_path / "camera.y4m", picture)
    wanted = Recognizer(engine, detector=framed, threads=1)(picture).faces
    assert [face.label for face in wanted] == list(BASIC_NAMES[1:3])

    async def steps(tab: Tab) -> None:
        await tab.size(1280, 900, dark=True)
        await tab.run("document.getElementById('camera').click()")
        await tab.wait(f"{LABELS}.length === 2")
        # Numbered, and the labels that the same faces have without a camera and its JPEG between.
        assert await tab.wait(LABELS) == [f"#{number} {face.label}" for number, face in enumerate(wanted, 1)]
        assert await tab.run("document.getElementById('total-name').textContent") == "pictures/s"
        assert await tab.run("document.getElementById('camera').textContent") == "Close the camera"
        await asyncio.sleep(1)
        await tab.screenshot(shots / "camera.png")
        await tab.size(390, 844)
        await tab.screenshot(shots / "phone.png")
        assert await tab.run("document.documentElement.scrollWidth") == 390
        await tab.run("document.getElementById('camera').click()")
        assert await tab.run("document.getElementById('camera').textContent") == "Open the camera"

    browse(
        url,
        tmp_path,
        steps,
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={video}",
    )


def test_the_page_says_what_is_missing(engine: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO(encoded(drawn_faces(1)[0]))

    async def steps(tab: Tab) -> None:
        assert "No face detector" in await tab.wait("document.getElementById('detector').textContent")
        assert await tab.run("document.getElementById('faces-mode').value") == "whole"
        await tab.run("document.getElementById('camera').click()")
        assert await tab.wait("document.getElementById('message').textContent") in (
            "There is no camera.",
            "The browser does not allow the camera.",
        )
        await tab.run(drop(buffer.getvalue(), "face.png", "image/png"))
        await tab.wait("document.getElementById('count').textContent === '1 face'")

    with running(Recognizers(engine, faces="whole", threads=1)) as address:
        browse(address, tmp_path, steps)
