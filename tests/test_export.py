# SPDX-License-Identifier: Apache-2.0
"""torch.export and ONNX: the same logits, standard operators, any batch, metadata, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastfer.data import FaceCrop, Preprocess
from fastfer.models import (
    FerModel,
    create_model,
    fgw_fer,
    mobilenetv3_cpsca,
    patt_lite,
    save_weights,
    vgg16_csa,
)
from fastfer.models.info import count_macs
from fastfer.nn import BatchNorm2d, Conv2d, GlobalAvgPool, SqueezeExcite

onnx = pytest.importorskip("onnx", reason="the exporter's packages are not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the exporter's packages are not installed")
pytest.importorskip("onnxscript", reason="the exporter's packages are not installed")

from fastfer.export import ExportError, to_onnx, to_program  # noqa: E402
from fastfer.export import onnx as export_onnx  # noqa: E402
from fastfer.export.__main__ import main  # noqa: E402

NUMBERS = {"mean": [0.5], "std": [0.25]}
ROWS = [
    mobilenetv3_cpsca._Row(3, 48, 80, 2, "middle"),
    mobilenetv3_cpsca._Row(5, 96, 80, 1, "high"),
]
_backbone = patt_lite._backbone


def _shallow(in_chans: int, depth: int, *rest: Any) -> nn.Sequential:
    return _backbone(in_chans, 4, *rest)


SHORT: dict[str, tuple[Any, dict[str, Any]]] = {
    "fgw_fer": (fgw_fer, {"_WIDTHS": (8, 16)}),
    "mobilenetv3_cpsca": (mobilenetv3_cpsca, {"_table": lambda halved: iter(ROWS)}),
    "patt_lite": (patt_lite, {"_WIDTHS": (16,) * 14, "_STRIDED": (1, 2, 3), "_backbone": _shallow}),
    "vgg16_csa": (vgg16_csa, {"_STAGES": ((64, 2), (128, 2)), "_DIM": 128}),
}
"""Tables of the networks with few blocks of each kind: the time goes with the number of layers."""
SIDE = {"mobilenetv3_cpsca": 64, "vgg16_csa": 32}


def trained(name: str, **options: Any) -> FerModel:
    """Fresh weights, but norms with statistics, scales and shifts that cannot be left out unnoticed."""
    torch.manual_seed(0)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        module, table = SHORT.get(name, (None, {}))
        for key, value in table.items():
            patch.setattr(module, key, value)
        model = create_model(name, **options).eval()
    for norm in model.modules():
        if isinstance(norm, BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
    if name in SIDE:
        model.input_size = (SIDE[name], SIDE[name])  # type: ignore[misc]
    return model


class Tiny(FerModel):
    """One convolution, one gate: what a test needs that is not about a network."""

    name = "tiny"
    input_size = (8, 8)
    embedding_dim = 4

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.conv, self.gate = Conv2d(1, 4, 3, norm=True, act="relu"), SqueezeExcite(4)
        self.pool, self.head = GlobalAvgPool(), nn.Linear(4, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.gate(self.conv(x)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.forward_features(x))
        return y


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * max(1.0, float(want.detach().abs().max())))


def operators(graph: Any) -> set[str]:
    return {node.op_type for node in graph.node}


@pytest.mark.parametrize(
    "name",
    [
        "fgw_fer",
        "mobilenetv3_cpsca",
        "vgg16_csa",
        pytest.param("patt_lite", marks=pytest.mark.full),  # also exported by test_pixels_of_a_network_in_colour
    ],
)
def test_onnx_of_every_network(tmp_path: Path, name: str) -> None:
    model = trained(name, num_classes=6)
    path = tmp_path / "model.onnx"
    result = to_onnx(model, path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert result["bytes"] == path.stat().st_size
    assert set(result["operators"]) == operators(proto.graph)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, model.in_chans, *model.input_size)
        (got,) = session.run(["logits"], {"images": x.numpy()})
        with torch.no_grad():
            close(torch.from_numpy(got), model(x))
    convolved = {node.output[0] for node in proto.graph.node if node.op_type == "Conv"}
    read = {value for node in proto.graph.node if node.op_type in ("Sub", "Mul") for value in node.input}
    assert not convolved & read, "norms that are not folded"
    assert "ArgMax" not in operators(proto.graph), "what only backward needs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sepconv_attention", {"attention": "dot"}),
        ("sepconv_attention", {"attention": "additive"}),
        ("vgg16_csa", {"attention": "scse", "position": "after_pool"}),
        ("patt_lite", {"extraction": "OP3", "keras_padding": True}),
        ("patt_lite", {"attention": "batch"}),
    ],
)
def test_program_of_a_variant(name: str, options: dict) -> None:
    """torch.export leaves no operator of this package, any batch runs, and the count of products stays."""
    model = trained(name, **options)
    program = to_program(model)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "fastfer" in target]
    for batch in (2, 5):
        x = torch.randn(batch, model.in_chans, *model.input_size)
        with torch.no_grad():
            close(program.module()(x), model(x))


def test_plain_torch_export_needs_no_help() -> None:
    """A user's own call, with gradients on, by both of torch's ways of tracing; its multiply-adds are model_info's."""
    model = trained("vgg16_csa")
    x = torch.randn(1, 1, 32, 32)
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        assert "fastfer" not in "".join(str(node.target) for node in program.graph.nodes)
        close(program.module()(x), model(x))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        program.module()(x)
    assert counter.get_total_flops() == 2 * count_macs(model, (1, 32, 32))


