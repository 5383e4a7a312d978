# SPDX-License-Identifier: Apache-2.0
"""Weights say how images come to them and what they were trained on, and evaluation does as they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics", reason="the packages of evaluation are not installed")
pytest.importorskip("matplotlib", reason="the packages of evaluation are not installed")

from data_trees import raf_official, save

from fastfer.data import BASIC_NAMES, DataOptions, FaceCrop, Preprocess, Split, drawn, load_dataset
from fastfer.data.split_record import SplitRecord
from fastfer.evaluate.__main__ import main, parser, prepare
from fastfer.models import create_model, read_metadata, save_weights
from fastfer.train import TrainConfig, train
from fastfer.train.options import Input

pytestmark = pytest.mark.usefixtures("one_thread")

GREY = Preprocess((0.5,), (0.25,))


def folders(root: Path, splits: Mapping[str, Split], larger: int) -> Path:
    """Class folders of faces, each pixel ``larger`` times in each direction."""
    for part, split in splits.items():
        images = split.images.repeat(larger, 1).repeat(larger, 2)
        for number, (image, label) in enumerate(zip(images, split.labels, strict=True)):
            save(root / part / split.names[label] / f"{number}.png", image)
    return root


def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


def test_faces_stored_larger_score_the_same(tmp_path: Path) -> None:
    """Images at twice the size are the same pixels in pairs: brought to the size of training they are equal."""
    torch.manual_seed(0)
    model = create_model("fgw_fer")
    model.class_names = BASIC_NAMES
    splits = drawn.load(14, 28)
    found = {}
    for side in (48, 96):
        root = folders(tmp_path / str(side), {"train": splits["train"], "val": splits["validation"]}, side // 48)
        path = tmp_path / "w.safetensors"
        save_weights(model, path, {"preprocess": GREY.to_json(), "stored": [1, 48, 48], "input": [48, 48]})
        out = tmp_path / f"out{side}"
        arguments = ["--data", "image_folder", "--root", str(root), "--seconds", "0"]
        assert main([str(path), *arguments, "--out", str(out)]) == 0
        found[side] = report(out)
    assert found[96]["image_shape"] == [48, 48]
    small, large = (found[side]["metrics"]["loss"] for side in (48, 96))
    assert abs(small - large) < 0.05 * small  # the filter smooths a little at the seams


def test_explanations_take_images_as_evaluation_does(tmp_path: Path) -> None:
    """Their command line loads weights and images by the same function."""
    model = create_model("fgw_fer")
    model.class_names = BASIC_NAMES
    path = tmp_path / "w.safetensors"
    save_weights(model, path, {"preprocess": GREY.to_json(), "stored": [1, 48, 48]})
    splits = drawn.load(7, 7)
    root = folders(tmp_path / "data", {"train": splits["train"], "val": splits["validation"]}, 2)
    args = parser("explain", "").parse_args([str(path), "--data", "image_folder", "--root", str(root)])
    weights, loaded, _ = prepare(args, with_train=False, purpose="explained")
    assert loaded.split.images.shape == (7, 48, 48)
    assert weights.preprocess == GREY
    settings = Preprocess((0.5,), (0.25,), crop=FaceCrop(0.1))
    save_weights(model, path, {"preprocess": settings.to_json(), "stored": [1, 48, 48]})
    with pytest.raises(ValueError, match="face-model: expected the file of a face detector"):
        prepare(args, with_train=False)


RUN: dict[str, Any] = {"epochs": 1, "batch_size": 16, "threads": 1, "input": Input(size=48, colour="grey")}


@pytest.fixture(scope="module")
def raf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raf_official(tmp_path_factory.mktemp("raf"), train=42, test=28)


@pytest.fixture(scope="module")
def trained(raf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a split of their own over a data set that has an official one."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = DataOptions(split="8-1-1", seed=3, size=48, channels=1)
    train(TrainConfig(data="raf_db", root=str(raf), out=str(out), data_options=options, **RUN))
    return out / "best.safetensors"


def test_the_split_travels_in_the_weight_file(trained: Path, raf: Path) -> None:
    record = SplitRecord.from_metadata(read_metadata(trained))
    assert record is not None
    assert record.data == "raf_db"
    assert record.options == {"split": "8-1-1", "seed": 3, "size": 48, "channels": 1}
    again = load_dataset("raf_db", raf, **record.options)
    assert record.images["train"]["count"] == len(again["train"])
    assert record.difference("train", again["train"]) is None
    other = load_dataset("raf_db", raf, **{**record.options, "seed": 4})
    assert "train images then" in str(record.difference("train", other["train"]))


def evaluated(weights: Path, raf: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = ["--data", "raf_db", "--root", str(raf), "--out", str(out), "--seconds", "0"]
    assert main([str(weights), *arguments, *more]) == 0
    return report(out)


def test_evaluation_uses_the_split_of_the_training(trained: Path, raf: Path, tmp_path: Path) -> None:
    record = SplitRecord.from_metadata(read_metadata(trained))
    assert record is not None
    want = load_dataset("raf_db", raf, parts=("train", "test"), **record.options)
    found = evaluated(trained, raf, tmp_path / "out", "--split", "test")
    assert found["metrics"]["images"] == len(want["test"])
    assert "8-1-1" in found["protocol"]
    assert (found["trained_on"], found["notes"]) == (0, [])


def test_images_that_were_trained_on_are_counted(
    trained: Path, raf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The official test set, which the split of the training has dealt out over all parts."""
    record = SplitRecord.from_metadata(read_metadata(trained))
    assert record is not None
    ids = set(load_dataset("raf_db", raf, **record.options)["train"].ids or ())
    official = load_dataset("raf_db", raf, parts=("test",), size=48, channels=1)["test"]
    overlap = len(ids & set(official.ids or ()))
    assert overlap > 0
    found = evaluated(trained, raf, tmp_path / "out", "--split", "test", "--option", "split=official")
    assert found["metrics"]["images"] == len(official)
    assert found["trained_on"] == overlap
    assert found["duplicates"] >= overlap
    assert f"trained on {overlap} of these {len(official)} images" in capsys.readouterr().out
    assert f"trained on {overlap} of these images" in (tmp_path / "out" / "model_card.md").read_text()


