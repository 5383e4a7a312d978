# SPDX-License-Identifier: Apache-2.0
"""Rules by which the range of a value follows from what was seen of it; outside of it bytes saturate.

A wider range keeps extremes, a narrower one gives all other numbers more resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastfer.engine.graph import Array
from fastfer.engine.rounding import as_stored, map_scale

COVERED = 0.95
"""Share of the images whose extremes lie within a range of the rule "images"."""
PERCENTILE = 99.99
"""Percentage of the elements that lie within a range of the rule "percentile"."""
_SHARES = np.linspace(1.0, 0.3, 29)
"""Of the whole range: what the rules that search try."""
_BINS = 1024
_LEVELS = 256
Range = tuple[float, float]


@dataclass(frozen=True)
class Seen:
    """What was seen of a value: least and largest element of each image, and a sample of all elements."""

    least: Array
    largest: Array
    sample: Array

    @property
    def whole(self) -> Range:
        return float(self.least.min()), float(self.largest.max())


def _images(seen: Seen) -> Range:
    return float(np.quantile(seen.least, 1 - COVERED)), float(np.quantile(seen.largest, COVERED))


def _minmax(seen: Seen) -> Range:
    return seen.whole


def _percentile(seen: Seen) -> Range:
    low, high = np.percentile(seen.sample, (100 - PERCENTILE, PERCENTILE))
    return float(low), float(high)


def _mse(seen: Seen) -> Range:
    """The least mean square of what rounding changes."""

    def cost(low: float, high: float) -> float:
        scale, zero = map_scale(low, high)
        return float(np.square(as_stored(seen.sample, scale, zero) - seen.sample).mean())

    return _searched(seen, cost)


def _entropy(seen: Seen) -> Range:
    """The least divergence (Kullback and Leibler's) of what the levels hold from the numbers' distribution."""
    low, high = seen.whole
    counts, edges = np.histogram(seen.sample, _BINS, (low, high) if low < high else (low, low + 1))
    centres = (edges[1:] + edges[:-1]) / 2
    share = counts / counts.sum()

    def cost(low: float, high: float) -> float:
        kept = np.bincount(np.searchsorted(centres, np.clip(centres, low, high)).clip(0, _BINS - 1), share, _BINS)
        scale, zero = map_scale(low, high)
        level = np.clip(np.rint(centres / scale + zero), 0, _LEVELS - 1).astype(int)
        there = kept > 0
        within = (centres >= low) & (centres <= high) & there
        mass = np.bincount(level[within], share[within], _LEVELS)
        width = np.bincount(level[within], minlength=_LEVELS)
        stored = np.where(within, mass[level] / np.maximum(width[level], 1), 0)
        return float((kept[there] * np.log(kept[there] / np.maximum(stored[there], 1e-9))).sum())

    return _searched(seen, cost)


def _searched(seen: Seen, cost: Callable[[float, float], float]) -> Range:
    """The cheapest of shares of the whole range; of costs that are alike, the widest."""
    low, high = seen.whole
    found = [cost(low * share, high * share) for share in _SHARES]
    share = float(_SHARES[int(np.argmin(found))])
    return low * share, high * share


RULES: dict[str, Callable[[Seen], Range]] = {
    "images": _images,
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
USUAL = "images"
