# SPDX-License-Identifier: Apache-2.0
"""What the tests of `fastfer.web` share: a server beside the test, a client, pictures that stand JPEG."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from PIL import Image
from predict_cases import Picture, drawn_faces

import fastfer
from fastfer.data import BASIC_NAMES, FaceCrop, Preprocess
from fastfer.faces.face import Face
from fastfer.models import create_model
from fastfer.web.limits import Limits
from fastfer.web.recognizers import Recognizers
from fastfer.web.server import serving

_CLOSE = aiohttp.ClientWSTimeout(ws_close=1.0)
BORDER = 6  # pixels of a frame: thick enough for a JPEG of a camera


def fitted(folder: Path, name: str = "fitted", seed: int = 3) -> Path:
    """An engine file that knows seven drawn faces: random layers, and a head fitted to what they give for these."""
    torch.manual_seed(seed)
    model = create_model("fgw_fer", num_classes=7).eval()
    sharp = torch.from_numpy(drawn_faces(7)).float()[:, None] / 255
    soft = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    # As cameras, crops and resizes leave them: more or less sharp, a pixel off, with noise.
    variants = [
        (share * sharp + (1 - share) * soft).roll((down, right), (2, 3)) + 0.02 * torch.randn_like(sharp)
        for share in (0, 0.5, 1) for down in (-1, 0, 1) for right in (-1, 0, 1)
    ]  # fmt: skip
    faces = torch.cat(variants)
    with torch.inference_mode():
        features = model.forward_features((faces - 0.5) / 0.25).double()
        mean, deviation = features.mean(0), features.std(0) + 1e-9
        x = (features - mean) / deviation
        wanted = 5 * torch.eye(7).double()[torch.arange(len(faces)) % 7]
        weight = torch.linalg.solve(x.T @ x + 0.3 * torch.eye(x.shape[1]).double(), x.T @ wanted) / deviation[:, None]
        head = model.head  # a convolution before the mean: its middle alone, without its norm
        head.weight.zero_()
        head.weight[:, :, 1, 1] = weight.T.float()
        head.norm.weight.fill_((1 + head.norm.eps) ** 0.5)
        head.norm.bias.copy_(wanted.mean(0) - mean @ weight)
    path = folder / f"{name}.ffe"
    record = {"preprocess": Preprocess(mean=(0.5,), std=(0.25,), crop=FaceCrop(margin=0.0)).to_json()}
    fastfer.compile(model, threads=1, mean=[0.5], std=[0.25], class_names=BASIC_NAMES, metadata=record).save(path)
    return path


def scene(faces: Picture, scale: int = 2, background: int = 90) -> Picture:
    """The faces (N, 48, 48) side by side in frames of a colour that grey faces lack, (H, W, 3) with even sides."""
    side = 48 * scale
    step = side + 2 * BORDER + 60
    picture = np.full((side + 140, step * len(faces) + 20, 3), background, np.uint8)
    for index, face in enumerate(faces):
        left, top = 40 + index * step, 70
        picture[top - BORDER : top + side + BORDER, left - BORDER : left + side + BORDER] = (255, 0, 255)
        picture[top : top + side, left : left + side] = face.repeat(scale, 0).repeat(scale, 1)[..., None]
    return picture


def framed(picture: Picture) -> list[Face]:
    """The faces inside the frames of a `scene`, whatever its scale, from left to right."""
    red, green, blue = (picture[..., index].astype(int) for index in range(3))
    frame = (red > green + 70) & (blue > green + 70)
    columns = np.flatnonzero(frame.sum(0) > 2)
    found = []
    for group in np.split(columns, np.flatnonzero(np.diff(columns) > 4) + 1) if len(columns) else []:
        rows = np.flatnonzero(frame[:, group].any(1))
        width = (group[-1] - group[0] + 1) * 96 / (96 + 2 * BORDER)
        edge = (group[-1] - group[0] + 1 - width) / 2
        left, top = float(group[0] + edge), float(rows[0] + edge)
        points = tuple((left + x * width, top + y * width) for x, y in ((0.33, 0.4), (0.67, 0.4), (0.5, 0.6)))
        mouth = tuple((left + x * width, top + 0.75 * width) for x in (0.38, 0.62))
        found.append(Face((left, top, float(width), float(width)), 0.9, points + mouth))
    return found


def encoded(picture: Picture, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


@contextmanager
def running(recognizers: Recognizers, limits: Limits | None = None, **options: Any) -> Iterator[str]:
    """A server in a thread of its own; yields its address, without the slash at the end."""
    ready, address = threading.Event(), ""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        nonlocal address
        async with serving(recognizers, limits=limits, **options) as url:
            address = url.rstrip("/")
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        yield address
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()


class Client:
    """A page: hello, then a message and its answer."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, hello: dict[str, Any]) -> None:
        self.socket, self.hello = socket, hello

    async def ask(self, message: bytes | dict[str, Any] | str) -> dict[str, Any]:
        if isinstance(message, bytes):
            await self.socket.send_bytes(message)
        else:
            await self.socket.send_str(message if isinstance(message, str) else json.dumps(message))
        answer: dict[str, Any] = await self.socket.receive_json(timeout=60)
        return answer


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Client]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/socket", origin=url, max_msg_size=0, timeout=_CLOSE) as socket,
    ):
        yield Client(socket, await socket.receive_json(timeout=60))


def ask(url: str, *messages: bytes | dict[str, Any] | str) -> list[dict[str, Any]]:
    """The answers to messages of one page."""

    async def run() -> list[dict[str, Any]]:
        async with client(url) as page:
            return [await page.ask(message) for message in messages]

    return asyncio.run(run())
