# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.data check``: what it recognises, counts and complains of."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import (
    FER2013_NAMES,
    ballots,
    ck_official,
    ck_sequences,
    face,
    fer2013_csv,
    fer2013_folders,
    ferplus_folders,
    jaffe,
    pixels,
    raf_kaggle,
    raf_official,
    rafd,
    save,
    write_csv,
)

from fastfer.data import Split, canonical_name, duplicate_mask, list_datasets, list_layouts
from fastfer.data.__main__ import main
from fastfer.data.audit import Audit
from fastfer.data.check import check
from fastfer.data.published import Published, published_for

TREES: dict[str, tuple[Any, str, str, int]] = {
    "fer2013 csv": (lambda root: fer2013_csv(root / "fer2013.csv"), "fer2013", "csv", 21),
    "fer2013 folders": (fer2013_folders, "fer2013", "folders", 21),
    "ferplus folders": (ferplus_folders, "ferplus", "folders", 24),
    "ck_plus official": (lambda root: ck_official(root, ck_sequences(2)), "ck_plus", "official", 42),
    "raf_db official": (raf_official, "raf_db", "official", 21),
    "raf_db kaggle": (raf_kaggle, "raf_db", "kaggle", 21),
    "rafd": (lambda root: rafd(root, models=(1, 2)), "rafd", "files", 32),
    "jaffe": (jaffe, "jaffe", "files", 42),
    "image_folder": (
        lambda root: [save(root / n / "a.png", face(len(n))) for n in ("joy", "anger")],
        "image_folder",
        "class-folders",
        2,
    ),
}


