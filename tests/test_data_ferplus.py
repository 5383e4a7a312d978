# SPDX-License-Identifier: Apache-2.0
"""FERPlus in its three layouts and four label modes."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import (
    VOTES,
    ballots,
    face,
    fer2013_csv,
    ferplus_folders,
    names_of,
    save,
    write_csv,
)

from fastfer.data import CLASS_NAMES, DataError, load_dataset
from fastfer.data.loading import find_dataset, read_manifest
from fastfer.data.options import DataOptions
from fastfer.data.votes import judge

ALL = ("train", "validation", "test")


def test_ferplus_folders(tmp_path: Path) -> None:
    ferplus_folders(tmp_path / "data")
    splits = load_dataset("auto", tmp_path, parts=ALL)
    for n, split in enumerate(splits.values()):
        assert split.names == CLASS_NAMES
        assert names_of(split) == [*CLASS_NAMES]
        np.testing.assert_array_equal(split.images[3], face(1000 * n + 3))
        assert split.soft is None
    assert splits["train"].protocol == (
        "ferplus (folders); votes of label.csv; train: official split; labels by majority"
    )


THIRDS = dict.fromkeys(("neutral", "surprise", "disgust"), 1 / 3)
CASES: dict[str, tuple[list[int], str, str | dict[str, float] | None]] = {
    "clear majority": ([0, 9, 1, 0, 0, 0, 0, 0, 0, 0], "majority", {"happiness": 1.0}),
    "single votes do not count": ([5, 1, 1, 1, 1, 1, 0, 0, 0, 0], "majority", {"neutral": 1.0}),
    "half is no majority": ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], "majority", None),
    "unknown wins": ([3, 0, 0, 0, 0, 0, 0, 0, 7, 0], "majority", None),
    "no face wins": ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], "majority", None),
    "only single votes": ([1] * 10, "majority", None),
    "two classes hold 75 %": ([5, 4, 1, 0, 0, 0, 0, 0, 0, 0], "crossentropy", {"neutral": 5 / 9, "happiness": 4 / 9}),
    "one class is enough": ([8, 2, 0, 0, 0, 0, 0, 0, 0, 0], "crossentropy", {"neutral": 1.0}),
    "tie of two": ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], "crossentropy", {"neutral": 0.5, "happiness": 0.5}),
    "four tie": ([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], "crossentropy", None),
    "unknown ends it": ([3, 0, 0, 0, 0, 0, 0, 0, 5, 2], "crossentropy", None),
    "unknown after a class": ([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], "crossentropy", {"neutral": 1.0}),
    "as crossentropy": ([5, 4, 1, 0, 0, 0, 0, 0, 0, 0], "probability", {"neutral": 5 / 9, "happiness": 4 / 9}),
    "30 % each": ([4, 0, 3, 0, 0, 3, 0, 0, 0, 0], "multi_target", THIRDS),
    "below 30 %": ([5, 3, 2, 0, 0, 0, 0, 0, 0, 0], "multi_target", {"neutral": 0.5, "happiness": 0.5}),
    "too little": ([4, 2, 2, 2, 0, 0, 0, 0, 0, 0], "multi_target", None),
    "unknown is cut off": ([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], "multi_target", {"neutral": 1.0}),
}


@pytest.mark.parametrize(("votes", "mode", "expected"), CASES.values(), ids=CASES)
def test_votes_to_labels(votes: list[int], mode: Any, expected: dict[str, float] | None) -> None:
    verdict = judge(tuple(votes), mode)
    if expected is None:
        assert verdict is None
        return
    assert verdict is not None
    found = {name: value for name, value in zip(CLASS_NAMES, verdict.probabilities.tolist(), strict=True) if value}
    assert found == pytest.approx(expected)
    assert CLASS_NAMES[verdict.label] == next(iter(expected))


def test_ferplus_soft_labels_are_for_training_only(tmp_path: Path) -> None:
    doubtful = [("fer9000000.png", [5, 4, 1, 0, 0, 0, 0, 0, 0, 0]), ("fer9000001.png", [4, 4, 2, 0, 0, 0, 0, 0, 0, 0])]
    clear = [(f"fer{k:07}.png", ballots(VOTES[k])) for k in range(8)]
    shift = [(f"fer{100 + k:07}.png", ballots(VOTES[k])) for k in range(8)]
    ferplus_folders(tmp_path, {"FER2013Train": [*clear, *doubtful], "FER2013Valid": [*shift, *doubtful]})
    hard = load_dataset("ferplus", tmp_path)
    assert [len(split) for split in hard.values()] == [9, 9]  # 5 of 9 is more than half, 4 of 10 is not
    for mode in ("crossentropy", "probability", "multi_target"):
        soft = load_dataset("ferplus", tmp_path, label_mode=mode)
        assert len(soft["train"]) == 10
        assert soft["train"].soft is not None
        np.testing.assert_allclose(soft["train"].soft.sum(1), 1, rtol=1e-6)
        assert soft["train"].soft_mode == mode
        assert soft["validation"].soft is None
        assert soft["validation"].fingerprint() == hard["validation"].fingerprint()
        assert f"labels by {mode}" in soft["train"].protocol
    assert soft["train"].fingerprint() != hard["train"].fingerprint()


def test_ferplus_without_contempt(tmp_path: Path) -> None:
    clear = [(f"fer{k:07}.png", ballots(VOTES[k])) for k in range(8)]
    ferplus_folders(tmp_path, {"FER2013Train": [*clear, ("fer0000009.png", [6, 0, 0, 0, 0, 0, 0, 4, 0, 0])]})
    split = load_dataset("ferplus", tmp_path, classes=7, label_mode="crossentropy", parts=("train",))["train"]
    assert split.names == CLASS_NAMES[:7]
    assert len(split) == 8
    assert split.soft is not None
    np.testing.assert_array_equal(split.soft[7], [1, 0, 0, 0, 0, 0, 0])


def test_ferplus_label_sources_differ(tmp_path: Path) -> None:
    ferplus_folders(tmp_path / "data")
    by_new = {f"fer{k:07}.png": ballots(VOTES[(k + 1) % 8]) for k in range(8)}
    rows: list[list[Any]] = [["Training", name, *votes] for name, votes in by_new.items()]
    write_csv(tmp_path / "fer2013new.csv", [*rows, ["Training", "", *[0] * 9, 10]], ["Usage", "Image name", *VOTES])
    other = load_dataset("ferplus", tmp_path, label_source="fer2013new.csv", parts=("train",))["train"]
    assert names_of(other) == [CLASS_NAMES[(k + 1) % 8] for k in range(8)]
    assert "votes of fer2013new.csv" in other.protocol
    with pytest.raises(DataError, match=r"label\.csv, line 1: fer0001000\.png is not named in fer2013new\.csv"):
        load_dataset("ferplus", tmp_path, label_source="fer2013new.csv")
    (tmp_path / "fer2013new.csv").unlink()
    with pytest.raises(DataError, match=r"label_source: no fer2013new\.csv at"):
        load_dataset("ferplus", tmp_path, label_source="fer2013new.csv")


def ferplus_csvs(root: Path) -> list[list[Any]]:
    """fer2013.csv with fer2013new.csv: row 3 has no name, so later numbers lag behind their rows; one is repeated."""
    names = ["" if number is None else f"fer{number:07}.png" for number in (0, 1, None, 2, 3, 3, 4)]
    rows: list[list[Any]] = []
    for usage in ("Training", "PublicTest"):
        rows += [[usage, name, *(ballots(VOTES[k]) if name else [0] * 9 + [10])] for k, name in enumerate(names)]
    fer2013_csv(root / "fer2013.csv", usages=("Training", "PublicTest"))
    write_csv(root / "fer2013new.csv", rows, ["Usage", "Image name", *VOTES])
    return rows


def test_ferplus_csvs_are_joined_by_row_order(tmp_path: Path) -> None:
    ferplus_csvs(tmp_path)
    manifest = read_manifest(find_dataset("ferplus", tmp_path), DataOptions())
    train = [sample for sample in manifest.samples if sample.split == "train"]
    assert [sample.id for sample in train][3:5] == ["fer0000003.png row 5", "fer0000003.png row 6"]
    for sample, row in zip(train, (0, 1, 3, 4, 5, 6), strict=True):
        np.testing.assert_array_equal(sample.image, face(row))
        assert sample.votes == tuple(ballots(VOTES[row]))
    with pytest.raises(DataError, match=r"label_source: layout csv has the votes of fer2013new\.csv only"):
        load_dataset("ferplus", tmp_path, label_source="label.csv")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("drop", "two files must have the same rows"),
        ("add", "more rows than"),
        ("usage", "Usage 'Training', but Usage 'PublicTest'"),
    ],
)
def test_ferplus_csvs_of_other_rows_are_refused(tmp_path: Path, change: str, expected: str) -> None:
    rows = ferplus_csvs(tmp_path)
    rows = {"drop": rows[:-1], "add": [*rows, rows[-1]], "usage": rows[::-1]}[change]
    write_csv(tmp_path / "fer2013new.csv", rows, ["Usage", "Image name", *VOTES])
    with pytest.raises(DataError, match=expected):
        load_dataset("ferplus", tmp_path)


def test_ferplus_class_folders_have_no_votes(tmp_path: Path) -> None:
    root = tmp_path / "fer2013plus" / "fer2013"
    for n, part in enumerate(("train", "test")):
        for k, name in enumerate(VOTES[:8]):
            for copy in range(10):
                number = 1000 * n + 10 * k + copy
                save(root / part / name / f"fer{number:07}.png", face(number))
    splits = load_dataset("auto", tmp_path, parts=ALL)
    assert [len(split) for split in splits.values()] == [72, 8, 80]
    assert "held out for validation" in splits["validation"].protocol
    with pytest.raises(DataError, match="class folders hold labels without votes"):
        load_dataset("ferplus", tmp_path, label_mode="crossentropy")


def test_ferplus_subset_lists_spell_names_in_two_ways(tmp_path: Path) -> None:
    ferplus_folders(tmp_path)
    listed = tmp_path / "pose.txt"
    listed.write_text("1/fer0002001.jpg\n3_fer0002003.png 8 2\n")
    test = load_dataset("ferplus", tmp_path, subset=str(listed), parts=("test",))["test"]
    assert test.ids == ("fer0002001.png", "fer0002003.png")


def test_ferplus_missing_and_bad_files_are_named(tmp_path: Path) -> None:
    ferplus_folders(tmp_path)
    (tmp_path / "FER2013Train" / "fer0000003.png").unlink()
    with pytest.raises(DataError, match=r"1 of 16 images.*fer0000003\.png is missing"):
        load_dataset("ferplus", tmp_path)
    path = tmp_path / "FER2013Valid" / "label.csv"
    path.write_text(path.read_text().replace(",10,", ",ten,", 1))
    with pytest.raises(DataError, match=r"label\.csv, line 1, column 'neutral': expected a number of votes, got 'ten'"):
        load_dataset("ferplus", tmp_path)
    path.write_text("fer0001000.png,1,2\n")
    with pytest.raises(DataError, match="3 fields, expected 12"):
        load_dataset("ferplus", tmp_path)


# real faces


@pytest.fixture(scope="module")
def real_labels(real_data: Path) -> list[dict[str, str]]:
    """Rows of the labels beside the real faces: Training and PublicTest."""
    with (real_data / "faces48" / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Images kept of the 35,714 named rows of fer2013new.csv (Training, PublicTest). Four names occur twice there; the
# faces at hand have no votes for those, three in Training and one in PublicTest.
KEPT = {
    "majority": (25060, 3199),
    "crossentropy": (27956, 3505),
    "probability": (27956, 3505),
    "multi_target": (27671, 3472),
}
REPEATED = (3, 1)


@pytest.mark.parametrize("mode", KEPT)
def test_label_modes_keep_as_many_real_images_as_the_reference(mode: Any, real_labels: list[dict[str, str]]) -> None:
    kept: Counter[str] = Counter()
    for row in real_labels:
        if row["neutral"] and judge(tuple(int(row[name]) for name in VOTES), mode) is not None:
            kept[row["usage"]] += 1
    expected = tuple(count - repeated for count, repeated in zip(KEPT[mode], REPEATED, strict=True))
    assert (kept["Training"], kept["PublicTest"]) == expected


def test_real_majority_labels_per_class(real_labels: list[dict[str, str]]) -> None:
    """Within 0.5 % of the reference's training counts, which are of the other label source."""
    reference = dict(zip(CLASS_NAMES, (8733, 7284, 3136, 3022, 2098, 116, 536, 120), strict=True))
    counts: Counter[str] = Counter()
    for row in real_labels:
        if row["usage"] == "Training" and row["neutral"]:
            verdict = judge(tuple(int(row[name]) for name in VOTES), "majority")
            if verdict is not None:
                counts[CLASS_NAMES[verdict.label]] += 1
    assert counts == {name: pytest.approx(n, rel=0.005, abs=5) for name, n in reference.items()}
