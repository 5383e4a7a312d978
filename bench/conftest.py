# SPDX-License-Identifier: Apache-2.0
"""Verify, then time: options, the fixture of every benchmark, and what a result file says about the machine.

Options, from the conftest.py of the root: ``--bench-threads N`` (default: torch's), ``--bench-smoke`` or
``FASTFER_BENCH_SMOKE=1`` (one small shape a table, one short round: does everything still run and agree?).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastfer
from bench import cases, machine
from bench.contenders import backend_of

_REPLAY = cases.Replay()
_SESSION = pytest.StashKey[cases.Session]()


def pytest_configure(config: pytest.Config) -> None:
    cases.SMOKE = cases.SMOKE or config.getoption("--bench-smoke")
    count = config.getoption("--bench-threads")
    if count is not None and count < 1:
        raise pytest.UsageError(f"--bench-threads: expected at least 1, got {count}")
    config.stash[_SESSION] = cases.Session()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.benchmark(timer=_REPLAY.read))


@pytest.fixture(scope="session", autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with cases.threads(request.config.getoption("--bench-threads")):
        yield


def _selected(item: pytest.Item, case: cases.Case) -> list[str]:
    """Contenders of this case that will run, as ``-k`` left them."""
    calls = [other.callspec for other in item.session.items if hasattr(other, "callspec")]
    return [call.params["contender"] for call in calls if call.params.get("case") == case]


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[cases.Case, str], None]:
    """Measure a case with all its contenders and record one of them."""

    def record(case: cases.Case, contender: str) -> None:
        session = request.config.stash[_SESSION]
        measured = session.measured(case, lambda: _selected(request.node, case))
        result = measured.results[contender]
        if result.unavailable:
            benchmark.skipped = True
            pytest.skip(f"{contender}: {result.unavailable}")
        if result.failure is not None:
            raise result.failure
        assert result.timing is not None
        benchmark.group = f"{case.work} {case.id}"
        benchmark.extra_info.update(_facts(session, case, measured, contender))
        _REPLAY.load(result.timing.rounds)
        benchmark.pedantic(_REPLAY.tick, rounds=len(result.timing.rounds))

    return record


def _facts(session: cases.Session, case: cases.Case, measured: cases.Measured, contender: str) -> dict[str, Any]:
    result, problem = measured.results[contender], measured.problem
    assert result.timing is not None
    median = float(np.median(result.timing.rounds))
    floor = session.ceilings.seconds(problem.macs, problem.traffic, problem.cached)
    return {
        "work": case.work,
        "network": case.network,
        "shape": case.shape,
        "batch": case.batch,
        "count": case.count,
        "contender": contender,
        "backend": backend_of(contender) or "torch",
        "isa": machine.isa(contender),
        "threads": torch.get_num_threads(),
        "allocator": machine.allocator(),
        "median_ms": 1e3 * median,
        "p10_ms": 1e3 * result.timing.p10,
        "error": result.error,
        "gradient_error": result.gradient_error,
        "gb_per_s": problem.traffic / median / 1e9,
        "gmac_per_s": problem.macs / median / 1e9,
        "ceiling_percent": 100 * floor / median,
        "bound": "memory" if problem.macs / session.ceilings.gmacs / 1e9 < floor else "arithmetic",
        "cached": problem.cached,
        "other_cores": round(measured.others, 3),
        "stolen": round(measured.stolen, 3),
    }


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    session = config.stash[_SESSION]
    machine_info["fastfer"] = machine.describe(session.ceilings, session.disturbed) | {
        "version": fastfer.__version__,
        "smoke": cases.SMOKE,
        "load": os.getloadavg(),
    }


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    disturbed = config.stash[_SESSION].disturbed
    if disturbed:
        terminalreporter.section("the machine was not quiet")
        for line in disturbed[:10]:
            terminalreporter.line(line)
        terminalreporter.line(f"{len(disturbed)} cases disturbed: do not quote these numbers")
