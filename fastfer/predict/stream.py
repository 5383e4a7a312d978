# SPDX-License-Identifier: Apache-2.0
"""The frames of a source with their faces, in order, persons numbered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastfer.predict.results import FrameResult
from fastfer.predict.source import Frame, Reader, Source
from fastfer.predict.track import Tracker

if TYPE_CHECKING:
    from fastfer.predict.recognizer import Recognizer

_BATCH = 8


def stream(
    recognizer: Recognizer,
    source: Source,
    *,
    bgr: bool,
    track: bool,
    smooth: float,
    every: int,
    batch: int | None,
    live: bool | None,
) -> Iterator[FrameResult]:
    """As `Recognizer.stream`. Arguments and the source are looked at before the first frame is asked for."""
    for name, value in (("every", every), ("batch", batch)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected an int of 1 or more, got {value!r}")
    if smooth and not track:
        raise ValueError(f"smooth: expected 0 without track, as probabilities are smoothed by person, got {smooth}")
    tracker = Tracker(smooth=smooth) if track else None
    reader = Reader(source, bgr=bgr, every=every, live=live)
    return frames(recognizer, reader, tracker, batch)


def frames(
    recognizer: Recognizer, reader: Reader, tracker: Tracker | None, batch: int | None = None
) -> Iterator[FrameResult]:
    """The frames of an open reader, which is closed at the end."""
    most = batch or (_BATCH if reader.paced and not reader.live else 1)
    try:
        while taken := reader.take(most):
            yield from _recognized(recognizer, taken, tracker, reader.name)
    finally:
        reader.close()


def _recognized(
    recognizer: Recognizer, taken: list[Frame], tracker: Tracker | None, name: str
) -> Iterator[FrameResult]:
    """The results of some frames, whose faces go through the network together."""
    readable = [frame.picture for frame in taken if frame.picture is not None]
    recognized = iter(recognizer.classify(readable, [recognizer.detect(picture) for picture in readable]))
    for frame in taken:
        if frame.picture is None:
            yield FrameResult((), None, name, frame.error, frame.index, frame.time, frame.dropped)
            continue
        faces = next(recognized)
        if tracker is not None:
            faces = tracker(faces)
        size = frame.picture.shape[1], frame.picture.shape[0]
        yield FrameResult(faces, size, name, None, frame.index, frame.time, frame.dropped, frame.picture)
