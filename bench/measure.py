# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing, errors against an oracle, ceilings of the machine and the quiet check."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

Runner = Callable[[int], Sequence[Tensor]]
"""One call on the inputs of a slot (a running index; the contender cycles its buffers with it)."""


@dataclass(frozen=True)
class Settings:
    """``rounds`` rounds; in each, every contender is called for ``seconds`` after ``warmup`` seconds unmeasured."""

    rounds: int = 5
    seconds: float = 0.03
    warmup: float = 0.01

    SMALLEST = 50e-6
    """Seconds of calls behind one reading of the clock, so that reading it does not count."""


@dataclass
class Timing:
    """``rounds``: median seconds a call in each round; ``calls``: every reading."""

    rounds: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    @property
    def p10(self) -> float:
        return sorted(self.calls)[len(self.calls) // 10]


def _timed(run: Runner, slot: int, calls: int) -> float:
    start = time.perf_counter()
    for i in range(slot, slot + calls):
        run(i)
    return (time.perf_counter() - start) / calls


def interleave(
    runners: dict[str, Runner],
    settings: Settings,
    scope: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext(),
) -> dict[str, Timing]:
    """Time the runners in turn, round after round, each inside ``scope(name)``; the order rotates between rounds.

    So drift of the clock or a noisy neighbour meets all contenders alike, and none always follows the same other.
    """
    names = list(runners)
    timings = {name: Timing() for name in names}
    if not names:
        return timings
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(settings.rounds):
            for name in names[index % len(names) :] + names[: index % len(names)]:
                with scope(name):
                    timing = timings[name]
                    readings = _one_round(runners[name], settings)
                    timing.calls += readings
                    timing.rounds.append(statistics.median(readings))
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return timings


def _one_round(run: Runner, settings: Settings) -> list[float]:
    deadline = time.perf_counter() + settings.warmup
    slot, duration = 0, math.inf
    while slot < 2 or time.perf_counter() < deadline:
        duration = min(duration, _timed(run, slot, 1))
        slot += 1
    calls = max(1, math.ceil(settings.SMALLEST / duration))
    readings: list[float] = []
    deadline = time.perf_counter() + settings.seconds
    while not readings or time.perf_counter() < deadline:
        readings.append(_timed(run, slot, calls))
        slot += calls
    return readings


def error(got: Tensor, want: Tensor) -> tuple[float, float]:
    """Largest |got - want| over the largest |want|, and the same in the Euclidean norm.

    ``want`` (B, ...) float64 is one period of ``got`` (k·B, ...) along the first axis. NaN counts as infinite.
    """
    period = want.shape[0]
    if got.shape[1:] != want.shape[1:] or got.shape[0] % period:
        raise AssertionError(f"expected shape a multiple of {tuple(want.shape)}, got {tuple(got.shape)}")
    largest = square = 0.0
    for start in range(0, got.shape[0], period):
        diff = got[start : start + period].detach().double() - want
        if not diff.isfinite().all():
            return math.inf, math.inf
        largest = max(largest, diff.abs().max().item())
        square += diff.square().sum().item()
    norm = math.sqrt(want.square().sum().item() * got.shape[0] / period)
    return largest / max(want.abs().max().item(), 1e-300), math.sqrt(square) / max(norm, 1e-300)


def cache_bytes() -> int:
    """Size of the last-level cache; 32 MiB where the system does not say."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index3/size"):
        text = path.read_text().strip()
        sizes = [int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]]
    return sizes[0]


@dataclass(frozen=True)
class Ceilings:
    """Measured peaks: ``gmacs`` GMAC/s of float32 multiply-adds, ``memory`` and ``cache`` GB/s read plus written."""

    gmacs: float
    memory: float
    cache: float

    def seconds(self, macs: int, traffic: int, cached: bool) -> float:
        """Least time for ``macs`` multiply-adds and ``traffic`` bytes."""
        return max(macs / self.gmacs, traffic / (self.cache if cached else self.memory)) / 1e9


def _best(call: Callable[[], object], seconds: float) -> float:
    best, deadline = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def ceilings(seconds: float = 1.0) -> Ceilings:
    """Best of: a 2048³ matrix product and a 1×1 convolution (arithmetic), copies and sums (bandwidth)."""
    size = 2048
    a, b = torch.rand(size, size), torch.rand(size, size)
    gmacs = [size**3 / _best(lambda: torch.mm(a, b), seconds)]
    x = torch.rand(16, 512, 28, 28).contiguous(memory_format=torch.channels_last)
    w = torch.rand(512, 512, 1, 1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        macs = x.numel() * w.shape[0]
        gmacs.append(macs / _best(lambda: torch.nn.functional.conv2d(x, w), seconds))
    bandwidths = []
    for count in (64 << 20, 1 << 20):  # elements: 256 MiB, far outside the cache, and 4 MiB, inside it
        source, target = torch.rand(count), torch.rand(count)
        copied = 8 * count / _best(lambda s=source, t=target: t.copy_(s), seconds / 2)  # type: ignore[misc]
        summed = 4 * count / _best(lambda s=source: s.sum(), seconds / 2)  # type: ignore[misc]
        bandwidths.append(max(copied, summed) / 1e9)
    return Ceilings(max(gmacs) / 1e9, bandwidths[0], max(bandwidths))


class QuietCheck:
    """Processor time that others took, in cores, and the share stolen by the host, between start and `read`."""

    LIMIT = 0.1

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float, float]:
        """Seconds: wall, busy on all processors, stolen, used by this process and its children."""
        own = os.times()
        used = own.user + own.system + own.children_user + own.children_system
        try:
            ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return time.perf_counter(), used, 0.0, used
        hz = os.sysconf("SC_CLK_TCK")
        user, nice, system, _, _, irq, softirq, steal = ticks
        return time.perf_counter(), (user + nice + system + irq + softirq) / hz, steal / hz, used

    def read(self) -> tuple[float, float]:
        """Cores busy with other processes, and the share stolen of all, since start; in ticks of 10 ms."""
        wall, busy, stolen, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        cores = os.cpu_count() or 1
        return max(0.0, busy - own) / wall, stolen / wall / cores