def test_pixels_and_metadata(tmp_path: Path) -> None:
    """The file alone says how to use it, and with pixels it does the preprocessing."""
    torch.manual_seed(0)
    model = Tiny().eval()
    model.class_names = ("neutral", "happiness", "für")
    path = tmp_path / "model.onnx"
    to_onnx(model, path, {"preprocess": NUMBERS, "licence": "CC0", "classes": ["a"] * 3, "input": [9, 7]}, pixels=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    header = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert header == {
        "fastfer": 1,
        "model": "tiny",
        "options": model.options,
        "classes": ["neutral", "happiness", "für"],
        "input": [1, 9, 7],
        "pixels": True,
        "licence": "CC0",
        "preprocess": NUMBERS,
        **NUMBERS,
        "before": ["convert to grey", "resize to 9×7"],
    }
    assert session.get_inputs()[0].shape == ["batch", 1, 9, 7]
    assert session.get_outputs()[0].shape == ["batch", 3]
    pixels = torch.randint(0, 256, (2, 1, 9, 7), dtype=torch.uint8)
    (got,) = session.run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        want = model((pixels / 255 - 0.5) / 0.25)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)
    assert str(Path.cwd()) not in path.read_bytes().decode("latin-1")


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        pytest.param({"equalise": True}, [1, 9, 7], marks=pytest.mark.full),
        ({"equalise": True, "size": (8, 8)}, [1, 9, 7]),
        ({"size": (8, 8), "colour": "grey"}, [3, 12, 5]),
        pytest.param({"size": (6, 20)}, [1, 9, 7], marks=pytest.mark.full),
    ],
)
def test_pixels_go_through_every_step_of_the_preprocessing(
    tmp_path: Path, settings: dict[str, Any], stored: list[int]
) -> None:
    """Trained with equalisation and a resize, the graph alone gives the logits that evaluation gives."""
    torch.manual_seed(0)
    model, path = Tiny().eval(), tmp_path / "model.onnx"
    preprocess = Preprocess((0.5,), (0.25,), **settings)
    result = to_onnx(model, path, {"preprocess": preprocess.to_json(), "stored": stored}, pixels=True)
    assert result["before"][-1] == f"resize to {stored[1]}×{stored[2]}"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = torch.randint(60, 190, (5, *stored), dtype=torch.uint8)
    pixels[1] = 77  # one level has no histogram to stretch
    (got,) = session.run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        want = model(preprocess(pixels))
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_pixels_of_a_network_in_colour(tmp_path: Path) -> None:
    """Faces stored in grey that training repeated as RGB."""
    model, path = trained("patt_lite", num_classes=3), tmp_path / "model.onnx"
    preprocess = Preprocess.symmetric(3, size=(224, 224), colour="rgb")
    to_onnx(model, path, {"preprocess": preprocess.to_json(), "stored": [1, 48, 48]}, pixels=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    (got,) = session.run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        close(torch.from_numpy(got), model(preprocess(pixels)))


def test_a_graph_of_floats_says_what_comes_before(tmp_path: Path) -> None:
    preprocess = Preprocess((0.5,), (0.25,), size=(8, 8), equalise=True, crop=FaceCrop(0.2))
    result = to_onnx(Tiny(), tmp_path / "m.onnx", {"preprocess": preprocess.to_json(), "stored": [1, 9, 9]})
    assert result["before"] == [
        "cut out the face with a margin of 0.2",
        "resize to 9×9",
        "convert to grey",
        "equalise the histogram",
        "resize to 8×8",
        "(x / 255 - 0.5) / 0.25",
    ]


def test_a_wrong_graph_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: Any) -> None:
        multiply = next(node for node in model.graph if node.op_type == "Mul")
        multiply.op_type = "Add"

    monkeypatch.setattr(export_onnx, "simplify", spoil)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match="expected a relative error up to"):
        to_onnx(Tiny(), path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(TypeError, match="model: expected a fastfer model, got Linear"):
        to_onnx(nn.Linear(1, 1), path)  # type: ignore[arg-type]
    model = create_model("fgw_fer")
    with pytest.raises(ValueError, match="pixels: expected metadata with 'mean' and 'std'"):
        to_onnx(model, path, pixels=True)
    with pytest.raises(ValueError, match=r"mean and std: expected one of each per channel, got \(0.1, 0.2, 0.3\)"):
        to_onnx(model, path, {"mean": [0.1, 0.2, 0.3], "std": [1]}, pixels=True)
    with pytest.raises(ValueError, match="expected mean and std of 1 channels"):
        to_onnx(model, path, {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    with pytest.raises(ValueError, match="input: expected at most 1,048,576 pixels, got 4096×4096"):
        to_onnx(model, path, {"input": [4096, 4096]})
    with pytest.raises(ValueError, match="classes: expected 7 names, got"):
        to_onnx(model, path, {"classes": ["a"]})
    with pytest.raises(ValueError, match=r"input: expected 2 or 3 numbers of 1 to 4096, got \[0, 48\]"):
        to_onnx(model, path, {"input": [0, 48]})
    with pytest.raises(ValueError, match=r"input: expected 2 or 3 numbers of 1 to 4096, got \[100000, 100000\]"):
        to_onnx(model, path, {"input": [100_000, 100_000]})
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = tmp_path / "w.safetensors", tmp_path / "m.onnx"
    save_weights(create_model("sepconv_attention"), weights, NUMBERS)
    assert main([str(weights), str(out), "--pixels"]) == 0
    assert "in ONNX Runtime" in capsys.readouterr().out
    header = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
    assert header["mean"] == NUMBERS["mean"]
    assert {"Softmax", "Tanh"} < operators(onnx.load(out).graph)
    for arguments, message in (
        ([weights, tmp_path / "m.pt"], "out: expected a name that ends in .onnx"),
        ([weights, tmp_path / "none" / "m.onnx"], "the folder .*none does not exist"),
        ([tmp_path / "none", out], "no weight file at"),
        ([out, out], "not a safetensors file"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        assert re.search(message, capsys.readouterr().err)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'fastfer\[onnx\]'"):
        to_onnx(create_model("fgw_fer"), tmp_path / "m.onnx")


def test_import_is_light() -> None:
    """Neither onnx nor its runtime is imported before a file is written."""
    code = "import sys, fastfer.export; print([m for m in ('onnx', 'onnxruntime', 'onnxscript') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
