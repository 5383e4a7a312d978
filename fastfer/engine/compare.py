# SPDX-License-Identifier: Apache-2.0
"""An engine beside other runtimes: outputs verified against torch in float64, then timed in turn."""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fastfer.engine import peers
from fastfer.engine.graph import Array
from fastfer.engine.peers import Peer, Subject, largest_error
from fastfer.engine.tables import table
from fastfer.runtime import Engine

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}
"""Largest error of a runtime that is timed, relative to the largest output; float32 sums stay far below it."""


class Runtime(Protocol):
    """A runtime with a network and its images."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def run(self) -> Callable[[], Any]: ...


@dataclass(frozen=True)
class Timing:
    """Seconds a call of one runtime: the median and the tenth percentile of all rounds, and each round's median."""

    name: str
    version: str
    median: float
    p10: float
    rounds: tuple[float, ...]
    error: float


@dataclass(frozen=True)
class Comparison:
    """Timings of a network at one batch, the engine's first."""

    network: str
    batch: int
    threads: int
    timings: tuple[Timing, ...]
    dtype: str = "float32"

    @property
    def ratio(self) -> float:
        """Time of the fastest other runtime over the engine's."""
        own, *others = self.timings
        return min((t.median for t in others), default=float("nan")) / own.median

    def __str__(self) -> str:
        own = self.timings[0]
        rows = [
            [
                f"{t.name} {t.version}".strip(),
                f"{1e3 * t.median:.3f}",
                f"{1e3 * t.p10:.3f}",
                f"{self.batch / t.median:,.0f}",
                f"{t.median / own.median:.2f}×",
                f"{t.error:.0e}",
            ]
            for t in self.timings
        ]
        title = f"{self.network}, batch {self.batch}, {self.threads} threads, {self.dtype}"
        return table(title, ("runtime", "median ms", "p10 ms", "images/s", "over engine", "error"), rows)


def interleaved(
    runs: dict[str, Callable[[], object]], rounds: int, seconds: float, pause: float = 0.02
) -> dict[str, list[list[float]]]:
    """Seconds of each call, by round: every runtime runs for ``seconds`` in turn, the first of a round rotating.

    A ``pause`` and unmeasured calls for a third of the time stand before each turn, as the threads of a runtime that
    has just finished may still spin.
    """
    readings: dict[str, list[list[float]]] = {name: [] for name in runs}
    names = list(runs)
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            gc.collect()
            time.sleep(pause)
            _calls(runs[name], seconds / 3)
            readings[name].append(_calls(runs[name], seconds))
    return readings


def _calls(run: Callable[[], object], seconds: float) -> list[float]:
    taken: list[float] = []
    now = time.perf_counter()
    deadline = now + seconds
    while not taken or now < deadline:
        start = now
        run()
        now = time.perf_counter()
        taken.append(now - start)
    return taken


def images_for(engine: Engine, batch: int) -> Array:
    """Standard normal images, the same each time."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((batch, *engine.input_shape)).astype(np.float32)


def compare(
    model: nn.Module,
    engine: Engine,
    batch: int = 1,
    *,
    twin: nn.Module | None = None,
    others: Sequence[str] | None = None,
    rounds: int = 8,
    seconds: float = 0.3,
) -> Comparison:
    """Time ``engine`` and ``others`` on ``batch`` images, all with the engine's threads.

    ``twin`` is the network in torch's own ops, which the others run, by default `peers.stock` of it. ``others`` are
    names of `peers.PEERS`, by default those of the engine's precision.

    Raises ImportError naming the extra for a package that is missing, and RuntimeError, before anything is timed, for
    a runtime whose output is further than `TOLERANCE` from that of ``model`` in float64.
    """
    others = peers.USUAL[engine.dtype] if others is None else others
    unknown = [name for name in others if name not in peers.PEERS]
    if unknown:
        raise ValueError(f"compare: others: expected some of {', '.join(peers.PEERS)}, got {unknown[0]!r}")
    twin = peers.stock(model, engine.input_shape[1:]) if twin is None else twin
    subject = Subject(twin, images_for(engine, batch), engine.threads)
    images = subject.images
    with torch.no_grad():
        want = copy.deepcopy(model).cpu().eval().double()(torch.from_numpy(images).double()).numpy()
    runtimes = [Peer("fastfer engine", engine.dtype, lambda: engine(images))]
    runtimes += [peers.PEERS[name](subject) for name in others]
    return timed(engine, batch, runtimes, lambda got: largest_error(got, want), rounds, seconds)


def timed(
    engine: Engine,
    batch: int,
    runtimes: Sequence[Runtime],
    error_of: Callable[[Any], float],
    rounds: int,
    seconds: float,
    tolerance: float | None = None,
) -> Comparison:
    """Time the runtimes, the engine's first, after a look at what each gives.

    RuntimeError for one whose ``error_of`` its outputs is above ``tolerance``, by default `TOLERANCE`.
    """
    errors, limit = {}, TOLERANCE[engine.dtype] if tolerance is None else tolerance
    for runtime in runtimes:
        error = errors[runtime.name] = error_of(runtime.run())
        if not error <= limit:
            raise RuntimeError(f"compare: {runtime.name}: expected outputs within {limit}, got {error:.1e}")
    readings = interleaved({runtime.name: runtime.run for runtime in runtimes}, rounds, seconds)
    timings = []
    for runtime in runtimes:
        taken = sorted(t for one in readings[runtime.name] for t in one)
        medians = tuple(statistics.median(one) for one in readings[runtime.name])
        p10 = taken[len(taken) // 10]
        median = statistics.median(medians)
        timings.append(Timing(runtime.name, runtime.version, median, p10, medians, errors[runtime.name]))
    name = str(engine.metadata.get("model", "network"))
    return Comparison(name, batch, engine.threads, tuple(timings), engine.dtype)
