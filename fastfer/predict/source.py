# SPDX-License-Identifier: Apache-2.0
"""Where frames come from: a video, a camera, a network stream, anything iterable. Videos and cameras take OpenCV.

A video is read a few frames ahead by a thread; of a live source the thread keeps the newest frame alone, so that a slow
reader sees what is now and not what was. Other iterables are read where they are used, in the caller's thread.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastfer.data.files import printable
from fastfer.data.split import DataError
from fastfer.faces.face import Picture
from fastfer.predict import pictures

Source = str | Path | int | Iterable[Any]
VIDEO_SUFFIXES = frozenset(
    f".{suffix}" for suffix in (
        "3gp", "avi", "flv", "m2ts", "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts",
        "webm", "wmv",
    )
)  # fmt: skip
_LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtp", "udp", "srt"})
_SCHEMES = _LIVE_SCHEMES | {"http", "https"}
_PATIENCE = 10.0  # seconds without a frame of a live source
_AHEAD = 16  # frames


class SourceError(DataError):
    """A video, camera or stream that cannot be opened, or that stopped."""


@dataclass(frozen=True)
class Frame:
    """One picture of a source; ``error`` says why there is none."""

    index: int
    time: float
    picture: Picture | None
    error: str | None = None
    dropped: int = 0


def is_url(name: str) -> bool:
    """Whether it is the address of a stream."""
    return urlsplit(name).scheme.lower() in _SCHEMES and "://" in name


class Reader:
    """Frames of a source, one after the other or the newest.

    name   for messages and results
    live   whether frames are left out that come too fast
    paced  whether frames are there as fast as they are wanted, so that several may be waited for
    fps    frames a second where known
    count  frames in all where known
    """

    def __init__(self, source: Source, *, bgr: bool = False, every: int = 1, live: bool | None = None) -> None:
        """Raises SourceError where it cannot be opened, ImportError naming the extra, TypeError for no source."""
        self.fps: float | None = None
        self.count: int | None = None
        self._capture: Any = None
        self._bgr, self._every = bgr, every
        if isinstance(source, bool) or not isinstance(source, int | str | os.PathLike | Iterable):
            raise TypeError(f"source: expected a path, URL, camera number or iterable, got {type(source).__name__}")
        if isinstance(source, int | str | os.PathLike):
            self.name, usual = self._open(source)
            self._frames = self._captured()
            self.paced = not usual
        else:
            self.name, usual = "frames", False
            self._frames = self._iterated(source)
            self.paced = isinstance(source, list | tuple)
        self.live = usual if live is None else live
        self._waiting: deque[Frame] = deque()
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def take(self, most: int) -> list[Frame]:
        """The next frames, at least one and up to ``most``; none at the end.

        Waits for all of them only of a source that is paced by the reader. Raises what reading raised, SourceError
        where a live source says nothing for a while.
        """
        if self._capture is None and not self.live:
            return list(islice(self._frames, most))
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="fastfer-frames", daemon=True)
            self._thread.start()
        wanted = most if self.paced and not self.live else 1
        with self._change:
            patience = _PATIENCE if self.live else None
            if not self._change.wait_for(lambda: len(self._waiting) >= wanted or self._ended, patience):
                raise SourceError(f"{self.name}: no frame for {_PATIENCE:g} seconds")
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            if not taken and self._error is not None:
                raise self._error
            self._change.notify_all()
        return taken

    def close(self) -> None:
        """Stop reading. The capture is released by the thread, which may be waiting in it."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is None:
            self._release()
        else:
            self._thread.join(timeout=2.0)

    def _read(self) -> None:
        """The thread: frames into the queue until the end, an error or `close`."""
        try:
            for frame in self._frames:
                with self._change:
                    if self.live and self._waiting:
                        self._dropped = sum(1 + old.dropped for old in self._waiting)
                        self._waiting.clear()
                    self._change.wait_for(lambda: len(self._waiting) < _AHEAD or self._closed)
                    if self._closed:
                        return
                    self._waiting.append(Frame(frame.index, frame.time, frame.picture, frame.error, self._dropped))
                    self._dropped = 0
                    self._change.notify_all()
        except BaseException as error:  # for the reader, who raises it
            self._error = error
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()
            self._release()

    def _open(self, source: int | str | os.PathLike[str]) -> tuple[str, bool]:
        """Opens a video, camera or stream; its name and whether it is live."""
        if isinstance(source, int):
            name, live = f"camera {source}", True
            why = "not there, in use by another program, or not permitted"
        else:
            source = os.fspath(source)
            name, live = printable(source), False
            if is_url(source):
                parts = urlsplit(source)
                live = parts.scheme.lower() in _LIVE_SCHEMES or Path(parts.path).suffix.lower() not in VIDEO_SUFFIXES
                why = "no answer, or no video"
            elif not os.path.isfile(source):
                raise SourceError(f"{name}: no such file")
            else:
                why = "the file is empty" if not os.path.getsize(source) else "damaged, or no video that OpenCV reads"
        cv2 = opencv()
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise SourceError(f"{name}: cannot be opened ({why})")
        fps, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = float(fps) if 0 < fps < 1e4 else None
        self.count = int(count) if not live and 0 < count < 1e9 else None
        return name, live

    def _captured(self) -> Iterator[Frame]:
        cv2, start, index = opencv(), time.monotonic(), 0
        while not self._closed:
            if not self._capture.grab():
                break
            if index % self._every == 0:
                known, frame = self._capture.retrieve()
                if not known:
                    break
                seconds = time.monotonic() - start if self.live or self.fps is None else index / self.fps
                yield Frame(index, seconds, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            index += 1
        if self._closed:
            return
        if self.live:
            raise SourceError(f"{self.name}: stopped after {index} frames")
        # Containers that do not count their frames say more or less.
        if index == 0 or (self.count is not None and index < 0.9 * self.count - 5):
            raise SourceError(f"{self.name}: ends after {index} of {self.count or 'its'} frames: damaged or cut off")

    def _iterated(self, source: Iterable[Any]) -> Iterator[Frame]:
        start = time.monotonic()
        for index, item in enumerate(source):
            if index % self._every == 0:
                seconds = time.monotonic() - start
                try:
                    yield Frame(index, seconds, pictures.read(item, self._bgr)[0].pixels())
                except DataError as error:
                    yield Frame(index, seconds, None, str(error))

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()


def opencv() -> Any:
    """The module cv2 of any of OpenCV's packages. ImportError naming the extra."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ImportError(f"videos and cameras need OpenCV: pip install 'fastfer[video]' ({error})") from error
