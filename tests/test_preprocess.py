# SPDX-License-Identifier: Apache-2.0
"""Preprocessing against OpenCV, Pillow, plain numpy and the golden file; its JSON; face crops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_files
import numpy as np
import pytest
import torch
from PIL import Image

from fastfer.data import Face, FaceCrop, FaceNotFoundError, Preprocess, Split, drawn, pixels
from fastfer.models import create_model, read_metadata, save_weights

GREY = {"mean": (0.5,), "std": (0.25,)}
EVERYTHING = Preprocess.imagenet(size=(40, 32), colour="rgb", equalise=False, crop=FaceCrop(0.3, True, "whole"))


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_golden_file() -> None:
    golden, got = dict(np.load(golden_files.PREPROCESS)), golden_files.preprocess_arrays()
    assert got.keys() == golden.keys()
    for key, want in golden.items():
        if key.endswith("/bytes"):
            np.testing.assert_array_equal(got[key], want, err_msg=key)
        else:
            np.testing.assert_allclose(got[key], want, rtol=1e-6, atol=1e-6, err_msg=key)
    assert golden_files.PREPROCESS.stat().st_size < 60_000


# pixels


@pytest.mark.parametrize(
    ("source", "target"),
    [((48, 48), (224, 224)), ((48, 48), (20, 31)), ((7, 100), (30, 9)), ((1, 1), (3, 2)), ((5, 6), (1, 1))],
)
def test_resize_is_pillows_bilinear_along_each_axis(source: tuple[int, int], target: tuple[int, int]) -> None:
    images = random_pixels(2, 3, *source)
    got = pixels.resize(torch.from_numpy(images), target).numpy()
    for image, ours in zip(images.reshape(-1, *source), got.reshape(-1, *target), strict=True):
        wide = Image.fromarray(image).resize((target[1], source[0]), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(ours, np.asarray(wide.resize(target[::-1], Image.Resampling.BILINEAR)))


def test_resize_keeps_constants_and_averages_when_shrinking() -> None:
    for level in (0, 1, 128, 255):
        assert (pixels.resize(torch.full((1, 1, 37, 41), level, dtype=torch.uint8), (20, 90)) == level).all()
    checkers = torch.from_numpy((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))[None, None]
    small = pixels.resize(checkers, (8, 8))[0, 0, 1:-1, 1:-1]
    assert 126 <= int(small.min()) <= int(small.max()) <= 129


def test_bytes_do_not_depend_on_batch_threads_or_autocast(threads: None) -> None:
    images = torch.from_numpy(random_pixels(5, 48, 48))
    settings = Preprocess(**GREY, size=(96, 80), equalise=True)
    want = settings.pixels(images)
    torch.set_num_threads(1)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(settings.pixels(images[2:3]), want[2:3])
    assert torch.equal(settings.pixels(images), want)


def equalised(image: np.ndarray) -> np.ndarray:
    """OpenCV's formula in plain numpy."""
    counts = np.bincount(image.ravel(), minlength=256)
    darkest = int(np.flatnonzero(counts)[0])
    rest = image.size - counts[darkest]
    if rest == 0:
        return image
    scale = np.float32(255) / np.float32(rest)
    table = np.rint(np.maximum(np.cumsum(counts) - counts[darkest], 0).astype(np.float32) * scale)
    return table.astype(np.uint8)[image]


@pytest.mark.parametrize("oracle", ["numpy", "opencv"])
def test_equalise(oracle: str) -> None:
    want = equalised
    if oracle == "opencv":
        want = pytest.importorskip("cv2").equalizeHist
    for seed in range(60):
        height, width, divisor, offset = np.random.default_rng(seed).integers((1, 1, 1, 0), (60, 60, 200, 50))
        image = random_pixels(height, width, seed=seed) // np.uint8(divisor) + np.uint8(offset)
        got = pixels.equalise(torch.from_numpy(image)[None, None])[0, 0].numpy()
        np.testing.assert_array_equal(got, want(image))