@pytest.mark.parametrize(("build", "name", "layout", "count"), TREES.values(), ids=TREES)
def test_sound_data_sets_pass(
    tmp_path: Path, build: Any, name: str, layout: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path)
    assert main(["check", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["dataset"], report["layout"], report["images"], report["ok"]) == (name, layout, count, True)
    assert sum(sum(part.values()) for part in report["counts"].values()) == count
    assert report["problems"] == report["unusable"] == report["blank"] == report["conflicts"] == []
    assert main(["check", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name}, layout {layout}, at {tmp_path}")
    assert text.endswith("sound\n")


def test_layouts_command_lists_every_layout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layouts"]) == 0
    text = capsys.readouterr().out
    for name in list_datasets():
        assert name == "drawn" or f"\n{name} (split: " in "\n" + text
        for layout, expects in list_layouts(name).items():
            assert f"  {layout:<14} {expects}\n" in text


def test_counts_by_split_and_class(tmp_path: Path) -> None:
    rows = [
        [code, pixels(face(n)), usage]
        for n, (code, usage) in enumerate([(0, "Training"), (3, "Training"), (3, "Training"), (6, "PublicTest")])
    ]
    report = check(write_csv(tmp_path / "fer2013.csv", rows, ["emotion", "pixels", "Usage"]))
    assert report.counts["train"] == {
        "neutral": 0,
        "happiness": 2,
        "surprise": 0,
        "sadness": 0,
        "anger": 1,
        "disgust": 0,
        "fear": 0,
    }
    assert sum(report.counts["validation"].values()) == report.counts["validation"]["neutral"] == 1
    assert "no training image of neutral, surprise, sadness, disgust, fear" in report.problems
    assert "train: 3 of 28709 published images" in report.remarks
    assert "test: none of the 3589 published images" in report.remarks


def flawed(root: Path) -> Path:
    """A copy in both splits, a copy with another label, two blanks."""
    rows: list[list[object]] = [[k, pixels(face(k)), "Training"] for k in range(7)]
    rows += [[0, pixels(face(0)), "PublicTest"], [2, pixels(face(1)), "PublicTest"], [3, pixels(face(9)), "PublicTest"]]
    blank = np.full((48, 48), 7, np.uint8)
    rows += [[4, pixels(blank), "Training"], [4, pixels(blank + 1), "Training"]]
    return write_csv(root / "fer2013.csv", rows, ["emotion", "pixels", "Usage"])


def test_flaws_are_told_and_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flawed(tmp_path)
    assert main(["check", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    for line in (
        "duplicates: 2 redundant images in 2 groups, the largest of 2",
        "  validation in train: 2",
        "PROBLEM: 2 validation images are train images too",
        "PROBLEM: 1 groups of equal images have different labels: row 2 (disgust) = row 9 (fear)",
        "PROBLEM: 2 images are blank: row 11; row 12",
        "3 problems",
    ):
        assert line in text


def test_unusable_images_and_rows_are_counted(tmp_path: Path) -> None:
    raf_official(tmp_path)
    images = tmp_path / "basic" / "Image" / "aligned"
    (images / "train_00001_aligned.jpg").unlink()
    (images / "train_00002_aligned.jpg").write_bytes(b"no image")
    report = check(tmp_path)
    assert report.images == 19
    assert len(report.unusable) == 2
    assert "2 images or rows cannot be used: " in report.problems[0]
    assert "train_00001_aligned.jpg is missing" in report.problems[0]


def test_majority_labels_of_votes_are_counted(tmp_path: Path) -> None:
    rows = [("fer0000001.png", ballots("fear")), ("fer0000002.png", [5, 5, *[0] * 8])]
    ferplus_folders(tmp_path, {"FER2013Train": rows})
    assert check(tmp_path).counts["train"]["fear"] == 1
    assert check(tmp_path).counts["train"]["no majority"] == 1


@pytest.mark.parametrize("text", ["", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "emotion\n1\n"])
def test_a_data_set_that_cannot_be_read_fails(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fer2013.csv").write_text(text)
    assert main(["check", str(tmp_path)]) == 1
    assert "PROBLEM: " in capsys.readouterr().out
    assert main(["check", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_an_unknown_folder_lists_what_was_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "holiday" / "beach.jpg", face(0))
    assert main(["check", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    names = ("fer2013 csv", "ferplus folders", "ck_plus official", "raf_db kaggle", "rafd files", "jaffe files")
    for part in (*names, "image_folder class-folders", "list_patition_label.txt"):
        assert part in message
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "does not exist; looked for: fer2013 csv" in capsys.readouterr().err
    assert main(["check", str(tmp_path), "--data", "imagenet"]) == 2


def test_mixed_data_sets_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fer2013_csv(tmp_path / "fer2013.csv")
    raf_official(tmp_path)
    assert main(["check", str(tmp_path)]) == 2
    assert "ambiguous, it holds fer2013 csv at" in capsys.readouterr().err
    assert main(["check", str(tmp_path), "--data", "RAF-DB"]) == 0


def test_published_flaws_are_remarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flawed(tmp_path)
    known = Published({"train": 9, "validation": 3}, copies={("train", "validation"): 2}, conflicts=1, blank=2)
    monkeypatch.setattr("fastfer.data.check.published_for", lambda dataset, layout: known)
    report = check(tmp_path)
    assert report.problems == []
    assert "2 validation images are train images too (known of this set: up to 2)" in report.remarks
    known = Published({"train": 9}, {"train": {"anger": 2, "sadness": 2}})
    problem = "train: images per class differ from the published: anger 1 for 2, sadness 3 for 2"
    assert problem in check(tmp_path).problems
    known = Published({"train": 10, "validation": 6})
    report = check(tmp_path)
    assert "train: 9 images, published are 10" in report.problems
    assert "validation: 3 of 6 published images" in report.remarks


def test_published_numbers_are_consistent() -> None:
    for name, layout in (("fer2013", "csv"), ("ck_plus", "ck48"), ("ck_plus", "official")):
        known = published_for(name, layout)
        assert known is not None
        for part, classes in known.classes.items():
            assert sum(classes.values()) == known.images[part]
    assert published_for("image_folder", "class-folders") is None


# real faces


def test_real_fer2013_duplicates_and_counts(real_data: Path) -> None:
    """280 PublicTest images are training images, 12 are blank, and the counts are the published ones."""
    spec = importlib.util.spec_from_file_location("unpack", real_data / "unpack.py")
    assert spec
    assert spec.loader
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    rows, faces = unpack.read()
    audit, counts = Audit(), Counter[tuple[str, str]]()
    for row, image in zip(rows, faces, strict=True):
        label = FER2013_NAMES[int(row["emotion"])]
        audit.add(image, row["index"], row["usage"], label)
        counts[row["usage"], label] += 1
    known = published_for("fer2013", "csv")
    assert known is not None
    assert {canonical_name(name): counts["Training", name] for name in FER2013_NAMES} == known.classes["train"]
    assert sum(audit.across("Training", "PublicTest")) == known.copies["train", "validation"] == 280
    assert len(audit.blank) == len(audit.groups()[0]) == known.blank == 12
    assert len(audit.conflicts()) <= known.conflicts  # the published 57 are with PrivateTest
    usages = np.array([row["usage"] for row in rows])
    labels = np.array([int(row["emotion"]) for row in rows], np.int64)
    train, public = (
        Split(faces[usages == usage], labels[usages == usage], FER2013_NAMES) for usage in ("Training", "PublicTest")
    )
    assert (len(train), len(public)) == (28709, 3589)
    assert int(duplicate_mask(public, of=train).sum()) == 280
