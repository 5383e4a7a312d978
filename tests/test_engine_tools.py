# SPDX-License-Identifier: Apache-2.0
"""Profiles, comparisons with other runtimes, and the command line of the engine."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastfer
from fastfer import runtime
from fastfer.data import Preprocess
from fastfer.engine import __main__ as command
from fastfer.engine import compare, peers
from fastfer.engine.peers import Peer, Subject
from fastfer.models import create_model, save_weights

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def test_profile(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fastfer.compile(model, (1, 8, 8), threads=1)
    profile = engine.profile(np.ones((1, 1, 8, 8), np.float32), repeats=3)
    assert sum(step.macs for step in profile.steps) == pytest.approx(4 * 9 * 36 + 3 * 4 * 36)
    assert profile.seconds > 0
    assert profile.peak > 0
    lines = str(profile).splitlines()
    assert lines[0].startswith("Sequential, one image, 1 threads; ceiling")
    assert len(lines) == 5 + len(profile.steps)
    pytest.importorskip("matplotlib")
    profile.plot(tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"a figure needs matplotlib: pip install 'fastfer\[plot\]'"):
        profile.plot(tmp_path / "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["steps.png"]


def _peer(error: float, pause: float) -> Any:
    def build(subject: Subject) -> Peer:
        def run() -> Any:
            time.sleep(pause)
            with torch.no_grad():
                return subject.model(torch.from_numpy(subject.images)).numpy() * (1 + error)

        return Peer("slow", "1.0", run)

    return build


def test_compare(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fastfer.compile(model, (1, 8, 8), threads=1)
    monkeypatch.setitem(peers.PEERS, "slow", _peer(1e-5, 0.002))
    result = compare.compare(model, engine, 4, others=["slow"], rounds=2, seconds=0.01)
    own, other = result.timings
    assert (own.name, other.name, other.version) == ("fastfer engine", "slow", "1.0")
    assert other.error == pytest.approx(1e-5, rel=0.1)
    assert 0 < own.p10 <= max(own.rounds)
    assert result.ratio == pytest.approx(other.median / own.median)
    assert "Sequential, batch 4, 1 threads, float32" in str(result)
    monkeypatch.setitem(peers.PEERS, "slow", _peer(0.1, 0))
    with pytest.raises(RuntimeError, match=r"compare: slow: expected outputs within 0\.001, got 1\.0e-01"):
        compare.compare(model, engine, others=["slow"])
    with pytest.raises(ValueError, match=r"others: expected some of onnxruntime, openvino.*, got 'tvm'"):
        compare.compare(model, engine, others=["tvm"])


@pytest.mark.parametrize(("name", "package"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino")])
def test_peers(model: nn.Module, name: str, package: str) -> None:
    for needed in (package, "onnx", "onnxscript"):
        pytest.importorskip(needed)
    images = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.from_numpy(images)).numpy()
    assert peers.largest_error(peers.PEERS[name](Subject(model, images, 1)).run(), want) < 1e-5


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_package_names_the_extra(model: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'fastfer\[engine-bench\]'"):
        peers.PEERS[name](Subject(model, np.zeros((1, 1, 8, 8), np.float32), 1))


def test_others_run_a_network_in_torchs_own_ops() -> None:
    model = create_model("fgw_fer", separable=False).eval()
    twin = peers.stock(model, (32, 40))
    assert not [node.name for node in twin.graph.nodes if "fastfer" in str(node.target)]  # type: ignore[union-attr]
    for count in (1, 3):
        x = torch.randn(count, 1, 32, 40)
        with torch.no_grad():
            torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-4)


def test_compare_of_a_fastfer_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("fgw_fer").eval()
    engine = fastfer.compile(model, (1, 32, 32), threads=1)
    monkeypatch.setitem(peers.PEERS, "slow", _peer(0, 0.001))
    result = compare.compare(model, engine, 2, others=["slow"], rounds=1, seconds=0.01)
    assert result.timings[1].error < 1e-4


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"c{i}" for i in range(7)]
    weights, saved = tmp_path / "w.safetensors", tmp_path / "m.ffe"
    header = {"classes": names, "preprocess": Preprocess((0.5,), (0.25,), (48, 48)).to_json()}
    save_weights(create_model("fgw_fer"), weights, header)
    assert command.main([str(weights), "--profile", "--save", str(saved), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "Engine(fgw_fer: (1, 48, 48) -> ((7,),), float32, threads=1)" in out
    assert "GMAC/s" in out
    engine = runtime.load(saved)
    assert engine.class_names == tuple(names)
    assert engine.metadata["preprocess"]["size"] == [48, 48]
    assert engine(np.zeros((2, 1, 48, 48), np.uint8)).shape == (2, 7)


@pytest.mark.parametrize(("size", "equalise"), [(48, False), (64, False), (96, True)])
def test_an_engine_has_the_size_and_the_pixels_of_training(
    size: int, equalise: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of pixels that are equalised first there is no engine: it takes what was prepared, and refuses them."""
    torch.manual_seed(0)
    model = create_model("mobilenetv3_cpsca").eval()
    weights, saved = tmp_path / "w.safetensors", tmp_path / "m.ffe"
    pre = Preprocess((0.5,) * 3, (0.25,) * 3, (size, size), "rgb", equalise)
    save_weights(model, weights, {"preprocess": pre.to_json(), "stored": [1, 48, 48], "input": [3, size, size]})
    assert command.main([str(weights), "--save", str(saved), "--threads", "1"]) == 0
    engine = runtime.load(saved)
    assert engine.input_shape == (3, size, size)
    assert engine.metadata["preprocess"]["equalise"] is equalise
    assert ("equalise the histogram" in engine.metadata["before"]) is equalise
    stored = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        want = model(pre(stored))
    torch.testing.assert_close(engine(pre(stored)), want, rtol=0, atol=1e-4 * float(want.abs().max()))
    if equalise:
        with pytest.raises(TypeError, match="pixels of this network are equalised first"):
            engine(pre.pixels(stored))
        with pytest.raises(ValueError, match="expected none for a network whose pixels are equalised first"):
            fastfer.compile(model, (3, 64, 64), mean=pre.mean, std=pre.std, metadata={"preprocess": pre.to_json()})
    else:
        torch.testing.assert_close(engine(pre.pixels(stored)), want, rtol=0, atol=1e-4 * float(want.abs().max()))


def test_a_weight_file_that_contradicts_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "w.safetensors"
    pre = Preprocess((0.5,), (0.25,), (48, 48))
    save_weights(create_model("fgw_fer"), weights, {"preprocess": pre.to_json(), "input": [1, 96, 96]})
    assert command.main([str(weights)]) == 2
    assert re.search(r"error: .*w\.safetensors: input: expected \(48, 48\)", capsys.readouterr().err)
    save_weights(create_model("fgw_fer"), weights, {"input": [1, 96, 96]})
    assert command.main([str(weights)]) == 0
    assert "(1, 96, 96)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet"], "error: MODEL: expected a weight file or one of fgw_fer, .*, got 'resnet'"),
        (["fgw_fer", "--threads", "0"], "error: engine: threads: expected an int of 1 to [0-9]+, got 0"),
        (["fgw_fer", "--compare", "--others", "tvm"], "error: compare: others: expected some of"),
        (["fgw_fer", "--dtype", "float16"], "error: compile: dtype: expected one of"),
        (["fgw_fer", "--save", "/nowhere/at/all.ffe"], "error: .*/nowhere/at"),
    ],
)
def test_command_line_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
