# SPDX-License-Identifier: Apache-2.0
"""The engine's executor: every operation on every instruction set against float64, batches, threads, callers, forks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_bytes import Network, run
from engine_networks import case, cases

from fastfer import _C

CASES = {name: (shape, build) for name, shape, build in cases()}
ISAS = _C.isas(True)


def images(net: Network, batch: int, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((batch, *net.shapes[0])).astype(np.float32)


def assert_close(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], what: str = "") -> None:
    assert got.shape == want.shape
    worst = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    assert worst < 2e-6, f"{what}: {worst:.1e} of the largest value"


@pytest.mark.parametrize("name", CASES)
def test_operation(name: str) -> None:
    shape, build = CASES[name]
    net = case(shape, build)
    file, x = net.file(), images(net, 5)
    (want,) = net.expected(x, [-1])
    for isa in ISAS:
        for threads in (1, 2, 3):
            plan = _C.EnginePlan(file, threads=threads, isa=isa, image_threads=threads)
            for batch in (1, 2, 5):
                (got,) = run(plan, x[:batch])
                assert_close(got, want[:batch], f"{isa}, {threads} threads, batch {batch}")
