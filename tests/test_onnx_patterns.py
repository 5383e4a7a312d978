# SPDX-License-Identifier: Apache-2.0
"""Activations and norms that exporters wrote in many operators are one call again, and nothing else is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastfer
from fastfer.engine.onnx_read import read
from fastfer.engine.onnx_source import program_of
from tests import onnx_files
from tests.onnx_files import images, model, node, written

pytest.importorskip("onnxscript")


class _Last(nn.Module):
    """LayerNorm over the channels of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class _Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "group_norm": lambda: nn.GroupNorm(2, 8),
    "layer_norm": _Last,
    "log_sigmoid": nn.LogSigmoid,
    "softplus": nn.Softplus,
}


def _names(network: nn.Module, path: Path, opset: int) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 8, 6, 6),),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        )
    return [call.name.removeprefix("aten.") for call in program_of(read(path), (8, 6, 6)).calls]


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", [*MODULES, "two in a row"])
def test_an_activation_or_norm_is_one_call(name: str, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = [nn.GELU(approximate="tanh"), _Gate()] if name == "two in a row" else [MODULES[name]()]
    network = nn.Sequential(*parts).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    names = [name for name in _names(network, tmp_path / "n.onnx", opset) if name != "permute"]
    assert names == (["gelu", "silu"] if name == "two in a row" else [name])
    engine = fastfer.compile(tmp_path / "n.onnx", fallback="torch")
    x = torch.randn(3, 8, 6, 6) * 3
    torch.testing.assert_close(engine(x), network(x).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", ["another factor", "another place", "limited far out", "two tensors"])
def test_what_only_looks_like_one_stays(case: str, tmp_path: Path) -> None:
    """x · sigmoid(1.01 x), x · sigmoid(x + 0.01), relu of a number up to 500, x · sigmoid(of another map)."""
    constants = {"c": np.float32({"another factor": 1.01, "another place": 0.01}.get(case, 500.0))}
    nodes = {
        "another factor": [node("Mul", "x", "c", out="a"), node("Sigmoid", "a", out="b"), node("Mul", "x", "b")],
        "another place": [node("Add", "x", "c", out="a"), node("Sigmoid", "a", out="b"), node("Mul", "x", "b")],
        "limited far out": [node("Relu", "x", out="a"), node("Min", "a", "c")],
        "two tensors": [node("GlobalAveragePool", "x", out="a"), node("Sigmoid", "a", out="b"), node("Mul", "x", "b")],
    }[case]
    path = written(model(nodes, constants=constants), tmp_path)
    assert "silu" not in " ".join(call.name for call in program_of(read(path), (4, 8, 8)).calls)
    x = images(2, 4, 8, 8) * 400
    np.testing.assert_allclose(
        fastfer.compile(path, fallback="torch")(x), onnx_files.run(path, x)["y"], rtol=1e-5, atol=1e-3
    )
