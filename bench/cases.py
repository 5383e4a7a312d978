# SPDX-License-Identifier: Apache-2.0
"""A case (one piece of work at one shape), and the session that verifies and times all its contenders together.

pytest-benchmark times one function a test, one after the other. Here the first test of a case measures every selected
contender, interleaved, and each contender's own test replays its readings into pytest-benchmark's statistics.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import Tensor

import fastfer
from bench.contenders import ALL, Problem, backend_of
from bench.layers import Layer
from bench.measure import Ceilings, QuietCheck, Settings, Timing, ceilings, error, interleave

SMOKE = os.environ.get("FASTFER_BENCH_SMOKE", "") not in ("", "0")


@dataclass(frozen=True)
class Case:
    """``work`` names the table that the case belongs to; ``count`` is how often the network has the layer."""

    work: str
    network: str
    shape: str
    batch: int
    count: int
    problem: Callable[[], Problem] = field(repr=False, compare=False)
    contenders: tuple[str, ...] = ALL

    @property
    def id(self) -> str:
        return f"{self.network}-{self.shape}-batch{self.batch}".replace(" ", "-")


def of_layers(
    work: str,
    problem: Callable[[Layer, int], Problem],
    layers: Iterable[tuple[str, Layer]],
    batch: Callable[[str], int],
) -> list[Case]:
    """One case a layer, at ``batch(network)`` images."""
    return [
        Case(work, network, layer.label, batch(network), layer.count, partial(problem, layer, batch(network)))
        for network, layer in layers
    ]


def parametrize(cases: list[Case], keep: int = 1) -> pytest.MarkDecorator:
    """Every contender of every case, one test each; in a smoke run the ``keep`` cheapest, compiled for blocks only."""
    pairs = [(case, name) for case in cases for name in case.contenders]
    if SMOKE:
        kept = sorted(cases, key=lambda case: case.problem().traffic)[:keep]
        pairs = [(c, n) for c, n in pairs if c in kept and ("compile" not in n or c.work.startswith("block"))]
    return pytest.mark.parametrize(
        ("case", "contender"), [pytest.param(case, name, id=f"{case.id}-{name}") for case, name in pairs]
    )


class Replay:
    """A clock that only moves when `tick` is called, by the next reading: it feeds readings to pytest-benchmark."""

    def __init__(self) -> None:
        self._now = 0.0
        self._readings: Iterator[float] = iter(())

    def load(self, readings: list[float]) -> None:
        self._now, self._readings = 0.0, iter(readings)

    def tick(self) -> None:
        self._now += next(self._readings)

    def read(self) -> float:
        return self._now


@dataclass
class Result:
    """Timing and errors of a contender, or what kept it from being timed."""

    timing: Timing | None = None
    error: float = 0.0
    gradient_error: float = 0.0
    unavailable: str = ""
    failure: Exception | None = None


@dataclass
class Measured:
    """Results of a case's contenders, its problem, and how busy the machine was with other things meanwhile."""

    problem: Problem
    results: dict[str, Result]
    others: float = 0.0
    stolen: float = 0.0


@contextmanager
def _scope(problem: Problem, name: str) -> Iterator[None]:
    """Gradient mode and backend of a contender."""
    backend = backend_of(name)
    with problem.mode(), fastfer.use(backend) if backend else nullcontext():
        yield


def verify(problem: Problem, run: Callable[[int], Sequence[Tensor]], expected: list[Tensor]) -> tuple[float, float]:
    """Errors of the results and of masked gradients; AssertionError where one is beyond its limit.

    Results: the largest difference over the largest value; at most 64 eps of float32 times the square root of the
    longest sum. Masked gradients: in the Euclidean norm, since one mask that flips by rounding among N moves a gradient
    by about 1/sqrt(N) of its norm in any implementation; room for three.
    """
    sums = 64 * torch.finfo(torch.float32).eps * max(problem.terms, 1) ** 0.5
    flips = 1e-3 + 3 * expected[0].numel() ** -0.5
    got = run(0)
    if len(got) != len(expected):
        raise AssertionError(f"expected {len(expected)} results, got {len(got)}")
    errors = [0.0, 0.0]
    for index, (value, want) in enumerate(zip(got, expected, strict=True)):
        masked = problem.masked and index > 0
        found, limit = error(value, want)[masked], (sums, flips)[masked]
        if not found <= limit:
            raise AssertionError(f"result {index}: expected relative error <= {limit:.1e}, got {found:.1e}")
        errors[masked] = max(errors[masked], found)
    return errors[0], errors[1]


class Session:
    """Measures each case once, keeping the last one, and the machine's ceilings once."""

    def __init__(self) -> None:
        self.settings = Settings(rounds=1, seconds=0.002, warmup=0.001) if SMOKE else Settings()
        self.disturbed: list[str] = []
        self._ceilings: Ceilings | None = None
        self._last: tuple[Case, Measured] | None = None

    @property
    def ceilings(self) -> Ceilings:
        if self._ceilings is None:
            self._ceilings = ceilings(0.05 if SMOKE else 1.0)
        return self._ceilings

    def measured(self, case: Case, names: Callable[[], list[str]]) -> Measured:
        """Verify and time the contenders ``names()``, or what was measured for this case already."""
        if self._last is None or self._last[0] != case:
            self._last = None  # frees its inputs before the next ones are made
            self._last = (case, self._measure(case, names()))
        return self._last[1]

    def _measure(self, case: Case, names: list[str]) -> Measured:
        problem = case.problem()
        results = {name: Result() for name in names}
        runners = {}
        expected = problem.oracle()
        for name, result in results.items():
            backend = backend_of(name)
            if backend and not (found := fastfer.list_backends()[backend]).available:
                result.unavailable = found.reason
                continue
            try:
                with _scope(problem, name):
                    runner = problem.build(name)
                    result.error, result.gradient_error = verify(problem, runner, expected)
                runners[name] = runner
            except Exception as failure:  # one contender that fails leaves the others to be timed
                result.failure = failure
        del expected
        quiet = QuietCheck()
        timings = interleave(runners, self.settings, lambda name: _scope(problem, name))
        others, stolen = quiet.read()
        for name, timing in timings.items():
            results[name].timing = timing
        torch._dynamo.reset()
        if max(others, stolen) > QuietCheck.LIMIT:
            self.disturbed.append(f"{case.work} {case.id}: {others:.1f} cores at other work, {stolen:.0%} stolen")
        return Measured(problem, results, others, stolen)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """``torch.set_num_threads`` for the session, which fastfer follows."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
