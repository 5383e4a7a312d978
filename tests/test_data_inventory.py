# SPDX-License-Identifier: Apache-2.0
"""Every file below a data set's root is accounted for: read, left out by rule, told of, or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from data_trees import (
    FER2013_NAMES,
    RAF_DB_CODES,
    ck_official,
    ck_sequences,
    face,
    fer2013_csv,
    fer2013_folders,
    ferplus_folders,
    jaffe,
    names_of,
    raf_kaggle,
    raf_official,
    rafd,
    save,
)
from PIL import Image

from fastfer.data import DataError, load_dataset
from fastfer.data.__main__ import main
from fastfer.data.check import check
from fastfer.data.formats import FORMATS, MAX_PIXELS, MAX_SIDE
from fastfer.data.labels import CODE_TABLES
from fastfer.data.layouts import SPLIT_FOLDERS
from fastfer.data.loading import find_dataset, read_manifest
from fastfer.data.options import LABEL_MODES, DataOptions
from fastfer.data.rafd import CAMERA_SETS
from fastfer.data.split_record import SplitRecord

CLASSES = ("angry", "fear", "happy")


def class_tree(root: Path, per_class: int = 2, parts: tuple[str, ...] = ("train", "val")) -> Path:
    for part in parts:
        for k, name in enumerate(CLASSES):
            for n in range(per_class):
                save(root / part / name / f"{n}.png", face(100 * k + 10 * n + len(part), 8, 8))
    return root


def total(root: Path, **options: object) -> int:
    """Images of all parts together."""
    found = find_dataset("auto", root)
    return len(read_manifest(found, DataOptions(**options)).samples)  # type: ignore[arg-type]


# one part is never the whole


@pytest.mark.parametrize("junk", ["@eaDir", "__pycache__", "tmp", "augmented", ".cache", "lost+found"])
@pytest.mark.parametrize("build", [class_tree, fer2013_folders])
def test_an_empty_folder_among_the_classes_changes_nothing(tmp_path: Path, junk: str, build: Callable) -> None:
    build(tmp_path)
    before = check(tmp_path)
    (tmp_path / "train" / junk).mkdir()
    after = check(tmp_path)
    assert (after.dataset, after.layout, after.counts) == (before.dataset, before.layout, before.counts)
    assert after.root == str(tmp_path)
    assert after.problems == []


def test_a_folder_of_another_name_with_images_is_named(tmp_path: Path) -> None:
    class_tree(tmp_path)
    save(tmp_path / "train" / "augmented" / "0.png", face(1, 8, 8))
    with pytest.raises(DataError, match="class folder 'augmented' is no expression"):
        load_dataset("auto", tmp_path)


# every layout goes the same way


def ferplus_classes(root: Path) -> Path:
    for part in ("train", "test"):
        for k, name in enumerate(FER2013_NAMES):
            number = 10 * len(part) + k
            save(root / "fer2013plus" / "fer2013" / part / name / f"fer{number:07}.png", face(number))
    return root / "fer2013plus" / "fer2013" / "train" / "happy"


def ck48(root: Path) -> Path:
    for subject in range(10, 21):
        for k, name in enumerate(("anger", "happy")):
            save(root / "CK+48" / name / f"S{subject:03}_{k:03}_00000009.png", face(100 * subject + k))
    return root / "CK+48" / "happy"


def raf_classes(root: Path) -> Path:
    raf_kaggle(root)
    for path in root.glob("*.csv"):
        path.unlink()
    return root / "DATASET" / "train" / "4"


def fer2013_classes(root: Path) -> Path:
    return fer2013_folders(root) / "train" / "happy"


def flat_jaffe(root: Path) -> Path:
    return jaffe(root / "jaffe")


def flat_rafd(root: Path) -> Path:
    return rafd(root / "rafd")


SIBLINGS = {
    "ferplus": ferplus_classes,
    "ck_plus": ck48,
    "raf_db": raf_classes,
    "fer2013": fer2013_classes,
    "jaffe": flat_jaffe,
    "rafd": flat_rafd,
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_every_layout_of_image_files_accounts_for_all(
    tmp_path: Path, name: str, unreadable: Callable[[str], None]
) -> None:
    folder = SIBLINGS[name](tmp_path)
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".txt")
    before = check(tmp_path)
    for junk in ("@eaDir", "tmp", "lost+found"):
        (folder.parent / junk).mkdir(exist_ok=True)
    unreadable("lost+found")
    (folder / "deeper").mkdir()
    Image.open(paths[0]).save(folder / "deeper" / paths[0].with_suffix(".jfif").name, "JPEG")
    paths[0].unlink()
    after = check(tmp_path)
    assert (before.dataset, after.dataset, after.counts) == (name, name, before.counts)
    assert [text for text in before.problems if not text.startswith("no training image of")] == []
    assert after.problems == before.problems
    (folder / "gone.png").symlink_to("nowhere")
    assert any("1 links lead nowhere, or in circles" in problem for problem in check(tmp_path).problems)


# nested images


def test_images_in_folders_below_a_class_are_the_classs(tmp_path: Path) -> None:
    class_tree(tmp_path)
    for n in range(5):
        save(tmp_path / "train" / "happy" / "batch2" / f"{n}.png", face(900 + n, 8, 8))
    splits = load_dataset("auto", tmp_path)
    assert splits["train"].counts() == {"happiness": 7, "anger": 2, "fear": 2}
    assert "5 images in folders below the class folders" in splits["train"].protocol


def test_only_folders_of_persons_below_the_classes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for k, name in enumerate(CLASSES):
            for person in ("anna", "bert"):
                save(tmp_path / part / name / person / "0.png", face(k + len(person + part), 8, 8))
    assert [len(split) for split in load_dataset("auto", tmp_path).values()] == [6, 6]


@pytest.mark.parametrize("inner", ["sad", "train", "test"])
def test_a_class_or_a_split_inside_a_class_is_refused(tmp_path: Path, inner: str) -> None:
    class_tree(tmp_path)
    save(tmp_path / "train" / "happy" / inner / "0.png", face(1, 8, 8))
    with pytest.raises(DataError, match=rf"happy/{inner} lies in the class folder .*happy: its 1 images could be"):
        load_dataset("auto", tmp_path)


# formats


WRITABLE = {
    "BMP": ".bmp", "DIB": ".dib", "GIF": ".gif", "JPEG": ".jfif", "JPEG2000": ".jp2", "PCX": ".pcx", "PNG": ".apng",
    "PPM": ".pnm", "QOI": ".qoi", "SGI": ".bw", "TGA": ".tga", "TIFF": ".TIF", "WEBP": ".webp", "AVIF": ".avif",
}  # fmt: skip


@pytest.mark.parametrize("name", WRITABLE)
def test_every_raster_format_is_read(tmp_path: Path, name: str) -> None:
    Image.init()
    if name not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {name}")
    class_tree(tmp_path)
    folder = tmp_path / "train" / "happy"
    for path in folder.iterdir():
        path.unlink()
    picture = Image.fromarray(face(5, 8, 8)).convert("RGB" if name == "QOI" else "L")
    picture.save(folder / f"a{WRITABLE[name]}", name)
    split = load_dataset("auto", tmp_path, channels=1, size=8)["train"]
    assert split.counts()["happiness"] == 1
    assert WRITABLE[name].lower() in FORMATS[name]


def test_files_of_other_formats_among_images_are_named_and_refused(tmp_path: Path) -> None:
    class_tree(tmp_path)
    folder = tmp_path / "train" / "happy"
    for name in ("1.heic", "2.heic", "3"):
        (folder / name).write_bytes(b"x")
    for name in ("notes.txt", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    message = (
        r"3 files in class folders are of a format that is not read: train/happy \*\.heic \(2\), "
        r"train/happy without suffix \(1\)"
    )
    with pytest.raises(DataError, match=message):
        load_dataset("auto", tmp_path)
    with pytest.warns(UserWarning, match=message):
        splits = load_dataset("auto", tmp_path, skip_corrupt=True)
    assert "not read: 3 files in class folders" in splits["train"].protocol
    assert main(["check", str(tmp_path)]) == 1


# empty, dangling, unreadable


def test_an_empty_class_folder_is_a_class_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_tree(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "contempt").mkdir()
    assert main(["check", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "PROBLEM: no training image of contempt" in text
    assert "PROBLEM: 2 class folders hold no image: train/contempt, val/contempt" in text
    with (
        pytest.warns(UserWarning, match="2 class folders hold no image"),
        pytest.raises(DataError, match="no image of class contempt"),
    ):
        load_dataset("auto", tmp_path)
    with pytest.warns(UserWarning, match="2 class folders hold no image"):
        split = load_dataset("auto", tmp_path, classes=CLASSES)["train"]
    assert split.names == ("happiness", "anger", "fear")


# images that no rule takes


def test_class_folders_beside_a_split_folder_are_not_ignored(tmp_path: Path) -> None:
    class_tree(tmp_path, parts=("test",))
    for name in CLASSES:
        for n in range(4):
            save(tmp_path / name / f"{n}.png", face(n, 8, 8))
    message = r"12 images lie where this layout takes none: angry \(4\), fear \(4\), happy \(4\)"
    assert any(message.replace("\\", "") in problem for problem in check(tmp_path).problems)
    with pytest.raises(DataError, match=message):
        load_dataset("auto", tmp_path, parts=("test",))


def test_images_beside_class_folders_in_a_split_are_refused(tmp_path: Path) -> None:
    class_tree(tmp_path)
    save(tmp_path / "train" / "0.png", face(0))
    with pytest.raises(DataError, match=r"1 images lie where this layout takes none: train \(1\)"):
        load_dataset("auto", tmp_path)


def test_a_figure_beside_the_data_is_only_a_remark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_tree(tmp_path / "faces")
    save(tmp_path / "logo.png", face(0))
    assert main(["check", str(tmp_path)]) == 0
    assert "remark: 1 images lie beside the data set's folders: logo.png" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r"1 images lie beside the data set's folders: logo\.png"):
        load_dataset("auto", tmp_path)


def test_images_outside_the_place_are_a_problem_of_check_and_a_warning_in_training(tmp_path: Path) -> None:
    class_tree(tmp_path / "faces")
    save(tmp_path / "more" / "0.png", face(0))
    save(tmp_path / "faces" / "runs" / "confusion.png", face(1))
    expected = "2 images lie outside the data set's folders: faces/runs (1), more (1)"
    assert expected in check(tmp_path).problems
    with pytest.warns(UserWarning, match="2 images lie outside the data set's folders"):
        load_dataset("auto", tmp_path)


def jaffe_with_stray(root: Path) -> Path:
    save(jaffe(root) / "IMG_1.png", face(1))
    return root


def rafd_with_stray(root: Path) -> Path:
    save(rafd(root) / "IMG_1.png", face(1))
    return root


def ferplus_with_stray(root: Path) -> Path:
    save(ferplus_folders(root) / "FER2013Train" / "fer0009999.png", face(1))
    return root


def ck_with_stray(root: Path) -> Path:
    ck_official(root, ck_sequences(3))
    save(root / "cohn-kanade-images" / "S010" / "001" / "copy.png", face(1))
    return root


def raf_with_stray(root: Path) -> Path:
    save(raf_official(root) / "basic" / "Image" / "aligned" / "train_99999_aligned.jpg", face(1))
    return root


@pytest.mark.parametrize(
    "build", [jaffe_with_stray, rafd_with_stray, ferplus_with_stray, ck_with_stray, raf_with_stray]
)
def test_an_image_that_no_list_or_name_explains_is_refused(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    build(tmp_path)
    with pytest.raises(DataError, match=r"1 images lie where this layout takes none"):
        load_dataset("auto", tmp_path, size=8, split=None)


def test_what_a_layout_leaves_out_by_rule_is_counted(tmp_path: Path) -> None:
    ck_official(tmp_path, ck_sequences(2))
    inventory = check(tmp_path).inventory
    assert inventory is not None
    assert inventory.left_out == {"frames before the last of a sequence": 14, "sequences without a label": 8}
    assert (inventory.read, len(inventory.sources), inventory.untaken) == (42, 14, ())


def test_the_inventory_is_printed_for_people_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fer2013_csv(tmp_path / "fer2013.csv")
    (tmp_path / "fer2013.bib").write_text("@article")
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert main(["check", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for line in (
        f"below {tmp_path}:",
        "       21  images in rows of a table",
        "        1  files with labels or tables: fer2013.csv",
        "        1  other files (.bib 1)",
        "        1  entries of the system",
    ):
        assert line in text
    assert main(["check", str(tmp_path), "--json"]) == 0
    inventory = json.loads(capsys.readouterr().out)["inventory"]
    assert (inventory["rows"], inventory["sources"], inventory["others"]) == (21, ["fer2013.csv"], {".bib": 1})


def test_names_with_control_characters_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_tree(tmp_path)
    save(tmp_path / "more\x1b[31m\n" / "0.png", face(0))
    assert main(["check", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "more\\x1b[31m\\n (1)" in text


def test_names_need_not_be_text(tmp_path: Path) -> None:
    class_tree(tmp_path)
    folder = tmp_path / "train" / "happy"
    (folder / "0.png").rename(os.fsdecode(os.fsencode(folder) + b"/\xff=<b>.png"))
    splits = load_dataset("auto", tmp_path)
    assert len(splits["train"]) == 6
    record = SplitRecord.of("image_folder", DataOptions(), splits)
    assert record.difference("train", splits["train"]) is None
    assert json.loads(json.dumps(record.to_json()))["images"]["train"]["count"] == 6
    assert check(tmp_path).images == 12


# names of parts


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "eval", "Val_Set"])
def test_names_of_the_validation_folder(tmp_path: Path, name: str) -> None:
    class_tree(tmp_path, parts=("train", name))
    assert [len(split) for split in load_dataset("auto", tmp_path).values()] == [6, 6]


def test_raf_db_folders_with_the_test_set_called_valid(tmp_path: Path) -> None:
    raf_kaggle(tmp_path)
    (tmp_path / "DATASET" / "test").rename(tmp_path / "DATASET" / "valid")
    splits = load_dataset("auto", tmp_path, parts=("train", "test"))
    assert [len(split) for split in splits.values()] == [14, 7]
    assert names_of(splits["test"]) == [*RAF_DB_CODES[1:]]
    assert "split by file name: 7 images lie in another part's folder" in splits["test"].protocol


def test_fer2013_folders_of_every_class_are_one_data_set(tmp_path: Path) -> None:
    """What FER2013's folders lost before: with an odd folder in train, test alone was taken, as an image_folder."""
    fer2013_folders(tmp_path)
    (tmp_path / "train" / "new folder").mkdir()
    found = find_dataset("auto", tmp_path)
    assert (found.dataset.name, found.place) == ("fer2013", tmp_path)
    assert len(read_manifest(found, DataOptions()).samples) == 3 * len(FER2013_NAMES)


def test_the_page_on_data_names_what_there_is() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    names = {"JPEG2000": "JPEG 2000", "WEBP": "WebP", "DIB": "BMP"}
    words = [names.get(name, name) for name in FORMATS]
    words += [f"`{word}`" for word in (*CODE_TABLES, *LABEL_MODES, *CAMERA_SETS) if word != "frontal"]
    words += [word for word in SPLIT_FOLDERS if not word.endswith("_set")]
    words += [f"{MAX_SIDE:,} pixels a side", f"{MAX_PIXELS // 10**6} million"]
    assert [word for word in words if word not in page] == []