def test_another_root_is_noticed(trained: Path, tmp_path: Path) -> None:
    other = raf_official(tmp_path / "raf", train=49, test=28)
    found = evaluated(trained, other, tmp_path / "out", "--split", "test")
    assert "are not those of the training" in found["notes"][0]


def test_weights_without_a_split_state_the_assumption(raf: Path, tmp_path: Path) -> None:
    model = create_model("fgw_fer")
    model.class_names = BASIC_NAMES
    header = {"preprocess": GREY.to_json(), "stored": [1, 48, 48]}
    save_weights(model, tmp_path / "w.safetensors", header)
    found = evaluated(tmp_path / "w.safetensors", raf, tmp_path / "out", "--split", "test")
    assert "records no split" in found["notes"][0]
    save_weights(model, tmp_path / "w.safetensors", {**header, "data": "fer2013"})
    found = evaluated(tmp_path / "w.safetensors", raf, tmp_path / "out", "--split", "test")
    assert "trained on fer2013" in found["notes"][0]
    assert found["duplicates"] is None


@pytest.fixture
def cropping(tmp_path: Path) -> Path:
    model = create_model("fgw_fer")
    model.class_names = BASIC_NAMES
    settings = Preprocess((0.5,), (0.25,), crop=FaceCrop(0.0))
    save_weights(model, tmp_path / "w.safetensors", {"preprocess": settings.to_json(), "stored": [1, 48, 48]})
    return tmp_path / "w.safetensors"


def test_weights_that_crop_crop_in_evaluation(
    cropping: Path, raf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", "raf_db", "--root", str(raf), "--seconds", "0", "--split", "test"]
    assert main([str(cropping), *arguments]) == 2
    assert "face-model: expected the file of a face detector" in capsys.readouterr().err
    found = evaluated(cropping, raf, tmp_path / "faces", "--split", "test", "--uncropped")
    assert "crop" not in found["preprocess"]
    assert "none: images are used as they are stored" in (tmp_path / "faces" / "model_card.md").read_text()
    seen: list[tuple[int, ...]] = []

    def detector(path: Path) -> Callable[[np.ndarray], Any]:
        from fastfer.data import Face

        return lambda picture: seen.append(picture.shape) or [Face((2, 2, 10, 10))]

    monkeypatch.setattr("fastfer.evaluate.source.YuNet", detector)
    found = evaluated(cropping, raf, tmp_path / "out", "--split", "test", "--face-model", "yunet.onnx")
    assert len(seen) >= 28
    assert found["preprocess"]["crop"]["margin"] == 0
    assert "crop: margin 0" in (tmp_path / "out" / "model_card.md").read_text()


def test_a_needless_detector_is_refused(trained: Path, raf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "raf_db", "--root", str(raf), "--face-model", "x.onnx"]
    assert main([str(trained), *arguments]) == 2
    assert "face-model: expected none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "split: expected a record with a data set"),
        ({"data": "raf_db", "options": {"subset": "/etc/passwd"}}, "split.options: expected some of"),
        ({"data": "raf_db", "options": {"fold": -1}}, "fold: expected 0 or more"),
        ({"data": "raf_db", "train_images": "7"}, "split.train_images: expected a number from 1"),
    ],
)
def test_bad_records(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitRecord.from_metadata({"split": entry})
