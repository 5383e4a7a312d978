# SPDX-License-Identifier: Apache-2.0
"""Figures from runs, tables and weights: each is drawn, its numbers are right, bad sources give a message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from PIL import Image

from fastfer.figures import FIGURES, FigureError, draw
from fastfer.figures.__main__ import main
from fastfer.figures.figure import Faces
from fastfer.figures.scores import class_scores
from fastfer.figures.tables import size, sweep

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(path: Path) -> bool:
    """Whether the picture holds more than one colour."""
    with Image.open(path) as picture:
        return len(picture.convert("L").getcolors(1 << 24) or []) > 20


@pytest.mark.parametrize("name", ["confusion", "per-class", "curves"])
def test_figures_of_runs(name: str, finished: Path, tmp_path: Path) -> None:
    path = draw(name, [finished, finished], tmp_path)
    assert path == tmp_path / f"{name}.png"
    assert drawn(path)


def test_scores_by_class() -> None:
    scores = class_scores(np.array([[8, 2, 0], [4, 6, 0], [0, 0, 0]]))
    assert scores["precision"] == pytest.approx([8 / 12, 6 / 8, 0])
    assert scores["recall"] == pytest.approx([0.8, 0.6, 0])
    assert scores["F1"] == pytest.approx([2 * 8 / (10 + 12), 2 * 6 / (10 + 8), 0])


@pytest.mark.parametrize("name", ["maps", "tsne"])
def test_figures_of_faces(name: str, finished: Path, tmp_path: Path) -> None:
    pytest.importorskip({"maps": "captum", "tsne": "sklearn"}[name])
    assert drawn(draw(name, [finished], tmp_path, Faces("drawn", limit=24)))


def table_folder(folder: Path, table: str, rows: dict[str, float], data: str) -> Path:
    """The results of a table, as a run of it leaves them."""
    folder.mkdir(parents=True)
    cells = [
        {
            "row": row, "data": data, "tested": {"part": "x", "images": 9, "scores": {"accuracy": value}, "why": ""},
            "facts": {"parameters": 64_176.0, "seconds": 0.001}, "best": 0.9, "last": 0.8, "macro_f1": 0.5, "sd": None,
            "epochs": 1, "parameters": 64_176, "images": 9, "protocol": "", "seed": 0, "seconds": 1.0, "config": {},
            "environment": {},
        }
        for row, value in rows.items()
    ]  # fmt: skip
    (folder / "table.json").write_text(json.dumps({"layout": 2, "table": table, "title": "", "cells": cells}))
    return folder


def test_the_sweep_has_our_points_and_the_papers(tmp_path: Path) -> None:
    rows = {"lambda 0": 0.5, "lambda 0.4": 0.75}
    axes = sweep([table_folder(tmp_path / "t", "mobilenetv3-lambda", rows, "ferplus")]).axes[0]
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
    assert lines["ferplus, ours"] == [[0.0, 50.0], [0.4, 75.0]]
    assert lines["ferplus, paper's best"] == [[0.4, 87.5]]
    assert lines["raf_db, paper's best"] == [[0.1, 86.6]]


def test_accuracy_against_size(tmp_path: Path) -> None:
    figure = size([table_folder(tmp_path / "t", "fgw-1", {"FGW-FER": 0.66}, "fer2013")])
    assert [axes.get_xlabel() for axes in figure.axes] == ["parameters", "seconds an image"]
    marks = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert marks["FGW-FER, ours"] == (64_176.0, 66.0)
    assert "plain convolutions" in marks


BAD: dict[str, tuple[list[str], str]] = {
    "unknown": (["portrait", "x"], "figure: expected one of confusion, "),
    "no source": (["curves"], "sources: curves is drawn from run folders; got none"),
    "not there": (["curves", "nowhere"], "got nowhere, which is not there"),
    "not a run": (["confusion", "."], "report.json: expected a report, got FileNotFoundError"),
    "no faces": (["tsne", "."], "data: expected the data set of the faces"),
    "limit": (["tsne", ".", "--limit", "0"], "limit: expected a number from 1, got 0"),
}


@pytest.mark.parametrize(("argv", "expected"), BAD.values(), ids=BAD)
def test_bad_input_writes_nothing(
    argv: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*argv, "--out", "out"]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"classes": ["a", "b"], "best": {"confusion": [[1, 2, 3]]}}')
    with pytest.raises(FigureError, match=r"report\.json: expected classes and their confusion matrix"):
        draw("confusion", [tmp_path], tmp_path / "out")


def test_the_list_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FIGURES)
