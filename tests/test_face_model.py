# SPDX-License-Identifier: Apache-2.0
"""The detector from an ONNX file of its kind: boxes, and what training and evaluation cut out by ``--face-model``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfer.data import FaceCrop, Preprocess, YuNet


def write_bright_spot_model(path: Path) -> None:
    """An ONNX file with the inputs and outputs of YuNet: a bright cell of 8, 16 or 32 pixels is a face of three."""
    onnx = pytest.importorskip("onnx")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = {"whole": 1 / 255, "none": 0.0, "half": 0.5, "log3": float(np.log(3))}
    constants = [make.make_tensor(name, kind, [], [value]) for name, value in values.items()]
    constants.append(make.make_tensor("column", onnx.TensorProto.INT64, [3], [1, -1, 1]))
    nodes = [make.make_node("ReduceMean", ["input"], ["grey"], axes=[1], keepdims=1)]
    outputs = []
    for cell in (8, 16, 32):
        steps = (
            ("AveragePool", ["grey"], "mean", {"kernel_shape": [cell] * 2, "strides": [cell] * 2}),
            ("Mul", ["mean", "whole"], "light", {}),
            ("Reshape", ["light", "column"], "cls", {}),
            ("Add", ["cls", "none"], "obj", {}),
            ("Mul", ["cls", "none"], "zero", {}),
            ("Add", ["zero", "half"], "middle", {}),
            ("Add", ["zero", "log3"], "side", {}),
            ("Concat", ["middle", "middle", "side", "side"], "bbox", {"axis": 2}),
            ("Concat", ["middle"] * 10, "kps", {"axis": 2}),
        )
        shared = {"grey", "column", *values}
        for op, inputs, output, attributes in steps:
            names = [name if name in shared else f"{name}_{cell}" for name in inputs]
            nodes.append(make.make_node(op, names, [f"{output}_{cell}"], **attributes))
        for output, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            outputs.append(make.make_tensor_value_info(f"{output}_{cell}", kind, [1, None, width]))
    outputs.sort(key=lambda info: ("cls", "obj", "bbox", "kps").index(info.name.split("_")[0]))
    image = make.make_tensor_value_info("input", kind, [1, 3, "height", "width"])
    graph = make.make_graph(nodes, "spots", [image], outputs, constants)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spots")
    write_bright_spot_model(folder / "spots.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFER_CACHE", str(folder / "cache"))
        YuNet(folder / "spots.onnx")  # which compiles it
    return folder / "spots.onnx"


@pytest.fixture(autouse=True)
def its_cache(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFER_CACHE", str(spots.parent / "cache"))


def test_faces_and_their_crop(spots: Path) -> None:
    picture = np.zeros((90, 140, 3), np.uint8)
    picture[40:48, 104:112] = 255
    detector = YuNet(spots)
    (found,) = detector(picture)
    assert found.box == pytest.approx((108 - 12, 44 - 12, 24, 24), abs=1e-3)
    assert found.score == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(found.points, [(108, 44)] * 5, atol=1e-3)
    assert detector(np.zeros_like(picture)) == []
    settings = Preprocess.imagenet(size=(24, 24), crop=FaceCrop(0))
    got = settings.picture(picture, detector)
    np.testing.assert_array_equal(got.numpy(), picture[32:56, 96:120].transpose(2, 0, 1))


def test_larger_pictures_are_shrunk(spots: Path) -> None:
    picture = np.zeros((90, 140, 3), np.uint8)
    picture[40:48, 104:112] = 255
    larger = picture.repeat(10, 0).repeat(10, 1)
    (found,) = YuNet(spots, longest=140)(larger)
    assert found.box == pytest.approx((960, 320, 240, 240), abs=1)


def test_files_that_are_no_detector(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the file of a face detector"):
        YuNet(tmp_path / "no.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"bad\.onnx"):
        YuNet(tmp_path / "bad.onnx")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of pictures with one bright cell each."""
    root = tmp_path_factory.mktemp("photographs")
    for part, count in (("train", 4), ("validation", 2)):
        for label in ("happy", "sad"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for index in range(count):
                picture = np.random.default_rng(index).integers(0, 40, (96, 128, 3), np.uint8)
                picture[40:48, 48 + 8 * index : 56 + 8 * index] = 255
                Image.fromarray(picture).save(folder / f"{index}.png")
    return root


def test_training_and_evaluation_cut_out_faces(
    spots: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastfer.evaluate.__main__ import main as evaluate
    from fastfer.train.__main__ import main as train

    monkeypatch.setitem(sys.modules, "cv2", None)  # OpenCV has no part in it
    data = ["--data", "image_folder", "--root", str(photographs), "--face-model", str(spots)]
    settings = ["--input.crop-margin", "0.25", "--epochs", "1", "--batch-size", "4", "--out", str(tmp_path / "run")]
    assert train(["--model", "fgw_fer", *data, *settings]) == 0, capsys.readouterr().err
    weights = str(next((tmp_path / "run").glob("best*.safetensors")))
    assert evaluate([weights, *data, "--out", str(tmp_path / "scored"), "--seconds", "0"]) == 0
    assert "crop: margin 0.25" in (tmp_path / "scored" / "model_card.md").read_text()
    assert evaluate([weights, *data[:-1], str(tmp_path / "gone.onnx"), "--out", str(tmp_path / "no")]) == 2
    assert "expected the file of a face detector" in capsys.readouterr().err
