# SPDX-License-Identifier: Apache-2.0
"""One run of the command line: items to results, written as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from fastfer.data.files import printable
from fastfer.data.formats import open_image
from fastfer.data.split import DataError
from fastfer.predict import draw
from fastfer.predict.inputs import Item, shown
from fastfer.predict.photo import Photo
from fastfer.predict.pictures import read_ahead
from fastfer.predict.recognizer import Recognizer
from fastfer.predict.records import Writer
from fastfer.predict.results import FrameResult, Result
from fastfer.predict.source import Reader, SourceError, opencv
from fastfer.predict.stream import frames
from fastfer.predict.summary import Sheets
from fastfer.predict.track import Tracker

_ANIMATED = frozenset({".gif", ".webp", ".apng", ".avif", ".avifs", ".mpo", ".tif", ".tiff"})
_UNKNOWN_FPS = 15.0  # for videos of cameras that do not say


@dataclass(frozen=True)
class Plan:
    """What a run does beside recognizing; ``annotated`` is the folder for pictures with boxes."""

    annotated: Path | None = None
    track: bool = False
    smooth: float = 0.0
    every: int = 1
    show: bool = False
    workers: int = 2


class Stopped(Exception):  # noqa: N818 - the user's wish, no error
    """The window was closed."""


class Messages:
    """Lines and a moving count on standard error; the count on a terminal alone."""

    def __init__(self, total: int | None, quiet: bool = False) -> None:
        self._total, self._quiet = total, quiet
        self._moving = sys.stderr.isatty() and not quiet
        self._done, self._start, self._next = 0, time.monotonic(), 0.0
        self._width = 0

    def note(self, name: str, text: str) -> None:
        """Something about an item that is no failure."""
        if not self._quiet:
            self.line(f"{shown(name)}: {text}")

    def line(self, text: str) -> None:
        """A line of its own; control characters of names are escaped."""
        self.clear()
        print(printable(text), file=sys.stderr, flush=True)

    def step(self) -> None:
        """One more picture or frame is done."""
        self._done += 1
        now = time.monotonic()
        if not self._moving or now < self._next:
            return
        self._next = now + 0.1
        rate = self._done / max(now - self._start, 1e-9)
        text = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        if self._total:
            full = min(30, 30 * self._done // self._total)
            text = f"[{'#' * full}{'.' * (30 - full)}] {text}"
        text += f"  {rate:.1f}/s"
        self._width = max(self._width, len(text))
        print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the count."""
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0


class Run:
    """Takes items through a recognizer; counts what failed."""

    def __init__(
        self, recognizer: Recognizer, plan: Plan, write: Writer, messages: Messages, sheets: Sheets | None
    ) -> None:
        self._recognizer, self._plan, self._write = recognizer, plan, write
        self._messages, self._sheets = messages, sheets
        self.failed = self.pictures = self.faces = 0

    def __call__(self, items: Sequence[Item]) -> None:
        """All of them, in their order. OSError where results cannot be written, `Stopped` at the user's wish."""
        for kind, some in groupby(items, key=lambda item: item.kind):
            if kind == "picture":
                self._look_at(list(some))
            else:
                for item in some:
                    self._watch(item)

    def fail(self, name: str, text: str) -> None:
        """An item that could not be looked at."""
        self.failed += 1
        self._messages.line(f"error: {_told(name, text)}")

    def _look_at(self, items: Sequence[Item]) -> None:
        read = read_ahead(
            (item.name for item in items), bgr=False, workers=self._plan.workers, longest=self._recognizer.longest
        )
        for item, (result, photo) in zip(items, self._recognizer.results(read, keep=True), strict=True):
            if result.error is not None:
                self.fail(item.name, result.error)
            elif not result.faces:
                self._messages.note(item.name, "no face found")
            if result.error is None and _is_animated(item.name):
                self._messages.note(item.name, "an animation: its first picture alone was looked at")
            self._keep(result)
            if photo is not None:
                self._draw(item, result, photo)

    def _draw(self, item: Item, result: Result, photo: Photo) -> None:
        """The faces for the sheets, and the picture with its boxes where it is wanted."""
        plan, image = self._plan, None
        try:
            if self._sheets is not None:
                self._sheets.add(photo, result.faces)
            if plan.annotated is not None or plan.show:
                image = draw.annotated(photo.pixels(), result.faces)
        except DataError as error:  # what is not decoded yet: the file has gone, or is another one
            self.fail(item.name, str(error))
        if image is not None and plan.annotated is not None:
            draw.save(image, plan.annotated / f"{item.place}.jpg")
        if image is not None and plan.show:
            _show(image, wait=0)

    def _watch(self, item: Item) -> None:
        plan = self._plan
        try:
            reader = Reader(item.source, every=plan.every)
        except (ImportError, SourceError) as error:
            self.fail(item.name, str(error))
            self._write(FrameResult((), None, shown(item.name), str(error)))
            return
        tracker = Tracker(smooth=plan.smooth) if plan.track or plan.smooth else None
        index = -1
        with ExitStack() as stack:
            video = None
            if plan.annotated is not None:
                place = plan.annotated / f"{item.place}.mp4"
                video = stack.enter_context(draw.VideoWriter(place, (reader.fps or _UNKNOWN_FPS) / plan.every))
            try:
                for result in frames(self._recognizer, reader, tracker):
                    index = result.index
                    self._keep(result)
                    if self._sheets is not None and result.picture is not None:
                        self._sheets.add(Photo(result.picture), result.faces)
                    if result.picture is not None and (video is not None or plan.show):
                        image = draw.annotated(result.picture, result.faces)
                        if video is not None:
                            video(image)
                        if plan.show:
                            _show(image, wait=1)
            except SourceError as error:
                self.fail(item.name, str(error))
                self._write(FrameResult((), None, reader.name, str(error), index + 1))
            except KeyboardInterrupt:
                if not reader.live:
                    raise
                self._messages.note(item.name, f"stopped after frame {index}")

    def _keep(self, result: Result) -> None:
        """Write and count a result."""
        self._write(result)
        self.pictures += 1
        self.faces += len(result.faces)
        self._messages.step()


def _told(name: str, text: str) -> str:
    """The message with the item's name, which many have in them already."""
    return text if shown(name) in printable(text) else f"{shown(name)}: {text}"


def _is_animated(name: str) -> bool:
    if Path(name).suffix.lower() not in _ANIMATED:
        return False
    with suppress(Exception), open_image(Path(name)) as image:
        return bool(getattr(image, "n_frames", 1) > 1)
    return False


def _show(image: Image.Image, wait: int) -> None:
    """In a window; `Stopped` for q, Escape or a closed window."""
    import numpy as np

    cv2: Any = opencv()
    try:
        cv2.imshow("fastfer", np.ascontiguousarray(np.asarray(image)[..., ::-1]))
        key = cv2.waitKey(wait) & 0xFF
        closed = cv2.getWindowProperty("fastfer", cv2.WND_PROP_VISIBLE) < 1
    except cv2.error as error:
        raise SourceError(
            f"show: this OpenCV opens no windows ({str(error).strip().splitlines()[-1][:120]}): pip install "
            "opencv-python, and a display is needed"
        ) from error
    if key in (ord("q"), 27) or closed:
        raise Stopped
