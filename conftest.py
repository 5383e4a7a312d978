# SPDX-License-Identifier: Apache-2.0
"""What pytest runs at the root: tests/ by default, bench/ with ``--benchmark-only``; never the two together.

The benchmarks' options stand here, as pytest reads options only from the conftest files that it finds at the start.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastfer")
    group.addoption("--bench-threads", type=int, default=None, help="threads of every contender; default: torch's")
    group.addoption("--bench-smoke", action="store_true", help="one small shape a table, one short round")


def pytest_configure(config: pytest.Config) -> None:
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.getoption("benchmark_only", False):
        config.args = [str(config.rootpath / "bench")]
