# SPDX-License-Identifier: Apache-2.0
"""Random networks, exported by torch at every opset, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fastfer
from tests import onnx_files
from tests.onnx_files import by_name, images
from tests.onnx_nets import OPSETS, RandomNet, exported

pytest.importorskip("onnxruntime")


def check(seed: int, path: Path, dynamo: bool = False) -> str:
    """Raise where an engine's outputs are not ONNX Runtime's; "refused" where torch does not export the network."""
    net = RandomNet(seed)
    opset = (18, 20, 21, 23, 24)[seed % 5] if dynamo else OPSETS[seed % len(OPSETS)]
    try:
        exported(net, path, opset, dynamo)
    except Exception:  # torch's exporters raise many kinds; some opsets lack an operator
        return "not exported"
    x = images(3, *net.size, seed=seed)
    want = onnx_files.run(path, x)
    engine = fastfer.compile(path, net.size, fallback="torch")
    got = by_name(engine(x), list(want))
    for name, array in want.items():
        error = np.abs(got[name] - array).max() / max(float(np.abs(array).max()), 1e-3)
        assert got[name].shape == array.shape, (seed, opset, name)
        assert error < 1e-4, (seed, opset, name, error)
    return "islands" if hasattr(engine, "islands") else "plan"


@pytest.mark.parametrize("seed", range(30))
def test_a_random_network_is_as_in_onnx_runtime(seed: int, tmp_path: Path) -> None:
    assert check(seed, tmp_path / "net.onnx") != "islands"


@pytest.mark.parametrize("seed", range(3))
def test_the_newer_exporter_is_read(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    assert check(1000 + seed, tmp_path / "net.onnx", dynamo=True) == "plan"


@pytest.mark.full
@pytest.mark.parametrize("block", range(20))
def test_two_thousand_random_networks(block: int, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    ends = [check(seed, tmp_path / "net.onnx", dynamo=seed % 50 == 0) for seed in range(100 * block, 100 * block + 100)]
    assert ends.count("not exported") < 20
    assert ends.count("islands") < 5
