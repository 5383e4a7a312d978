# SPDX-License-Identifier: Apache-2.0
"""CK+ as published, as CK+48 and as ckextended.csv."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data_trees import (
    CK_CODES,
    FER2013_NAMES,
    ck_official,
    ck_sequences,
    face,
    names_of,
    pixels,
    save,
    write_csv,
)

from fastfer.data import DataError, Split, canonical_name, load_dataset, load_lazily
from fastfer.data.loading import find_dataset

SUBJECTS = 11


@pytest.fixture(scope="module")
def ck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CK+ of 11 subjects, each with every label once and a sequence without; to be read only."""
    return ck_official(tmp_path_factory.mktemp("ck"), ck_sequences(SUBJECTS))


def subjects_of(split: Split) -> set[str]:
    assert split.subjects is not None
    return set(split.subjects)


def test_ck_plus_takes_the_last_frames_and_maps_codes_by_name(ck: Path) -> None:
    splits = load_lazily("ck_plus", ck, size=48)
    samples = [sample for split in splits.values() for sample in split.samples]
    assert len(samples) == SUBJECTS * 7 * 3  # the unlabelled sequence counts for nothing
    assert {sample.id[-6:-4] for sample in samples} == {"02", "03", "04"}
    assert all(sample.label == CK_CODES[int(sample.id[5:8])] for sample in samples)
    assert splits["train"].names == ("happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
    assert len(load_dataset("ck_plus", ck, size=8, frames=1)["train"]) == 7 * 9


def test_ck_plus_folds_by_subject_as_in_the_ten_fold_protocol(ck: Path) -> None:
    seen = []
    for fold in range(10):
        splits = load_lazily("ck_plus", ck, fold=fold, size=48)
        held = {str(sample.subject) for sample in splits["validation"].samples}
        assert not held & {sample.subject for sample in splits["train"].samples}
        seen += sorted(held)
        assert f"fold {fold} of 10 by subject" in splits["train"].protocol
    assert sorted(seen) == [f"S{10 + s:03}" for s in range(SUBJECTS)]
    assert seen[:3] == ["S010", "S020", "S011"]  # in ascending order, every tenth


@pytest.mark.parametrize(("classes", "count"), [(6, 6), (7, 7), (8, 8), (("happy", "sad"), 2)])
def test_ck_plus_classes(ck: Path, classes: object, count: int) -> None:
    split = load_dataset("ck_plus", ck, classes=classes, size=8)["train"]
    assert len(split.names) == count
    assert ("contempt" in split.names) == (classes in (7, 8))
    assert ("neutral" in split.names) == (classes == 8)
    if classes == 8:  # the first frame of each labelled sequence
        assert split.counts()["neutral"] == 9 * 7
        assert split.counts()["anger"] == 9 * 3


def test_ck_plus_neutral_of_all_sequences(ck: Path) -> None:
    counts = load_dataset("ck_plus", ck, neutral="all", frames=1, size=8)["train"].counts()
    assert counts["neutral"] == 9 * 8
    with pytest.raises(DataError, match="first would be neutral and"):
        load_dataset("ck_plus", ck, neutral="labelled", frames=4, size=8)


def test_ck_plus_images_of_several_sizes_and_colours_need_a_size(ck: Path) -> None:
    with pytest.raises(DataError, match=r"size: the images differ in size \(64x48, 64x49\)"):
        load_dataset("ck_plus", ck)
    assert load_dataset("ck_plus", ck, size=16)["train"].images.shape == (189, 3, 16, 16)
    assert load_dataset("ck_plus", ck, size=16, channels=1)["train"].images.shape == (189, 16, 16)


@pytest.mark.parametrize("outer", ["extended-cohn-kanade-images/cohn-kanade-images", "CK+/cohn-kanade-images"])
def test_ck_plus_with_folders_around(tmp_path: Path, outer: str) -> None:
    ck_official(tmp_path, ck_sequences(2))
    target = tmp_path / outer
    target.parent.mkdir()
    (tmp_path / "cohn-kanade-images").rename(target)
    labels = tmp_path / "Emotion_labels" / "Emotion"
    labels.parent.mkdir()
    (tmp_path / "Emotion").rename(labels)
    if outer.startswith("CK+"):
        labels.parent.rename(tmp_path / "CK+" / "Emotion_labels")
    assert len(load_lazily("auto", tmp_path, size=8, split="2-fold")["train"]) == 7 * 3


def test_ck_plus_refuses_a_random_split_unless_asked(ck: Path) -> None:
    by_subject = load_dataset("ck_plus", ck, split="7-1-2", size=8, parts=("train", "validation", "test"))
    subjects = [subjects_of(split) for split in by_subject.values()]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == SUBJECTS
    mixed = load_dataset("ck_plus", ck, split="90-10", by_image=True, size=8)
    assert subjects_of(mixed["train"]) & subjects_of(mixed["validation"])
    assert "by image" in mixed["train"].protocol
    with pytest.raises(DataError, match="has no official split"):
        load_dataset("ck_plus", ck, split="official", size=8)


@pytest.mark.parametrize(
    ("text", "expected"), [("0.0", "expected one of 1 anger"), ("8", "7 surprise"), ("x", "'x'"), ("1.5", "'1.5'")]
)
def test_ck_plus_bad_label_is_named(tmp_path: Path, text: str, expected: str) -> None:
    ck_official(tmp_path, ck_sequences(2))
    path = tmp_path / "Emotion" / "S010" / "001" / "S010_001_00000004_emotion.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=expected) as caught:
        load_dataset("ck_plus", tmp_path, size=8)
    assert str(path) in str(caught.value)


def test_ck_plus_missing_frames_are_counted(tmp_path: Path) -> None:
    ck_official(tmp_path, ck_sequences(3))
    images = tmp_path / "cohn-kanade-images"
    (images / "S010" / "001" / "S010_001_00000004.png").unlink()
    shutil.rmtree(images / "S011" / "002")
    with pytest.raises(DataError, match=r"2 of \d+ images.*S010_001_00000004 is missing.*S011/002 is labelled"):
        load_dataset("ck_plus", tmp_path, size=8)
    with pytest.warns(UserWarning, match="skipped: 2 of"):
        splits = load_dataset("ck_plus", tmp_path, size=8, skip_corrupt=True, split="2-fold", fold=1)
    assert len(splits["train"]) + len(splits["validation"]) == (3 * 7 - 2) * 3
    assert "2 unusable images skipped" in splits["train"].protocol


def ck48(root: Path) -> Path:
    """Frames of one sequence per subject and class; frame numbers differ."""
    for subject in range(10, 21):
        for k, name in enumerate(("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")):
            for frame in (9 + k, 10 + k, 11 + k):
                path = root / name / f"S{subject:03}_{k:03}_{frame:08}.png"
                save(path, face(1000 * subject + 50 * k + frame))
    return root


@pytest.mark.parametrize("folder", ["", "CK+48"])
def test_ck48_is_grouped_by_the_prefix_of_its_names(tmp_path: Path, folder: str) -> None:
    ck48(tmp_path / folder)
    splits = load_dataset("auto", tmp_path)
    assert splits["train"].images.shape == (9 * 21, 48, 48)
    assert not subjects_of(splits["train"]) & subjects_of(splits["validation"])
    assert splits["train"].counts()["happiness"] == 27
    last = load_dataset("ck_plus", tmp_path, frames=1)["train"]
    assert last.ids is not None
    assert {name[-6:-4] for name in last.ids if name.startswith("S011_000")} == {"11"}


def ck_csv(path: Path) -> Path:
    rows = [[k % 8, pixels(face(k)), ("Training", "PublicTest", "PrivateTest")[k // 16 % 3]] for k in range(48)]
    return write_csv(path, rows, ["emotion", "pixels", "Usage"])


def test_ckextended_csv_has_fer2013_codes_and_contempt(tmp_path: Path) -> None:
    ck_csv(tmp_path / "ckextended.csv")
    split = load_dataset("ck_plus", tmp_path, split="official")["train"]
    codes = [canonical_name(name) for name in (*FER2013_NAMES, "contempt")]
    assert names_of(split) == codes * 2
    assert len(load_dataset("ck_plus", tmp_path, split="official", classes=7)["train"].names) == 7
    assert find_dataset("auto", tmp_path / "ckextended.csv").dataset.name == "ck_plus"


def test_ckextended_csv_knows_no_subjects(tmp_path: Path) -> None:
    ck_csv(tmp_path / "ckextended.csv")
    with pytest.raises(DataError, match="must be split by subject, and its layout csv does not say"):
        load_dataset("ck_plus", tmp_path)
    with pytest.raises(DataError, match="must be split by subject"):
        load_dataset("ck_plus", tmp_path, split="90-10")
    assert len(load_dataset("ck_plus", tmp_path, split="2-fold", by_image=True)["train"]) == 24
