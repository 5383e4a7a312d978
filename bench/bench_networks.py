# SPDX-License-Identifier: Apache-2.0
"""Whole training steps of the five networks against stock PyTorch builds of them, and the memory that a step takes.

``-k "training_step and not compile"`` leaves out what has to be compiled first, which can take minutes a network; the
compiler keeps its results on disk between runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bench import layers
from bench.cases import SMOKE, Case, parametrize
from bench.networks import STEP_CONTENDERS, peak_mib, training_step

_CASES = [
    Case("training step", network, "step", batch, 1, partial(training_step, network, batch), STEP_CONTENDERS)
    for network, batch in layers.TRAIN_BATCH.items()
]


@parametrize(_CASES)
def test_training_step(case: Case, contender: str, compare: Callable[[Case, str], None], benchmark: Any) -> None:
    compare(case, contender)
    if not SMOKE:
        benchmark.extra_info["peak_mib"] = peak_mib(case.network, contender, case.batch)
