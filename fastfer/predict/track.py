# SPDX-License-Identifier: Apache-2.0
"""Who is who from frame to frame: boxes matched to where persons were last seen moving, and smoothed probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fastfer.predict.results import Box, RecognizedFace


@dataclass
class _Person:
    number: int
    box: Box  # where it is, or where it should be while it is lost
    speed: tuple[float, float] = (0.0, 0.0)  # pixels a frame
    lost: int = 0  # frames since it was seen
    values: NDArray[np.float64] | None = field(default=None, repr=False)

    def moved(self) -> Box:
        """Where it should be one frame later; a lost one slows down, so that it does not run out of the picture."""
        slower = 0.8**self.lost
        return self.box[0] + self.speed[0] * slower, self.box[1] + self.speed[1] * slower, *self.box[2:]


class Tracker:
    """Numbers the faces of successive frames, from 1 on; a number is never used for a second person.

    Args:
        overlap: least intersection over union of a face with the place where a person should be
        patience: frames for which a person that is not seen is waited for
        smooth: of the probabilities the share of the past that stays; 0 takes each frame as it is
    """

    def __init__(self, *, overlap: float = 0.2, patience: int = 30, smooth: float = 0.0) -> None:
        if not 0 < overlap < 1 or patience < 0 or not 0 <= smooth < 1:
            raise ValueError(
                f"overlap, patience, smooth: expected above 0 to below 1, 0 or more, 0 to below 1, got {overlap}, "
                f"{patience}, {smooth}"
            )
        self.overlap, self.patience, self.smooth = overlap, patience, smooth
        self._persons: list[_Person] = []
        self._next = 1

    def __call__(self, faces: Sequence[RecognizedFace]) -> tuple[RecognizedFace, ...]:
        """The faces of the next frame with their numbers, and with smoothed probabilities where that is asked for."""
        places = [person.moved() for person in self._persons]
        chosen = self._matched(places, [face.box for face in faces])
        seen = set(chosen.values())
        for at, person in enumerate(self._persons):
            if at not in seen:
                person.box, person.lost = places[at], person.lost + 1
        found = []
        for index, face in enumerate(faces):
            if index in chosen:
                person = self._persons[chosen[index]]
                self._see(person, face.box)
            else:
                person = _Person(self._next, face.box)
                self._next += 1
                self._persons.append(person)
            found.append(self._smoothed(person, face))
        self._persons = [person for person in self._persons if person.lost <= self.patience]
        return tuple(found)

    def _matched(self, places: Sequence[Box], boxes: Sequence[Box]) -> dict[int, int]:
        """Face -> person, the closest pairs first: by overlap, then by distance for those that moved too fast."""
        pairs = []
        for at, place in enumerate(places):
            for index, box in enumerate(boxes):
                closeness = _closeness(place, box, self.overlap)
                if closeness is not None:
                    # Of two that fit alike, the one that was seen last.
                    pairs.append((-closeness, self._persons[at].lost, index, at))
        chosen: dict[int, int] = {}
        taken = set()
        for _, _, index, at in sorted(pairs):
            if index not in chosen and at not in taken:
                chosen[index] = at
                taken.add(at)
        return chosen

    def _see(self, person: _Person, box: Box) -> None:
        # A lost person's box has moved on along its speed; what is left over corrects the speed in part.
        predicted = person.moved()
        frames = person.lost + 1
        person.speed = (
            person.speed[0] + 0.5 * (_middle(box)[0] - _middle(predicted)[0]) / frames,
            person.speed[1] + 0.5 * (_middle(box)[1] - _middle(predicted)[1]) / frames,
        )
        person.box, person.lost = box, 0

    def _smoothed(self, person: _Person, face: RecognizedFace) -> RecognizedFace:
        values = face.values.astype(np.float64)
        if self.smooth and person.values is not None:
            values = self.smooth * person.values + (1 - self.smooth) * values
        person.values = values
        if not self.smooth:
            return replace(face, track=person.number)
        best = int(values.argmax())
        shares = values.astype(np.float32)
        return replace(face, track=person.number, values=shares, label=face.classes[best], score=float(shares[best]))


def _middle(box: Box) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def _closeness(place: Box, box: Box, overlap: float) -> float | None:
    """1 to 2 by intersection over union, below 1 by distance where there is too little; None for another person."""
    width = min(place[0] + place[2], box[0] + box[2]) - max(place[0], box[0])
    height = min(place[1] + place[3], box[1] + box[3]) - max(place[1], box[1])
    common = max(width, 0.0) * max(height, 0.0)
    share = common / max(place[2] * place[3] + box[2] * box[3] - common, 1e-9)
    if share >= overlap:
        return 1 + share
    size = (place[2] * place[3] * box[2] * box[3]) ** 0.25
    ratio = (place[2] * place[3]) / max(box[2] * box[3], 1e-9)
    (x, y), (px, py) = _middle(box), _middle(place)
    distance = ((x - px) ** 2 + (y - py) ** 2) ** 0.5 / max(size, 1e-9)
    return 1 - distance if distance < 1 and 0.5 < ratio < 2 else None
