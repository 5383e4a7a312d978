# SPDX-License-Identifier: Apache-2.0
"""Long grids of parameters: which cases the default run takes, the rest being behind ``-m full`` (`.ci/run full`).

A case is not lost by this, it is only run less often. Of each test with more than `MOST` cases the default run takes
those that together hold every value of every parameter (each backend and ISA, each shape, each dtype), then others up
to `MOST`, chosen by a checksum of their names: the same ones on every machine, and spread over all combinations.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest

MOST = 12


def thin(items: Sequence[pytest.Item]) -> None:
    """Marks as ``full`` what the default run leaves out."""
    tests: dict[tuple[object, ...], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            tests.setdefault((item.path, item.cls, item.originalname), []).append(item)
    for cases in tests.values():
        if len(cases) > MOST:
            kept = _chosen(cases)
            for case in cases:
                if case.nodeid not in kept:
                    case.add_marker(pytest.mark.full)


def _chosen(cases: Sequence[pytest.Function]) -> set[str]:
    order = sorted(cases, key=lambda case: zlib.crc32(case.nodeid.encode()))
    kept: set[str] = set()
    seen: set[tuple[str, str]] = set()
    for case in order:
        values = {(name, repr(value)) for name, value in case.callspec.params.items()}
        if not values <= seen:
            seen |= values
            kept.add(case.nodeid)
    for case in order:
        if len(kept) >= MOST:
            break
        kept.add(case.nodeid)
    return kept
