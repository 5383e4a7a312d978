# SPDX-License-Identifier: Apache-2.0
"""What a weight file's header says of its images, and that images of any form come to the network as in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastfer.data import BASIC_NAMES, FaceCrop, InputSpec, Preprocess, Split, pixels

GREY = Preprocess((0.5,), (0.25,))


def header(preprocess: Preprocess, **entries: Any) -> dict[str, Any]:
    return {"preprocess": preprocess.to_json(), **entries}


def faces(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_images_of_another_size_come_as_in_training() -> None:
    """Trained on 48×48; the same faces stored at 96 or 224 are brought to it before equalisation and resizing."""
    settings = Preprocess((0.5,), (0.25,), size=(64, 64), equalise=True)
    spec = InputSpec.from_metadata(header(settings, stored=[1, 48, 48], input=[64, 64]))
    small = faces(2, 48, 48)
    assert torch.equal(spec(small), settings(small))
    for side in (96, 224):
        large = pixels.resize(small[:, None], (side, side))
        assert torch.equal(spec(large), settings(pixels.resize(large, (48, 48))))
        assert spec(large).shape == (2, 1, 64, 64)


@pytest.mark.parametrize(("stored", "given"), [(1, 3), (3, 1)])
def test_colour_is_converted_as_a_data_set_would(stored: int, given: int) -> None:
    settings = Preprocess((0.5,) * stored, (0.25,) * stored)
    spec = InputSpec.from_metadata(header(settings, stored=[stored, 8, 8], input=[8, 8]))
    x = faces(2, given, 8, 8)
    assert torch.equal(spec.form(x), pixels.grey(x) if stored == 1 else x.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match=f"images: expected {stored} channels, got 2"):
        spec.form(faces(2, 2, 8, 8))


def test_a_split_is_brought_to_the_form_of_training() -> None:
    spec = InputSpec.from_metadata(header(GREY, stored=[1, 48, 48], input=[48, 48]))
    small = Split(faces(3, 48, 48).numpy(), np.zeros(3, np.int64), BASIC_NAMES)
    assert spec.split(small) is small
    large = Split(faces(3, 3, 96, 96).numpy(), np.zeros(3, np.int64), BASIC_NAMES)
    got = spec.split(large)
    assert got.images.shape == (3, 48, 48)
    want = pixels.resize(pixels.grey(torch.from_numpy(large.images)), (48, 48))[:, 0]
    assert torch.equal(torch.from_numpy(got.images), want)
    assert spec.options() == {"channels": 1, "size": 48}


@pytest.mark.parametrize(
    ("entries", "size", "stored"),
    [
        ({}, None, None),
        ({"input": [48, 40]}, (48, 40), (1, 48, 40)),
        ({"input": [1, 48, 40]}, (48, 40), (1, 48, 40)),
        ({"stored": [1, 48, 40]}, (48, 40), (1, 48, 40)),
        ({"preprocess": {"size": [64, 64]}}, (64, 64), None),
        ({"preprocess": {"size": [64, 64]}, "config": {"data_options": {"size": 48}}}, (64, 64), (1, 48, 48)),
        ({"preprocess": {"size": [64, 64]}, "stored": [3, 9, 8]}, (64, 64), (3, 9, 8)),
    ],
)
def test_older_files_say_what_they_can(entries: dict[str, Any], size: Any, stored: Any) -> None:
    settings = {**GREY.to_json(), **entries.pop("preprocess", {})}
    spec = InputSpec.from_metadata({"preprocess": settings, **entries})
    assert (spec.size, spec.stored) == (size, stored)
    assert spec.shape(1, (99, 98)) == (1, *(size or (99, 98)))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"input": [0, 48]}, r"input: expected 2 or 3 numbers of 1 to 4096, got \[0, 48\]"),
        ({"input": [48, True]}, "input: expected 2 or 3 numbers"),
        ({"input": 48}, "input: expected 2 or 3 numbers"),
        ({"stored": [48, 48]}, "stored: expected 3 numbers of 1 to 4096"),
        ({"stored": [1, 48, 10**400]}, "stored: expected 3 numbers of 1 to 4096"),
        ({"stored": [1, 9, 7], "input": [48, 48]}, r"input: expected \(9, 7\) .*, got \(48, 48\)"),
        ({"preprocess": {"size": [64, 64]}, "input": [48, 48]}, r"input: expected \(64, 64\) .*, got \(48, 48\)"),
    ],
)
def test_bad_headers_are_named(entries: dict[str, Any], message: str) -> None:
    settings = {**GREY.to_json(), **entries.pop("preprocess", {})}
    with pytest.raises(ValueError, match=message):
        InputSpec.from_metadata({"preprocess": settings, **entries})


def test_a_network_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"preprocess: expected mean and std of 3 channels, got \(0.5,\)"):
        InputSpec(GREY).shape(3, (48, 48))


def test_who_only_normalises_refuses_what_would_be_dropped() -> None:
    assert InputSpec(GREY).normalisation() == ((0.5,), (0.25,))
    assert InputSpec(Preprocess((0.5,), (0.25,), equalise=True)).normalisation() is None


def test_steps_in_words() -> None:
    crop = FaceCrop(0.3)
    settings = Preprocess((0.5,), (0.25,), size=(64, 64), colour="grey", equalise=True, crop=crop)
    spec = InputSpec.from_metadata(header(settings, stored=[1, 48, 48]))
    assert spec.before(pixels=True) == (
        "cut out the face with a margin of 0.3",
        "resize to 48×48",
        "convert to grey",
        "equalise the histogram",
        "resize to 64×64",
    )
    assert spec.before(pixels=False)[-1] == "(x / 255 - 0.5) / 0.25"
    assert InputSpec(GREY).before(pixels=True) == ()
