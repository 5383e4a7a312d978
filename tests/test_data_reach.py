# SPDX-License-Identifier: Apache-2.0
"""What below a data set's root is looked into: links, pipes, deep and unreadable folders, those of the system."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from data_trees import (
    face,
    save,
)
from test_data_inventory import class_tree, total

from fastfer.data import DataError, load_dataset
from fastfer.data.check import check


def test_a_system_folder_is_never_looked_into(tmp_path: Path) -> None:
    class_tree(tmp_path)
    for junk in ("@eaDir", "__MACOSX", ".thumbnails"):
        save(tmp_path / "train" / "happy" / junk / "0.png", face(1, 8, 8))
    assert total(tmp_path) == 12
    assert check(tmp_path).problems == []
    inventory = check(tmp_path).inventory
    assert inventory is not None
    assert (inventory.read, inventory.system) == (12, 3)


def test_links_to_nothing_are_named(tmp_path: Path) -> None:
    class_tree(tmp_path)
    (tmp_path / "train" / "happy" / "9.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "train" / "sad").symlink_to(tmp_path / "nowhere")
    (tmp_path / "train" / "fear" / "loop").symlink_to(tmp_path / "train")
    with pytest.raises(DataError, match=r"3 links lead nowhere, or in circles: train/sad, train/fear/loop, train/"):
        load_dataset("auto", tmp_path)


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    class_tree(tmp_path)
    for name, other in (("left", "right"), ("right", "left")):
        (tmp_path / "train" / "happy" / name).mkdir()
        for k in range(2):
            (tmp_path / "train" / "happy" / name / f"link{k}").symlink_to(tmp_path / "train" / "happy" / other)
    with pytest.raises(DataError, match=r"64 links lead nowhere, or in circles"):
        load_dataset("auto", tmp_path)


def test_images_may_lie_deep(tmp_path: Path) -> None:
    class_tree(tmp_path)
    save(tmp_path.joinpath("train", "happy", *["d"] * 500, "0.png"), face(7, 8, 8))
    assert total(tmp_path) == 13


def test_links_to_images_and_folders_are_followed(tmp_path: Path) -> None:
    class_tree(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for part in ("train", "val"):
        (tmp_path / "linked" / part).symlink_to(tmp_path / "real" / part)
    assert total(tmp_path / "linked") == 12


def test_an_unreadable_lost_and_found_is_no_matter(tmp_path: Path, unreadable: Callable[[str], None]) -> None:
    class_tree(tmp_path)
    (tmp_path / "lost+found").mkdir()
    unreadable("lost+found")
    assert total(tmp_path) == 12
    assert check(tmp_path).problems == []


def test_an_unreadable_folder_of_the_data_set_is_refused(tmp_path: Path, unreadable: Callable[[str], None]) -> None:
    class_tree(tmp_path)
    unreadable("happy")
    with pytest.raises(DataError, match=r"train/happy cannot be read: Permission denied; val/happy cannot be read"):
        load_dataset("auto", tmp_path)


def test_an_unreadable_root_says_so(tmp_path: Path, unreadable: Callable[[str], None]) -> None:
    class_tree(tmp_path / "data")
    unreadable("data")
    with pytest.raises(DataError, match=r"holds none of.*data cannot be read: Permission denied"):
        load_dataset("auto", tmp_path / "data")


def test_a_pipe_named_like_an_image_is_none(tmp_path: Path) -> None:
    class_tree(tmp_path)
    os.mkfifo(tmp_path / "train" / "happy" / "9.png")
    with pytest.raises(DataError, match=r"1 files in class folders are of a format that is not read"):
        load_dataset("auto", tmp_path)
