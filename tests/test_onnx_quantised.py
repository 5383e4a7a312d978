# SPDX-License-Identifier: Apache-2.0
"""Quantised ONNX files as int8 plans, by the scales in the file, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastfer
from tests import onnx_files
from tests.onnx_files import images, model, node, written

pytest.importorskip("onnxruntime")
SCALE = np.float32(0.04)


def _ints(seed: int, *shape: int) -> Any:
    """int8 weights, in each output's the largest number, as a quantiser writes them."""
    array = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    array.reshape(len(array), -1)[:, 0] = 127
    return array


def _pair(value: str, out: str, scale: str = "s", zero: str = "z") -> list[Any]:
    return [
        node("QuantizeLinear", value, scale, zero, out=f"{out}q"),
        node("DequantizeLinear", f"{out}q", scale, zero, out=out),
    ]


def _constants() -> dict[str, Any]:
    return {
        "s": SCALE, "z": np.uint8(0), "xs": np.float32(0.03), "xz": np.uint8(128), "ys": np.float32(0.05),
        "yz": np.int8(3), "w": _ints(0, 16, 4, 3, 3), "ws": np.linspace(1e-3, 4e-3, 16).astype(np.float32),
        "v": _ints(1, 8, 16, 1, 1), "vs": np.full(8, 2e-3, np.float32), "wz": np.zeros(16, np.int8),
        "vz": np.zeros(8, np.int8),
    }  # fmt: skip


def _pairs(between: bool = True) -> Any:
    """A convolution whose ReLU is in its zero point, another of its results, pairs around; or one pair left out."""
    nodes = [
        *_pair("x", "xf", "xs", "xz"),
        node("DequantizeLinear", "w", "ws", "wz", out="wf", axis=0),
        node("Conv", "xf", "wf", out="c", pads=[1, 1, 1, 1]),
        *(_pair("c", "a") if between else [node("Relu", "c", out="a")]),
        node("DequantizeLinear", "v", "vs", "vz", out="vf", axis=0),
        node("Conv", "a", "vf", out="d"),
        *_pair("d", "y", "ys", "yz"),
    ]
    return model(nodes, ("n", 4, "h", "w_"), _constants())


def _integers() -> Any:
    """The same in operators of integers."""
    nodes = [
        node("QuantizeLinear", "x", "xs", "xz", out="xq"),
        node("QLinearConv", "xq", "xs", "xz", "w", "ws", "wz", "s", "z", out="c", pads=[1, 1, 1, 1]),
        node("QLinearConv", "c", "s", "z", "v", "vs", "vz", "ys", "yz", out="d"),
        node("DequantizeLinear", "d", "ys", "yz"),
    ]
    return model(nodes, ("n", 4, "h", "w_"), {**_constants(), "yz": np.uint8(131)})


@pytest.mark.parametrize("proto", [_pairs(), _pairs(between=False), _integers()], ids=["pairs", "a pair less", "ints"])
def test_scales_are_kept(proto: Any, tmp_path: Path) -> None:
    """Within two steps of the last scale: sums are rounded where the file's own runtime rounds them."""
    path = written(proto, tmp_path)
    engine = fastfer.compile(path, input_size=(9, 11))
    assert engine.dtype == "int8"
    assert "unary" not in engine.plan()
    engine.save(tmp_path / "net.ffe")
    loaded = fastfer.runtime.load(tmp_path / "net.ffe")
    for size in ((9, 11), (6, 20)):  # at another size, too: ranges are the file's
        x = images(3, 4, *size)
        want = onnx_files.run(path, x)["y"]
        assert np.abs(engine(x) - want).max() <= 2.01 * 0.05
    x = images(3, 4, 9, 11)
    np.testing.assert_array_equal(loaded(x), engine(x))


def test_a_float_plan_is_asked_for(tmp_path: Path) -> None:
    path = written(_pairs(), tmp_path)
    engine = fastfer.compile(path, input_size=(9, 11), dtype="float32")
    assert engine.dtype == "float32"
    x = images(3, 4, 9, 11)
    assert np.abs(engine(x) - onnx_files.run(path, x)["y"]).max() < 0.15
    with pytest.raises(ValueError, match="expected images for dtype int8, and for no other, got dtype bfloat16"):
        fastfer.compile(path, input_size=(9, 11), dtype="bfloat16", calibration=[x])


def test_what_no_plan_has_stays_float(tmp_path: Path) -> None:
    """With a fallback a quantised file runs in float32, as islands are not of bytes."""
    proto = _pairs()
    proto.graph.node[-1].output[0] = "last"
    proto.graph.node.append(node("Atan", "last"))
    path = written(proto, tmp_path)
    x = images(2, 4, 9, 11)
    want = onnx_files.run(path, x)["y"]
    engine = fastfer.compile(path, input_size=(9, 11), fallback="onnxruntime")
    assert engine.dtype == "float32"
    np.testing.assert_allclose(engine(x), want, atol=0.11)


def test_a_network_that_onnx_runtime_quantised(tmp_path: Path) -> None:
    """No further from the float network than ONNX Runtime's own run of the file."""
    rng = np.random.default_rng(0)

    def w(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        node("Conv", "x", "a", out="1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "1", out="2"),
        node("Conv", "2", "b", out="3", pads=[1, 1, 1, 1], group=16),
        node("HardSwish", "3", out="4"),
        node("Conv", "4", "c", out="5"),
        node("Add", "5", "2", out="6"),
        node("MaxPool", "6", out="7", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "7", "d", out="8"),
        node("Relu", "8", out="9"),
        node("GlobalAveragePool", "9", out="10"),
        node("Flatten", "10"),
    ]
    weights = {"a": w(16, 4, 3, 3), "b": w(16, 1, 3, 3), "c": w(16, 16, 1, 1), "d": w(24, 16, 1, 1)}
    path, quantised = written(model(nodes, ("n", 4, 16, 16), weights), tmp_path), tmp_path / "quantised.onnx"

    onnx_files.quantise(path, quantised, per_channel=True)
    x = images(8, 4, 16, 16, seed=99)
    want, theirs = onnx_files.run(path, x)["y"], onnx_files.run(quantised, x)["y"]
    engine = fastfer.compile(quantised)
    assert engine.dtype == "int8"

    assert onnx_files.error(engine(x), want) < 1.3 * onnx_files.error(theirs, want) + 1e-4
