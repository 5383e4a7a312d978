# SPDX-License-Identifier: Apache-2.0
"""Pictures at another size: Pillow's bytes on every instruction set, whatever the picture's layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastfer import _C, _resample

SIZES = [(1, 1), (3, 2), (48, 48), (61, 200), (201, 33), (120, 161)]
TARGETS = [(1, 1), (48, 48), (37, 80), (120, 161), (250, 20)]


@pytest.fixture(params=_C.isas(True))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


def layouts(picture: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """The pixels as they are, of four bytes, the other way round, in a larger picture, upside down, by columns."""
    yield picture
    if picture.ndim == 3:
        wide = np.zeros((*picture.shape[:2], 4), np.uint8)
        wide[..., :3] = picture
        yield wide[..., :3]
        yield np.ascontiguousarray(picture[..., ::-1])[..., ::-1]
    larger = np.full((picture.shape[0] + 2, picture.shape[1] + 3, *picture.shape[2:]), 77, np.uint8)
    larger[1:-1, 2:-1] = picture
    yield larger[1:-1, 2:-1]
    yield np.ascontiguousarray(picture[::-1])[::-1]
    yield np.asfortranarray(picture)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_those_of_pillow(isa: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(size[0])
    rgb, grey = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 256, size, np.uint8)
    for target in (*TARGETS, size):
        for picture, as_grey in ((rgb, False), (rgb, True), (grey, False)):
            wanted = _resample._by_pillow(picture, target, as_grey or picture.ndim == 2)
            for view in layouts(picture):
                np.testing.assert_array_equal(_resample.resized(view, target, as_grey), wanted)


def test_planes_are_blue_green_red_and_black_beyond(isa: str) -> None:
    rng = np.random.default_rng(1)
    for picture in (rng.integers(0, 256, (70, 90, 3), np.uint8), rng.integers(0, 256, (70, 90), np.uint8)):
        for size in ((70, 90), (33, 41)):
            wanted = np.zeros((3, 96, 97), np.uint8)
            small = np.atleast_3d(_resample._by_pillow(picture, size, picture.ndim == 2))
            wanted[:, : size[0], : size[1]] = small[..., ::-1].transpose(2, 0, 1)
            for view in layouts(picture):
                out = np.full((3, 96, 97), 9, np.uint8)
                _resample.to_planes(view, size, out)
                np.testing.assert_array_equal(out, wanted)


def test_without_the_extension_the_bytes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(2).integers(0, 256, (50, 40, 3), np.uint8)
    with_it = np.empty((3, 32, 32), np.uint8)
    _resample.to_planes(picture, (30, 20), with_it)
    monkeypatch.setattr(_resample, "_extension", lambda: None)
    without = np.empty((3, 32, 32), np.uint8)
    _resample.to_planes(picture, (30, 20), without)
    np.testing.assert_array_equal(with_it, without)
    np.testing.assert_array_equal(_resample.seen(Image.fromarray(picture)), picture)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_images_own_memory(mode: str) -> None:
    shape = (37, 53, 3) if mode == "RGB" else (37, 53)
    picture = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    image = Image.fromarray(picture).crop((0, 0, 53, 37))
    pixels = _resample.seen(image)
    del image
    Image.new("RGB", (53, 37), "red")
    np.testing.assert_array_equal(pixels, picture)
    if hasattr(Image.Image, "__arrow_c_array__"):
        assert not pixels.flags.writeable
        assert pixels.strides == ((53 * 4, 4, 1) if mode == "RGB" else (53, 1))


def test_an_image_in_several_pieces_is_copied() -> None:
    """Pillow takes memory in blocks of 16 MB and shows no image of several."""
    image = Image.new("RGB", (2100, 2100), (1, 2, 3))
    image.putpixel((2099, 2099), (7, 8, 9))
    pixels = _resample.seen(image)
    assert pixels.shape == (2100, 2100, 3)
    assert pixels[0, 0].tolist() == [1, 2, 3]
    assert pixels[-1, -1].tolist() == [7, 8, 9]


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="sizes: expected at least 1"):
        _resample.resized(np.zeros((4, 4), np.uint8), (0, 3))
    with pytest.raises(TypeError, match="arrow_bytes"):
        _C.arrow_bytes(np.zeros(1).__array_struct__)
