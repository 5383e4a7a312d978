# SPDX-License-Identifier: Apache-2.0
"""Every public op with random arguments: each backend against the float64 reference, forward and gradients.

An op is one row of ``property_rows.ROWS``. ``FASTFER_SEED=<number>`` runs that seed alone, as the message of a
failure says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from conftest import Variant, variants
from properties import Row, check
from property_rows import ROWS
from torch import Tensor

from fastfer import ops

CASES = 3000
"""On each backend, at least."""

NOT_OPS = ("Norm", "Pool")


def seeds(row: Row) -> range:
    forced = os.environ.get("FASTFER_SEED")
    if forced is not None:
        return range(int(forced), int(forced) + 1)
    return range(-(-CASES * row.weight // sum(each.weight for each in ROWS)))


@pytest.fixture(params=[p for p in variants(every_isa=False) if p.values[0].backend != "reference"])
def kernels(request: pytest.FixtureRequest, threads: None) -> Iterator[Variant]:
    """Every CPU backend with kernels of its own, native on its best ISA, on one thread: the shapes are small."""
    torch.set_num_threads(1)
    with request.param.active():
        yield request.param


def check_all(row: Row, seeds: range) -> None:
    for seed in seeds:
        check(row, seed)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_random_calls(kernels: Variant, row: Row) -> None:
    check_all(row, seeds(row))


def test_every_public_op_has_a_row() -> None:
    assert sorted(row.name for row in ROWS) == sorted(set(ops.__all__) - set(NOT_OPS))


@pytest.mark.skipif("FASTFER_SEED" in os.environ, reason="FASTFER_SEED runs one case of each op")
def test_there_are_enough_cases() -> None:
    assert sum(len(seeds(row)) for row in ROWS) >= CASES


def test_a_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Tensor, act: str) -> Tensor:
        y = original(x, act)
        return y if x.dtype == torch.float64 or not x.numel() else y + 1e-3 * (torch.arange(x.numel()) == 0).view_as(x)

    original = ops.activation
    monkeypatch.setattr(ops, "activation", wrong)
    row = next(row for row in ROWS if row.name == "activation")
    with pytest.raises(AssertionError, match=r"activation: FASTFER_SEED=\d+: dtype=.*output 0: element"):
        check_all(row, range(20))
