# SPDX-License-Identifier: Apache-2.0
"""Readers, generator, preprocessing and augmentation of fastfer.data."""

from __future__ import annotations

import csv
import errno
import hashlib
import importlib.util
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from fastfer.data import (
    BASIC_NAMES,
    FER2013_CODES,
    Augment,
    DataError,
    Preprocess,
    Split,
    canonical_name,
    class_index,
    drawn,
    fer2013,
    load_dataset,
)
from fastfer.data.__main__ import main
from fastfer.data.files import replace_atomically
from fastfer.data.sheet import contact_sheet

DRAWN_SHA256 = "3821b8e1a19c9892b06d693d0ff0a506d94459ae680fe03cff5c04fc93a6fc3e"
FER2013_ORDER = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")


def faces(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48), dtype=np.uint8)


def rows(count: int = 14) -> list[list[str]]:
    """fer2013.csv rows: 7 of Training, then 7 of PublicTest, codes 0..6 in each."""
    images = faces(count)
    return [
        [str(i % 7), " ".join(map(str, images[i].ravel())), "Training" if i < 7 else "PublicTest"] for i in range(count)
    ]


def write(path: Path, body: list[list[str]], header: str = "emotion,pixels,Usage") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in body)]) + "\n")
    return path


# fer2013.csv


def test_labels_map_by_name(tmp_path: Path) -> None:
    splits = fer2013.load(write(tmp_path / "fer2013.csv", rows()))
    train = splits["Training"]
    assert train.names == BASIC_NAMES
    assert tuple(train.names[i] for i in train.labels) == FER2013_ORDER
    assert train.images.dtype == np.uint8
    np.testing.assert_array_equal(train.images, faces(14)[:7])
    np.testing.assert_array_equal(splits["PublicTest"].images, faces(14)[7:])


def test_icml_header_has_spaces_and_another_order(tmp_path: Path) -> None:
    body = [[emotion, usage, pixels] for emotion, pixels, usage in rows()]
    swapped = fer2013.load(write(tmp_path / "icml_face_data.csv", body, "emotion, Usage, pixels"))
    plain = fer2013.load(write(tmp_path / "plain.csv", rows()))
    for usage in plain:
        assert swapped[usage].fingerprint() == plain[usage].fingerprint()


@pytest.mark.parametrize("name", fer2013.FILE_NAMES)
def test_root_may_be_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write(tmp_path / name, rows())
    assert len(fer2013.load(tmp_path)["Training"]) == 7


def test_byte_order_mark_crlf_quotes_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "fer2013.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([["emotion", "pixels", "Usage"], *rows(), []])
    assert len(fer2013.load(path)["PublicTest"]) == 7


def test_other_splits_may_be_present(tmp_path: Path) -> None:
    body = [*rows(), ["3", "private", "PrivateTest"]]
    assert len(fer2013.load(write(tmp_path / "f.csv", body))["Training"]) == 7


def changed(row: int, column: int, value: str) -> list[list[str]]:
    body = rows()
    body[row][column] = value
    return body


def pixels_with(at: int, value: str) -> str:
    words = rows()[2][1].split()
    words[at - 1] = value
    return " ".join(words)


BAD_ROWS = {
    "pixel count": (changed(2, 1, "1 2 3"), ["line 4 (row 3 of data)", "'pixels'", "3 values", "2304", "truncated"]),
    "too many pixels": (changed(2, 1, rows()[2][1] + " 7"), ["line 4", "2305 values, expected 2304"]),
    "no pixels": (changed(2, 1, ""), ["line 4", "0 values"]),
    "not a number": (changed(2, 1, pixels_with(5, "x7")), ["line 4", "'pixels'", "value 5 is 'x7'"]),
    "a fraction": (changed(2, 1, pixels_with(2304, "1.5")), ["line 4", "value 2304 is '1.5'"]),
    "over 255": (changed(2, 1, pixels_with(9, "256")), ["line 4", "value 9 is 256", "0 to 255"]),
    "wraps to 0": (changed(2, 1, pixels_with(9, str(2**32))), ["value 9 is 4294967296"]),
    "negative": (changed(2, 1, pixels_with(1, "-1")), ["line 4", "value 1 is -1"]),
    "unknown code": (changed(6, 0, "7"), ["line 8", "'emotion'", "'7'", "6 neutral"]),
    "code is no number": (changed(6, 0, "happy"), ["line 8", "'emotion'", "'happy'"]),
    "unknown usage": (changed(0, 2, "Testing"), ["line 2", "'Usage'", "'Testing'", "PrivateTest"]),
    "missing field": ([*rows(), ["3", "1 2"]], ["line 16", "2 fields, expected 3", "truncated"]),
    "empty class": ([row for row in rows() if row[0] != "1"], ["Usage Training", "disgust", "counts"]),
    "empty split": (rows(7), ["no row with Usage PublicTest", "'Training': 7"]),
}


