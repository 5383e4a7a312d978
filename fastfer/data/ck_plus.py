# SPDX-License-Identifier: Apache-2.0
"""CK+ (Lucey et al. 2010): image sequences from a neutral face to the peak of a posed expression.

593 sequences of 123 subjects, 327 of them labelled. Usual are the last three frames of each labelled sequence (981
images, those of CK+48) or the last one, and as neutral, which is never a label, first frames. There is no official
split, and adjacent frames are nearly equal, so images are divided by subject: the first part of a file's name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from pathlib import Path

from fastfer.data import pixel_csv
from fastfer.data.class_folders import all_expressions, class_images, class_names, first_image
from fastfer.data.labels import CK_EXTENDED_CODES, CK_PLUS_CODES, CLASS_NAMES, canonical_name
from fastfer.data.layouts import Layout, Request, files_named, images_in, search, subfolders
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.split import DataError

SEVEN: tuple[str, ...] = CLASS_NAMES[1:]
"""The labels of CK+: contempt, but no neutral."""

IMAGE_FOLDERS = ("cohn-kanade-images", "extended-cohn-kanade-images")
LABEL_FOLDERS = ("Emotion", "Emotion_labels")
CSV_NAMES = ("ckextended.csv",)
FRAMES = 3

_FRAME = re.compile(r"(S[0-9]{3})_([0-9]{3})_([0-9]{8})")


def _find_official(root: Path) -> list[Path]:
    return search(root, lambda folder: bool(_named(folder, IMAGE_FOLDERS) and _named(folder, LABEL_FOLDERS)))


def _named(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder of one of ``names``; where it holds nothing but another of them, that one."""
    for name in names:
        inner = folder / name
        if inner.is_dir():
            return _named(inner, names) or inner
    return None


def _read_official(root: Path, request: Request) -> Manifest:
    """Last frames of each labelled sequence, and first frames where neutral is asked for."""
    pictures, labels = _named(root, IMAGE_FOLDERS), _named(root, LABEL_FOLDERS)
    if pictures is None or labels is None:
        raise DataError(f"{root}: expected {' or '.join(IMAGE_FOLDERS)} and {' or '.join(LABEL_FOLDERS)}")
    neutral = _neutral(request)
    label_of = _labels(labels, request)
    samples = []
    for subject in subfolders(pictures):
        for sequence in subfolders(subject):
            key = (subject.name, sequence.name)
            label, peak = label_of.pop(key, (None, ""))
            frames = [path for path in images_in(sequence) if _FRAME.match(path.name)]
            if frames and (neutral == "all" or (neutral == "labelled" and label)):
                samples.append(_frame(frames[0], "neutral"))
            if label is None:  # 266 of the 593 sequences
                continue
            if peak not in {path.stem for path in frames}:
                request.problems.add(f"{sequence / peak} is missing, the labelled frame")
                continue
            last = frames[-(request.options.frames or FRAMES) :]
            if neutral != "none" and frames[0] in last:
                request.problems.add(f"{sequence}: {len(frames)} frames, the first would be neutral and {label}")
                continue
            samples += [_frame(path, label) for path in last]
    for subject_name, sequence_name in label_of:
        request.problems.add(f"{pictures / subject_name / sequence_name} is labelled and missing")
    names = CLASS_NAMES if neutral != "none" else SEVEN
    return Manifest("ck_plus", "official", root, samples, names, _notes(request))


def _labels(folder: Path, request: Request) -> dict[tuple[str, str], tuple[str, str]]:
    """{(subject, sequence): (class, name of the peak frame)}; no file, or an empty folder, means no label."""
    found = {}
    for subject in subfolders(folder):
        for sequence in subfolders(subject):
            files = sorted(path for path in sequence.glob("*_emotion.txt") if not path.name.startswith("."))
            if len(files) > 1:
                raise DataError(f"{sequence}: expected one emotion file, found {len(files)}")
            for path in files:
                label = request.problems.attempt(partial(_read_label, path))
                if label is not None:
                    found[subject.name, sequence.name] = label, path.name.removesuffix("_emotion.txt")
    return found


def _read_label(path: Path) -> str:
    text = path.read_text(encoding="ascii", errors="replace").strip()
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
    wanted = asked == 8 if asked is None or isinstance(asked, int) else "neutral" in map(str.lower, asked)
    return request.options.neutral or ("labelled" if wanted else "none")


def _notes(request: Request) -> tuple[str, ...]:
    frames, neutral = request.options.frames or FRAMES, _neutral(request)
    last = f"last {frames} frames" if frames > 1 else "last frame"
    return (last,) if neutral == "none" else (last, f"first frame of {neutral} sequences as neutral")


def _find_ck48(root: Path) -> list[Path]:
    return search(root, _is_ck48)


def _is_ck48(root: Path) -> bool:
    if not all_expressions(class_names(root)):
        return False
    first = first_image(root)
    return first is not None and _FRAME.match(first.path.name) is not None


def _read_ck48(root: Path, request: Request) -> Manifest:
    """Class folders of last frames; ``frames`` keeps the last of each sequence's."""
    if request.options.neutral not in (None, "none"):
        raise DataError("neutral: CK+48 holds no first frames")
    sequences: dict[str, list[Sample]] = defaultdict(list)
    for each in class_images(root):
        match = _FRAME.match(each.path.name)
        if match is None:
            raise DataError(f"{each.path}: expected a name such as S010_004_00000017.png")
        label = canonical_name(each.label)
        sequences[match[1] + match[2]].append(Sample(each.path, label, each.path.name, each.part, match[1]))
    samples = []
    for key, frames in sorted(sequences.items()):
        if len({sample.label for sample in frames}) > 1:
            raise DataError(f"{root}: sequence {key} lies in several class folders")
        samples += sorted(frames, key=lambda sample: sample.id)[-(request.options.frames or FRAMES) :]
    return Manifest("ck_plus", "ck48", root, samples, SEVEN, _notes(request))


def _find_csv(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.name.lower().startswith("ck") and root.suffix == ".csv" else []
    return files_named(root, CSV_NAMES)


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
    return Manifest("ck_plus", "csv", path, samples, names, ("last frame", "subjects unknown"))


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
