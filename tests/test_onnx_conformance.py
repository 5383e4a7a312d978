# SPDX-License-Identifier: Apache-2.0
"""ONNX's own test cases: whatever is not refused by name gives the results that the standard's authors wrote down."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastfer
from fastfer.engine import UncoveredError
from tests.onnx_files import onnx, written

_OTHERS = ("test_resize_downsample_scales_linear_align_corners", "test_resize_downsample_scales_cubic_align_corners")
"""Here the standard divides by a length that is not whole, ONNX Runtime and torch by the new image's."""


def _single(proto: Any, inputs: list[Any]) -> Any:
    """The model with all inputs but the first as constants."""
    for value, array in list(zip(proto.graph.input, inputs, strict=True))[1:]:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
    return proto


def _check(case: Any, folder: Path) -> str:
    inputs, outputs = case.data_sets[0]
    arrays = all(isinstance(value, (np.ndarray, np.generic)) for value in (*inputs, *outputs))
    if not arrays or len(inputs) != len(case.model.graph.input) or not inputs or inputs[0].dtype != np.float32:
        return "other inputs"
    if inputs[0].ndim not in (2, 4):
        return "other inputs"
    path = written(_single(case.model, inputs), folder)
    try:
        result = fastfer.compile(path, inputs[0].shape, fallback="torch")(inputs[0])
    except UncoveredError:
        return "not covered"
    except ValueError:  # other constants are for the number of images of the case, for the most part
        return "refused"
    results = list(result.values()) if isinstance(result, dict) else [result]
    for got, want in zip(results, outputs, strict=True):
        limit = 1e-4 * max(1, np.abs(want).max())
        np.testing.assert_allclose(got.reshape(want.shape), want, atol=limit, rtol=1e-3, err_msg=case.name)
    return "right"


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_the_cases_of_the_standard(tmp_path: Path) -> None:
    cases = pytest.importorskip("onnx.backend.test.case.node").collect_testcases(None)
    ends = Counter(_check(case, tmp_path) for case in cases if case.name not in _OTHERS)
    assert ends["right"] > 150, ends
