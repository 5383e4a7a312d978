# SPDX-License-Identifier: Apache-2.0
"""Images with their labels in a list, numbers with a map to names, AffectNet, and lists of images to keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_trees import face, ferplus_folders, names_of, save, write_csv

from fastfer.data import CLASS_NAMES, DataError, canonical_name, load_dataset, load_lazily
from fastfer.data.__main__ import main
from fastfer.data.labels import code_names

NAMES = ("happy", "sad", "happy", "angry")


def pictures(folder: Path, count: int = 4) -> list[str]:
    return [save(folder / f"my face {k}.png", face(k, 8, 8)).name for k in range(count)]


# lists


LISTS = {
    "labels.csv": ("labels.csv", ["filename,label", *(f"my face {k}.png,{name}" for k, name in enumerate(NAMES))]),
    "other order": (
        "labels.csv",
        ["id,Emotion,Image Path", *(f"{k},{n},my face {k}.png" for k, n in enumerate(NAMES))],
    ),
    "metadata of Hugging Face": (
        "metadata.csv",
        ["file_name,label,note", *(f'my face {k}.png,{n},"a, b"' for k, n in enumerate(NAMES))],
    ),
    "semicolons": ("labels.csv", ["file;class", *(f"my face {k}.png;{n}" for k, n in enumerate(NAMES))]),
    "tabs": ("labels.tsv", ["file\tclass", *(f"my face {k}.png\t{n}" for k, n in enumerate(NAMES))]),
    "lines without header": ("list.txt", [f"my face {k}.png {n}" for k, n in enumerate(NAMES)]),
    "csv without header": ("anything.csv", [f"my face {k}.png,{n}" for k, n in enumerate(NAMES)]),
}


@pytest.mark.parametrize(("name", "lines"), LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("folder", ["", "images"])
def test_images_with_a_list(tmp_path: Path, name: str, lines: list[str], folder: str) -> None:
    pictures(tmp_path / "set" / folder)
    (tmp_path / "set" / name).write_text("\n".join([*lines, ""]), encoding="utf-8-sig")
    split = load_lazily("auto", tmp_path, split="2-fold")
    found = {sample.id: canonical_name(str(sample.label)) for part in split.values() for sample in part.samples}
    home = f"{folder}/" if folder else ""
    expected = ("happiness", "sadness", "happiness", "anger")
    assert found == {f"{home}my face {k}.png": label for k, label in enumerate(expected)}
    assert f"labels of {name}" in split["train"].protocol


def test_a_list_may_say_part_and_person(tmp_path: Path) -> None:
    files = pictures(tmp_path, 6)
    rows = [[file, NAMES[k % 3], ("train", "Training", "val", "test")[k % 4], f"p{k}"] for k, file in enumerate(files)]
    write_csv(tmp_path / "labels.csv", rows, ["file", "label", "split", "subject"])
    splits = load_dataset("image_folder", tmp_path, parts=("train", "validation", "test"))
    assert {part: split.subjects for part, split in splits.items()} == {
        "train": ("p0", "p1", "p4", "p5"),
        "validation": ("p2",),
        "test": ("p3",),
    }


@pytest.mark.parametrize("place", ["train.csv and val.csv", "metadata.csv in each folder"])
def test_lists_for_each_part(tmp_path: Path, place: str) -> None:
    for part in ("train", "val"):
        rows = [[name, NAMES[k]] for k, name in enumerate(pictures(tmp_path / part))]
        if place.startswith("meta"):
            write_csv(tmp_path / part / "metadata.csv", rows, ["file_name", "label"])
        else:
            named = [[f"{part}/{name}", label] for name, label in rows]
            write_csv(tmp_path / f"{part}.csv", named, ["file_name", "label"])
    splits = load_dataset("auto", tmp_path)
    assert [len(split) for split in splits.values()] == [4, 4]


BAD_LISTS = {
    "unlisted": (["a.png,happy", "b.png,sad"], r"1 images lie where this layout takes none"),
    "missing": (["a.png,happy", "b.png,sad", "c.png,sad", "d.png,sad"], r"d\.png is missing, listed at .*line 5"),
    "twice": (["a.png,happy", "b.png,sad", "c.png,sad", "a.png,sad"], r"line 5: a\.png is sad, and happy at .*line 2"),
    "short": (["a.png,happy", "b.png", "c.png,sad"], r"line 3: 1 fields, expected a file's name and a label"),
    "no expression": (["a.png,happy", "b.png,bored", "c.png,sad"], r"line 3: label 'bored' is no expression"),
    "outside": (["a.png,happy", "../b.png,sad", "c.png,sad"], r"line 3: expected the name of a file in .* or below"),
    "absolute": (["a.png,happy", "/etc/passwd,sad", "c.png,sad"], r"line 3: expected the name of a file"),
}


@pytest.mark.parametrize(("lines", "message"), BAD_LISTS.values(), ids=BAD_LISTS)
def test_bad_lists_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    for k, name in enumerate("abc"):
        save(tmp_path / "set" / f"{name}.png", face(k, 8, 8))
    save(tmp_path / "b.png", face(9, 8, 8))
    (tmp_path / "set" / "labels.csv").write_text("\n".join(["file,label", *lines]))
    with pytest.raises(DataError, match=message):
        load_dataset("image_folder", tmp_path / "set", split="50-50")


def test_a_list_and_class_folders_are_ambiguous(tmp_path: Path) -> None:
    """The copy of AffectNet at Kaggle has both, and they contradict each other."""
    rows = []
    for name in ("happy", "sad"):
        rows += [[f"{name}/{file}", "fear"] for file in pictures(tmp_path / name)]
    write_csv(tmp_path / "labels.csv", rows, ["pth", "label"])
    with pytest.raises(DataError, match=r"ambiguous, it holds image_folder class-folders at .*; image_folder list at"):
        load_dataset("auto", tmp_path)
    with pytest.raises(DataError, match=r"two or more|no image of class|would get no image"):
        load_dataset("auto", tmp_path, layout="list", split="50-50", classes=("fear",))
    split = load_dataset("auto", tmp_path, layout="class-folders", split="50-50")["train"]
    assert split.names == ("happiness", "sadness")


# numbers


def test_code_names() -> None:
    assert code_names("raf_db")[1] == "surprise"
    assert code_names("affectnet")[7] == "contempt"
    assert code_names("alphabetical")[4] == "neutral"
    assert code_names("0=Happy, 3=bored") == {0: "happiness", 3: "bored"}
    for text, message in (("happy", "expected one of fer2013"), ("0=happy,0=sad", "0 twice"), ("1e3=sad", "pairs")):
        with pytest.raises(ValueError, match=message):
            code_names(text)
        with pytest.raises(DataError, match="codes: "):
            load_dataset("image_folder", "/nowhere", codes=text)


@pytest.mark.parametrize("codes", ["affectnet", "0=neutral,1=happy,2=sad"])
def test_numbered_folders_need_a_map(tmp_path: Path, codes: str) -> None:
    for code in range(3):
        for k in range(2):
            save(tmp_path / "train" / str(code) / f"{k}.png", face(10 * code + k, 8, 8))
    with pytest.raises(DataError, match=r"'0' is no expression; numbers as names do not say .* codes=affectnet"):
        load_dataset("image_folder", tmp_path, parts=("train",))
    split = load_dataset("image_folder", tmp_path, parts=("train",), codes=codes)["train"]
    assert names_of(split) == ["neutral", "neutral", "happiness", "happiness", "sadness", "sadness"]
    with pytest.raises(DataError, match="'2' is no expression; codes names 0 neutral, 1 happiness"):
        load_dataset("image_folder", tmp_path, parts=("train",), codes="0=neutral,1=happy")


def test_a_list_with_numbers(tmp_path: Path) -> None:
    write_csv(tmp_path / "labels.csv", [[name, k % 2] for k, name in enumerate(pictures(tmp_path))], ["file", "label"])
    split = load_dataset("image_folder", tmp_path, codes="0=bored,1=happy", split="50-50", seed=1)["train"]
    assert split.names == ("happiness", "bored")
    assert main(["check", str(tmp_path), "--data", "image_folder", "--codes", "ferplus"]) == 0


# AffectNet


def affectnet(root: Path) -> Path:
    for part, count in (("train_set", 22), ("val_set", 8)):
        for k in range(count):
            save(root / part / "images" / f"{k}.jpg", face(k, 8, 8, colour=True))
            (root / part / "annotations").mkdir(exist_ok=True)
            code = k % 11 if part == "train_set" else k
            np.save(root / part / "annotations" / f"{k}_exp.npy", np.array(str(code)))
            np.save(root / part / "annotations" / f"{k}_val.npy", np.array("-0.5"))
    return root


def test_affectnet_by_its_annotations(tmp_path: Path) -> None:
    splits = load_dataset("auto", affectnet(tmp_path))
    assert [len(split) for split in splits.values()] == [16, 8]
    in_order = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"]
    assert names_of(splits["validation"]) == in_order
    assert splits["train"].names == CLASS_NAMES
    with pytest.raises(DataError, match="no test set"):
        load_dataset("affectnet", tmp_path, parts=("test",))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "0_exp.npy is missing"), (b"no array", "expected the number of an expression"), ("11", "expected 0 to 10")],
)
def test_affectnet_bad_annotations(tmp_path: Path, content: object, message: str) -> None:
    path = affectnet(tmp_path) / "val_set" / "annotations" / "0_exp.npy"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, np.array(content))
    with pytest.raises(DataError, match=message):
        load_dataset("affectnet", tmp_path)
    with pytest.warns(UserWarning, match=message):
        assert len(load_dataset("affectnet", tmp_path, skip_corrupt=True)["validation"]) == 7


def test_affectnet_never_unpickles(tmp_path: Path) -> None:
    path = affectnet(tmp_path) / "val_set" / "annotations" / "0_exp.npy"
    np.save(path, np.array({"a": 1}, dtype=object))
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        load_dataset("affectnet", tmp_path)


def test_affectnet_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for code in range(9):
            save(tmp_path / part / str(code) / "0.jpg", face(code, 8, 8, colour=True))
    splits = load_dataset("affectnet", tmp_path)
    assert [len(split) for split in splits.values()] == [8, 8]
    assert names_of(splits["train"])[:4] == ["neutral", "happiness", "sadness", "surprise"]


# lists of images to keep


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Names that repeat between the classes, with blanks, and numbers of other data sets."""
    for part in ("train", "val"):
        for name in ("happy", "sad"):
            for k in range(21):
                save(tmp_path / "set" / part / name / f"my face {k} 1.png", face(k, 8, 8))
            save(tmp_path / "set" / part / name / f"test_{len(name)}.png", face(99, 8, 8))
    return tmp_path


