# SPDX-License-Identifier: Apache-2.0
"""From the bytes that a page sends to what it draws."""

from __future__ import annotations

import time
from typing import Any

from fastfer.data.files import printable
from fastfer.data.formats import open_image
from fastfer.data.split import DataError
from fastfer.faces.face import Picture
from fastfer.predict import pictures
from fastfer.predict.recognizer import Recognizer
from fastfer.predict.track import Tracker
from fastfer.web.limits import Limits


def decoded(data: bytes, most: int) -> Picture:
    """The pixels of an encoded picture, upright. DataError for a damaged one, or one of more than ``most`` pixels."""
    try:
        image = open_image(data)
    except Exception as error:  # Pillow's readers raise nearly anything for damaged files
        raise DataError(f"picture: not a readable image ({printable(str(error))[:80]})") from error
    with image:
        # Known from the header: a file of some kilobytes may decode to gigabytes.
        if image.width * image.height > most:
            raise DataError(f"picture: expected at most {most:,} pixels, got {image.width} x {image.height}")
        return pictures.read(image)[0]


def look(recognizer: Recognizer, data: bytes, tracker: Tracker | None, limits: Limits) -> dict[str, Any]:
    """JSON values: size, faces, and milliseconds of each step. DataError as `decoded`."""
    times = [time.perf_counter()]
    picture = decoded(data, limits.pixels)
    times.append(time.perf_counter())
    found = recognizer.detect(picture)
    times.append(time.perf_counter())
    faces = recognizer.classify([picture], [found[: limits.faces]])[0]
    times.append(time.perf_counter())
    if tracker is not None:
        faces = tracker(faces)
    steps = zip(("decode", "detect", "classify"), times, times[1:], strict=False)
    return {
        "type": "faces",
        "size": [picture.shape[1], picture.shape[0]],
        "faces": [face.to_dict() for face in faces],
        "left_out": len(found) - len(faces),
        "milliseconds": {name: round(1e3 * (end - start), 3) for name, start, end in steps},
    }
