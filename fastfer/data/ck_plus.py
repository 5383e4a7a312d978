# SPDX-License-Identifier: Apache-2.0
"""CK+ (Lucey et al. 2010): image sequences from a neutral face to the peak of a posed expression.

593 sequences of 123 subjects, 327 of them labelled. Usual are the last three frames of each labelled sequence (981
images, those of CK+48) or the last one, and as neutral, which is never a label, first frames. There is no official
split, and adjacent frames are nearly equal, so images are divided by subject: the first part of a file's name.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from os.path import isdir, isfile
from pathlib import Path

from fastfer.data import pixel_csv
from fastfer.data.class_folders import class_folders, class_images, image_names, is_class_tree
from fastfer.data.labels import BASIC_NAMES, CK_EXTENDED_CODES, CK_PLUS_CODES, CLASS_NAMES, canonical_name
from fastfer.data.layouts import Layout, Request, files_named, is_expression, search
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.named_files import CK_PLUS, keep_split_by_person
from fastfer.data.split import DataError
from fastfer.data.tree import Tree

SEVEN: tuple[str, ...] = CLASS_NAMES[1:]
"""The labels of CK+: contempt, but no neutral."""

IMAGE_FOLDERS = ("cohn-kanade-images", "extended-cohn-kanade-images")
LABEL_FOLDERS = ("Emotion", "Emotion_labels")
CSV_NAMES = ("ckextended.csv",)
FRAMES = 3


def _find_official(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: bool(_named(folder, IMAGE_FOLDERS) and _named(folder, LABEL_FOLDERS)))


def _named(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder of one of ``names``; where it holds nothing but another of them, that one."""
    for name in names:
        inner = folder / name
        if isdir(inner):
            return _named(inner, names) or inner
    return None


def _read_official(root: Path, request: Request) -> Manifest:
    """Last frames of each labelled sequence, and first frames where neutral is asked for."""
    pictures, labels = _named(root, IMAGE_FOLDERS), _named(root, LABEL_FOLDERS)
    if pictures is None or labels is None:
        raise DataError(f"{root}: expected {' or '.join(IMAGE_FOLDERS)} and {' or '.join(LABEL_FOLDERS)}")
    label_of, sources = _labels(labels, request)
    samples: list[Sample] = []
    for subject in request.tree.folders(pictures):
        for sequence in request.tree.folders(subject):
            frames = [path for path in request.tree.images(sequence) if CK_PLUS.match(path.name)]
            label, peak = label_of.pop((subject.name, sequence.name), (None, ""))
            samples += _sequence(sequence, frames, label, peak, request)
    for subject_name, sequence_name in label_of:
        request.problems.add(f"{pictures / subject_name / sequence_name} is labelled and missing")
    names, seven = _classes(request)
    return Manifest("ck_plus", "official", root, samples, names, _notes(request), sources=sources, seven=seven)


def _sequence(folder: Path, frames: list[Path], label: str | None, peak: str, request: Request) -> list[Sample]:
    """The last frames of a labelled sequence, and its first as neutral where that is asked for."""
    neutral = _neutral(request)
    last = frames[-(request.options.frames or FRAMES) :] if label else []
    first = frames[:1] if neutral == "all" or (neutral == "labelled" and label) else []
    if label and peak not in {path.stem for path in frames}:
        request.problems.add(f"{folder / peak} is missing, the labelled frame")
        last = []
    elif set(first) & set(last):
        request.problems.add(f"{folder}: {len(frames)} frames, the first would be neutral and {label}")
        last = []
    taken = {*first, *last}
    reason = "frames before the last of a sequence" if label else "sequences without a label"
    if rest := [path for path in frames if path not in taken]:
        request.leave_out(reason, *rest)
    return [*(_frame(path, "neutral") for path in first), *(_frame(path, str(label)) for path in last)]


def _labels(folder: Path, request: Request) -> tuple[dict[tuple[str, str], tuple[str, str]], tuple[Path, ...]]:
    """({(subject, sequence): (class, name of the peak frame)}, files read); no file means no label."""
    found, sources = {}, []
    for subject in request.tree.folders(folder):
        for sequence in request.tree.folders(subject):
            others = request.tree.listing(sequence).others
            files = [path for path in others if path.name.endswith("_emotion.txt")]
            if len(files) > 1:
                raise DataError(f"{sequence}: expected one emotion file, found {len(files)}")
            for path in files:
                sources.append(path)
                label = request.problems.attempt(partial(_read_label, path))
                if label is not None:
                    found[subject.name, sequence.name] = label, path.name.removesuffix("_emotion.txt")
    return found, tuple(sources)


