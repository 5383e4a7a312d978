# SPDX-License-Identifier: Apache-2.0
"""Expressions of the faces in pictures, folders, videos and cameras; ``python -m fastfer.predict`` on the command line.

``Recognizer(weights)(image)`` gives faces with their boxes and probabilities, ``Recognizer.stream(source)`` the frames
of a video. An engine file (.ffe) needs numpy and Pillow alone; videos and cameras are decoded by OpenCV, any of its
packages (``pip install 'fastfer[video]'``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfer.data.split import DataError
    from fastfer.faces.detector import YuNet
    from fastfer.faces.detector_file import DetectorNotFoundError, find_detector
    from fastfer.faces.face import Face
    from fastfer.predict.recognizer import Recognizer
    from fastfer.predict.results import FrameResult, RecognizedFace, Result
    from fastfer.predict.source import SourceError
    from fastfer.predict.track import Tracker

_NAMES = {
    "DataError": "fastfer.data.split",
    "DetectorNotFoundError": "fastfer.faces.detector_file",
    "Face": "fastfer.faces.face",
    "FrameResult": "fastfer.predict.results",
    "RecognizedFace": "fastfer.predict.results",
    "Recognizer": "fastfer.predict.recognizer",
    "Result": "fastfer.predict.results",
    "SourceError": "fastfer.predict.source",
    "Tracker": "fastfer.predict.track",
    "YuNet": "fastfer.faces.detector",
    "find_detector": "fastfer.faces.detector_file",
}

__all__ = [
    "DataError",
    "DetectorNotFoundError",
    "Face",
    "FrameResult",
    "RecognizedFace",
    "Recognizer",
    "Result",
    "SourceError",
    "Tracker",
    "YuNet",
    "find_detector",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'fastfer.predict' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
