# SPDX-License-Identifier: Apache-2.0
"""The weights that ship: each file is what the table says, and answers on faces as its card says."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastfer
from fastfer import weights
from fastfer.data import load_dataset
from fastfer.evaluate.metrics import measure
from fastfer.evaluate.predict import predict
from fastfer.evaluate.run import class_order
from fastfer.evaluate.source import load, load_parts
from fastfer.models import create_model, read_metadata, save_weights
from fastfer.publish.calibration import calibrate, fit_temperature
from fastfer.publish.release import drawn_answers, release
from fastfer.weights.__main__ import main

ROWS = pytest.mark.parametrize("row", weights.table(), ids=lambda row: row.name)
LIMIT = 12 * 2**20


def test_the_files_are_those_of_the_table() -> None:
    files = {path.name for path in weights.FOLDER.glob("*.safetensors")}
    assert files == {row.file for row in weights.table()}
    assert sum(row.path.stat().st_size for row in weights.table()) <= LIMIT
    assert len(set(weights.list())) == len(weights.table())


@ROWS
def test_a_file_is_what_its_line_says(row: weights.Shipped) -> None:
    assert hashlib.sha256(row.path.read_bytes()).hexdigest() == row.sha256
    model = fastfer.load(row.model, row.data)
    assert not model.training
    assert model.class_names == row.classes
    assert sum(p.numel() for p in model.parameters()) == row.parameters
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    header = read_metadata(row.name)
    assert (header["model"], header["data"]) == (row.model, row.data)
    assert header["temperature"] == row.temperature
    assert "research" in header["licence"]


@ROWS
def test_drawn_faces_are_answered_as_when_released(row: weights.Shipped) -> None:
    assert drawn_answers(load(weights.path(row.name))) == row.drawn


@ROWS
def test_real_faces_are_answered_as_the_card_says(row: weights.Shipped, real_data: Path, tmp_path: Path) -> None:
    layout = {"fer2013": "csv", "ferplus": "ferplus"}[row.data]
    subprocess.run([sys.executable, real_data / "unpack.py", layout, tmp_path], check=True, capture_output=True)
    trained = load(weights.path(row.name))
    split = load_parts(trained, row.data, tmp_path, "validation", {}, with_train=False).split
    logits = predict(trained.model, torch.from_numpy(split.images), trained.preprocess)
    logits = logits[:, class_order(trained.model, split.names)]
    found = measure(logits, torch.from_numpy(split.labels), len(split.names))
    assert found.images == row.images
    assert found.accuracy == pytest.approx(row.accuracy, abs=1e-3)


def test_names_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"weights: expected one of .*, got 'resnet'"):
        weights.path("resnet")
    with pytest.raises(ValueError, match="got 'fgw_fer' for 'jaffe'"):
        fastfer.load("fgw_fer", data="jaffe")
    with pytest.raises(FileNotFoundError, match="no weight file at resnet"):
        fastfer.load("resnet")
    own = tmp_path / "own.safetensors"
    save_weights(create_model("fgw_fer"), own)
    assert weights.resolve(own) == own
    assert fastfer.load(own).name == "fgw_fer"
    assert weights.beside(own) == tmp_path
    monkeypatch.chdir(tmp_path)
    for name in weights.list():  # a folder of that name, such as one of results, hides nothing
        (tmp_path / name).mkdir()
        assert weights.resolve(name) == weights.path(name)
    assert main(["no-*"]) == 1
    assert main([]) == (0 if weights.table() else 1)
    assert len(capsys.readouterr().out.splitlines()) == len(weights.table())


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = weights.Shipped("fgw_fer", "fer2013", "x.safetensors", "0" * 64, 1, ("a",), 1, 0.5, 0.5, 1.0, ("a",))
    (tmp_path / row.file).write_bytes(b"x")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(weights, "table", lambda: (row,))
    with pytest.raises(ValueError, match="damaged: expected SHA-256 0000"):
        weights.path("fgw_fer")


def test_no_torch_is_needed_to_find_them() -> None:
    code = "import sys, fastfer; fastfer.weights.list(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    model = create_model("fgw_fer").half()
    save_weights(model, tmp_path / "half.safetensors")
    loaded = fastfer.load(tmp_path / "half.safetensors")
    for key, tensor in loaded.state_dict().items():
        assert not tensor.is_floating_point() or tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[key].to(tensor.dtype))


def test_temperature_is_the_one_the_labels_were_drawn_with() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator)
    for truth in (0.5, 1.0, 3.0):
        labels = torch.multinomial(torch.softmax(logits / truth, 1), 1, generator=generator)[:, 0]
        assert fit_temperature(logits, labels) == pytest.approx(truth, rel=0.1)
    found = calibrate(10 * logits, labels)
    assert found.temperature == pytest.approx(30.0, rel=0.4)  # beyond the range: its edge, 20
    assert found.error_after < found.error_before
    assert (found.fitted_on, found.images) == (10_000, 10_000)
    with pytest.raises(ValueError, match="expected images to fit a temperature on"):
        fit_temperature(logits[:0], labels[:0])


def test_probabilities_follow_the_temperature(tmp_path: Path) -> None:
    """Of weight files and of engine files, and a file with a senseless one is refused."""
    model = create_model("fgw_fer").eval()
    about = {"classes": [f"c{k}" for k in range(7)], "preprocess": {"mean": [0.5], "std": [0.25], "size": [48, 48]}}
    face, found = np.random.default_rng(0).integers(0, 255, (48, 48), np.uint8), {}
    for value in (1.0, 2.0):
        path = tmp_path / f"{value}.safetensors"
        save_weights(model, path, about | {"temperature": value})
        recognizer = fastfer.Recognizer(path, faces="whole", threads=1)
        found[value] = recognizer(face).faces[0].values
        recognizer.engine.save(tmp_path / "same.ffe")
        again = fastfer.Recognizer(tmp_path / "same.ffe", faces="whole", threads=1)(face)
        np.testing.assert_array_equal(again.faces[0].values, found[value])
    logits = np.log(found[1.0])
    wanted = np.exp(logits / 2) / np.exp(logits / 2).sum()
    np.testing.assert_allclose(found[2.0], wanted, rtol=1e-5)
    save_weights(model, path, about | {"temperature": 0})
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        fastfer.Recognizer(path, faces="whole", threads=1)


def test_a_release_of_another_data_set_is_refused(tmp_path: Path) -> None:
    model = create_model("fgw_fer")
    save_weights(model, tmp_path / "best.safetensors", {"data": "drawn"})
    with pytest.raises(ValueError, match="run: expected one on fer2013 or ferplus, got drawn"):
        release(tmp_path, tmp_path, tmp_path / "weights", tmp_path / "cards")


def test_a_release_from_run_to_card(tmp_path: Path) -> None:
    """A run of one epoch on a few faces drawn into fer2013.csv, through training, release and what the file says."""
    pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
    from fastfer.train import configure, train

    drawn = load_dataset("drawn", None, parts=("train",))["train"]
    rows = ["emotion,pixels,Usage"]
    code = {"anger": 0, "disgust": 1, "fear": 2, "happiness": 3, "sadness": 4, "surprise": 5, "neutral": 6}
    for index in range(112):
        face = np.ravel(drawn.images[index])
        usage = "PublicTest" if index >= 84 else "Training"
        rows.append(f"{code[drawn.names[drawn.labels[index]]]},{' '.join(map(str, face))},{usage}")
    root = tmp_path / "fer2013.csv"
    root.write_text("\n".join(rows) + "\n")
    out = tmp_path / "run"
    train(configure(model="fgw_fer", data="fer2013", root=str(root), epochs=1, out=str(out), threads=1))
    row = release(out, root, tmp_path / "weights", tmp_path / "cards", ["A note."])
    file = tmp_path / "weights" / row.file
    assert hashlib.sha256(file.read_bytes()).hexdigest() == row.sha256
    assert row.images == 28
    assert row.drawn == drawn_answers(load(file))
    folder = tmp_path / "cards" / "fgw_fer"
    page = (folder.parent / "README.md").read_text()
    assert f"| [fgw_fer](fgw_fer/model_card.md) | fer2013 | {row.parameters:,} |" in page
    assert f"{row.accuracy:.2%}" in page
    assert (folder.parent / "accuracy.svg").stat().st_size > 1000
    text = (folder / "model_card.md").read_text()
    assert "A note." in text
    assert f"temperature {row.temperature:g}" in text
    assert {path.name for path in folder.iterdir()} == {
        "model_card.md",
        "report.json",
        "confusion.png",
        "confusion.csv",
        "reliability.png",
        "curves.png",
    }


def test_a_name_of_weights_is_compiled_with_its_preprocessing() -> None:
    engine, model = fastfer.compile("fgw_fer"), fastfer.load("fgw_fer").eval()
    faces = torch.randint(0, 256, (3, 1, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = engine.metadata["mean"][0], engine.metadata["std"][0]
    with torch.no_grad():
        expected = model((faces / 255 - mean) / std)
    torch.testing.assert_close(engine(faces), expected, rtol=1e-4, atol=1e-4)
    assert engine.class_names == model.class_names
    with pytest.raises(FileNotFoundError, match="no weight file at nowhere"):
        fastfer.compile("nowhere.safetensors")
