# SPDX-License-Identifier: Apache-2.0
"""Progressive resolution: a stage that trains on smaller images first and ends at the network's own size.

Networks with global pooling take images of any size, and a step on half the side costs about a quarter. Smaller images
are made from the stored bytes, as those of the final size are. Evaluation, the weight files and every tool that reads
them know the final size alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastfer.data import Preprocess

_FORM = re.compile(r"([1-9][0-9]{0,3})(?::([1-9][0-9]{0,5}))?")
_EXPECTED = "SIZE:EPOCHS,SIZE:EPOCHS of rising sizes, such as 112:40,224:10"


@dataclass(frozen=True)
class Phase:
    """Epochs on images of one side; None for all that are left, which the last phase alone may have."""

    size: int
    epochs: int | None


def parse_resolution(text: str | None) -> tuple[Phase, ...]:
    """The phases of "112:40,224:10", in order; the last one's epochs may be left out. ValueError for anything else."""
    if text is None:
        return ()
    found = [_FORM.fullmatch(part.strip()) for part in text.split(",")]
    phases = tuple(Phase(int(match[1]), int(match[2]) if match[2] else None) for match in found if match)
    rising = all(a.size < b.size for a, b in itertools.pairwise(phases))
    if len(phases) != len(found) or len(phases) < 2 or not rising or any(p.epochs is None for p in phases[:-1]):
        raise ValueError(f"resolution: expected {_EXPECTED}, got {text!r}")
    return phases


def total_epochs(phases: Sequence[Phase]) -> int | None:
    """Epochs of all phases together; None where the last one has what is left."""
    counts = [phase.epochs for phase in phases]
    return None if None in counts else sum(count for count in counts if count is not None)


def require_fit(phases: Sequence[Phase], epochs: int | None, size: int | None) -> None:
    """ValueError where the phases contradict the stage's ``epochs`` or ``input.size``, as far as these are known."""
    if not phases:
        return
    if size not in (None, phases[-1].size):
        raise ValueError(f"resolution: expected a last size of input.size ({size}), got {phases[-1].size}")
    total = total_epochs(phases)
    if not epochs or epochs == total:
        return
    if total is not None:
        raise ValueError(f"resolution: expected epochs that add up to epochs ({epochs}), got {total}")
    if epochs <= last_begins(phases):
        raise ValueError(
            f"resolution: expected fewer epochs before the last size than epochs ({epochs}), got {last_begins(phases)}"
        )


def last_begins(phases: Sequence[Phase]) -> int:
    """Epochs before the last size; 0 without phases."""
    return sum(phase.epochs or 0 for phase in phases[:-1])


def at_epoch(preprocess: Preprocess, phases: Sequence[Phase], done: int) -> Preprocess:
    """The conversion of the training images in a stage's epoch after ``done`` others."""
    for phase in phases[:-1]:
        if done < (phase.epochs or 0):
            return replace(preprocess, size=(phase.size, phase.size))
        done -= phase.epochs or 0
    return preprocess
