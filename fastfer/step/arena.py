# SPDX-License-Identifier: Apache-2.0
"""Where scratch memories lie in one arena: two share bytes only if the last use of one is before the first of the
other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 64
"""A cache line, as torch aligns tensors."""


class Span(NamedTuple):
    """A block of ``size`` bytes, used by calls ``first`` to ``last``."""

    size: int
    first: int
    last: int


def layout(spans: Sequence[Span]) -> tuple[list[int], int]:
    """The offset of each block, and the size of the arena. Largest first, each at the lowest place that is free."""
    offsets = [0] * len(spans)
    placed: list[tuple[int, int, Span]] = []  # start, end
    for i in sorted(range(len(spans)), key=lambda i: (-spans[i].size, spans[i].first)):
        span, start = spans[i], 0
        for begin, end, _ in sorted(p for p in placed if p[2].first <= span.last and span.first <= p[2].last):
            if start + span.size <= begin:
                break
            start = max(start, end)
        offsets[i] = start
        placed.append((start, start + -(-span.size // ALIGNMENT) * ALIGNMENT, span))
    return offsets, max((end for _, end, _ in placed), default=0)
