# SPDX-License-Identifier: Apache-2.0
"""Random trees of class folders: every file is accounted for, and what can be read is read under the right label."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from data_trees import RAFD_NAMES, face, save

from fastfer.data import DataError, canonical_name, load_lazily
from fastfer.data.check import check
from fastfer.data.formats import IMAGE_SUFFIXES
from fastfer.data.inventory import Inventory
from fastfer.data.loading import find_dataset, read_manifest
from fastfer.data.options import DataOptions

SPELLINGS = (
    ("happy", "Happiness", "joy"),
    ("sad", "sadness", "SA"),
    ("angry", "anger"),
    ("fear", "afraid"),
    ("neutral", "NE"),
    ("surprise", "surprised"),
    ("disgust", "Disgusted"),
)
PARTS = {
    "train": ("train", "Training", "train_set"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
SYSTEM = ("@eaDir", "__MACOSX", ".DS_Store", "Thumbs.db", "lost+found", "__pycache__", ".hidden")
WRAPPERS = ((), ("archive",), ("archive", "faces"))
NESTED = ("batch2", "anna", "img 1", "2020-01-01")
STRAYS = ("loose", "beside a split", "other format", "dangling", "outside", "unknown class", "class in class")


@dataclass
class Made:
    """A tree, and what must be found in it: {path: (part, class)} of the images, and the strays by kind."""

    root: Path
    place: Path
    images: dict[Path, tuple[str | None, str]] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)


def make(root: Path, seed: int) -> Made:
    dice = random.Random(seed)
    place = root.joinpath(*dice.choice(WRAPPERS))
    made = Made(root, place)
    parts = dice.choice([[None], ["train", "test"], ["train", "validation"], ["train", "validation", "test"]])
    names = dice.sample(SPELLINGS, dice.randint(2, len(SPELLINGS)))
    homes = []
    for part in parts:
        above = place if part is None else place / dice.choice(PARTS[part])
        for spellings in names:
            folder = above / dice.choice(spellings)
            homes.append(folder)
            for number in range(dice.randint(1, 4)):
                inner = folder / dice.choice(NESTED) if dice.random() < 0.3 else folder
                suffix = dice.choice([".png", ".PNG", ".jfif", ".gif", ".tiff", ".bmp", ".webp"])
                path = save_as(inner / f"face {number} {dice.randint(0, 9)}{suffix}", seed * 1000 + len(made.images))
                made.images[path] = part, canonical_name(folder.name)
        litter(above, dice)
    litter(dice.choice(homes), dice)
    for kind in dice.sample(STRAYS, dice.choice([0, 0, 1, 2])):
        if stray(kind, made, parts != [None], dice):
            made.strays.append(kind)
    return made


def save_as(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jfif":
        return save(path.with_suffix(".jpg"), face(number, 8, 8)).rename(path)
    return save(path, face(number, 8, 8))


def litter(folder: Path, dice: random.Random) -> None:
    """What systems leave behind, documents, and empty folders: never a matter."""
    for name in dice.sample(SYSTEM, dice.randint(0, 3)):
        target = folder / name
        if name.endswith((".db", "Store")):
            target.write_bytes(b"x")
        else:
            save(target / "0.png", face(1, 8, 8))
    if dice.random() < 0.5:
        (folder / dice.choice(["tmp", "new folder", "augmented"])).mkdir(exist_ok=True)
    if dice.random() < 0.5:
        (folder / "readme.txt").write_text("x")


def stray(kind: str, made: Made, has_parts: bool, dice: random.Random) -> bool:
    """Add something that belongs to no class; False where it cannot be made in this tree."""
    somewhere = dice.choice([*made.images]).parent
    if kind == "loose":
        save(made.place / "figure.png", face(1, 8, 8))
    elif kind == "beside a split":
        if has_parts:
            save(made.place / "disgust" / "0.png", face(1, 8, 8))
        return has_parts
    elif kind == "other format":
        (somewhere / "0.heic").write_bytes(b"x")
    elif kind == "dangling":
        (somewhere / "gone.png").symlink_to("nowhere")
    elif kind == "outside":
        if made.place != made.root:
            save(made.root / "elsewhere" / "0.png", face(1, 8, 8))
        return made.place != made.root
    elif kind == "unknown class":
        path = dice.choice([*made.images])
        top = made.place / path.relative_to(made.place).parts[0]
        save((top if has_parts else made.place) / "bored" / "0.png", face(1, 8, 8))
    else:
        save(somewhere / "happy" / "0.png", face(1, 8, 8))
    return True


def accounted(inventory: Inventory) -> int:
    """Files and links in the inventory, without what is the system's."""
    named = (inventory.untaken, inventory.unread, inventory.outside, inventory.loose, inventory.dangling)
    return inventory.read + sum(map(len, named)) + sum(inventory.others.values())


def present(root: Path) -> int:
    """Files and links below the root, without what is the system's."""
    system = {name.lower() for name in SYSTEM}
    files = [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]
    return sum(
        not any(p.startswith(".") or p.lower() in system for p in path.relative_to(root).parts) for path in files
    )


