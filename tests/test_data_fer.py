# SPDX-License-Identifier: Apache-2.0
"""FER2013 as folders, train.csv and Parquet; FERPlus in its three layouts and four label modes."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import (
    FER2013_NAMES,
    VOTES,
    ballots,
    face,
    fer2013_csv,
    fer2013_folders,
    ferplus_folders,
    pixels,
    save,
    write_csv,
)
from PIL import Image

from fastfer.data import CLASS_NAMES, DataError, Split, canonical_name, load_dataset
from fastfer.data.loading import find_dataset, read_manifest
from fastfer.data.options import DataOptions
from fastfer.data.votes import judge

ALL = ("train", "validation", "test")


def names_of(split: Split) -> list[str]:
    return [split.names[label] for label in split.labels]


# FER2013


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


# FERPlus


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
    "unknown behind a class": ([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], "crossentropy", {"neutral": 1.0}),
    "as crossentropy": ([5, 4, 1, 0, 0, 0, 0, 0, 0, 0], "probability", {"neutral": 5 / 9, "happiness": 4 / 9}),
    "30 % each": ([4, 0, 3, 0, 0, 3, 0, 0, 0, 0], "multi_target", THIRDS),
    "below 30 %": ([5, 3, 2, 0, 0, 0, 0, 0, 0, 0], "multi_target", {"neutral": 0.5, "happiness": 0.5}),
    "too little": ([4, 2, 2, 2, 0, 0, 0, 0, 0, 0], "multi_target", None),
    "unknown is cut off": ([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], "multi_target", {"neutral": 1.0}),
}  # fmt: skip


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
