# SPDX-License-Identifier: Apache-2.0
"""Cost as work grows: images of 24 to 448 pixels, batches of 1 to 256, threads, classes; time and memory of the engine.

Each point is an engine file alone in a process without torch (`bench.alone`). `bend` says of each curve over which
stretch a unit of work costs the least, and what it costs outside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fastfer
from bench.machine_file import Row, quietly
from fastfer.models import create_model

AXES = {
    "pixels": (24, 32, 48, 64, 96, 112, 160, 224, 320, 448),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "threads": (),
    "classes": (2, 7, 16, 32, 64, 128, 256, 512, 1000),
}
"""Values of each axis; those of threads are all that the machine has."""
SHORT = {"pixels": (24, 48), "batch": (1, 8), "threads": (1,), "classes": (2, 7)}
WORK = {"pixels": "a pixel", "batch": "an image", "threads": "the cores' time together", "classes": "an image"}
NEAR = 1.1
"""A unit of work that costs at most so many times the least costs the same: less is within the noise."""


@dataclass(frozen=True)
class Point:
    """A network and what it works on."""

    axis: str
    network: str
    value: int
    batch: int = 1
    threads: int = 1


def points(axes: Sequence[str], networks: Sequence[str], *, short: bool) -> Iterator[Point]:
    """All points of some axes; classes on the first network alone, as the last layer is alike in all."""
    cores = os.cpu_count() or 1
    for axis in axes:
        values = (SHORT if short else AXES)[axis] or tuple(range(1, cores + 1))
        for network in networks[:1] if axis == "classes" else networks:
            for value in values:
                batch = {"batch": value, "threads": 32}.get(axis, 1)
                yield Point(axis, network, value, batch, value if axis == "threads" else 1)


def _engine_file(point: Point, folder: Path) -> Path:
    classes = point.value if point.axis == "classes" else 7
    model = create_model(point.network, num_classes=classes).eval()
    size = (point.value, point.value) if point.axis == "pixels" else model.input_size
    path = folder / f"{point.network}-{classes}-{size[0]}.ffe"
    if not path.exists():
        fastfer.compile(model, (1, model.in_chans, *size), threads=1).save(path)
    return path


def _alone(file: Path, point: Point, seconds: float) -> dict[str, float]:
    words = ["bench.alone", str(file), str(point.batch), str(point.threads), str(seconds)]
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-m", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()[-500:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(found: Sequence[Point], seconds: float, attempts: int = 2) -> Iterator[Row]:
    """A row for each point."""
    with tempfile.TemporaryDirectory() as folder:
        for point in found:
            file = _engine_file(point, Path(folder))
            numbers, quiet = quietly(partial(_alone, file, point, seconds), attempts)
            print(f"{point}: {1e3 * numbers['median']:.3f} ms, {numbers['mib']:.1f} MiB", flush=True)
            yield {**vars(point), **numbers, **quiet}


def work(row: Row) -> float:
    """Units of work of a row, as in `WORK`."""
    value = float(row["value"])
    return {"pixels": value * value, "threads": 1 / value, "classes": 1.0}.get(row["axis"], value)


def bend(rows: Sequence[Row]) -> str:
    """One sentence about a curve: where a unit of work costs the least, and what it costs at the ends."""
    rows = sorted(rows, key=lambda row: row["value"])
    costs = [row["median"] / work(row) for row in rows]
    least, axis = min(costs), rows[0]["axis"]
    start = end = costs.index(least)
    while start > 0 and costs[start - 1] <= NEAR * least:
        start -= 1
    while end + 1 < len(costs) and costs[end + 1] <= NEAR * least:
        end += 1
    near = (rows[start]["value"], rows[end]["value"])
    text = f"{WORK[axis]} costs the least at {near[0]}" if start == end else ""
    text = text or f"{WORK[axis]} costs the same within {NEAR - 1:.0%} from {near[0]} to {near[1]}"
    ends = [(row["value"], cost / least) for row, cost in ((rows[0], costs[0]), (rows[-1], costs[-1]))]
    outside = [f"{times:.1f} times as much at {value}" for value, times in ends if times > NEAR]
    first, last = (f"{row['mib']:.1f}" for row in (rows[0], rows[-1]))
    memory = f"memory is {first} MiB throughout" if first == last else f"memory goes from {first} to {last} MiB"
    return f"{rows[0]['network']}: {'; '.join([text, *outside, memory])}."
