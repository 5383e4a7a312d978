# SPDX-License-Identifier: Apache-2.0
"""FER2013 as folders, train.csv and Parquet, and RAF-DB as Parquet; its csv is in test_data.py."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import (
    FER2013_NAMES,
    face,
    fer2013_csv,
    fer2013_folders,
    names_of,
    pixels,
    save,
    write_csv,
)
from PIL import Image

from fastfer.data import DataError, canonical_name, load_dataset
from fastfer.data.loading import find_dataset

ALL = ("train", "validation", "test")


def test_folders_are_split_by_file_name_and_mapped_by_folder_name(tmp_path: Path) -> None:
    fer2013_folders(tmp_path / "archive")
    splits = load_dataset("auto", tmp_path, parts=ALL)
    for n, part in enumerate(ALL):
        expected = {canonical_name(name): face(100 * n + k) for k, name in enumerate(FER2013_NAMES)}
        assert len(splits[part]) == 7
        for image, name in zip(splits[part].images, names_of(splits[part]), strict=True):
            np.testing.assert_array_equal(image, expected[name])


def test_folders_and_csv_give_the_same_labels(tmp_path: Path) -> None:
    """Alphabetical folder order would permute neutral, sadness and surprise."""
    fer2013_csv(tmp_path / "csv" / "fer2013.csv", per_usage=7)
    fer2013_folders(tmp_path / "folders")
    by_csv = load_dataset("fer2013", tmp_path / "csv")["train"]
    by_folder = load_dataset("fer2013", tmp_path / "folders")["train"]
    label_of = {image.tobytes(): label for image, label in zip(by_csv.images, by_csv.labels, strict=True)}
    assert [label_of[image.tobytes()] for image in by_folder.images] == by_folder.labels.tolist()


def test_a_recut_with_validation_folder_keeps_the_official_split_where_names_say_it(tmp_path: Path) -> None:
    fer2013_folders(tmp_path)
    (tmp_path / "test").rename(tmp_path / "validation")
    moved = tmp_path / "validation" / "sad" / "PublicTest_4.png"
    moved.rename(tmp_path / "train" / "sad" / "PublicTest_4.png")
    splits = load_dataset("fer2013", tmp_path, parts=ALL)
    assert [len(split) for split in splits.values()] == [7, 7, 7]
    assert "split by file name: 1 images lie in another split's folder" in splits["train"].protocol


def test_a_recut_without_prefixes_is_split_by_folder_and_says_so(tmp_path: Path) -> None:
    fer2013_folders(tmp_path, prefixed=False)
    (tmp_path / "test").rename(tmp_path / "validation")
    splits = load_dataset("auto", tmp_path)
    assert [len(split) for split in splits.values()] == [7, 14]
    assert "split by folder: the file names do not say the official split" in splits["train"].protocol
    assert splits["train"].protocol.startswith("fer2013 (folders)")


def test_numbered_images_of_some_of_the_classes_are_somebodys_own(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        for k, name in enumerate(FER2013_NAMES[:3]):
            save(tmp_path / part / name / f"{k}.png", face(k))
    assert load_dataset("auto", tmp_path)["train"].protocol.startswith("image_folder")


def test_folders_of_other_file_names_are_taken_where_the_set_is_named(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        for k, name in enumerate(FER2013_NAMES):
            save(tmp_path / part / name / f"face_{k}.png", face(k))
    assert load_dataset("auto", tmp_path)["train"].protocol.startswith("image_folder")
    assert load_dataset("fer2013", tmp_path)["train"].protocol.startswith("fer2013 (folders); split by folder")


def test_names_with_and_without_prefix_are_a_mixed_layout(tmp_path: Path) -> None:
    fer2013_folders(tmp_path)
    save(tmp_path / "train" / "sad" / "7.png", face(1))
    with pytest.raises(DataError, match=r"1 of 22 file names lack the prefix.*sad/7\.png: are two layouts mixed"):
        load_dataset("fer2013", tmp_path)


def test_the_same_file_name_in_two_classes_is_two_images(tmp_path: Path) -> None:
    fer2013_folders(tmp_path)
    save(tmp_path / "train" / "fear" / "Training_0.png", face(55))
    split = load_dataset("fer2013", tmp_path)["train"]
    assert split.ids is not None
    assert len(set(split.ids)) == len(split) == 8


def test_csv_and_folders_together_are_refused(tmp_path: Path) -> None:
    fer2013_csv(tmp_path / "fer2013.csv")
    fer2013_folders(tmp_path)
    with pytest.raises(DataError, match=r"ambiguous, it holds fer2013 csv at .*; fer2013 folders at"):
        load_dataset("fer2013", tmp_path)
    with pytest.warns(UserWarning, match="21 images lie outside the data set's folders: test/angry"):
        assert "csv" in load_dataset("fer2013", tmp_path, layout="csv")["train"].protocol
    with pytest.raises(
        DataError, match="layout: expected auto or one of csv, train-csv, folders, other-folders, parquet, got 'tar'"
    ):
        load_dataset("fer2013", tmp_path, layout="tar")


def test_two_csvs_are_refused(tmp_path: Path) -> None:
    fer2013_csv(tmp_path / "fer2013.csv")
    fer2013_csv(tmp_path / "icml_face_data.csv")
    with pytest.raises(DataError, match="ambiguous"):
        load_dataset("fer2013", tmp_path)
    assert len(load_dataset("fer2013", tmp_path / "fer2013.csv")["train"]) == 7


def test_private_test_is_the_test_set(tmp_path: Path) -> None:
    fer2013_csv(tmp_path / "fer2013.csv")
    test = load_dataset("fer2013", tmp_path, parts=("test",))["test"]
    np.testing.assert_array_equal(test.images[0], face(14))
    with pytest.raises(DataError, match="has a validation set of its own"):
        load_dataset("fer2013", tmp_path, validation="test")


def test_the_competitions_train_csv_has_no_other_split(tmp_path: Path) -> None:
    rows = [[k % 7, pixels(face(k))] for k in range(70)]
    write_csv(tmp_path / "train.csv", rows, ["emotion", "pixels"])
    write_csv(tmp_path / "test.csv", [row[1:] for row in rows], ["pixels"])
    splits = load_dataset("fer2013", tmp_path)
    assert [len(split) for split in splits.values()] == [63, 7]
    assert "test.csv has no labels" in splits["train"].protocol
    with pytest.raises(DataError, match="no test set"):
        load_dataset("fer2013", tmp_path, parts=("test",))
    fer2013_csv(tmp_path / "icml_face_data.csv")
    assert len(load_dataset("fer2013", tmp_path)["train"]) == 7


def test_bad_rows_are_all_named_and_can_be_skipped(tmp_path: Path) -> None:
    path = fer2013_csv(tmp_path / "fer2013.csv", per_usage=14)
    lines = path.read_text().splitlines()
    lines[3] = "1,2 3,Training"
    lines[9] = "9," + lines[9].split(",", 1)[1]
    path.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"2 of \d+ images.*line 4 .*2 values, expected 2304.*line 10 .*code '9'"):
        split = load_dataset("fer2013", path, skip_corrupt=True)["train"]
    assert len(split) == 12


def parquet(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(columns)
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


FACES = [face(k) for k in range(7)]
ENCODED = [png(image) for image in FACES]
CODES = list(range(7))
COLUMNS: dict[str, dict[str, Any]] = {
    "image and label": {"image": [{"bytes": each, "path": None} for each in ENCODED], "label": CODES},
    "img_bytes and labels": {"img_bytes": ENCODED, "labels": CODES},
    "pixel lists": {"pixels": [image.ravel().tolist() for image in FACES], "emotion": CODES},
    "pixel text": {"pixels": [pixels(image) for image in FACES], "emotion": CODES},
    "names beside codes": {
        "image": ENCODED,
        "emotion": [0] * 7,
        "emotion_name": [name.title() for name in FER2013_NAMES],
        "pixels": [""] * 7,
    },
}


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_parquet_columns(tmp_path: Path, columns: dict[str, Any]) -> None:
    for part in ALL:
        parquet(tmp_path / "data" / f"{part}-00000-of-00001.parquet", columns)
    splits = load_dataset("fer2013", tmp_path, parts=ALL)
    for split in splits.values():
        assert names_of(split) == [canonical_name(name) for name in FER2013_NAMES]
        np.testing.assert_array_equal(split.images, FACES)


def test_parquet_usage_column_says_the_split(tmp_path: Path) -> None:
    columns = {
        "image": ENCODED * 3,
        "label": CODES * 3,
        "usage": ["Training"] * 7 + ["PublicTest"] * 7 + ["PrivateTest"] * 7,
    }
    parquet(tmp_path / "train.parquet", columns)
    splits = load_dataset("fer2013", tmp_path / "train.parquet", parts=ALL)
    assert [len(split) for split in splits.values()] == [7, 7, 7]
    columns["usage"][0] = "holdout"
    with pytest.raises(DataError, match="row 0: unknown usage 'holdout'"):
        load_dataset("fer2013", parquet(tmp_path / "train.parquet", columns))


def test_parquet_codes_are_those_that_the_file_names(tmp_path: Path) -> None:
    order = sorted(FER2013_NAMES)
    path = parquet(tmp_path / "train.parquet", {"image": ENCODED, "label": CODES}, order)
    split = load_dataset("fer2013", path, parts=("train",))["train"]
    assert names_of(split) == [canonical_name(name) for name in order]
    with pytest.raises(DataError, match="codes have no meaning"):
        load_dataset("fer2013", path, parts=("train",), codes="fer2013")


def test_parquet_codes_in_alphabetical_order_are_noticed(tmp_path: Path) -> None:
    """4965, 4830, 3171 of 4 to 6 is neutral, sad, surprise; FER2013's own order is sad, surprise, neutral."""
    codes = [code for code, count in enumerate((399, 44, 410, 721, 497, 483, 317)) for _ in range(count)] * 2
    path = parquet(tmp_path / "train.parquet", {"image": [ENCODED[code] for code in codes], "label": codes})
    with pytest.raises(DataError, match=r"code 6 is the rarest of 4 to 6 \(994, 966, 634\)"):
        load_dataset("fer2013", path, parts=("train",))
    split = load_dataset("fer2013", path, parts=("train",), codes="alphabetical")["train"]
    assert split.counts()["surprise"] == 634
    assert "alphabetical codes" in split.protocol


