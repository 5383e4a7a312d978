# SPDX-License-Identifier: Apache-2.0
"""What is evaluated, from a command line: a weight file and a part of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastfer.data import DataError, InputSpec, Preprocess, Split, YuNet, load_dataset
from fastfer.data.images import Transform
from fastfer.data.options import DataOptions
from fastfer.data.split_record import SplitRecord, dataset_name
from fastfer.models import FerModel, load_weights, read_metadata

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Weights:
    """A network with what its file says: how images come to it, what it was trained on, and the whole header."""

    model: FerModel
    spec: InputSpec
    trained: SplitRecord | None
    metadata: dict[str, Any]
    path: Path

    @property
    def preprocess(self) -> Preprocess:
        """The conversion of images in the form of the training images."""
        return self.spec.preprocess


@dataclass(frozen=True)
class Loaded:
    """``split`` is what is scored, ``train`` what the network was trained on where that is known and wanted.

    ``notes`` say in words how the training images are known, or why not.
    """

    split: Split
    train: Split | None
    notes: tuple[str, ...]


def load(path: Path) -> Weights:
    """Read a weight file. FileNotFoundError, or ValueError for a file that does not say how to use it."""
    metadata = read_metadata(path)
    try:
        spec, trained = InputSpec.from_metadata(metadata), SplitRecord.from_metadata(metadata)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected its preprocessing, or mean and std, and its split in the header: {error}"
        ) from None
    return Weights(load_weights(path), spec, trained, metadata, path)


def uncropped(weights: Weights) -> Weights:
    """The same, for images that are faces already."""
    return replace(weights, spec=replace(weights.spec, preprocess=replace(weights.preprocess, crop=None)))


def face_crop(weights: Weights, face_model: Path | None) -> Transform | None:
    """What cuts whole pictures to faces as in training; None where training did not.

    ValueError for a missing or needless ``face_model``.
    """
    crop = weights.preprocess.crop
    if (crop is None) != (face_model is None):
        expected = (
            "none, as the network was trained on images as they are stored"
            if crop is None
            else (
                "the file of a face detector, as the network was trained on faces cut out of whole pictures; "
                "--uncropped says that the images are such faces already"
            )
        )
        raise ValueError(f"face-model: expected {expected}; got {face_model or 'none'}")
    if crop is None or face_model is None:
        return None
    detector, cut = YuNet(face_model), crop
    return lambda picture: cut(picture, detector)


def load_parts(
    weights: Weights,
    data: str,
    root: Path | None,
    part: str,
    asked: Mapping[str, Any],
    with_train: bool,
    transform: Transform | None = None,
) -> Loaded:
    """The split ``part``, in the form of the training images, and what was trained on. DataError as `load_dataset`.

    Options not ``asked`` for are those of the training where it was on the same data set, so that a network that was
    trained with a split of its own is scored on that split.
    """
    said = {option: asked[option] for option in ("layout", "codes", "classes") if option in asked}
    name = dataset_name(data, root, DataOptions(**said))
    record = weights.trained if weights.trained is not None and weights.trained.data == name else None
    form = {} if name == "drawn" else weights.spec.options()
    recorded = {**form, **(record.options if record else {})}
    options = {**recorded, **asked}

    def read(parts: Sequence[str], chosen: Mapping[str, Any]) -> dict[str, Split]:
        try:
            found = load_dataset(data, root, parts=tuple(dict.fromkeys(parts)), transform=transform, **chosen)
        except TypeError as error:  # an option that no data set knows
            raise DataError(str(error)) from None
        return {each: weights.spec.split(split) for each, split in found.items()}

    # What is held out for validation is missing in the training images only where both are asked for.
    trained_parts = ("train", "validation") if record else ("train",)
    wanted = trained_parts if part == "train" else (part,)
    notes = _notes(weights, name, record)
    if not with_train or (record is None and (part == "train" or not _own(weights, name))):
        return Loaded(read(wanted, options)[part], None, notes)
    trained_options = dict(options)
    if record is not None:
        trained_options = {**recorded, **({"train_images": record.train_images} if record.train_images else {})}
    if trained_options == options:
        splits = read((*trained_parts, *wanted), options)
        split, train = splits[part], splits["train"]
    else:
        split, train = read(wanted, options)[part], read(trained_parts, trained_options)["train"]
    if record is not None and (difference := record.difference("train", train)) is not None:
        notes += (f"the images at {root} are not those of the training ({difference}): more may have been trained on",)
    return Loaded(split, train, notes)


def _own(weights: Weights, name: str) -> bool:
    """Whether the weights, which record no split, were trained on this data set as far as the file says."""
    return weights.metadata.get("data") in (None, name)


def _notes(weights: Weights, name: str, record: SplitRecord | None) -> tuple[str, ...]:
    if record is not None:
        return ()
    other = weights.trained.data if weights.trained else weights.metadata.get("data")
    if weights.trained is None and _own(weights, name):
        return ("the weight file records no split; the data set's own, or the one asked for, is assumed",)
    return (f"trained on {other}: whether images of {name} are among its images is not known",)
