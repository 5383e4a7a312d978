# SPDX-License-Identifier: Apache-2.0
"""What a page chooses: which weights in which precision, how faces are found, whether frames follow each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FACES = ("detect", "whole")


@dataclass(frozen=True)
class Settings:
    """Of one session.

    weights    a name of those on offer
    precision  of the arithmetic; None as the engine file was compiled
    faces      "detect" looks for faces, "whole" takes a picture as one
    live       pictures are the frames of a camera: persons are numbered
    smooth     of a person's probabilities the share of the past that stays, in frames of a camera
    """

    weights: str
    precision: str | None
    faces: str
    live: bool = False
    smooth: float = 0.0


def parsed(text: str, present: Settings, offers: Mapping[str, tuple[str | None, ...]], detector: bool) -> Settings:
    """``present`` with what a message changes. ValueError saying what was expected.

    ``offers``: the precisions of each name; ``detector``: whether there is one.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("settings: expected JSON") from None
    if not isinstance(given, dict):
        raise ValueError("settings: expected an object")
    known = present.__dataclass_fields__
    for name in given:
        if name not in known:
            raise ValueError(f"settings: expected {', '.join(known)}, got {_shown(name)}")
    value = Settings(**{**{name: getattr(present, name) for name in known}, **given})
    if not isinstance(value.weights, str) or value.weights not in offers:
        raise ValueError(f"weights: expected one of {', '.join(offers)}, got {_shown(value.weights)}")
    precisions = offers[value.weights]
    if value.precision not in precisions:
        names = ", ".join(name or "null" for name in precisions)
        raise ValueError(f"precision: expected one of {names}, got {_shown(value.precision)}")
    possible = FACES if detector else FACES[1:]
    if not isinstance(value.faces, str) or value.faces not in possible:
        raise ValueError(f"faces: expected {' or '.join(possible)}, got {_shown(value.faces)}")
    if not isinstance(value.live, bool):
        raise ValueError(f"live: expected true or false, got {_shown(value.live)}")
    smooth = value.smooth
    if isinstance(smooth, bool) or not isinstance(smooth, int | float) or not 0 <= smooth <= 0.95:  # NaN neither
        raise ValueError(f"smooth: expected a number of 0 to 0.95, got {_shown(smooth)}")
    return value


def _shown(value: Any) -> str:
    """What came, short enough for a message."""
    return repr(value)[:60]
