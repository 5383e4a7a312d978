# SPDX-License-Identifier: Apache-2.0
"""Input that means harm or is nonsense ends with exit code 2 and the name of what is wrong, never with a traceback."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
pytest.importorskip("matplotlib", reason="the packages of evaluation are not installed")

from train_runs import arguments, tiny

from fastfer.data import BASIC_NAMES, DataOptions
from fastfer.evaluate import fonts
from fastfer.evaluate.__main__ import main as evaluate
from fastfer.evaluate.card import model_card
from fastfer.evaluate.report import CONFUSION_FILE, CONFUSION_TABLE, write_confusion, write_confusion_table
from fastfer.models import create_model, load_weights, read_metadata, save_weights
from fastfer.train import train
from fastfer.train.__main__ import main
from fastfer.train.progress import Display
from fastfer.train.report import write_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = "9" * 400
NUMBERS = ("lr", "seed", "epochs", "batch-size", "folds", "input.size", "loss.center", "augment.zoom", "threads",
           "train-images", "data-options.size", "model_options.num_classes", "plateau.patience", "fine_tune.epochs",
           "distill.temperature", "weight-decay", "unfreeze", "clip-norm")  # fmt: skip


@pytest.mark.parametrize("option", NUMBERS)
def test_numbers_of_400_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main([*arguments(tmp_path / "run"), f"--{option}={LONG}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_million_folds_are_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(tmp_path / "run"), "--folds", "1000000"]) == 2
    assert "folds: expected 0, or 2 to 9999, got 1000000" in capsys.readouterr().err


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CONFIGS: dict[str, tuple[str, str]] = {
    "aliases": (BOMB, "options without aliases"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "long": ("# " + "x" * (1 << 20), "at most 1,048,576 bytes"),
    "no YAML": ("a: [", "expected YAML"),
}


@pytest.mark.parametrize(("text", "message"), CONFIGS.values(), ids=CONFIGS)
def test_configs_that_are_too_much(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    assert main(["--config", str(path), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "options.yaml" in error
    assert message in error


def weight_file(path: Path, **entries: str) -> Path:
    """A header of any texts, as whoever means harm would write it."""
    model = create_model("fgw_fer")
    header = {"fastfer": "1", "model": '"fgw_fer"', "options": "{}", "classes": json.dumps(BASIC_NAMES), **entries}
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    path.write_bytes(save(state, header))
    return path


HEADERS: dict[str, dict[str, str]] = {
    "deep": {"preprocess": "[" * 50_000},
    "long mean": {"preprocess": f'{{"mean": [{LONG}], "std": [1]}}'},
    "long size": {"preprocess": f'{{"mean": [0.5], "std": [1], "size": [{LONG}, 1]}}'},
    "preprocess of text": {"preprocess": '"x"'},
    "mean of a number": {"preprocess": '{"mean": 7, "std": 7}'},
    "crop of a list": {"preprocess": '{"mean": [0.5], "std": [1], "crop": [1]}'},
    "options": {"options": f'{{"num_classes": {LONG}}}'},
    "stored": {"preprocess": '{"mean": [0.5], "std": [1]}', "stored": f"[1, {LONG}, 48]"},
    "split": {"preprocess": '{"mean": [0.5], "std": [1]}', "split": '{"data": "drawn", "options": {"fold": "x"}}'},
    "layout": {"fastfer": LONG},
}


@pytest.mark.parametrize("entries", HEADERS.values(), ids=HEADERS)
def test_headers_that_are_no_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, str]
) -> None:
    path = weight_file(tmp_path / "w.safetensors", **entries)
    assert evaluate([str(path), "--data", "drawn", "--seconds", "0"]) == 2
    assert "w.safetensors" in capsys.readouterr().err


def test_a_full_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "optimizer" in self.name:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(arguments(tmp_path / "run")) == 1  # training failed: not its input, and not in part written
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "optimizer.safetensors" in error
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml"]


# names


EVIL = ("=cmd()", "\x1b[31mred", "<script>x</script>", "a|b", "+1", "$x$", "[l](http://x)")


def test_names_in_csv_are_no_formulas(tmp_path: Path) -> None:
    write_confusion_table(tmp_path, np.eye(7, dtype=int).tolist(), EVIL)
    rows = list(csv.reader((tmp_path / CONFUSION_TABLE).open()))
    assert rows[0][1:] == ["'=cmd()", "\\x1b[31mred", "<script>x</script>", "a|b", "'+1", "$x$", "[l](http://x)"]
    assert [row[0] for row in rows[1:]] == rows[0][1:]
    write_metrics(tmp_path, [{"epoch": 1, "=x": 2.0, "recall_\x1b": 0.5}])
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["epoch,'=x,recall_\\x1b", "1,2.0,0.5"]


def test_names_in_cards_are_text(tmp_path: Path) -> None:
    model = create_model("fgw_fer")
    model.class_names = BASIC_NAMES
    save_weights(model, tmp_path / "w.safetensors", {"mean": [0.5], "std": [0.25], "licence": "<b>\x1b[2J</b>"})
    arguments = ["--data", "drawn", "--option", "train_images=14", "--option", "validation_images=14"]
    assert evaluate([str(tmp_path / "w.safetensors"), *arguments, "--seconds", "0"]) == 0
    out = tmp_path / "w-drawn-validation"
    card = (out / "model_card.md").read_text()
    assert "&lt;b&gt;\\\\x1b\\[2J&lt;/b&gt;" in card
    report = json.loads((out / "report.json").read_text())
    text = model_card({**report, "classes": list(EVIL)})
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "| a\\|b |" in text
    assert "(http://x)" in text
    assert "[l](http" not in text


def test_names_do_not_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Display().line("class \x1b[31mred\x07 and\nanother line")
    assert capsys.readouterr().out == "class \\x1b[31mred\\x07 and\nanother line\n"
    assert evaluate([str(tmp_path / "\x1b[31mw"), "--data", "drawn"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_letters_without_a_font_are_numbers_with_a_legend(tmp_path: Path) -> None:
    names = ("开心", "悲しみ", "분노")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph warns
        write_confusion(tmp_path, np.eye(3, dtype=int).tolist(), names, "t")
        if fonts.shown(names).path is None:
            assert fonts.shown(names).names == ("1", "2", "3")
            assert "1 to 3: the classes in the order of report.json" in fonts.shown(names).note
        write_confusion(tmp_path, np.eye(7, dtype=int).tolist(), EVIL, "a $ title $")
    assert Image.open(tmp_path / CONFUSION_FILE).width > 300


def test_a_font_that_has_the_letters_is_found(tmp_path: Path) -> None:
    """matplotlib brings DejaVu Serif, which has a letter that its sans-serif has not."""
    found = fonts.shown(("ᵫ", "happy"))
    assert found.names == ("ᵫ", "happy")
    assert "Serif" in str(found.path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_confusion(tmp_path, [[1, 0], [0, 1]], ("ᵫ", "happy"), "t")
    assert fonts.shown(("fear", "glücklich")).path is None


def test_chinese_names_train(tmp_path: Path) -> None:
    """Weights and files carry the names whole."""
    from data_trees import face
    from data_trees import save as save_image

    names = ("悲伤", "开心")
    for part, count in (("train", 8), ("val", 2)):
        for n, name in enumerate(names):
            for k in range(count):
                save_image(tmp_path / "data" / part / name / f"{k}.png", face(100 * n + k))
    options = DataOptions(classes=names)
    config: dict[str, Any] = {"train_images": None, "validation_images": None, "epochs": 1, "data_options": options}
    report = train(tiny(tmp_path / "run", data="image_folder", root=str(tmp_path / "data"), **config))
    assert sorted(report["classes"]) == sorted(names)
    assert load_weights(tmp_path / "run" / "best.safetensors").class_names == tuple(report["classes"])
    assert sorted(read_metadata(tmp_path / "run" / "best.safetensors")["classes"]) == sorted(names)
    assert torch.isfinite(torch.tensor(report["best"]["loss"]))
