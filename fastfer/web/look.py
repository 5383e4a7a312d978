# SPDX-License-Identifier: Apache-2.0
"""From the bytes that a page sends to what it draws."""

from __future__ import annotations

import time
from typing import Any

from fastfer.data.manifest import Sample
from fastfer.predict.photo import Photo
from fastfer.predict.recognizer import Recognizer
from fastfer.predict.track import Tracker
from fastfer.web.limits import Limits


def look(recognizer: Recognizer, data: bytes, tracker: Tracker | None, limits: Limits) -> dict[str, Any]:
    """JSON values: size, faces, and milliseconds of each step. DataError for a damaged picture, or one of
    too many pixels."""
    times = [time.perf_counter()]
    photo = Photo(Sample(data, None, "picture"), recognizer.longest, limits.pixels)
    times.append(time.perf_counter())
    found = recognizer.detect(photo)
    times.append(time.perf_counter())
    faces = recognizer.classify([photo], [found[: limits.faces]])[0]
    times.append(time.perf_counter())
    if tracker is not None:
        faces = tracker(faces)
    steps = zip(("decode", "detect", "classify"), times, times[1:], strict=False)
    return {
        "type": "faces",
        "size": list(photo.size),
        "faces": [face.to_dict() for face in faces],
        "left_out": len(found) - len(faces),
        "milliseconds": {name: round(1e3 * (end - start), 3) for name, start, end in steps},
    }
