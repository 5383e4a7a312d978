# SPDX-License-Identifier: Apache-2.0
"""Whole networks in inference: the engine beside ONNX Runtime, OpenVINO and ``torch.compile``, all in float32.

A peer whose package is missing is left out (``pip install 'fastfer[engine-bench]'``). ``python -m bench.engine`` writes
the table of results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from bench import layers
from bench.cases import Case, parametrize
from bench.engine import PACKAGES, inference

_CONTENDERS = ("engine_native", *(name for name, package in PACKAGES.items() if find_spec(package)))
_CASES = [
    Case(
        f"network inference, batch {batch}", network, "image", batch, 1, partial(inference, network, batch), _CONTENDERS
    )
    for network in layers.NETWORKS
    for batch in (1, 32)
]


@parametrize(_CASES)
def test_network_inference(case: Case, contender: str, compare: Callable[[Case, str], None], benchmark: Any) -> None:
    compare(case, contender)
