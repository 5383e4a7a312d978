# SPDX-License-Identifier: Apache-2.0
"""The default run's share of a long grid: every value of every parameter, and no more cases than needed."""

from __future__ import annotations

import grid
import pytest


@pytest.fixture
def items(pytester: pytest.Pytester) -> list[pytest.Item]:
    return list(
        pytester.getitems(
            """
            import pytest

            @pytest.mark.parametrize("shape", range(40))
            @pytest.mark.parametrize("kernel", "abcdef")
            def test_long(kernel, shape): ...

            @pytest.mark.parametrize("shape", range(20))
            def test_short(shape): ...
            """
        )
    )


def test_every_value_stays(items: list[pytest.Item]) -> None:
    grid.thin(items)
    kept = [item for item in items if not item.get_closest_marker("full")]
    long = [item for item in kept if item.name.startswith("test_long")]
    assert {item.callspec.params["shape"] for item in long} == set(range(40))  # type: ignore[attr-defined]
    assert {item.callspec.params["kernel"] for item in long} == set("abcdef")  # type: ignore[attr-defined]
    assert 40 <= len(long) <= 50
    assert len(kept) - len(long) == 20, "a test of at most MOST cases keeps them all"


def test_the_choice_depends_on_names_alone(items: list[pytest.Item]) -> None:
    def kept(order: list[pytest.Item]) -> set[str]:
        for item in order:
            item.own_markers = [mark for mark in item.own_markers if mark.name != "full"]
        grid.thin(order)
        return {item.nodeid for item in order if not item.get_closest_marker("full")}

    assert kept(items) == kept(items[::-1])
