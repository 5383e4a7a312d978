# SPDX-License-Identifier: Apache-2.0
"""Divisions that do not flatter: the test part stays out, persons stay together, limits draw from every class."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_trees import (
    RAFD_NAMES,
    ck_official,
    ck_sequences,
    face,
    fer2013_csv,
    fer2013_folders,
    ferplus_folders,
    jaffe,
    raf_kaggle,
    raf_official,
    rafd,
    save,
)

from fastfer.data import DataError, canonical_name, load_dataset, load_folds, load_lazily
from fastfer.data.check import check
from fastfer.data.folds import draw_per_class
from fastfer.data.loading import find_dataset
from fastfer.data.options import DataOptions, parse_options
from fastfer.data.votes import judge

pytestmark = pytest.mark.usefixtures("one_thread")

# the official test part


def official_test_images(root: Path, name: str) -> set[bytes]:
    return {image.tobytes() for image in load_dataset(name, root, parts=("test",))["test"].images}


TESTED: dict[str, tuple[Callable[[Path], object], str, int, int]] = {
    "raf_db": (raf_official, "raf_db", 14, 7),
    "raf_db kaggle": (raf_kaggle, "raf_db", 14, 7),
    "fer2013 csv": (lambda root: fer2013_csv(root / "fer2013.csv"), "fer2013", 14, 7),
    "fer2013 folders": (fer2013_folders, "fer2013", 14, 7),
    "ferplus": (ferplus_folders, "ferplus", 16, 8),
}


@pytest.mark.parametrize(("build", "name", "pool", "test"), TESTED.values(), ids=TESTED)
@pytest.mark.parametrize("split", ["2-fold", "50-50"])
def test_folds_and_proportions_leave_the_official_test_part_alone(
    tmp_path: Path, build: Callable[[Path], object], name: str, pool: int, test: int, split: str
) -> None:
    build(tmp_path)
    tested = official_test_images(tmp_path, name)
    splits = load_dataset(name, tmp_path, split=split, parts=("train", "validation", "test"))
    assert len(splits["train"]) + len(splits["validation"]) == pool
    assert {image.tobytes() for image in splits["test"].images} == tested
    for part in ("train", "validation"):
        assert not tested & {image.tobytes() for image in splits[part].images}
    assert f"the set's own {test} test images are kept out" in splits["train"].protocol


def test_proportions_with_a_test_part_of_their_own_say_what_they_train_on(tmp_path: Path) -> None:
    """As papers do that divide the whole of RAF-DB anew: their test set is another one."""
    raf_official(tmp_path, train=70, test=35)
    splits = load_dataset("raf_db", tmp_path, split="7-1-2", parts=("train", "validation", "test"))
    assert sum(map(len, splits.values())) == 105
    assert splits["train"].ids is not None
    mixed = sum(id_.startswith("test_") for id_ in splits["train"].ids)
    assert mixed > 15
    for split in splits.values():
        assert f"{mixed} of the set's own 35 test images are in training" in split.protocol


def test_all_folds_leave_it_alone_too(tmp_path: Path) -> None:
    raf_official(tmp_path, train=70, test=35)
    folds = load_folds("raf_db", tmp_path, split="5-fold")
    assert len(folds) == 5
    ids = [id_ for fold in folds for id_ in fold["validation"].ids or ()]
    assert len(ids) == len(set(ids)) == 70
    assert all(id_.startswith("train_") for id_ in ids)


# persons


def into_folders(root: Path, flat: Path, label: Callable[[str], str], split: bool = False) -> Path:
    """The images of ``flat`` sorted into class folders, by every other one into train and test where asked."""
    for number, path in enumerate(sorted(flat.iterdir())):
        if path.suffix != ".txt":
            part = ("train", "test")[number % 2] if split else ""
            target = root / part / label(path.name) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return root


def jaffe_label(name: str) -> str:
    return canonical_name(name.split(".")[1][:2])


def rafd_label(name: str) -> str:
    return name.split("_")[4]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("lower", [False, True])
def test_jaffe_in_class_folders_is_divided_by_person(tmp_path: Path, split: bool, lower: bool) -> None:
    flat = jaffe(tmp_path / "flat")
    if lower:
        for path in flat.glob("*.tiff"):
            path.rename(path.with_name(path.name.lower()))
    root = into_folders(tmp_path / "sorted", flat, jaffe_label, split)
    assert find_dataset("auto", root).dataset.name == "jaffe"
    folds = load_folds("auto", root)
    assert len(folds) == 3
    for fold in folds:
        assert not set(fold["train"].subjects or ()) & set(fold["validation"].subjects or ())
    assert {subject for fold in folds for subject in fold["validation"].subjects or ()} == {"KA", "KL", "KM"}
    said = "the split of the folders is not used: 3 of 3 persons are in more than one part" in fold["train"].protocol
    assert said == split
    assert check(root).problems == []


@pytest.mark.parametrize("split", [False, True])
def test_rafd_in_class_folders_is_divided_by_person(tmp_path: Path, split: bool) -> None:
    root = into_folders(tmp_path / "sorted", rafd(tmp_path / "flat"), rafd_label, split)
    found = find_dataset("auto", root)
    assert (found.dataset.name, found.place) == ("rafd", root)
    splits = load_lazily("auto", root, size=16)
    train, held = ({sample.subject for sample in splits[part].samples} for part in ("train", "validation"))
    assert (len(train), held) == (9, {"01", "11"})


def test_a_split_by_person_in_the_folders_is_kept(tmp_path: Path) -> None:
    for part, subjects in (("train", ("KA", "KL")), ("test", ("KM",))):
        into_folders(tmp_path / "sorted" / part, jaffe(tmp_path / f"flat {part}", subjects), jaffe_label)
    splits = load_dataset("auto", tmp_path / "sorted", split="official", parts=("train", "test"))
    assert [set(split.subjects or ()) for split in splits.values()] == [{"KA", "KL"}, {"KM"}]


def test_a_name_and_a_folder_that_disagree_are_named(tmp_path: Path) -> None:
    root = into_folders(tmp_path / "sorted", jaffe(tmp_path / "flat"), jaffe_label)
    path = next((root / "anger").iterdir())
    path.rename(root / "fear" / path.name)
    with pytest.raises(DataError, match=r"lies in the folder of fear, but its name says anger"):
        load_dataset("auto", root)


def test_an_image_folder_that_parts_persons_says_so(tmp_path: Path) -> None:
    root = into_folders(tmp_path / "sorted", jaffe(tmp_path / "flat"), jaffe_label, split=True)
    split = load_dataset("image_folder", root, parts=("test",))["test"]
    assert "3 of 3 persons are in more than one part of the folders" in split.protocol


@pytest.mark.parametrize("build", ["jaffe", "ck48"])
def test_an_image_folder_of_named_files_is_divided_by_person(tmp_path: Path, build: str) -> None:
    if build == "jaffe":
        root = into_folders(tmp_path / "sorted", jaffe(tmp_path / "flat"), jaffe_label)
    else:
        root = tmp_path
        for subject in (10, 11, 12):
            for name in ("anger", "happy"):
                for frame in (8, 9):
                    save(root / name / f"S{subject:03}_001_{frame:08}.png", face(subject * frame + len(name), 8, 8))
    fold = load_folds("image_folder", root, split="3-fold", size=8)[0]
    assert not set(fold["train"].subjects or ()) & set(fold["validation"].subjects or ())
    assert "3 persons, by the file names" in fold["train"].protocol


# CK+, RaFD, FERPlus as papers use them


def test_ck_plus_classes_as_papers_count_them(tmp_path: Path) -> None:
    root = ck_official(tmp_path, ck_sequences(3))
    options: dict[str, object] = {"size": 8, "split": "3-fold"}

    def counts(**more: object) -> dict[str, int]:
        splits = load_lazily("ck_plus", root, **options, **more)
        names = [split.names[label] for split in splits.values() for label in split.labels]
        return {name: names.count(name) for name in splits["train"].names}

    six = ("happiness", "surprise", "sadness", "anger", "disgust", "fear")
    assert counts(classes=6, frames=1) == dict.fromkeys(six, 3)
    assert counts(classes=7, frames=1) == dict.fromkeys((*six, "contempt"), 3)
    assert counts(classes=7) == dict.fromkeys((*six, "contempt"), 9)
    natural = counts(classes=7, frames=1, neutral="labelled")
    assert natural == {"neutral": 21, **dict.fromkeys(six, 3)}
    assert counts(classes=7, frames=1, neutral="all")["neutral"] == 24
    assert counts(classes=8, frames=1) == {"neutral": 21, **dict.fromkeys((*six, "contempt"), 3)}


def test_ck_plus_of_several_sizes_is_resized_to_what_the_network_is_shown(tmp_path: Path) -> None:
    """The official tree has frames of 640x480, 640x490 and 720x480, grey and in colour."""
    root = ck_official(tmp_path, ck_sequences(3))
    with pytest.raises(DataError, match=r"differ in size .*--data-options\.size in training, --option size="):
        load_dataset("ck_plus", root, split="3-fold")
    splits = load_dataset("ck_plus", root, split="3-fold", mixed_size=24)
    assert splits["train"].images.shape[1:] == (3, 24, 24)
    assert "images of several sizes (64x48, 64x49) resized to 24x24" in splits["train"].protocol
    fixed = load_dataset("ck_plus", root, split="3-fold", size=16, mixed_size=24)
    assert fixed["train"].images.shape[1:] == (3, 16, 16)
    jaffe(tmp_path / "jaffe")
    assert load_dataset("jaffe", tmp_path / "jaffe", mixed_size=24)["train"].images.shape[1:] == (32, 32)


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [
        (None, {90}),
        ("frontal", {90}),
        ("all", {0, 45, 90, 135, 180}),
        ("half", {45, 90, 135}),
        ("0,90", {0, 90}),
        ([45, 90], {45, 90}),
        (45, {45}),
    ],
)
def test_rafd_cameras(tmp_path: Path, cameras: object, expected: set[int]) -> None:
    for camera in (0, 45, 90, 135, 180):
        for model in (1, 2):
            for name in RAFD_NAMES[:2]:
                path = tmp_path / f"Rafd{camera:03}_{model:02}_Kid_male_{name}_left.jpg"
                save(path, face(camera + model + len(name), 8, 8))
    splits = load_lazily("rafd", tmp_path, size=8, split="2-fold", cameras=cameras)
    assert {int(sample.id[4:7]) for split in splits.values() for sample in split.samples} == expected


def test_argmax_keeps_every_image() -> None:
    names = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
    for votes, label in (
        ([0, 4, 4, 0, 0, 0, 0, 0, 1, 1], "happiness"),  # the first of equals
        ([1, 0, 0, 2, 0, 0, 0, 0, 7, 0], "sadness"),  # unknown has most
        ([0, 0, 0, 0, 0, 0, 1, 0, 0, 9], "fear"),  # a single vote counts
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], "neutral"),  # as argmax over eight zeros
    ):
        verdict = judge(tuple(votes), "argmax")
        assert verdict is not None
        assert names[verdict.label] == label
    soft = judge((1, 0, 0, 3, 0, 0, 0, 0, 6, 0), "votes")
    assert soft is not None
    assert soft.probabilities.tolist() == [0.25, 0, 0, 0.75, 0, 0, 0, 0]
    assert judge((0,) * 9 + (10,), "votes") is None


@pytest.mark.parametrize("mode", ["argmax", "votes"])
def test_validation_is_by_argmax_where_training_is(tmp_path: Path, mode: str) -> None:
    rows = [(f"fer000{k}000.png", [0] * k + [10] + [0] * (9 - k)) for k in range(8)]
    doubtful = [("fer0009000.png", [4, 3, 0, 0, 0, 0, 0, 0, 3, 0]), ("fer0009001.png", [1, 0, 0, 0, 0, 0, 0, 0, 9, 0])]
    ferplus_folders(tmp_path, {"FER2013Train": [*rows, *doubtful], "FER2013Valid": [*rows, *doubtful]})
    splits = load_dataset("ferplus", tmp_path, label_mode=mode)
    assert [len(split) for split in splits.values()] == [10, 10]
    assert splits["validation"].counts()["neutral"] == 3
    assert splits["validation"].soft is None
    assert (splits["train"].soft is not None) == (mode == "votes")
    assert [len(split) for split in load_dataset("ferplus", tmp_path).values()] == [8, 8]
    folds = load_lazily("ferplus", tmp_path, label_mode=mode, split="2-fold")
    assert sum(len(split) for split in folds.values()) == 20


def test_real_ferplus_under_argmax(real_data: Path) -> None:
    """Every row with a name: the paper's 28,558 (our labels of Training give that, of PublicTest one name less)."""
    with (real_data / "faces48" / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["ferplus_name"]]
    columns = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
    kept = [row["usage"] for row in rows if judge(tuple(int(row[name]) for name in columns), "argmax")]
    assert (kept.count("Training"), kept.count("PublicTest")) == (28558, 3578)


