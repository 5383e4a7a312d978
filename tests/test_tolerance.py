# SPDX-License-Identifier: Apache-2.0
"""The comparisons that the kernel tests rest on notice what they should."""

from __future__ import annotations

import math

import pytest
import torch
from guard import Guarded
from tolerance import assert_close, tolerance

WANT = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
STEP = tolerance(torch.float32, "chain") * float(WANT.abs().max())


def test_rounding_passes() -> None:
    assert_close(WANT.float(), WANT, "chain")
    assert_close(WANT.float(), WANT.float().double(), "exact")
    assert_close(torch.zeros(0), torch.zeros(0), "exact")


def test_one_wrong_element() -> None:
    got = WANT.float()
    got[17] += 3 * STEP
    with pytest.raises(AssertionError, match=r"out: element 17 of \(1000,\).* allowed 24.0"):
        assert_close(got, WANT, "chain", name="out")


def test_a_bias_within_the_elements_tolerance() -> None:
    with pytest.raises(AssertionError, match="mean signed error"):
        assert_close((WANT + STEP / 2).float(), WANT, "chain")


def test_another_direction_within_the_elements_tolerance() -> None:
    small = torch.full_like(WANT, 0.02)
    turned = small + torch.where(torch.arange(1000) % 2 == 0, 2.5e-5, -2.5e-5)
    with pytest.raises(AssertionError, match="1 - cosine"):
        assert_close(turned.float(), small, "chain", scale=10.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_values_have_places(value: float) -> None:
    want = WANT.clone()
    want[3] = value
    assert_close(want.float(), want, "chain")
    for got in (WANT.float(), -want.float().nan_to_num(value), want.float().roll(1)):
        with pytest.raises(AssertionError, match="value: "):
            assert_close(got, want, "chain")


def test_shapes() -> None:
    with pytest.raises(AssertionError, match=r"shape \(2, 1\), expected \(1, 2\)"):
        assert_close(torch.zeros(2, 1), torch.zeros(1, 2), "chain")


@pytest.mark.parametrize("place", [-1, 5])
def test_a_write_beside_a_tensor_is_noticed(place: int) -> None:
    with Guarded() as guarded:
        y = torch.empty(5)
    guarded.check()
    y.as_strided((1,), (1,), y.storage_offset() + place).fill_(1)
    with pytest.raises(AssertionError, match="written outside an output of 5 elements"):
        guarded.check()
