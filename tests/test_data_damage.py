# SPDX-License-Identifier: Apache-2.0
"""Tables, lists and shards with bytes changed, cut, doubled and exchanged: read, or refused by name, nothing else."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_trees import ck_official, ck_sequences, face, fer2013_csv, ferplus_folders, raf_kaggle, raf_official, save
from test_data_hostile import encoded, parquet
from test_data_lists import affectnet

from fastfer.data import DataError, Shards, ShardWriter, load_dataset
from fastfer.data.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")


def listed(root: Path) -> Path:
    names = [save(root / f"{k}.png", face(k, 8, 8)).name for k in range(6)]
    path = root / "labels.csv"
    path.write_text(
        "\n".join(["file,label,split", *(f"{n},{'happy' if k % 2 else 'sad'},train" for k, n in enumerate(names))])
    )
    return path


def table(root: Path) -> Path:
    return parquet(root / "train.parquet", {"image": [encoded()] * 7, "label": list(range(7))})


def shards(root: Path) -> Path:
    with ShardWriter(root, ["a", "b"], images=4) as writer:
        for k in range(8):
            writer.add(face(k, 8, 8), "ab"[k % 2])
    return root


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "fer2013.csv": ("fer2013", lambda root: fer2013_csv(root / "fer2013.csv"), "fer2013.csv"),
    "label.csv": ("ferplus", ferplus_folders, "FER2013Train/label.csv"),
    "labels.csv": ("image_folder", listed, "labels.csv"),
    "emotion.txt": (
        "ck_plus",
        lambda root: ck_official(root, ck_sequences(2)),
        "Emotion/S010/001/S010_001_00000004_emotion.txt",
    ),
    "list_patition_label.txt": ("raf_db", raf_official, "basic/EmoLabel/list_patition_label.txt"),
    "train_labels.csv": ("raf_db", raf_kaggle, "train_labels.csv"),
    "exp.npy": ("affectnet", affectnet, "val_set/annotations/0_exp.npy"),
    "parquet": ("fer2013", table, "train.parquet"),
}
ODD = (b"\0", b"\xff\xfe", b'"', b"\n", b",", b"-1", b"9" * 400, b"\x1b[31m", b"../" * 5, b"1e400", b"nan", b"[" * 5000)


def damaged(content: bytes, dice: random.Random) -> bytes:
    at, to = sorted(dice.randrange(len(content) + 1) for _ in range(2))
    kind = dice.randrange(5)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[to:]
    if kind == 2:
        return content[:at] + dice.choice(ODD) + content[at:]
    if kind == 3:
        return content[:to] + content[at:to] + content[to:]
    changed = bytearray(content)
    for _ in range(dice.randint(1, 8)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def try_file(root: Path, name: str, seeds: range) -> None:
    dataset, build, file = FILES[name]
    build(root)
    path = root / file
    content = path.read_bytes()
    for seed in seeds:
        path.write_bytes(damaged(content, random.Random(seed)))
        for skip in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    load_dataset(dataset, root, parts=("train",), mixed_size=8, skip_corrupt=skip)
                except DataError as error:
                    told = str(error)
                    if len(told) > 20_000:
                        raise AssertionError(f"{name}, seed {seed}: {len(told)} letters") from error
                except Exception as error:
                    raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
        assert main(["check", str(root), "--data", dataset]) in (0, 1, 2), f"{name}, seed {seed}"


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    try_file(tmp_path, name, range(3))


@pytest.mark.full
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    try_file(tmp_path, name, range(1000, 1100))


def try_shards(root: Path, seeds: range) -> None:
    shards(root)
    files = sorted(root.iterdir())
    whole = {path: path.read_bytes() for path in files}
    for seed in seeds:
        dice = random.Random(seed)
        path = dice.choice(files)
        path.write_bytes(damaged(whole[path], dice))
        try:
            for record in Shards(root).records():
                assert record.decode().dtype == np.uint8
        except DataError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        path.write_bytes(whole[path])


def test_damaged_shards_are_read_or_refused(tmp_path: Path) -> None:
    try_shards(tmp_path / "set", range(60))


@pytest.mark.full
def test_many_damaged_shards_are_read_or_refused(tmp_path: Path) -> None:
    try_shards(tmp_path / "set", range(1000, 3000))
