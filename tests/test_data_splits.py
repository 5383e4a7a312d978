# SPDX-License-Identifier: Apache-2.0
"""Options, folds, proportions, soft labels, duplicates and unusable images of fastfer.data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_trees import (
    FER2013_NAMES,
    face,
    fer2013_csv,
    fer2013_folders,
    ferplus_folders,
    jaffe,
    pixels,
    save,
    write_csv,
)
from PIL import Image

from fastfer.data import (
    BASIC_NAMES,
    CLASS_NAMES,
    DataError,
    DataOptions,
    Sample,
    Split,
    canonical_name,
    duplicate_mask,
    fraction_parts,
    group_folds,
    load_dataset,
    load_folds,
    load_lazily,
    stratified_folds,
)
from fastfer.data.images import decode
from fastfer.data.labels import SIX_NAMES, class_list

# names


@pytest.mark.parametrize(
    ("aliases", "name"),
    [
        ("Neutral NE", "neutral"),
        ("happy happiness HA joy", "happiness"),
        ("surprise surprised SU", "surprise"),
        ("sad sadness SA", "sadness"),
        ("angry anger AN", "anger"),
        ("disgust disgusted DI", "disgust"),
        ("fear fearful afraid FE", "fear"),
        ("contempt contemptuous", "contempt"),
    ],
)
def test_aliases(aliases: str, name: str) -> None:
    assert {canonical_name(alias) for alias in aliases.split()} == {name}


def test_class_lists() -> None:
    assert class_list(None, BASIC_NAMES) == BASIC_NAMES
    assert class_list(6, CLASS_NAMES) == SIX_NAMES
    assert class_list(8, CLASS_NAMES) == CLASS_NAMES
    assert class_list(("sad", "Happy"), CLASS_NAMES) == ("happiness", "sadness")
    with pytest.raises(ValueError, match="this data set has no contempt"):
        class_list(8, BASIC_NAMES)
    with pytest.raises(ValueError, match="expected 6, 7, 8 or names, got 5"):
        class_list(5, CLASS_NAMES)
    with pytest.raises(ValueError, match="two or more, got happiness"):
        class_list(("happy",), CLASS_NAMES)


# splits


def split_of(count: int, **more: object) -> Split:
    images = np.arange(count, dtype=np.uint8).repeat(4).reshape(count, 2, 2)
    return Split(images, np.arange(count, dtype=np.int64) % 2, ("a", "b"), **more)  # type: ignore[arg-type]


def test_split_carries_soft_labels_subjects_and_ids_along() -> None:
    soft = np.linspace(0, 1, 6, dtype=np.float32)
    split = split_of(6, soft=np.stack([soft, 1 - soft], 1), subjects=tuple("xxyyzz"), ids=tuple("012345"), protocol="p")
    for part in (split.take(np.array([4, 1])), split.first(5).take(np.arange(5) == 4)):
        assert part.ids is not None
        assert part.soft is not None
        assert part.protocol == "p"
        for image, row, subject, id_ in zip(part.images, part.soft, part.subjects or (), part.ids, strict=True):
            assert image[0, 0] == int(id_)
            assert row[0] == soft[int(id_)]
            assert subject == "xxyyzz"[int(id_)]
    assert split.first(3).fingerprint() != split_of(3).fingerprint()


def test_split_checks_soft_labels_and_names() -> None:
    with pytest.raises(ValueError, match=r"soft: expected float32 of shape \(2, 2\), got float64"):
        split_of(2, soft=np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="sum to 1"):
        split_of(2, soft=np.full((2, 2), 0.4, np.float32))
    with pytest.raises(ValueError, match="sum to 1"):
        split_of(1, soft=np.array([[1.5, -0.5]], np.float32))
    with pytest.raises(ValueError, match="subjects: expected 2 names, got 1"):
        split_of(2, subjects=("x",))


# folds and proportions


def test_group_folds_keep_subjects_together_and_deal_in_order() -> None:
    subjects = ["S3", "S1", "S2", "S1", "S5", "S4", "S3"]
    assert group_folds(subjects, 2).tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert len(set(group_folds(subjects, 5).tolist())) == 5
    with pytest.raises(ValueError, match=r"folds: expected 2 to 5 \(the number of subjects\), got 6"):
        group_folds(subjects, 6)


def test_stratified_folds_are_even_per_class_and_follow_the_seed() -> None:
    labels = np.random.default_rng(0).choice(3, 200, p=[0.7, 0.25, 0.05])
    folds = stratified_folds(labels, 7, seed=1)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=7)
        assert counts.max() - counts.min() <= 1
    assert np.ptp(np.bincount(folds, minlength=7)) <= 1
    np.testing.assert_array_equal(folds, stratified_folds(labels, 7, seed=1))
    assert (folds != stratified_folds(labels, 7, seed=2)).any()


def test_random_splits_are_the_same_with_every_numpy() -> None:
    labels = np.arange(20) % 2
    assert stratified_folds(labels, 5, seed=0).tolist() == STRATIFIED
    assert fraction_parts(labels, (8, 1, 1), seed=0).tolist() == FRACTIONS


STRATIFIED = [0, 4, 2, 3, 4, 0, 3, 3, 1, 2, 0, 1, 2, 4, 1, 2, 3, 0, 4, 1]
FRACTIONS = [0, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("weights", [(8, 1, 1), (0.7, 0.1, 0.2), (90, 10)])
def test_fractions_are_kept_per_class(weights: tuple[float, ...]) -> None:
    labels = np.repeat([0, 1, 2], [500, 100, 50])
    parts = fraction_parts(labels, weights, seed=3)
    for label, size in enumerate((500, 100, 50)):
        counts = np.bincount(parts[labels == label], minlength=len(weights))
        np.testing.assert_allclose(counts, np.array(weights) / sum(weights) * size, atol=1)
    assert (parts != fraction_parts(labels, weights, seed=4)).any()


def test_fractions_by_group() -> None:
    groups = [f"g{k % 20}" for k in range(200)]
    parts = fraction_parts(np.zeros(200, np.int64), (8, 1, 1), 0, groups)
    assert len({(group, part) for group, part in zip(groups, parts, strict=True)}) == 20
    assert np.bincount(parts).tolist() == [160, 20, 20]
    with pytest.raises(ValueError, match="part 2 of 3 would get no image"):
        fraction_parts(np.zeros(4, np.int64), (8, 1, 1), 0, ["a", "a", "b", "b"])
    with pytest.raises(ValueError, match="two or more positive numbers"):
        fraction_parts(np.zeros(4, np.int64), (1, 0), 0)


def test_load_folds_reads_once_and_gives_what_load_dataset_gives(tmp_path: Path) -> None:
    jaffe(tmp_path)
    folds = load_folds("jaffe", tmp_path)
    assert len(folds) == 3
    expected = [load_dataset("jaffe", tmp_path, fold=fold) for fold in range(3)]
    first = folds[0]
    for path in tmp_path.glob("*.tiff"):
        path.unlink()
    for fold, splits in enumerate(folds):
        assert {part: split.fingerprint() for part, split in splits.items()} == {
            part: split.fingerprint() for part, split in expected[fold].items()
        }
    assert folds[-1]["train"].fingerprint() == expected[2]["train"].fingerprint()
    assert first["train"].protocol.endswith("train: fold 0 of 3 by subject")
    with pytest.raises(IndexError, match="expected 0 to 2, got 3"):
        folds[3]


def test_stratified_folds_of_a_set_without_subjects(tmp_path: Path) -> None:
    fer2013_csv(tmp_path / "fer2013.csv", per_usage=14)
    folds = load_folds("fer2013", tmp_path, split="3-fold", seed=5)
    held = [split["validation"] for split in folds]
    assert [len(split) for split in held] == [10, 9, 9]
    assert all(set(split.counts().values()) <= {1, 2} for split in held)
    assert len({image.tobytes() for split in held for image in split.images}) == 28  # PrivateTest stays out
    assert "fold 0 of 3 by image, seed 5; the set's own 14 test images are kept out" in held[0].protocol
    with pytest.raises(DataError, match="expected N-fold or leave-one-subject-out, got official"):
        load_folds("fer2013", tmp_path)


def test_folds_that_cannot_be_made_are_refused_at_once(tmp_path: Path) -> None:
    fer2013_csv(tmp_path / "fer2013.csv")
    with pytest.raises(DataError, match="does not say whose the images are"):
        load_folds("fer2013", tmp_path, split="leave-one-subject-out")
    with pytest.raises(DataError, match="this data set has no contempt"):
        load_folds("fer2013", tmp_path, split="3-fold", classes=8)
    with pytest.raises(DataError, match=r"expected 2 to 14 \(the number of images\), got 22"):
        load_folds("fer2013", tmp_path, split="22-fold")


# options


def test_options_given_by_name_change_those_given_whole(tmp_path: Path) -> None:
    jaffe(tmp_path)
    options = DataOptions(fold=1, size=8)
    split = load_dataset("jaffe", tmp_path, options=options, fold=2)["validation"]
    assert set(split.subjects or ()) == {"KM"}
    assert split.images.shape[1:] == (8, 8)
    with pytest.raises(TypeError, match="unknown option folds: expected one of layout, classes"):
        load_dataset("jaffe", tmp_path, folds=3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"split": "random"}, r"split: expected official, N-fold, .* 8-1-1 or 90-10, got 'random'"),
        ({"split": "1-fold"}, "2 folds or more"),
        ({"split": "8-0-1"}, "got '8-0-1'"),
        ({"split": "..-1"}, "got '..-1'"),
        ({"fold": -1}, "fold: expected 0 or more, got -1"),
        ({"size": 0}, "size: expected 1 or more"),
        ({"channels": 2}, "channels: expected one of 1, 3, got 2"),
        ({"validation": "public"}, "validation: expected auto, test or a fraction"),
        ({"validation": "1.5"}, "got '1.5'"),
        ({"label_mode": "mean"}, "label_mode: expected one of majority, argmax, votes, crossentropy"),
        ({"remove_duplicates": True}, "remove_duplicates: expected one of none, evaluation, training"),
        ({"split": "8-1-1", "fold": 1}, "split 8-1-1 has no folds, got 1"),
        ({"validation": "0.2"}, "split leave-one-subject-out has a validation set, got '0.2'"),
        ({"frames": 3}, "frames: has no meaning for jaffe"),
        ({"aligned": False, "codes": "fer2013"}, "aligned, codes: has no meaning for jaffe"),
        ({"classes": 8}, "this data set has no contempt"),
        ({"split": "official"}, "has no official split"),
        ({"split": "10-fold"}, r"expected 2 to 3 \(the number of subjects\), got 10"),
        ({"split": "leave-one-subject-out", "by_image": True}, "leave-one-subject-out is by subject"),
        ({"parts": ("dev",)}, "parts: expected some of train, validation, test, got dev"),
        ({"parts": ("test",)}, "no test set; it has train, validation"),
        ({"subset": "/nowhere/list.txt"}, "subset: cannot read /nowhere/list.txt"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    jaffe(tmp_path)
    with pytest.raises(DataError, match=expected):
        load_dataset("jaffe", tmp_path, **changes)  # type: ignore[arg-type]


def test_the_drawn_faces_take_no_options() -> None:
    with pytest.raises(DataError, match="size, test: the drawn faces are generated"):
        load_dataset("drawn", size=8, parts=("train", "test"))
    assert [*load_dataset("drawn", train_images=14, parts=("train",))] == ["train"]


# images


def test_colour_is_kept_where_one_image_has_it(tmp_path: Path) -> None:
    for k in range(4):
        save(tmp_path / "train" / ("happy", "sad")[k % 2] / f"{k}.png", face(k, 8, 8, colour=k == 3))
    split = load_dataset("image_folder", tmp_path, parts=("train",))["train"]
    assert split.images.shape == (4, 3, 8, 8)
    np.testing.assert_array_equal(split.images[3], face(3, 8, 8, colour=True).transpose(2, 0, 1))
    np.testing.assert_array_equal(split.images[0], np.stack([face(0, 8, 8)] * 3))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16", "CMYK"])
def test_every_mode_of_image_becomes_bytes(tmp_path: Path, mode: str) -> None:
    image = face(1, 8, 8)
    picture = Image.fromarray(image.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(image).convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    picture.save(path)
    decoded = decode(Sample(path, None, "a"), channels=1)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (8, 8)
    if mode in ("L", "I;16"):
        np.testing.assert_array_equal(decoded, image)


def test_a_sideways_photograph_is_turned(tmp_path: Path) -> None:
    picture = Image.fromarray(face(1, 4, 6))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode(Sample(tmp_path / "a.png", None, "a")), np.rot90(face(1, 4, 6), -1))


BROKEN = {
    "truncated": (lambda whole: whole[: len(whole) // 2], "is not a readable image"),
    "no image": (lambda whole: b"<html>", "no known format"),
    "empty": (lambda whole: b"", "the file is empty"),
    "lfs pointer": (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
}


@pytest.mark.parametrize(("change", "expected"), BROKEN.values(), ids=BROKEN)
def test_corrupt_images_are_named_and_counted(tmp_path: Path, change: object, expected: str) -> None:
    fer2013_folders(tmp_path)
    for code in (2, 4):
        path = tmp_path / "test" / FER2013_NAMES[code] / f"PublicTest_{code}.png"
        path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
        save(path.with_name(f"PublicTest_1{code}.png"), face(99))
    message = rf"2 of 9 images cannot be used: .*PublicTest_2\.png.*{expected}.*PublicTest_4\.png"
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("fer2013", tmp_path)
    assert "skip_corrupt goes on" in str(caught.value)
    with pytest.warns(UserWarning, match="skipped: 2 of 9"):
        splits = load_dataset("fer2013", tmp_path, skip_corrupt=True)
    assert len(splits["validation"]) == 7
    assert set(splits["validation"].counts().values()) == {1}
    assert "2 unusable images skipped" in splits["validation"].protocol


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    ferplus_folders(tmp_path)
    lazy = load_lazily("ferplus", tmp_path, size=8)
    broken = tmp_path / "FER2013Train" / "fer0000002.png"
    broken.write_bytes(b"")
    np.testing.assert_array_equal(lazy["train"].load(1), lazy["train"].first(2).decode().images[1])
    assert lazy["validation"].decode().images.shape == (8, 8, 8)
    image, label = lazy["train"][-1]
    assert (image.shape, label) == ((8, 8), 7)
    with pytest.raises(IndexError, match="expected 0 to 7, got 8"):
        lazy["train"][8]
    with pytest.raises(DataError, match=r"fer0000002\.png is not a readable image"):
        lazy["train"].load(2)
    record = next(lazy["train"].records())
    assert record == {
        "image": broken.with_name("fer0000000.png"),
        "label": "neutral",
        "id": "fer0000000.png",
        "subject": None,
        "soft": None,
    }
    with pytest.raises(DataError, match="remove_duplicates: needs the images in memory"):
        load_lazily("ferplus", tmp_path, remove_duplicates="training")


def test_images_that_do_not_fit_in_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jaffe(tmp_path)
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    with pytest.raises(DataError, match="more than half of this machine's memory: give a smaller size, or"):
        load_dataset("jaffe", tmp_path)


# duplicates


def copies(root: Path) -> Path:
    """PublicTest rows 0 and 1 are Training rows 0 and 1."""
    numbers = [*range(14), 0, 1, *range(20, 32)]
    rows = [[n % 7, pixels(face(number)), "Training" if n < 14 else "PublicTest"] for n, number in enumerate(numbers)]
    return write_csv(root / "fer2013.csv", rows, ["emotion", "pixels", "Usage"])


def test_duplicates_can_be_kept_counted_and_removed_on_either_side(tmp_path: Path) -> None:
    copies(tmp_path)
    kept = load_dataset("fer2013", tmp_path)
    mask = duplicate_mask(kept["validation"], of=kept["train"])
    assert mask.tolist() == [True, True] + [False] * 12
    evaluation = load_dataset("fer2013", tmp_path, remove_duplicates="evaluation")
    assert [len(split) for split in evaluation.values()] == [14, 12]
    assert evaluation["validation"].fingerprint() == kept["validation"].take(~mask).fingerprint()
    assert evaluation["validation"].protocol.endswith("2 duplicates of training images removed")
    training = load_dataset("fer2013", tmp_path, remove_duplicates="training")
    assert [len(split) for split in training.values()] == [12, 14]
    assert not duplicate_mask(training["validation"], of=training["train"]).any()
    with pytest.raises(DataError, match="needs train among the parts"):
        load_dataset("fer2013", tmp_path, remove_duplicates="evaluation", parts=("validation",))


def test_images_of_equal_bytes_and_other_shape_are_no_duplicates() -> None:
    labels = np.zeros(1, np.int64)
    wide, high = (Split(np.zeros((1, *shape), np.uint8), labels, ("a",)) for shape in ((2, 8), (8, 2)))
    assert not duplicate_mask(wide, of=high).any()
