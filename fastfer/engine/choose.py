# SPDX-License-Identifier: Apache-2.0
"""``dtype="auto"``: the fastest precision that chooses the class that float32 chooses, measured on this CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

from fastfer.engine.graph import Array
from fastfer.runtime import Engine, as_array

PRECISIONS = ("float32", "bfloat16", "int8")
_ROUNDS, _SECONDS = 5, 0.02
"""Interleaved rounds, and how long an engine runs in one."""
USUAL_AGREEMENT = 0.99
_LEAST_GAIN = 1.05
"""How much faster than what is more exact a precision has to be: closer ones change places from run to run."""


def check_agreement(agreement: Any) -> None:
    """Raise ValueError unless it is a share."""
    if not isinstance(agreement, (int, float)) or not 0 < agreement <= 1:
        raise ValueError(f"compile: agreement: expected a share above 0, at most 1, got {agreement!r}")


def fastest(build: Callable[..., Engine], images: Iterable[Any] | None, agreement: float) -> Engine:
    """Of the engines that ``build(dtype=, calibration=)`` gives the fastest one on one image that agrees with
    float32 on the classes of at least a share ``agreement`` of the images; its metadata's "choice" says why.

    Raises ValueError for no images, and for a network whose output is no vector of logits.
    """
    check_agreement(agreement)
    if images is None:
        raise ValueError("compile: calibration: expected images for dtype auto, which measures agreement on them")
    batches = [item[0] if isinstance(item, (list, tuple)) else item for item in images]
    engines = {dtype: build(dtype=dtype, calibration=batches if dtype == "int8" else None) for dtype in PRECISIONS}
    arrays = [as_array("compile: calibration", f"batch {number}", batch) for number, batch in enumerate(batches)]
    classes = {dtype: np.concatenate([_classes(engine, x) for x in arrays]) for dtype, engine in engines.items()}
    agrees = {dtype: float((found == classes["float32"]).mean()) for dtype, found in classes.items()}
    seconds = _timed(list(engines.values()), next(x[:1] for x in arrays if len(x)))
    times = dict(zip(PRECISIONS, seconds, strict=True))
    best = "float32"
    for dtype in PRECISIONS[1:]:
        if agrees[dtype] >= agreement and times[dtype] * _LEAST_GAIN < times[best]:
            best = dtype
    choice = {
        "asked": agreement,
        "images": len(classes["float32"]),
        "precisions": {name: {"milliseconds": times[name] * 1e3, "agrees": agrees[name]} for name in PRECISIONS},
    }
    return build(dtype=best, calibration=batches if best == "int8" else None, choice=choice)


def reason(choice: Any, dtype: str) -> str:
    """A line that says what a choice of `fastest` was made by; empty for none."""
    if not isinstance(choice, dict):
        return ""
    found = [
        f"{name} {row['milliseconds']:.3f} ms, agrees on {row['agrees']:.1%}"
        for name, row in choice["precisions"].items()
    ]
    return f"{dtype} was chosen for at least {choice['asked']:.1%} on {choice['images']} images: {'; '.join(found)}"


def _classes(engine: Engine, x: Array) -> Array:
    logits = engine(np.ascontiguousarray(x))
    if not isinstance(logits, np.ndarray) or logits.ndim != 2:
        raise ValueError("compile: dtype: expected a network with logits (N, classes) as its output for auto")
    result: Array = logits.argmax(1)
    return result


def _timed(engines: Sequence[Engine], image: Array) -> list[float]:
    """Median seconds of each on one image, in interleaved rounds, so that a busy moment meets all of them."""
    found: list[list[float]] = [[] for _ in engines]
    for _ in range(_ROUNDS):
        for engine, times in zip(engines, found, strict=True):
            end = time.perf_counter() + _SECONDS
            while (start := time.perf_counter()) < end:
                engine(image)
                times.append(time.perf_counter() - start)
    return [median(times) for times in found]