def _read_label(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            text = file.read(100).strip()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        code = float(text)
    except ValueError:
        code = -1.0
    if code not in range(1, len(CK_PLUS_CODES)):
        known = ", ".join(f"{code} {name}" for code, name in enumerate(CK_PLUS_CODES) if code)
        raise DataError(f"{path}: expected one of {known}, got {text[:20]!r}")
    return CK_PLUS_CODES[int(code)]


def _frame(path: Path, label: str) -> Sample:
    return Sample(path, label, path.name, subject=path.name[:4])


def _neutral(request: Request) -> str:
    """Where neutral faces come from; where the classes asked for have one, by default from the labelled sequences."""
    asked = request.options.classes
    named = () if asked is None or isinstance(asked, int) else asked
    wanted = asked == 8 or any(is_expression(name) and canonical_name(name) == "neutral" for name in named)
    return request.options.neutral or ("labelled" if wanted else "none")


def _classes(request: Request) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Classes of the set, and which are meant by 7: with neutral faces asked for, those are in and contempt is out."""
    with_neutral = _neutral(request) != "none"
    return (CLASS_NAMES, BASIC_NAMES) if with_neutral else (SEVEN, SEVEN)


def _notes(request: Request) -> tuple[str, ...]:
    frames, neutral = request.options.frames or FRAMES, _neutral(request)
    last = f"last {frames} frames" if frames > 1 else "last frame"
    return (last,) if neutral == "none" else (last, f"first frame of {neutral} sequences as neutral")


def _find_ck48(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: _is_ck48(tree, folder))


def _is_ck48(tree: Tree, root: Path) -> bool:
    return is_class_tree(tree, root) and any(map(CK_PLUS.match, image_names(tree, root)))


def _read_ck48(root: Path, request: Request) -> Manifest:
    """Class folders of last frames; ``frames`` keeps the last of each sequence's."""
    if request.options.neutral not in (None, "none"):
        raise DataError("neutral: CK+48 holds no first frames")
    folders = class_folders(request.tree, root)
    sequences: dict[str, list[Sample]] = defaultdict(list)
    for each in class_images(request.tree, folders, root):
        match = CK_PLUS.match(each.path.name)
        if match is None:
            raise DataError(f"{each.path}: expected a name such as S010_004_00000017.png")
        subject = match["subject"].upper()
        sample = Sample(each.path, each.expression(), each.path.name, each.part, subject)
        sequences[subject + match["sequence"]].append(sample)
    samples = []
    for key, frames in sorted(sequences.items()):
        if len({sample.label for sample in frames}) > 1:
            raise DataError(f"{root}: sequence {key} lies in several class folders")
        ordered = sorted(frames, key=lambda sample: sample.id)
        last = ordered[-(request.options.frames or FRAMES) :]
        samples += last
        if len(last) < len(ordered):
            earlier = [sample.image for sample in ordered[: -len(last)] if isinstance(sample.image, Path)]
            request.leave_out("frames before the last of a sequence", *earlier)
    kept, notes = keep_split_by_person(samples)
    classes = tuple(folder.path for folder in folders)
    return Manifest("ck_plus", "ck48", root, kept, SEVEN, (*_notes(request), *notes), seven=SEVEN, classes=classes)


def _find_csv(tree: Tree) -> list[Path]:
    root = tree.root
    if isfile(root):
        return [root] if root.name.lower().startswith("ck") and root.suffix == ".csv" else []
    return files_named(tree, CSV_NAMES)


def _read_csv(path: Path, request: Request) -> Manifest:
    """FER2013's codes and 7 for contempt; 593 first frames as neutral; no subjects. ``neutral="none"`` drops those."""
    if request.options.frames not in (None, 1):
        raise DataError(f"frames: {path.name} holds one frame per sequence")
    if request.options.neutral == "labelled":
        raise DataError(f"neutral: {path.name} does not say of which sequence a neutral face is")
    samples, _ = pixel_csv.read_samples(path, CK_EXTENDED_CODES, request.wanted, request.problems)
    if request.options.neutral == "none":
        samples = [sample for sample in samples if sample.label != "neutral"]
    names = SEVEN if request.options.neutral == "none" else CLASS_NAMES
    seven = SEVEN if request.options.neutral is None else names[:7]
    notes = ("last frame", "subjects unknown")
    return Manifest("ck_plus", "csv", path, samples, names, notes, sources=(path,), seven=seven)


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "official",
        "ROOT/cohn-kanade-images/S*/*/S*.png with ROOT/Emotion/S*/*/*_emotion.txt",
        _find_official,
        _read_official,
    ),
    Layout("ck48", "ROOT/[CK+48/]CLASS/S*_*_*.png", _find_ck48, _read_ck48),
    Layout("csv", f"ROOT/{CSV_NAMES[0]}", _find_csv, _read_csv),
)