def kept(folders: Path, *lines: str) -> tuple[str, ...]:
    path = folders / "list.txt"
    path.write_text("\n".join([*lines, ""]))
    split = load_dataset("image_folder", folders / "set", subset=str(path), parts=("validation",))["validation"]
    return split.ids or ()


def test_a_subset_is_what_its_lines_name_and_no_more(folders: Path) -> None:
    assert kept(folders, "happy/my face 3 1.png", "sad/my face 4 1", "val/sad/my face 5 1.png 2 0.5") == (
        "val/happy/my face 3 1.png",
        "val/sad/my face 4 1.png",
        "val/sad/my face 5 1.png",
    )


def test_a_line_that_fits_several_images_is_refused(folders: Path) -> None:
    message = r"list\.txt, line 2: 'my face 3 1\.png' fits 2 images, such as val/happy/my face 3 1\.png, val/sad/"
    with pytest.raises(DataError, match=message):
        kept(folders, "happy/my face 3 1.png", "my face 3 1.png")


def test_a_number_in_folders_of_ones_own_says_nothing(folders: Path) -> None:
    with pytest.raises(DataError, match="none of the 1 names"):
        kept(folders, "train/sad/test_3.png")
    assert kept(folders, "test_5.png") == ("val/happy/test_5.png",)


def test_a_subset_under_argmax_keeps_every_listed_image(tmp_path: Path) -> None:
    doubtful = [(f"fer000{k}000.png", [3, 3, 0, 0, 0, 0, 0, 0, 4, 0]) for k in range(4)]
    clear = [("fer0009000.png", [10, *[0] * 9]), ("fer0009001.png", [0, 10, *[0] * 8])]
    ferplus_folders(tmp_path / "set", {"FER2013Train": clear, "FER2013Test": [*doubtful, *clear]})
    (tmp_path / "pose.txt").write_text("".join(f"{k}/{name[:-4]}.jpg\n" for k, (name, _) in enumerate(doubtful)))
    options = {"subset": str(tmp_path / "pose.txt"), "parts": ("test",)}
    with pytest.raises(DataError, match="no image left in test"):
        load_dataset("ferplus", tmp_path / "set", **options)  # type: ignore[arg-type]
    split = load_dataset("ferplus", tmp_path / "set", label_mode="argmax", **options)["test"]  # type: ignore[arg-type]
    assert names_of(split) == ["neutral"] * 4  # the first of equals
    assert "4 of 4 listed images; labels by argmax" in split.protocol