def try_one(root: Path, seed: int) -> str:
    """Make a tree and read it; returns what became of it."""
    made = make(root, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = find_dataset("auto", made.root)
            manifest = read_manifest(found, DataOptions())
        except DataError as error:
            if not {"unknown class", "class in class"} & set(made.strays):
                raise AssertionError(f"seed {seed}, made {made.strays}") from error
            return "refused by name"
    assert found.dataset.name in ("image_folder", "fer2013"), f"seed {seed}"
    assert found.place == made.place, f"seed {seed}: {found.place} for {made.place}"
    read = {sample.image: (sample.split, sample.label) for sample in manifest.samples}
    assert read == made.images, f"seed {seed}"
    assert all(path.suffix.lower() in IMAGE_SUFFIXES for path in made.images)
    inventory = manifest.inventory
    assert inventory is not None
    assert accounted(inventory) == present(made.root), f"seed {seed}: {inventory.lines()}"
    expected = {"beside a split", "other format", "dangling"} & set(made.strays)
    assert bool(inventory.refusals()) == bool(expected), f"seed {seed}: {inventory.refusals()}, made {made.strays}"
    assert bool(inventory.doubts()) == ("outside" in made.strays), f"seed {seed}: {inventory.doubts()}"
    assert bool(inventory.remarks()) == ("loose" in made.strays), f"seed {seed}: {inventory.remarks()}"
    report = check(made.root)
    assert report.images == len(made.images), f"seed {seed}"
    unaccounted = [*inventory.refusals(), *inventory.doubts()]
    assert set(unaccounted) <= set(report.problems), f"seed {seed}"
    return "refused" if expected else "read"


@pytest.mark.parametrize("seed", range(12))
def test_a_random_tree_is_accounted_for(tmp_path: Path, seed: int) -> None:
    try_one(tmp_path, seed)


@pytest.mark.full
def test_many_random_trees_are_accounted_for(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(1000, 2500):
        print(f"seed {seed}")  # shown where it fails
        outcomes[try_one(tmp_path / str(seed), seed)] += 1
    assert min(outcomes[kind] for kind in ("read", "refused", "refused by name")) > 50, outcomes


# files that name the person, in any folders


def name_of(dataset: str, person: int, expression: int, number: int) -> tuple[str, str]:
    """(file name, class) of an image of JAFFE, RaFD or CK+."""
    if dataset == "jaffe":
        code, label = (("AN", "anger"), ("HA", "happiness"), ("SU", "surprise"))[expression]
        return f"{('KA', 'KL', 'KM', 'TM')[person]}.{code}1.{number}.png", label
    if dataset == "rafd":
        label = RAFD_NAMES[expression]
        return f"Rafd090_{person + 1:02}_Kid_male_{label}_left.png", canonical_name(label)
    return f"S{person + 10:03}_{expression:03}_00000009.png", ("anger", "happiness", "surprise")[expression]


def scatter(root: Path, dataset: str, dice: random.Random) -> int:
    """The images of four persons in folders by chance, of split, class and batch or some of these; returns how many."""
    by_split, by_class = dice.random() < 0.5, dataset == "ck_plus" or dice.random() < 0.7
    place, lower = root.joinpath(*dice.choice(WRAPPERS)), dice.random() < 0.3
    number = 0
    for person in range(4):
        for expression in range(3):
            number += 1
            name, label = name_of(dataset, person, expression, number)
            folder = place / dice.choice(["train", "test"]) if by_split else place
            folder = folder / label if by_class else folder
            folder = folder / dice.choice(NESTED) if dice.random() < 0.2 else folder
            save(folder / (name.lower() if lower else name), face(number, 8, 8))
    return number


def try_named(root: Path, seed: int) -> None:
    dice = random.Random(seed)
    dataset = dice.choice(["jaffe", "rafd", "ck_plus"])
    count = scatter(root, dataset, dice)
    found = find_dataset("auto", root)
    assert found.dataset.name == dataset, f"seed {seed}: {found}"
    manifest = read_manifest(found, DataOptions())
    assert len(manifest.samples) == count, f"seed {seed}"
    assert manifest.inventory is not None
    assert [*manifest.inventory.refusals(), *manifest.inventory.doubts()] == [], f"seed {seed}"
    for name in ("auto", "image_folder"):
        try:
            splits = load_lazily(name, root, size=8, split="2-fold", fold=dice.randrange(2))
        except DataError:  # without class folders there is no image_folder
            assert name == "image_folder", f"seed {seed}"
            continue
        train, held = ({sample.subject for sample in split.samples} for split in splits.values())
        assert name == "image_folder" or len(train) == len(held) == 2, f"seed {seed}"
        assert not train & held, f"seed {seed}: {splits['train'].protocol}"


@pytest.mark.parametrize("seed", range(6))
def test_persons_stay_together_in_any_folders(tmp_path: Path, seed: int) -> None:
    try_named(tmp_path, seed)


@pytest.mark.full
def test_persons_stay_together_in_many_folders(tmp_path: Path) -> None:
    for seed in range(1000, 1400):
        print(f"seed {seed}")
        try_named(tmp_path / str(seed), seed)
