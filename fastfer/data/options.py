# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a data set: which labels, which split, which form of image."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from fastfer.data.labels import code_names
from fastfer.data.split import DataError

LabelMode = Literal["majority", "argmax", "votes", "crossentropy", "probability", "multi_target"]
LABEL_MODES: tuple[LabelMode, ...] = ("majority", "argmax", "votes", "crossentropy", "probability", "multi_target")


@dataclass(frozen=True)
class DataOptions:
    """Options of ``load_dataset``. None stands for the data set's own usual; an option foreign to a set is refused.

    Lists may be given as text too, and are tuples afterwards.

    Args:
        layout: how the files lie, see ``list_layouts``; auto recognises it and refuses what is ambiguous
        classes: 6 (the basic expressions), 7 (with neutral; CK+ without neutral faces: with contempt), 8, or class
            names, as a list or as happy,sad; images of other classes are left out
        split: official; N-fold (10-fold); leave-one-subject-out; or proportions of training, validation and test
            (8-1-1, 7-1-2) or of the first two (90-10)
        fold: which fold of a k-fold split is the validation set, from 0
        seed: decides random splits
        by_image: split at random by image although subjects are known or needed; the same faces are then trained on
            and tested
        validation: where an official split has no validation set: auto or a fraction like 0.1 holds out that much of
            the training set (auto: a tenth), test validates on the test set, as many papers did
        label_mode: FERPlus: how votes become training labels, see fastfer.data.votes; validation and test are by
            majority, or with argmax and votes by argmax, which keeps every image
        label_source: FERPlus: whose votes, label.csv or fer2013new.csv; they differ for 1,601 images
        frames: CK+: how many last frames of each sequence
        neutral: CK+: first frames as neutral, of the labelled sequences, of all of them, or of none
        cameras: RaFD: camera angles among 0, 45, 90, 135, 180, or frontal (90, the default), half (45 to 135), or all
        gazes: RaFD: gaze directions among left, frontal, right (default: all)
        aligned: RAF-DB: the aligned faces instead of the original photographs
        codes: what numbers for labels mean: fer2013, ferplus, ck_plus, affectnet, raf_db, alphabetical, or pairs such
            as 0=neutral,1=happy
        subset: file of image names; validation and test keep only these (occlusion, pose)
        size: side in pixels to which images are resized; needed where they differ in size
        channels: 1 for grey, 3 for colour (default: grey where all images are)
        skip_corrupt: go on without images that are missing, cannot be read or lie where the layout takes none, naming
            and counting them
        remove_duplicates: drop images whose pixels equal those of a training image from validation and test
            (evaluation), or such images from the training set (training)
    """

    layout: str = "auto"
    classes: int | tuple[str, ...] | str | None = None
    split: str | None = None
    fold: int = 0
    seed: int = 0
    by_image: bool = False
    validation: str = "auto"
    label_mode: LabelMode | None = None
    label_source: Literal["label.csv", "fer2013new.csv"] | None = None
    frames: int | None = None
    neutral: Literal["labelled", "all", "none"] | None = None
    cameras: tuple[int | str, ...] | str | None = None
    gazes: tuple[str, ...] | str | None = None
    aligned: bool | None = None
    codes: str | None = None
    subset: str | None = None
    size: int | None = None
    channels: int | None = None
    skip_corrupt: bool = False
    remove_duplicates: Literal["none", "evaluation", "training"] = "none"

    def __post_init__(self) -> None:
        for name, (expected, form) in _FORMS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            try:
                object.__setattr__(self, name, form(value))
            except (TypeError, ValueError, RecursionError):
                raise DataError(f"{name}: expected {expected}, got {value!r}"[:300]) from None
        if self.codes is not None:
            try:
                code_names(self.codes)
            except ValueError as error:
                raise DataError(str(error)) from None
        choices = {
            "label_mode": (None, *LABEL_MODES),
            "label_source": (None, "label.csv", "fer2013new.csv"),
            "neutral": (None, "labelled", "all", "none"),
            "channels": (None, 1, 3),
            "remove_duplicates": ("none", "evaluation", "training"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                expected = ", ".join(str(value) for value in allowed if value is not None)
                raise DataError(f"{name}: expected one of {expected}, got {getattr(self, name)!r}")
        for name, least in {"fold": 0, "seed": 0, "frames": 1, "size": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name}: expected {least} or more, got {value}")
        if self.split is not None:
            parse_split(self.split)
        self.holdout()

    @property
    def names_labels(self) -> bool:
        """Whether it is said what names or numbers of the user's own mean."""
        return self.codes is not None or isinstance(self.classes, tuple)

    def holdout(self) -> float | None:
        """Fraction of the training set to validate on where a split has no validation set; None for the test set."""
        if self.validation == "test":
            return None
        try:
            fraction = 0.1 if self.validation == "auto" else float(self.validation)
        except ValueError:
            fraction = math.nan
        if not 0 < fraction < 1:
            raise DataError(f"validation: expected auto, test or a fraction between 0 and 1, got {self.validation!r}")
        return fraction

    def changed(self) -> list[str]:
        """Names of the options that are not at their default."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]


@dataclass(frozen=True)
class SplitRule:
    """A parsed ``split``: how, and for folds their number (None: one per subject), for fractions the weights."""

    kind: Literal["official", "folds", "fractions"]
    folds: int | None = None
    weights: tuple[float, ...] = ()


def parse_split(text: str) -> SplitRule:
    """``official``, ``10-fold``, ``leave-one-subject-out``, ``8-1-1`` or ``90-10``. DataError for anything else."""
    if text == "official":
        return SplitRule("official")
    if text == "leave-one-subject-out":
        return SplitRule("folds")
    if match := re.fullmatch(r"([0-9]{1,4})-fold", text):
        if int(match[1]) < 2:
            raise DataError(f"split: expected 2 folds or more, got {text!r}")
        return SplitRule("folds", folds=int(match[1]))
    if re.fullmatch(r"[0-9.]+-[0-9.]+(-[0-9.]+)?", text):
        try:
            weights = tuple(float(part) for part in text.split("-"))
        except ValueError:
            weights = (0.0,)
        if min(weights) > 0:
            return SplitRule("fractions", weights=weights)
    raise DataError(
        f"split: expected official, N-fold, leave-one-subject-out or proportions such as 8-1-1 or 90-10, got {text!r}"
    )


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """{"classes": 7} of ["classes=7"]: values are JSON, or else the text itself. DataError without "="."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise DataError(f"option: expected NAME=VALUE, got {text[:100]!r}")
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
        options[name.replace("-", "_")] = tuple(parsed) if isinstance(parsed, list) else parsed
    return options


def _words(value: Any) -> tuple[str, ...]:
    """Names of a list, or of text: a JSON list, or names with commas between."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else [word.strip() for word in value.split(",")]
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) and word for word in value):
        raise TypeError(value)
    return tuple(value)


def _classes(value: Any) -> int | tuple[str, ...]:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return _whole(value) if isinstance(value, int) else _words(value)


def _angles(value: Any) -> tuple[int | str, ...]:
    items = value if isinstance(value, list | tuple) and value else [value]
    if isinstance(value, str):
        items = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    if not all(isinstance(item, int | str) and not isinstance(item, bool) for item in items):
        raise TypeError(value)
    return tuple(int(item) if str(item).strip().isdecimal() else str(item).strip() for item in items)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise TypeError(value)
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _fraction(value: Any) -> str:
    """``validation``: text, or a number as text."""
    return str(value) if isinstance(value, float) else _text(value)


_FORMS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "classes": ('6, 7, 8 or class names such as happy,sad or ["happy", "sad"]', _classes),
    "cameras": ("frontal, half, all or angles such as 45,90,135 or [45, 90, 135]", _angles),
    "gazes": ('gazes such as left,frontal or ["left", "frontal"]', _words),
    **dict.fromkeys(("fold", "seed", "frames", "size", "channels"), ("a whole number", _whole)),
    **dict.fromkeys(("by_image", "aligned", "skip_corrupt"), ("true or false", _flag)),
    **dict.fromkeys(("layout", "split", "codes", "subset", "label_mode", "label_source", "neutral"), ("text", _text)),
    "validation": ("auto, test or a fraction between 0 and 1", _fraction),
    "remove_duplicates": ("one of none, evaluation, training", _text),
}
"""{option: (what it expects, in words; its value from any form it may be given in)}."""
_OPTIONAL = frozenset(field.name for field in fields(DataOptions) if field.default is None)
