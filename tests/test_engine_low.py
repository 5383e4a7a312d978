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
from fastfer.engine.calibrate import observed
from fastfer.engine.graph import Graph
from fastfer.engine.rules import COVERED
from fastfer.models import create_model

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


def test_calibration_finds_the_range_of_every_value() -> None:
    model, x = network("mobilenetv3_cpsca")
    graph = graph_of(model, tuple(x.shape[1:]))
    ranges = observed(graph, [x[:2], (x[2:], torch.zeros(1)), x[:0].numpy()], 2).notes(graph).ranges
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
            r"batch 0: expected float32 images \(N, 1, 48, 48\), as the network takes them, got float32 \(1, 1, 48, 47",
        ),
        ([torch.ones(1, 1, 48, 48)], "expected images that differ, got 1 that are all equal"),
        ([torch.rand(1, 1, 48, 48).expand(3, -1, -1, -1)], "expected images that differ, got 3 that are all equal"),
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


def test_the_plan_says_what_multiplies() -> None:
    """By the instruction of the set in use, and whether that is the best or was asked for."""
    extension = runtime.native()
    model, x = network("fgw_fer")
    half = fastfer.compile(model, dtype="bfloat16", threads=1)
    assert "convolutions of float32 multiply by float32, on" in fastfer.compile(model, threads=1).plan()
    assert f"on {extension.isa()}, the best that this CPU has." in half.plan()
    before = extension.isa()
    try:
        extension.set_isa("amxemulated")
        asked = fastfer.compile(model, dtype="bfloat16", threads=1)
    finally:
        extension.set_isa(before)
    assert "bfloat16 multiply by tdpbf16ps (emulated), on amxemulated, which was asked for." in asked.plan()
    torch.testing.assert_close(asked(x), half(x), rtol=0.05, atol=0.05)


def test_int8_needs_calibration() -> None:
    for arguments in ({"dtype": "int8"}, {"calibration": []}):
        with pytest.raises(ValueError, match="calibration: expected images for dtype int8, and for no other"):
            fastfer.compile(create_model("fgw_fer"), **arguments)


def test_auto_takes_the_fastest_precision_that_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """With times as if: what is slower or agrees too seldom is not taken, and the plan says why."""
    from fastfer.engine import choose

    model, x = network("fgw_fer")
    times = iter([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    monkeypatch.setattr(choose, "_timed", lambda engines, image: next(times))
    for agreement, want in ((1e-9, "int8"), (1e-9, "float32"), (1.0, "float32")):
        engine = fastfer.compile(model, dtype="auto", calibration=[x], agreement=agreement, threads=1)
        assert engine.dtype == engine.metadata["dtype"] == want
        choice = engine.metadata["choice"]
        assert choice["images"] == len(x)
        assert choice["precisions"]["float32"]["agrees"] == 1
        assert f"{want} was chosen for at least" in engine.plan()
    torch.testing.assert_close(engine(x), fastfer.compile(model, threads=1)(x), rtol=0, atol=0)


def test_auto_measures_agreement_and_time() -> None:
    """A precision that differs on an image of three is out where all have to agree."""
    from fastfer.engine.choose import fastest

    class Fake:
        def __init__(self, dtype: str, **given: Any) -> None:
            self.dtype, self.given = dtype, given

        def __call__(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            for _ in range(400 if self.dtype == "float32" else 1):
                np.sum(np.ones(500))
            return np.eye(3, dtype=np.float32)[[0, 1, 2 if self.dtype != "int8" else 0]][: len(x)]

    images = [np.zeros((3, 1, 4, 4), np.float32)]
    picked: Any = fastest(Fake, images, 0.9)  # type: ignore[arg-type]
    assert picked.dtype == "bfloat16"
    found = picked.given["choice"]["precisions"]
    assert found["int8"]["agrees"] == pytest.approx(2 / 3)
    assert found["float32"]["milliseconds"] > 2 * found["bfloat16"]["milliseconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "calibration: expected images for dtype auto"),
        (
            {"calibration": [torch.zeros(1, 1, 48, 48)], "agreement": 1.5},
            "agreement: expected a share above 0",
        ),
        ({"calibration": []}, "calibration: expected images, got none"),
        ({"calibration": [torch.zeros(1, 1, 40, 48)]}, r"batch 0: expected float32 images \(N, 1, 48, 48\)"),
    ],
)
def test_auto_that_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastfer.compile(create_model("fgw_fer"), dtype="auto", **arguments)
