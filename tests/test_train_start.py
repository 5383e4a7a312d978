# SPDX-License-Identifier: Apache-2.0
"""Starts from other weights: another run's with its classes mapped by name, and ImageNet's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from stock_mobilenets import TimmV1
from train_runs import arguments, tiny

import fastfer
from fastfer.data import BASIC_NAMES, Preprocess
from fastfer.models import FerModel, load_weights, save_weights
from fastfer.train import train
from fastfer.train.__main__ import main
from fastfer.train.options import Distill
from fastfer.train.start import start_from, start_imagenet

pytestmark = pytest.mark.usefixtures("one_thread")

SIX = ("surprise", "neutral", "happiness", "contempt", "anger", "fear")


def network(name: str = "fgw_fer", classes: int = 7, seed: int = 0, **options: object) -> FerModel:
    torch.manual_seed(seed)
    return fastfer.create_model(name, num_classes=classes, **options)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """FGW-FER of the seven basic expressions."""
    save_weights(network(), tmp_path / "source.safetensors", {"classes": list(BASIC_NAMES)})
    return tmp_path / "source.safetensors"


def test_rows_of_the_last_layer_follow_the_names(weights: Path) -> None:
    model, fresh = network(classes=6, seed=1), network(classes=6, seed=1).state_dict()
    start = start_from(model, SIX, str(weights), "keep")
    source = load_weights(weights).state_dict()
    assert start.source["kept"] == [name for name in SIX if name != "contempt"]
    assert start.source["fresh"] == ["contempt"]
    assert "contempt fresh" in start.lines[0]
    for key, value in model.state_dict().items():
        if not key.startswith("head."):
            assert torch.equal(value, source[key])
        elif value.ndim:
            for row, name in enumerate(SIX):
                origin = fresh[key][row] if name == "contempt" else None
                expected = source[key][BASIC_NAMES.index(name)] if origin is None else origin
                assert torch.equal(value[row], expected), (key, name)


def test_a_fresh_last_layer_keeps_nothing_of_it(weights: Path) -> None:
    model, fresh = network(classes=6, seed=1), network(classes=6, seed=1).state_dict()
    start = start_from(model, SIX, str(weights), "fresh")
    assert start.source["kept"] == []
    source = load_weights(weights).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh[key] if key.startswith("head.") else source[key]), key


def test_bad_sources_are_named(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match="expected weights of sepconv_attention, got fgw_fer"):
        start_from(network("sepconv_attention"), BASIC_NAMES, str(weights), "keep")
    with pytest.raises(ValueError, match="weights of the same options"):
        start_from(network(separable=False), BASIC_NAMES, str(weights), "keep")
    with pytest.raises(ValueError, match="weights of the same options"):
        start_from(network(in_chans=3), BASIC_NAMES, str(weights), "keep")
    with pytest.raises(ValueError, match="some of the classes bored"):
        start_from(network(classes=1), ("bored",), str(weights), "keep")
    save_weights(network(), tmp_path / "nameless.safetensors")
    with pytest.raises(ValueError, match="--head fresh"):
        start_from(network(), BASIC_NAMES, str(tmp_path / "nameless.safetensors"), "keep")


def test_fine_tuning_from_a_run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that starts from another and hardly moves scores as that one did."""
    best = finished / "best.safetensors"
    more = ["--from", str(best), "--epochs", "1", "--lr", "1e-30", "--schedule", "constant", "--weight-decay", "0"]
    assert main(arguments(tmp_path / "run", *more)) == 0
    assert f"weights from {best}; last layer: neutral, happiness" in capsys.readouterr().out
    first = json.loads((finished / "report.json").read_text())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["start"]["kept"] == list(BASIC_NAMES)
    assert len(report["start"]["sha256"]) == 64
    assert report["start"]["validation"]["accuracy"] == first["best"]["accuracy"]
    theirs, ours = (load_file(out / "best.safetensors") for out in (finished, tmp_path / "run"))
    assert torch.equal(theirs["head.weight"], ours["head.weight"])
    assert str(finished) not in (tmp_path / "run" / "best.safetensors").read_bytes()[:8000].decode("utf-8", "replace")


def test_a_run_from_other_weights_continues_without_them(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((finished / "best.safetensors").read_bytes())
    train(tiny(tmp_path / "run", schedule="constant", epochs=1, from_weights=str(copy)))
    copy.unlink()
    report = train(tiny(tmp_path / "run", schedule="constant", epochs=2, from_weights=str(copy)), resume=True)
    assert report["start"]["file"] == "copy.safetensors"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--from", "/nowhere.safetensors"], "no weight file at /nowhere.safetensors"),
        (["--pretrained", "/nowhere.pth"], "fgw_fer, which has no such start"),
        (["--pretrained", "a", "--from", "b"], "expected one of them, got both"),
        (["--teacher", "/nowhere.safetensors"], "no weight file at /nowhere.safetensors"),
    ],
)
def test_bad_starts_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    if "nowhere.pth" in more[-1]:
        file = tmp_path.parent / "stock.safetensors"
        save_file(TimmV1().state_dict(), file)
        more = ["--pretrained", str(file)]
    assert main(arguments(tmp_path / "run", *more)) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_imagenet_start_is_listed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stock = TimmV1()
    file = tmp_path / "timm.safetensors"
    save_file(stock.state_dict(), file)
    model = network("patt_lite")
    start = start_imagenet(model, str(file), Preprocess.symmetric(3))
    assert torch.equal(model.backbone[0].weight, stock.state_dict()["conv_stem.weight"])  # type: ignore[index, union-attr]
    assert "left fresh" in start.lines[0]
    assert start.source["source"] == "timm.safetensors"
    assert {"head.weight", "patches.2.weight"} <= set(start.source["fresh"])
    other = start_imagenet(network("patt_lite"), str(file), Preprocess((0.1,) * 3, (0.9,) * 3))
    assert "input.normalise" in other.lines[1]


def test_a_teacher_teaches(finished: Path, tmp_path: Path) -> None:
    """With the whole weight on the teacher the labels do not matter."""
    options = {"model": "sepconv_attention", "teacher": str(finished / "best.safetensors"), "epochs": 1}
    plain, smooth = (
        train(tiny(tmp_path / str(smoothing), distill=Distill(weight=1.0), label_smoothing=smoothing, **options))
        for smoothing in (0.0, 0.5)
    )
    assert plain["last"]["loss"] == smooth["last"]["loss"]
