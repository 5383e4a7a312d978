# SPDX-License-Identifier: Apache-2.0
"""RAF-DB, RaFD, JAFFE and any class folders, in the layouts that users have on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import (
    JAFFE_CODES,
    RAF_DB_CODES,
    face,
    jaffe,
    names_of,
    raf_kaggle,
    raf_official,
    rafd,
    save,
)

from fastfer.data import (
    DataError,
    DataOptions,
    Split,
    canonical_name,
    list_datasets,
    list_layouts,
    load_dataset,
    load_lazily,
)
from fastfer.data.check import check


def subjects_of(split: Split) -> set[str]:
    assert split.subjects is not None
    return set(split.subjects)


def test_every_data_set_and_layout_has_a_name() -> None:
    assert {name: [*list_layouts(name)] for name in list_datasets()} == {
        "affectnet": ["annotations", "folders"],
        "ck_plus": ["official", "ck48", "csv"],
        "drawn": [],
        "fer2013": ["csv", "train-csv", "folders", "other-folders", "parquet"],
        "ferplus": ["folders", "csv", "class-folders"],
        "image_folder": ["class-folders", "list", "other-folders"],
        "jaffe": ["files"],
        "raf_db": ["official", "kaggle", "parquet"],
        "rafd": ["files"],
    }


@pytest.mark.parametrize(
    ("name", "spelling"), [("ck_plus", "CK+"), ("raf_db", "RAF-DB"), ("rafd", "RaFD"), ("image_folder", "ImageFolder")]
)
def test_names_may_be_spelt_as_in_papers(tmp_path: Path, name: str, spelling: str) -> None:
    with pytest.raises(DataError, match=f"holds none of: {name} "):
        load_dataset(spelling, tmp_path)


@pytest.mark.parametrize(
    ("labels", "options", "names"),
    [
        (("0", "1"), {"codes": "affectnet"}, ("neutral", "happiness")),
        (("开心", "bored"), {"classes": ("开心", "bored")}, ("开心", "bored")),
    ],
)
def test_folders_of_other_names_need_no_name_of_the_set_where_options_explain_them(
    tmp_path: Path, labels: tuple[str, ...], options: dict[str, Any], names: tuple[str, ...]
) -> None:
    for n, label in enumerate(labels):
        for k in range(4):
            save(tmp_path / ("val" if k == 3 else "train") / label / f"{k}.png", face(10 * n + k))
    split = load_dataset("auto", tmp_path, **options)["train"]
    assert sorted(names_of(split)) == sorted(3 * names)
    assert check(tmp_path, options=DataOptions(**options)).problems == []
    with pytest.raises(DataError, match=r"no expressions: .* or name the data set .*image_folder\)$"):
        load_dataset("auto", tmp_path)


# RAF-DB


@pytest.mark.parametrize("suffix", ["_aligned", ""])
def test_raf_db_maps_its_codes_and_finds_both_spellings(tmp_path: Path, suffix: str) -> None:
    raf_official(tmp_path, suffix)
    splits = load_dataset("auto", tmp_path, parts=("train", "test"))
    assert names_of(splits["train"]) == [*RAF_DB_CODES[1:]] * 2
    assert names_of(splits["test"]) == [*RAF_DB_CODES[1:]]
    assert splits["train"].images.shape == (14, 3, 20, 20)


def test_raf_db_original_photographs(tmp_path: Path) -> None:
    raf_official(tmp_path)
    with pytest.raises(DataError, match="differ in size"):
        load_dataset("raf_db", tmp_path, aligned=False, parts=("train",))
    assert load_dataset("raf_db", tmp_path, aligned=False, size=24, parts=("test",))["test"].images.shape[2:] == (
        24,
        24,
    )


def test_raf_db_validation_is_held_out_or_the_test_set(tmp_path: Path) -> None:
    raf_official(tmp_path, train=140)
    held = load_dataset("raf_db", tmp_path, parts=("train", "validation", "test"))
    assert [len(split) for split in held.values()] == [126, 14, 7]
    assert set(held["validation"].counts().values()) == {2}
    assert "10% of training held out" in held["validation"].protocol
    assert not set(held["train"].ids or ()) & set(held["validation"].ids or ())
    on_test = load_dataset("raf_db", tmp_path, validation="test")
    assert [len(split) for split in on_test.values()] == [140, 7]
    assert "validation on the test set" in on_test["validation"].protocol
    assert len(load_dataset("raf_db", tmp_path, validation="0.5")["train"]) == 70


def label_file(root: Path) -> Path:
    return root / "basic" / "EmoLabel" / "list_patition_label.txt"


def test_raf_db_lines_with_tabs_and_a_third_field(tmp_path: Path) -> None:
    raf_official(tmp_path)
    path = label_file(tmp_path)
    lines = path.read_text().splitlines()
    lines[0] = "train_00001.jpg\t1"
    lines[1] += " 9"
    path.write_text("\n".join([*lines, ""]))
    split = load_dataset("raf_db", tmp_path, parts=("train",))["train"]
    assert names_of(split)[:2] == ["surprise", "fear"]
    assert "1 lines of list_patition_label.txt have more" in split.protocol
    path.write_text("train_00001.jpg\n")
    with pytest.raises(DataError, match="line 1: expected a name and a code"):
        load_dataset("raf_db", tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train_0001.jpg 5", "4 digits, basic training images have 5: is this the compound release"),
        ("train_00001.jpg 8", "code '8'.*Compound expressions"),
        ("train_00001.jpg 0", "code '0'.*RAF-CE"),
        ("photo.jpg 1", "expected a name such as train_00001.jpg"),
    ],
)
def test_raf_db_refuses_compound_labels(tmp_path: Path, line: str, expected: str) -> None:
    raf_official(tmp_path)
    path = label_file(tmp_path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=expected) as caught:
        load_dataset("raf_db", tmp_path)
    assert "line 22" in str(caught.value)


def test_raf_db_missing_images_are_counted(tmp_path: Path) -> None:
    raf_official(tmp_path)
    for name in ("train_00003", "train_00004", "test_0002"):
        (tmp_path / "basic" / "Image" / "aligned" / f"{name}_aligned.jpg").unlink()
    with pytest.raises(DataError, match=r"3 of 21 images.*train_00003_aligned\.jpg is missing"):
        load_dataset("raf_db", tmp_path, parts=("train", "test"))


def test_raf_db_kaggle_folders_count_from_one(tmp_path: Path) -> None:
    raf_kaggle(tmp_path)
    splits = load_dataset("auto", tmp_path, parts=("train", "test"))
    for split in splits.values():
        assert split.ids is not None
        expected = [RAF_DB_CODES[(int(name.split("_")[1]) - 1) % 7 + 1] for name in split.ids]
        assert names_of(split) == expected
    assert len(splits["train"]) == 14
    with pytest.raises(DataError, match="'1' is no expression; numbers as names do not say"):
        load_dataset("image_folder", tmp_path)


@pytest.mark.parametrize("code", ["0", "8", "11"])
def test_raf_db_kaggle_folders_of_other_codes(tmp_path: Path, code: str) -> None:
    raf_kaggle(tmp_path)
    save(tmp_path / "DATASET" / "train" / code / "train_00099_aligned.jpg", face(0, 20, 20, colour=True))
    with pytest.raises(DataError, match=f"code '{code}', expected 1 surprise"):
        load_dataset("raf_db", tmp_path)


def test_raf_db_kaggle_csv_and_folders_must_agree(tmp_path: Path) -> None:
    raf_kaggle(tmp_path)
    train = tmp_path / "DATASET" / "train"
    (train / "1" / "train_00001_aligned.jpg").rename(train / "2" / "train_00001_aligned.jpg")
    (train / "3" / "train_00003_aligned.jpg").unlink()
    with pytest.raises(DataError, match=r"2 of \d+ .*folder 2, but 1 in train_labels\.csv.*00003_aligned\.jpg is"):
        load_dataset("raf_db", tmp_path)


OCCLUSION = "test_0002_aligned 1 4\ntest_0005_aligned 3 2\ntest_0005_aligned 3 2\n"
POSE = "4/test_0002_aligned.jpg\n2/test_0005_aligned.jpg\n9/test_0999_aligned.jpg\n"


@pytest.mark.parametrize(("text", "note"), [(OCCLUSION, "2 of 2"), (POSE, "2 of 3")])
def test_raf_db_subsets_by_lists_of_names(tmp_path: Path, text: str, note: str) -> None:
    raf_official(tmp_path)
    listed = tmp_path / "list.txt"
    listed.write_text(text)
    splits = load_dataset("raf_db", tmp_path, subset=str(listed), parts=("train", "test"))
    assert splits["test"].ids == ("test_0002", "test_0005")
    assert f"subset list.txt: {note} listed images" in splits["test"].protocol
    assert len(splits["train"]) == 14
    listed.write_text("test_0998_aligned\n")
    with pytest.raises(DataError, match="none of the 1 names"):
        load_dataset("raf_db", tmp_path, subset=str(listed), parts=("test",))


# RaFD


def test_rafd_is_read_from_its_names(tmp_path: Path) -> None:
    rafd(tmp_path)
    splits = load_lazily("auto", tmp_path, size=16)
    samples = [sample for split in splits.values() for sample in split.samples]
    assert len(samples) == 11 * 8 * 2  # camera 090 only
    assert all(sample.label == canonical_name(sample.id.split("_")[4]) for sample in samples)
    assert len(splits["train"].names) == 8
    assert {sample.subject for sample in splits["validation"].samples} == {"01", "11"}
    frontal = load_lazily("rafd", tmp_path, size=16, gazes=("frontal",), cameras=(45, 90))
    assert len(frontal["train"]) + len(frontal["validation"]) == 11 * 8
    with pytest.raises(DataError, match=r"cameras: expected some of 0, 45, 90, 135, 180, .*all, got 30"):
        load_lazily("rafd", tmp_path, cameras=(30,))


def test_rafd_names_may_carry_a_prefix_but_no_image_may_be_there_twice(tmp_path: Path) -> None:
    rafd(tmp_path, prefix="cropped_")
    assert len(load_lazily("rafd", tmp_path, size=16)["train"]) == 9 * 16
    rafd(tmp_path, models=(3,))
    with pytest.raises(DataError, match=r"twice: .*cropped_Rafd045_03"):
        load_lazily("rafd", tmp_path, size=16)


def test_rafd_faces_are_cropped_before_the_resize(tmp_path: Path) -> None:
    rafd(tmp_path, models=range(1, 11))
    splits = load_dataset("rafd", tmp_path, size=8, transform=lambda image: np.full_like(image[:20, :20], 7))
    assert (splits["train"].images == 7).all()
    assert splits["train"].images.shape == (9 * 16, 3, 8, 8)

    def fails(image: np.ndarray) -> np.ndarray:
        raise ValueError("no face found")

    with pytest.raises(DataError, match=r"144 of 144 images cannot be used: .*\.jpg: no face found"):
        load_dataset("rafd", tmp_path, size=8, transform=fails)


# JAFFE


@pytest.mark.parametrize("suffix", ["tiff", "png", "tiff.bmp"])
def test_jaffe_leaves_one_subject_out(tmp_path: Path, suffix: str) -> None:
    jaffe(tmp_path / "jaffe", suffix=suffix)
    splits = load_dataset("auto", tmp_path, fold=1)
    assert subjects_of(splits["validation"]) == {"KL"}
    assert subjects_of(splits["train"]) == {"KA", "KM"}
    assert splits["train"].ids is not None
    assert names_of(splits["train"]) == [JAFFE_CODES[name[3:5]] for name in splits["train"].ids]
    np.testing.assert_array_equal(splits["train"].images[0], face(1, 32, 32))
    with pytest.raises(DataError, match="fold: expected 0 to 2, got 3"):
        load_dataset("jaffe", tmp_path, fold=3)


def test_jaffe_in_two_formats_is_refused(tmp_path: Path) -> None:
    jaffe(tmp_path)
    jaffe(tmp_path, subjects=("KA",), suffix="png")
    with pytest.raises(DataError, match=r"KA\.AN1\.1 twice"):
        load_dataset("jaffe", tmp_path)


# class folders


def test_class_folders_are_mapped_by_name(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for k, name in enumerate(("Angry", "afraid", "happiness")):
            save(tmp_path / part / name / "a.png", face(k, 10, 10, colour=True))
    splits = load_dataset("auto", tmp_path, parts=("train", "validation", "test"))
    for split in splits.values():
        assert split.names == ("happiness", "anger", "fear")
        assert names_of(split) == ["anger", "fear", "happiness"]
    assert splits["train"].ids == ("train/Angry/a.png", "train/afraid/a.png", "train/happiness/a.png")


def test_class_folders_without_splits_need_a_rule(tmp_path: Path) -> None:
    for k in range(40):
        save(tmp_path / ("happy", "sad")[k % 2] / f"{k}.png", face(k, 10, 10))
    with pytest.raises(DataError, match="no split of its own; choose 10-fold or proportions"):
        load_dataset("auto", tmp_path)
    splits = load_dataset("auto", tmp_path, split="8-1-1", parts=("train", "validation", "test"))
    assert [split.counts() for split in splits.values()] == [{"happiness": n, "sadness": n} for n in (16, 2, 2)]
    assert len(load_dataset("auto", tmp_path, split="10-fold", fold=9)["validation"]) == 4


def test_class_folders_of_other_names(tmp_path: Path) -> None:
    for k, name in enumerate(("bored", "awake", "happy")):
        save(tmp_path / "train" / name / "a.png", face(k, 10, 10))
    with pytest.raises(DataError, match="class folder 'awake' is no expression"):
        load_dataset("image_folder", tmp_path, parts=("train",))
    split = load_dataset("image_folder", tmp_path, parts=("train",), classes=("bored", "awake", "happy"))["train"]
    assert names_of(split) == ["awake", "bored", "happiness"]


def test_class_folders_twice_the_same_split(tmp_path: Path) -> None:
    for part in ("val", "validation"):
        save(tmp_path / part / "happy" / "a.png", face(1))
    with pytest.raises(DataError, match="two validation folders: val and validation"):
        load_dataset("image_folder", tmp_path)