@pytest.mark.parametrize(
    ("codes", "expected"),
    [(range(1, 8), 1), (range(7), 0)],
)
def test_raf_db_parquet_codes_count_from_one_or_zero(tmp_path: Path, codes: range, expected: int) -> None:
    path = parquet(tmp_path / "train.parquet", {"image": ENCODED, "label": list(codes)})
    split = load_dataset("raf_db", path, parts=("train",))["train"]
    assert names_of(split) == ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
    assert f"codes {expected} to {expected + 6}" in split.protocol


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([1, 2, 11], "codes 1 to 11, expected 1 to 7 or 0 to 6"), ([1, 2, 6], "neither 0 nor 7")],
)
def test_raf_db_parquet_refuses_other_codes(tmp_path: Path, codes: list[int], expected: str) -> None:
    path = parquet(tmp_path / "train.parquet", {"image": ENCODED[:3], "label": codes})
    with pytest.raises(DataError, match=expected):
        load_dataset("raf_db", path, parts=("train",))


def test_raf_db_parquet_with_codes_as_names(tmp_path: Path) -> None:
    path = parquet(tmp_path / "train.parquet", {"image": ENCODED, "label": CODES}, [str(code) for code in range(1, 8)])
    assert names_of(load_dataset("raf_db", path, parts=("train",))["train"])[0] == "surprise"


def test_parquet_that_is_none_or_lacks_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "train.parquet", {"picture": ENCODED, "label": CODES})
    with pytest.raises(DataError, match=r"no column image or img_bytes.*it has picture, label"):
        load_dataset("fer2013", path)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load_dataset("fer2013", path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="Git-LFS pointer"):
        load_dataset("fer2013", path)


def test_parquet_of_unknown_set_is_ambiguous(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", {"image": ENCODED, "label": CODES})
    with pytest.raises(DataError, match=r"fer2013 parquet at .*raf_db parquet at .*give the data set"):
        find_dataset("auto", tmp_path)
