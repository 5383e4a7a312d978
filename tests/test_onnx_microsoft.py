# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime's quantiser and optimiser write, against ONNX Runtime itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastfer
from fastfer.engine import UncoveredError
from tests import onnx_files
from tests.onnx_files import helper, images, model, node, onnx, written

ort: Any = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)


def _weight(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


WEIGHTS = {
    "a": _weight(16, 4, 3, 3), "b": _weight(16, 1, 3, 3), "c": _weight(16, 16, 1, 1), "d": _weight(24, 32, 1, 1),
    "e": _weight(7, 24), "f": _weight(7),
}  # fmt: skip


def _network(folder: Path) -> Path:
    """A network of all that has an operator of integers there."""
    nodes = [
        node("Conv", "x", "a", out="1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("LeakyRelu", "1", out="2", alpha=0.1),
        node("Conv", "2", "b", out="3", pads=[1, 1, 1, 1], group=16),
        node("Relu", "3", out="4"),
        node("Conv", "4", "c", out="5"),
        node("Add", "5", "2", out="6"),
        node("MaxPool", "6", out="m", kernel_shape=[2, 2], strides=[1, 1]),
        node("AveragePool", "m", out="7", kernel_shape=[3, 3], strides=[2, 2]),
        node("GlobalAveragePool", "7", out="8"),
        node("Conv", "8", "c", out="9"),
        node("Sigmoid", "9", out="10"),
        node("Mul", "10", "7", out="11"),
        node("Concat", "11", "7", out="12", axis=1),
        node("Conv", "12", "d", out="13"),
        node("Relu", "13", out="14"),
        node("GlobalAveragePool", "14", out="15"),
        node("Flatten", "15", out="16"),
        node("Gemm", "16", "e", "f", transB=1),
    ]
    return written(model(nodes, ("n", 4, 16, 16), WEIGHTS), folder)


def _optimised(path: Path) -> Path:
    """The file that ONNX Runtime writes of a model with fused operators, for any CPU."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(path.with_name("optimised.onnx")), 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return path.with_name("optimised.onnx")


def _operators(path: Path) -> set[str]:
    return {one.op_type for one in onnx.load(path).graph.node if one.domain == "com.microsoft"}


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
def test_a_quantised_network(form: str, optimised: bool, tmp_path: Path) -> None:
    """An int8 plan no further from the float network than ONNX Runtime's own run of the file."""
    quantization: Any = pytest.importorskip("onnxruntime.quantization")
    path, quantised = _network(tmp_path), tmp_path / "quantised.onnx"

    kind = getattr(quantization.QuantFormat, form)
    onnx_files.quantise(path, quantised, quant_format=kind, per_channel=optimised)
    file = _optimised(quantised) if optimised else quantised
    if form == "QOperator":
        assert _operators(file) >= {"QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool", "QGemm"}
    x = images(8, 4, 16, 16, seed=99)
    want, theirs = onnx_files.run(path, x)["y"], onnx_files.run(quantised, x)["y"]
    engine = fastfer.compile(file)
    assert engine.dtype == "int8"

    assert onnx_files.error(engine(x), want) < 1.1 * onnx_files.error(theirs, want)
    assert onnx_files.error(fastfer.compile(file, dtype="float32")(x), want) < 1.1 * onnx_files.error(theirs, want)


def test_an_optimised_network(tmp_path: Path) -> None:
    path = _network(tmp_path)
    file = _optimised(path)
    assert "FusedConv" in _operators(file)
    x = images(3, 4, 16, 16)
    np.testing.assert_allclose(fastfer.compile(file)(x), onnx_files.run(path, x)["y"], atol=1e-5)


def _theirs(op: str, *inputs: str, out: str | tuple[str, ...] = "y", **attrs: Any) -> Any:
    outs = [out] if isinstance(out, str) else list(out)
    return helper.make_node(op, list(inputs), outs, name=op, domain="com.microsoft", **attrs)


FUSED = {
    "sum and activation": [
        node("Conv", "x", "g", out="s"),
        _theirs("FusedConv", "x", "g", "h", "s", activation="Clip", activation_params=[-0.5, 0.75]),
    ],
    "leaky": [_theirs("FusedConv", "x", "g", activation="LeakyRelu", activation_params=[0.2])],
    "gelu": [_theirs("Gelu", "x")],
    "fast gelu": [_theirs("FastGelu", "x", "last")],
    "bias gelu": [_theirs("BiasGelu", "x", "last")],
    "quick gelu": [_theirs("QuickGelu", "x", alpha=1.702)],
    "product": [_theirs("FusedMatMul", "x", "x", transB=1, alpha=0.25)],
    "norm of a sum": [
        node("Reshape", "x", "tokens", out="t"),
        node("Relu", "t", out="u"),
        _theirs("SkipLayerNormalization", "t", "u", "last", "last", "last", out=("n", "", "", "sum"), epsilon=1e-5),
        node("Add", "n", "sum"),
    ],
    "gemm": [
        node("Flatten", "x", out="flat"),
        _theirs("FusedGemm", "flat", "wide", "last", activation="HardSigmoid", activation_alpha=0.3,
                activation_beta=0.4, transB=1),
    ],
}  # fmt: skip
CONSTANTS = {
    "g": _weight(4, 4, 1, 1), "h": _weight(4), "last": _weight(8), "tokens": np.array([0, 32, 8]),
    "wide": _weight(8, 256),
}  # fmt: skip


def _file(nodes: list[Any], folder: Path) -> Path:
    names = {name for one in nodes for name in one.input}
    proto = model(nodes, ("n", 4, 8, 8), {name: value for name, value in CONSTANTS.items() if name in names})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return written(proto, folder)


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_operator(name: str, tmp_path: Path) -> None:
    path, x = _file(FUSED[name], tmp_path), images(3, 4, 8, 8)
    np.testing.assert_allclose(fastfer.compile(path)(x), onnx_files.run(path, x)["y"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([_theirs("Attention", "x", "g", num_heads=2)], r"'Attention' \(com\.microsoft\.Attention\): no such operator"),
        ([_theirs("FusedConv", "x", "g", activation="Cube")], "the activation 'Cube'"),
        ([_theirs("FusedMatMul", "x", "x", transBatchA=1)], "rows are in the first dimension"),
    ],
)
def test_what_is_not_known_is_named(nodes: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UncoveredError, match=message):
        fastfer.compile(_file(nodes, tmp_path))