def test_equalise_treats_images_of_a_batch_apart() -> None:
    images = torch.from_numpy(drawn.draw_faces(np.arange(3, dtype=np.int64), 0)[:, None])
    images[1] //= 4
    images[2] = 77
    got = pixels.equalise(images)
    for one, image in zip(got, images, strict=True):
        assert torch.equal(pixels.equalise(image[None])[0], one)
    assert (got[2] == 77).all()
    assert got[0].max() == got[1].max() == 255
    assert pixels.equalise(images[:0]).shape == (0, 1, 48, 48)


def test_grey_is_pillows_luma() -> None:
    image = random_pixels(64, 64, 3)
    got = pixels.grey(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    np.testing.assert_array_equal(got[0, 0].numpy(), np.asarray(Image.fromarray(image).convert("L")))


# settings


def test_statistics_are_those_of_the_pixels_before_the_resize() -> None:
    split = Split(random_pixels(6, 3, 20, 20) // 3, np.zeros(6, np.int64), ("a",))
    settings = Preprocess.of(split, size=(10, 10), colour="grey", equalise=True)
    seen = pixels.equalise(pixels.grey(torch.from_numpy(split.images))).double() / 255
    assert settings.mean == pytest.approx((float(seen.mean()),), abs=1e-6)
    assert settings.std == pytest.approx((float(seen.std(correction=0)),), abs=1e-6)
    batches = (torch.from_numpy(split.images[at : at + 2]) for at in (0, 2, 4))
    assert Preprocess.of(batches, size=(10, 10), colour="grey", equalise=True) == settings
    grey = Split(split.images[:, 0], split.labels, split.names)
    rgb = Preprocess.of(grey, colour="rgb")
    assert rgb.mean == Preprocess.of(grey).mean * 3
    assert rgb(torch.from_numpy(grey.images)).shape == (6, 3, 20, 20)
    with pytest.raises(ValueError, match="source: expected images"):
        Preprocess.of(grey.first(0))


def test_modes_of_normalisation() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    torch.testing.assert_close(Preprocess.symmetric(3)(image)[0, 0, 0], torch.tensor([-1, -0.6, 1.0]))
    red = Preprocess.imagenet()(image)[0, 0, 0]
    torch.testing.assert_close(red, (torch.tensor([0, 0.2, 1.0]) - 0.485) / 0.229)


def test_the_bits_of_a_normalised_batch_are_what_they_were() -> None:
    """Weights were trained, and runs are continued, on exactly these."""
    images = torch.from_numpy(random_pixels(3, 3, 20, 24))
    settings = Preprocess.imagenet()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (settings.mean, settings.std))
    want = images.float() * (1 / (255 * std)) - mean / std
    got = settings(images)
    assert torch.equal(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert settings(images[:0]).shape == (0, 3, 20, 24)


@pytest.mark.parametrize("settings", [Preprocess(**GREY), Preprocess(**GREY, equalise=True), EVERYTHING])
def test_json_round_trip(settings: Preprocess) -> None:
    assert Preprocess.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_settings_travel_with_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(create_model("fgw_fer", in_chans=3), path, {"preprocess": EVERYTHING.to_json()})
    assert Preprocess.from_metadata(read_metadata(path)) == EVERYTHING
    assert Preprocess.from_metadata({"mean": [0.5], "std": [0.25], "model": "x"}) == Preprocess(**GREY)
    with pytest.raises(ValueError, match="expected preprocess, or mean and std, got model"):
        Preprocess.from_metadata({"model": "x"})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"mean": [0.5]}, r"missing \['std'\]"),
        ({**GREY, "colour": "bgr"}, "colour: expected one of stored, grey, rgb, got 'bgr'"),
        ({**GREY, "gamma": 2}, r"unknown \['gamma'\]"),
        ({**GREY, "resize": "bicubic"}, "preprocess.resize: expected 'bilinear-antialiased', got 'bicubic'"),
        ({**GREY, "size": [0, 4]}, r"size: expected \(height, width\) of 1 to 4096"),
        ({**GREY, "size": [48]}, r"size: expected \(height, width\)"),
        ({**GREY, "equalise": 1}, "equalise: expected a bool, got int"),
        ({**GREY, "colour": "rgb"}, "mean: expected 3 for rgb, got 1"),
        ({"mean": [0.5], "std": [0.0]}, "std above 0"),
        ({"mean": [0.5, 0.5], "std": [0.1]}, "one of each per channel"),
        ({"mean": [float("nan")], "std": [0.1]}, "finite numbers"),
        ({**GREY, "crop": {"margin": "1"}}, "crop.margin: expected a number, got str"),
        ({**GREY, "crop": {"margin": 9}}, "crop.margin: expected -0.4 to 4, got 9"),
        ({**GREY, "crop": {"missing": "guess"}}, "crop.missing: expected error or whole, got 'guess'"),
    ],
)
def test_bad_settings(entry: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Preprocess.from_json(entry)


def test_bad_images() -> None:
    three = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="equalise: expected grey images, or colour='grey', got 3 channels"):
        Preprocess.imagenet(equalise=True)(three)
    with pytest.raises(ValueError, match="expected 1 or 3 channels for colour 'grey', got 2"):
        Preprocess(**GREY, colour="grey")(three[:, :2])
    with pytest.raises(ValueError, match=r"picture: expected uint8 \(H, W\) or \(H, W, 3\), got float64"):
        Preprocess(**GREY).picture(np.zeros((4, 4)))  # type: ignore[arg-type]


