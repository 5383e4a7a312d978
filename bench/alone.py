# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.alone FILE BATCH THREADS [SECONDS]``: time and memory of an engine file, alone in a process.

Prints one line of JSON: median and tenth percentile of the seconds of a call, the seconds until the first call is
through, and the MiB by which memory grew for that, images not counted. Imports no torch, so that little else is there.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from fastfer import runtime

_FEWEST = 5
"""Calls at least, however long they take."""


def resident(field: str) -> int:
    """Bytes that this process holds now (``VmRSS``), or held at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(file: str, batch: int, threads: int, seconds: float) -> dict[str, float]:
    channels, height, width = runtime.load(file, threads=1).input_shape
    images = np.random.default_rng(0).standard_normal((batch, channels, height, width), np.float32)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again from here
    before, start = resident("VmRSS"), time.perf_counter()
    engine = runtime.load(file, threads=threads)
    engine(images)
    first, grown = time.perf_counter() - start, resident("VmHWM") - before
    taken: list[float] = []
    warm, deadline = start + first + seconds / 3, start + first + seconds * 4 / 3
    while len(taken) < _FEWEST or time.perf_counter() < deadline:
        begin = time.perf_counter()
        engine(images)
        end = time.perf_counter()
        if begin >= warm or end > deadline:
            taken.append(end - begin)
    taken.sort()
    return {
        "median": statistics.median(taken),
        "p10": taken[len(taken) // 10],
        "first": first,
        "mib": grown / 2**20,
    }


if __name__ == "__main__":
    path, images_count, team, *rest = sys.argv[1:]
    print(json.dumps(measure(path, int(images_count), int(team), float(rest[0]) if rest else 0.2)))
