# SPDX-License-Identifier: Apache-2.0
"""Small data sets in the layouts that users have on disk, for the tests of fastfer.data."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fastfer.data import Split

FER2013_NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
CK_CODES = ("neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
RAF_DB_CODES = ("", "surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
RAFD_NAMES = ("angry", "contemptuous", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
JAFFE_CODES = {
    "AN": "anger",
    "DI": "disgust",
    "FE": "fear",
    "HA": "happiness",
    "NE": "neutral",
    "SA": "sadness",
    "SU": "surprise",
}


def face(seed: int, height: int = 48, width: int = 48, colour: bool = False) -> np.ndarray:
    """Noise that follows from the seed, so that every image is another and can be told by its pixels."""
    shape = (height, width, 3) if colour else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def names_of(split: Split) -> list[str]:
    """Class name of each image."""
    return [split.names[label] for label in split.labels]


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def pixels(image: np.ndarray) -> str:
    return " ".join(map(str, image.ravel()))


def write_csv(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
    return path


def fer2013_csv(
    path: Path, per_usage: int = 7, usages: Sequence[str] = ("Training", "PublicTest", "PrivateTest")
) -> Path:
    """Codes 0..6 in turn in each usage; image number k is face(k)."""
    rows = [[k % 7, pixels(face(u * per_usage + k)), usage] for u, usage in enumerate(usages) for k in range(per_usage)]
    return write_csv(path, rows, ["emotion", "pixels", "Usage"])


def fer2013_folders(root: Path, prefixed: bool = True) -> Path:
    """The Kaggle folders: one Training and one each of PublicTest and PrivateTest per class."""
    for k, name in enumerate(FER2013_NAMES):
        stems = [("train", f"Training_{k}"), ("test", f"PublicTest_{k}"), ("test", f"PrivateTest_{k}")]
        for n, (folder, stem) in enumerate(stems):
            save(root / folder / name / f"{stem if prefixed else 10 * n + k}.png", face(100 * n + k))
    return root


def ballots(label: str, votes: int = 10) -> list[int]:
    """Ten votes, ``votes`` for the class and the rest one by one for the classes after it."""
    at = VOTES.index(label)
    cast = [0] * len(VOTES)
    cast[at] = votes
    for k in range(10 - votes):
        cast[(at + 1 + k) % len(VOTES)] = 1
    return cast


def ferplus_folders(root: Path, rows: dict[str, list[tuple[str, list[int]]]] | None = None) -> Path:
    """The generator script's folders. ``rows``: {folder: [(image, votes)]}; by default all eight classes in each."""
    rows = rows or {
        folder: [(f"fer{1000 * n + k:07}.png", ballots(VOTES[k])) for k in range(8)]
        for n, folder in enumerate(("FER2013Train", "FER2013Valid", "FER2013Test"))
    }
    for folder, labels in rows.items():
        for name, _ in labels:
            save(root / folder / name, face(int(name[3:10])))
        write_csv(root / folder / "label.csv", [[name, "(0, 0, 48, 48)", *votes] for name, votes in labels])
    return root


def ck_official(root: Path, sequences: Sequence[tuple[str, str, int | None]], frames: int = 4) -> Path:
    """``sequences``: (subject, sequence, code or None where it has no label); some are grey, some in colour."""
    for number, (subject, sequence, code) in enumerate(sequences):
        stem = f"{subject}_{sequence}_"
        for frame in range(1, frames + 1):
            height = 49 if number % 2 else 48
            image = face(1000 * number + frame, height, 64, colour=number % 3 == 0)
            save(root / "cohn-kanade-images" / subject / sequence / f"{stem}{frame:08}.png", image)
        labels = root / "Emotion" / subject / sequence
        labels.mkdir(parents=True)
        (labels / ".DS_Store").write_bytes(b"\0")
        if code is not None:
            (labels / f"{stem}{frames:08}_emotion.txt").write_text(f"   {code:.7e}\n")
    return root


def ck_sequences(subjects: int = 12) -> list[tuple[str, str, int | None]]:
    """Each subject with every label once, and a sequence without one."""
    return [
        (f"S{10 + s:03}", f"{code:03}", code if code < 8 else None) for s in range(subjects) for code in range(1, 9)
    ]


def raf_official(root: Path, suffix: str = "_aligned", train: int = 14, test: int = 7) -> Path:
    lines = []
    for part, count, digits in (("train", train, 5), ("test", test, 4)):
        for k in range(1, count + 1):
            stem = f"{part}_{k:0{digits}}"
            lines.append(f"{stem}.jpg {(k - 1) % 7 + 1}")
            for folder, name, side in (("aligned", stem + suffix, 20), ("original", stem, 30 + k)):
                save(
                    root / "basic" / "Image" / folder / f"{name}.jpg", face(k + 1000 * digits, side, side, colour=True)
                )
    labels = root / "basic" / "EmoLabel" / "list_patition_label.txt"
    labels.parent.mkdir(parents=True)
    labels.write_text("\n".join(lines) + "\n")
    return root


def raf_kaggle(root: Path) -> Path:
    for part, count, digits in (("train", 14, 5), ("test", 7, 4)):
        rows = []
        for k in range(1, count + 1):
            name, code = f"{part}_{k:0{digits}}_aligned.jpg", (k - 1) % 7 + 1
            save(root / "DATASET" / part / str(code) / name, face(k + 1000 * digits, 20, 20, colour=True))
            rows.append([name, code])
        write_csv(root / f"{part}_labels.csv", rows, ["image", "label"])
    return root


def rafd(root: Path, models: Sequence[int] = tuple(range(1, 12)), prefix: str = "") -> Path:
    for model in models:
        who = "Kid_female" if model % 5 == 0 else "Caucasian_male"
        for k, name in enumerate(RAFD_NAMES):
            for camera, gaze in ((90, "frontal"), (90, "left"), (45, "right")):
                image = face(100 * model + 10 * k + camera + len(gaze), 30, 20, colour=True)
                save(root / f"{prefix}Rafd{camera:03}_{model:02}_{who}_{name}_{gaze}.jpg", image)
    return root


def jaffe(root: Path, subjects: Sequence[str] = ("KA", "KL", "KM"), suffix: str = "tiff") -> Path:
    number = 0
    for subject in subjects:
        for code in JAFFE_CODES:
            for take in (1, 2):
                number += 1
                path = root / f"{subject}.{code}{take}.{number}.{suffix}"
                save(path, face(number, 32, 32))
    (root / "README_FIRST.txt").write_text("semantic ratings")
    return root