@pytest.mark.parametrize(("body", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_named(tmp_path: Path, body: list[list[str]], expected: list[str]) -> None:
    path = write(tmp_path / "fer2013.csv", body)
    with pytest.raises(DataError) as caught:
        fer2013.load(path)
    for part in [str(path), *expected]:
        assert part in str(caught.value)


BAD_FILES = {
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 301072766\n", "Git-LFS pointer"),
    "empty": (b"", "is empty"),
    "binary": (b"\x89PNG\xff\xfe\x00\x00", "not a readable csv"),
    "labels missing": (b"pixels\n1 2 3\n", "no column emotion, usage"),
    "header only": (b"emotion,pixels,Usage\n", "no row with Usage Training"),
}


@pytest.mark.parametrize(("content", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected):
        fer2013.load(path)


@pytest.mark.parametrize("keep", [0.999, 0.5])
def test_a_cut_file_is_named(tmp_path: Path, keep: float) -> None:
    path = write(tmp_path / "fer2013.csv", rows())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=r"line \d+ .*(truncated|unknown value)"):
        fer2013.load(path)


def test_missing_file_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of.*fer2013\.csv.*icml_face_data\.csv"):
        fer2013.load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        fer2013.load(tmp_path / "nowhere")


def test_real_faces(tmp_path: Path, real_data: Path) -> None:
    spec = importlib.util.spec_from_file_location("unpack", real_data / "unpack.py")
    assert spec
    assert spec.loader
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    labels = list(csv.DictReader((real_data / "faces48" / "labels.csv").open(newline="")))
    mosaic = np.asarray(Image.open(sorted(unpack.HERE.glob("sheet*.webp"))[0]).convert("L"))
    tiles = mosaic.reshape(32, 48, 32, 48).transpose(0, 2, 1, 3).reshape(-1, 48, 48)[:800]
    for label in labels[400:800]:
        label["usage"] = "PublicTest"
    unpack.write_csv(labels[:800], tiles, tmp_path)
    train = load_dataset("fer2013", tmp_path)["train"]
    assert len(train) == 400
    assert train.names[train.labels[0]] == canonical_name(unpack.CLASSES[int(labels[0]["emotion"])])
    np.testing.assert_array_equal(train.images, tiles[:400])


# names and splits


def test_names() -> None:
    for name, alias in zip(FER2013_ORDER, FER2013_CODES, strict=True):
        assert canonical_name(alias.upper()) == name
        assert BASIC_NAMES[class_index(alias)] == name
    with pytest.raises(ValueError, match="unknown expression 'bored'"):
        canonical_name("bored")
    with pytest.raises(ValueError, match="contempt"):
        class_index("contempt")


def test_split_checks_its_parts() -> None:
    labels = np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="uint8"):
        Split(np.zeros((2, 4, 4), np.float32), labels, ("a",))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        Split(np.zeros((2, 4, 4), np.uint8), labels[:1], ("a",))
    with pytest.raises(ValueError, match="expected 0 to 0"):
        Split(np.zeros((2, 4, 4), np.uint8), labels + 1, ("a",))


def test_unknown_data_set_lists_the_known() -> None:
    with pytest.raises(DataError, match=r"'imagenet'.*drawn, fer2013"):
        load_dataset("imagenet")
    with pytest.raises(DataError, match="root"):
        load_dataset("fer2013")
    with pytest.raises(DataError, match="root"):
        load_dataset("drawn", "somewhere")


# drawn faces


def test_drawn_faces_have_the_same_bytes_everywhere() -> None:
    labels = np.arange(70, dtype=np.int64) % 7
    images = drawn.draw_faces(labels, seed=0)
    assert hashlib.sha256(images.tobytes()).hexdigest() == DRAWN_SHA256


def test_a_drawn_face_does_not_depend_on_how_many_follow() -> None:
    labels = np.arange(100, dtype=np.int64) % 7
    np.testing.assert_array_equal(drawn.draw_faces(labels, 3)[:65], drawn.draw_faces(labels[:65], 3))


def test_drawn_splits_are_balanced_and_disjoint() -> None:
    splits = drawn.load(140, 70)
    assert set(splits["train"].counts().values()) == {20}
    assert set(splits["validation"].counts().values()) == {10}
    train = {image.tobytes() for image in splits["train"].images}
    assert len(train) == 140
    assert not train & {image.tobytes() for image in splits["validation"].images}
    assert splits["train"].fingerprint() != drawn.load(140, 70, seed=1)["train"].fingerprint()
    with pytest.raises(DataError, match="at least 7"):
        drawn.load(6, 70)


def test_expressions_look_different_on_average() -> None:
    """Mean faces of any two classes differ more than those of two halves of one class."""
    split = drawn.load(1400, 7)["train"]
    means = [split.images[split.labels == k].mean(0) for k in range(7)]
    halves = [split.images[split.labels == k][:100].mean(0) for k in range(7)]
    between = min(np.abs(means[i] - means[j]).max() for i in range(7) for j in range(i))
    within = np.median([np.abs(halves[k] - means[k]).mean() for k in range(7)])
    assert between > 2 * within


def test_sheet_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = drawn.load(70, 7)["train"]
    assert contact_sheet(split, columns=3, zoom=1).size == (110 + 3 * 52, 4 + 7 * 52)
    assert main(["sheet", "--out", str(tmp_path / "nowhere" / "a.png")]) == 2
    assert main(["sheet", "--data", "imagenet", "--out", str(tmp_path / "a.png")]) == 2
    assert "drawn, fer2013" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    fer = write(tmp_path / "fer2013.csv", rows())
    assert main(["sheet", "--data", "fer2013", "--root", str(fer), "--out", str(tmp_path / "a.png")]) == 0
    assert Image.open(tmp_path / "a.png").mode == "L"
    colour = Split(np.zeros((2, 3, 8, 8), np.uint8), np.arange(2), ("a", "b"))
    assert contact_sheet(colour, columns=1, zoom=1).mode == "RGB"


# preprocessing and augmentation


@pytest.mark.parametrize("shape", [(30, 8, 8), (30, 3, 8, 8)])
def test_preprocess_normalises(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(1).integers(0, 200, shape, dtype=np.uint8)
    preprocess = Preprocess.of(Split(images, np.zeros(30, np.int64), ("a",)))
    x = preprocess(torch.from_numpy(images))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(x.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(x.shape[1]), atol=1e-3, rtol=0)
    exact = (images.reshape(30, -1, 8, 8) / 255 - np.reshape(preprocess.mean, (-1, 1, 1))) / np.reshape(
        preprocess.std, (-1, 1, 1)
    )
    np.testing.assert_allclose(x.numpy(), exact, atol=1e-6)


def test_preprocess_refuses_other_input() -> None:
    with pytest.raises(ValueError, match="uint8"):
        Preprocess((0.5,), (0.2,))(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="expected 1 channels, got 3"):
        Preprocess((0.5,), (0.2,))(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


STILL = {"flip": 0.0, "degrees": 0.0, "shift": 0.0, "zoom": 0.0, "contrast": 0.0, "erase": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augment_off_changes_nothing_and_flip_mirrors() -> None:
    x = torch.randn(5, 2, 12, 10, generator=generator())
    torch.testing.assert_close(Augment(**STILL)(x, generator()), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(Augment(**{**STILL, "flip": 1.0})(x, generator()), x.flip(3), atol=1e-5, rtol=0)


def test_augment_moves_by_no_more_than_asked() -> None:
    x = torch.zeros(200, 1, 41, 41)
    x[:, :, 20, 20] = 1
    y = Augment(**{**STILL, "shift": 0.1})(x, generator())
    at = torch.arange(41.0) - 20
    offsets = torch.stack([(y.sum((1, 2)) * at).sum(1), (y.sum((1, 3)) * at).sum(1)])
    assert 3 < offsets.abs().max() <= 4.1 + 1e-3
    assert offsets.mean(1).abs().max() < 0.5


def test_augment_rotates_about_the_centre() -> None:
    x = torch.zeros(100, 1, 41, 41)
    x[:, :, 20, 34] = 1  # 14 pixels right of the centre
    y = Augment(**{**STILL, "degrees": 30.0})(x, generator())
    rows_, columns = y.flatten(1).argmax(1) // 41 - 20, y.flatten(1).argmax(1) % 41 - 20
    degrees = torch.rad2deg(torch.atan2(rows_.double(), columns.double()))
    assert 20 < degrees.abs().max() < 34
    torch.testing.assert_close(
        (rows_**2 + columns**2).double().sqrt(), torch.full((100,), 14.0).double(), atol=1, rtol=0
    )


def test_erase_blanks_one_rectangle() -> None:
    y = Augment(**{**STILL, "erase": 1.0})(torch.ones(50, 1, 40, 40), generator())
    blank = (y == 0)[:, 0]
    sides = torch.stack([blank.any(2).sum(1), blank.any(1).sum(1)])
    assert torch.equal(blank.sum((1, 2)), sides[0] * sides[1])
    assert sides.min() >= 3
    assert sides.max() <= 17


def test_augment_repeats_with_its_generator_and_ignores_the_global_one() -> None:
    x = torch.randn(6, 1, 48, 48, generator=generator())
    augment = Augment(erase=0.5)
    first = augment(x, generator(1))
    torch.manual_seed(99)
    assert torch.equal(first, augment(x, generator(1)))
    assert not torch.equal(first, augment(x, generator(2)))
    assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "value"), [("flip", 1.5), ("zoom", -0.1), ("degrees", float("nan"))])
def test_augment_checks_its_ranges(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"augment.{name}"):
        Augment(**{name: value})


# files


def test_a_failed_write_names_the_file_and_leaves_other_errors_alone(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as full, replace_atomically(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path / "a.txt")
    lost = URLError("no route")  # an OSError, too, whose arguments are others
    with pytest.raises(URLError) as failed, replace_atomically(tmp_path / "a.txt"):
        raise lost
    assert failed.value is lost
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted_write() -> None:
        with replace_atomically(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