# limits


def test_limits_draw_from_every_class(tmp_path: Path) -> None:
    for part, count in (("train", 40), ("val", 20)):
        for k, name in enumerate(("angry", "fear", "happy")):
            for n in range(count // (k + 1)):
                save(tmp_path / part / name / f"{n:03}.png", face(1000 * k + n + len(part), 8, 8))
    splits = load_dataset("auto", tmp_path, train_images=30, validation_images=12)
    assert splits["train"].counts() == {"happiness": 5, "anger": 17, "fear": 8}  # of 13, 40 and 20
    assert sum(splits["validation"].counts().values()) == 12
    assert min(splits["validation"].counts().values()) >= 2
    again = load_dataset("auto", tmp_path, train_images=30, validation_images=12)
    assert again["train"].fingerprint() == splits["train"].fingerprint()
    other = load_dataset("auto", tmp_path, train_images=30, validation_images=12, seed=1)
    assert other["train"].ids != splits["train"].ids
    assert len(load_dataset("auto", tmp_path, train_images=1000)["train"]) == 73


def test_draws_are_proportional_and_the_same_everywhere() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    for count in range(101):
        chosen = draw_per_class(labels, count, seed=3)
        assert len(chosen) == len(set(chosen.tolist())) == count
        assert (np.diff(chosen) > 0).all()
        counts = np.bincount(labels[chosen], minlength=3)
        assert np.abs(counts - np.array([0.7, 0.2, 0.1]) * count).max() < (1 if count > 10 else 2)
        assert counts.min() >= 1 or count < 3
    assert draw_per_class(labels[::9], 5, seed=0).tolist() == DRAWN
    with pytest.raises(ValueError, match="count: expected 0 to 100, got 101"):
        draw_per_class(labels, 101, seed=0)


DRAWN = [0, 4, 6, 9, 11]


# options by name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("classes=7", {"classes": 7}),
        ("classes=happy,sad", {"classes": ("happy", "sad")}),
        ('classes=["happy", "sad"]', {"classes": ("happy", "sad")}),
        ("cameras=45,90", {"cameras": (45, 90)}),
        ("cameras=[45, 90]", {"cameras": (45, 90)}),
        ("gazes=left,right", {"gazes": ("left", "right")}),
        ("validation=0.2", {"validation": "0.2"}),
        ("by-image=true", {"by_image": True}),
        ("split=10-fold", {"split": "10-fold"}),
    ],
)
def test_forms_of_options(text: str, expected: dict[str, object]) -> None:
    options = DataOptions(**parse_options([text]))
    assert {name: getattr(options, name) for name in expected} == expected
    assert options.changed() == [*expected]
    assert json.loads(json.dumps(list(expected.values())))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'classes=[["happy"]]',
            r"classes: expected 6, 7, 8 or class names such as happy,sad or .* got \(\['happy'\],\)",
        ),
        ("classes=true", "classes: expected 6, 7, 8 or class names"),
        ("classes=7.5", "classes: expected 6, 7, 8 or class names"),
        ('classes={"a": 1}', "classes: expected 6, 7, 8 or class names"),
        ("classes=", "classes: expected 6, 7, 8 or class names"),
        ("cameras=[[45]]", "cameras: expected frontal, half, all or angles"),
        ("frames=three", "frames: expected a whole number, got 'three'"),
        ("frames=1" + "0" * 400, "frames: expected a whole number"),
        ("by_image=yes", "by_image: expected true or false, got 'yes'"),
        ("split=10", "split: expected text, got 10"),
        ("codes=" + "[" * 100_000, "codes: expected one of"),
        ("classes=" + "[" * 100_000, "classes: expected 6, 7, 8 or class names"),
        ("classes", "option: expected NAME=VALUE, got 'classes'"),
    ],
)
def test_options_of_another_form_name_it(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        DataOptions(**parse_options([text]))
    assert len(str(caught.value)) < 500