# faces


def test_picture_is_a_batch_of_one() -> None:
    picture = random_pixels(33, 21, 3)
    settings = Preprocess(**GREY, size=(16, 16), colour="grey")
    planes = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]
    assert torch.equal(settings.picture(picture), settings.pixels(planes)[0])
    assert settings.picture(picture[..., 0]).shape == (1, 16, 16)


def test_crop_takes_the_largest_face_with_its_margin() -> None:
    picture = random_pixels(100, 120)
    faces = [Face((0, 0, 10, 10)), Face((40, 30, 20, 40))]
    cut = FaceCrop(0.25)(picture, lambda _: faces)
    np.testing.assert_array_equal(cut, picture[20:80, 20:80])
    np.testing.assert_array_equal(FaceCrop(0)(picture, lambda _: faces[:1]), picture[:10, :10])


def test_crop_repeats_the_border() -> None:
    picture = random_pixels(10, 10)
    cut = FaceCrop(0).cut(picture, Face((-4, 6, 8, 8)))
    np.testing.assert_array_equal(cut, np.pad(picture, 8, mode="edge")[14:22, 4:12])


def test_align_levels_the_eyes() -> None:
    """A dot on each eye of a tilted head ends on one row, as far apart as before, and centred."""
    picture = np.zeros((200, 200), np.uint8)
    angle = np.deg2rad(25)
    eyes = [(100 - 30 * np.cos(angle), 90 - 30 * np.sin(angle)), (100 + 30 * np.cos(angle), 90 + 30 * np.sin(angle))]
    for x, y in eyes:
        picture[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 255
    found = Face((50, 40, 100, 100), 1.0, (*eyes, (0, 0), (0, 0), (0, 0)))
    cut = FaceCrop(0, align=True).cut(picture, found).astype(float)
    assert cut.shape == (100, 100)
    halves = [(np.average(np.arange(100), weights=half.sum(1)), half) for half in (cut[:, :50], cut[:, 50:])]
    assert halves[0][0] == pytest.approx(50, abs=1)
    assert halves[1][0] == pytest.approx(50, abs=1)
    columns = [np.average(np.arange(50), weights=half.sum(0)) for _, half in halves]
    assert columns[1] + 50 - columns[0] == pytest.approx(60, abs=1)
    with pytest.raises(ValueError, match=r"crop.align: .*without points"):
        FaceCrop(0, align=True).cut(picture, Face((0, 0, 9, 9)))


def test_no_face() -> None:
    picture = random_pixels(12, 16, 3)
    settings = Preprocess.imagenet(crop=FaceCrop())
    with pytest.raises(FaceNotFoundError, match="no face found in a picture of 16×12 pixels"):
        settings.picture(picture, lambda _: [])
    with pytest.raises(ValueError, match="detector: expected one, because the preprocessing cuts out faces"):
        settings.picture(picture)
    whole = Preprocess.imagenet(crop=FaceCrop(missing="whole"))
    np.testing.assert_array_equal(whole.picture(picture, lambda _: []).numpy(), picture.transpose(2, 0, 1))
