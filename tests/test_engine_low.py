# SPDX-License-Identifier: Apache-2.0
"""bfloat16 and int8 engines: calibration, what low precision costs, and the way back to float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_oracle
import numpy as np
import pytest
import torch
from engine_models import close, graph_of, logits, network

import fastfer
from fastfer import runtime
from fastfer.engine.calibrate import COVERED, calibrated
from fastfer.engine.graph import Graph
from fastfer.models import create_model

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


def test_calibration_finds_the_range_of_every_value() -> None:
    model, x = network("mobilenetv3_cpsca")
    graph = graph_of(model, tuple(x.shape[1:]))
    ranges = calibrated(graph, [x[:2], (x[2:], torch.zeros(1)), x[:0].numpy()], 2)
    every = Graph(graph.values, graph.input, graph.nodes, tuple(node.output for node in graph.nodes))
    values = [x.numpy(), *engine_oracle.run(every, x.double().numpy())]
    least = [np.quantile(v.min((1, 2, 3)), 1 - COVERED) for v in values]
    largest = [np.quantile(v.max((1, 2, 3)), COVERED) for v in values]
    np.testing.assert_allclose(ranges, np.stack([least, largest], 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "calibration: expected images, got none"),
        ([torch.full((1, 1, 48, 48), float("nan"))], "batch 0: expected finite images, got NaN or infinity"),
        (
            [torch.zeros(1, 1, 48, 47)],
            r"batch 0: expected float32 images \(N, 1, 48, 48\), got float32 \(1, 1, 48, 47\)",
        ),
        ([torch.zeros(1, 1, 48, 48), "face"], r"batch 1: expected a numpy.ndarray or a torch.Tensor, got str"),
    ],
)
def test_calibration_that_is_refused(images: list[Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fastfer.compile(create_model("fgw_fer"), dtype="int8", calibration=images)


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 0.05), ("int8", 0.2)])
def test_low_precision(dtype: str, limit: float, tmp_path: Path) -> None:
    """Logits stay near float32's, relative to the largest, in the file too; float32 again on request."""
    model, x = network("sepconv_attention")
    want = logits(model, x)
    engine = fastfer.compile(model, dtype=dtype, calibration=[x] if dtype == "int8" else None, threads=1)
    assert (engine.dtype, engine.metadata["dtype"]) == (dtype, dtype)
    error = float((engine(x) - want).abs().max() / want.abs().max())
    assert 1e-5 < error < limit
    engine.save(tmp_path / "into.ffe")
    again = runtime.load(tmp_path / "into.ffe", threads=1)
    torch.testing.assert_close(again(x), engine(x), rtol=0, atol=0)
    close(runtime.load(tmp_path / "into.ffe", dtype="float32")(x), want)


def test_int8_needs_calibration() -> None:
    for arguments in ({"dtype": "int8"}, {"calibration": []}):
        with pytest.raises(ValueError, match="calibration: expected images for dtype int8, and for no other"):
            fastfer.compile(create_model("fgw_fer"), **arguments)
