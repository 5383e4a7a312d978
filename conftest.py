# SPDX-License-Identifier: Apache-2.0
"""What pytest runs at the root: tests/ on all cores by default, bench/ with ``--benchmark-only``; never both.

The benchmarks' options stand here, as pytest reads options only from the conftest files that it finds at the start.
"""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastfer")
    group.addoption("--bench-threads", type=int, default=None, help="threads of every contender; default: torch's")
    group.addoption("--bench-smoke", action="store_true", help="one small shape a table, one short round")


def _whole_suite(config: pytest.Config) -> bool:
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite takes one process a core (pytest-xdist); some of its files, or ``-n 0``, run in this process."""
    worker = "PYTEST_XDIST_WORKER" in os.environ or hasattr(config, "workerinput")  # which starts no workers of its own
    alone = worker or config.getoption("usepdb", False) or config.getoption("benchmark_only", False)
    if _whole_suite(config) and not alone and config.getoption("numprocesses", 0) is None:
        config.option.numprocesses = "auto"
        # Idle OpenMP threads of one process would spin on the cores of the others.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_configure(config: pytest.Config) -> None:
    if _whole_suite(config) and config.getoption("benchmark_only", False):
        config.args = [str(config.rootpath / "bench")]
