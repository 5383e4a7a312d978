# SPDX-License-Identifier: Apache-2.0
"""`Photo`: JPEG files that are decoded in part, with every place in pixels of the whole picture."""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from predict_cases import Picture, drawn_faces, engine_file

from fastfer import Recognizer
from fastfer.data.images import decode
from fastfer.data.manifest import Sample
from fastfer.data.split import DataError
from fastfer.faces.detector import YuNet
from fastfer.faces.face import Face, FaceCrop
from fastfer.predict.cli import main
from fastfer.predict.photo import Photo, reduction

SIZE = (1003, 806)  # no multiples of 2


def jpeg(picture: Image.Image, turn: int = 1, **options: Any) -> Sample:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = turn
    picture.save(file, "JPEG", quality=95, exif=exif, **options)
    return Sample(file.getvalue(), None, "photo")


def spotted(size: tuple[int, int] = SIZE, at: tuple[int, int] = (150, 90)) -> Image.Image:
    """Dark, with a white square of 80 pixels whose left upper corner is at that place."""
    picture = np.full((size[1], size[0], 3), 20, np.uint8)
    picture[at[1] : at[1] + 80, at[0] : at[0] + 80] = 240
    return Image.fromarray(picture)


def spot(view: Any) -> Face:
    """The white square in a view, to a fraction of a pixel: of sums along its rows and columns."""
    light = (np.asarray(view).astype(float).reshape(*np.asarray(view).shape[:2], -1).mean(2) - 20) / 220
    light[light < 0.1] = 0
    sides = [np.max(light.sum(axis)) for axis in (1, 0)]
    middles = [
        float((light.sum(axis) * (np.arange(light.shape[1 - axis]) + 0.5)).sum() / light.sum()) for axis in (0, 1)
    ]
    return Face((middles[0] - sides[0] / 2, middles[1] - sides[1] / 2, float(sides[0]), float(sides[1])))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("by", [2, 4, 8])
def test_places_are_of_the_whole_picture_however_it_is_turned(turn: int, by: int) -> None:
    sample = jpeg(spotted(), turn)
    whole = decode(sample)
    photo = Photo(sample, longest=max(SIZE) // by)
    assert photo.by == by
    assert photo.size == whole.shape[1::-1]
    assert photo.bytes < 4 * whole.size / 3 / by**2 * 1.1
    found, wanted = photo.placed(spot(photo.view)), spot(whole)
    np.testing.assert_allclose(found.box, wanted.box, atol=0.5)
    # The part that shows a face is the same one as of the whole, and nothing else.
    part, face = photo.around(wanted, FaceCrop())
    np.testing.assert_allclose([value * by for value in spot(part).box[2:]], wanted.box[2:], atol=0.7)
    np.testing.assert_allclose(spot(part).box[:2], face.box[:2], atol=0.1)
    np.testing.assert_array_equal(photo.pixels(), whole)
    assert photo.by == 1


@pytest.mark.parametrize(("side", "least", "wanted"), [(1280, 640, 2), (1279, 640, 1), (9999, 640, 8), (90, 96, 1)])
def test_reductions_keep_what_is_asked_for(side: float, least: float, wanted: int) -> None:
    assert reduction(side, least) == wanted


@pytest.mark.parametrize("kind", ["grey", "cmyk", "progressive", "png"])
def test_other_pictures(kind: str) -> None:
    picture = spotted()
    if kind == "png":
        file = io.BytesIO()
        picture.save(file, "PNG")
        sample = Sample(file.getvalue(), None, "photo")
    elif kind == "progressive":
        sample = jpeg(picture, progressive=True)
    else:
        sample = jpeg(picture.convert("L" if kind == "grey" else "CMYK"))
    whole, photo = decode(sample), Photo(sample, longest=250)
    assert photo.by == (1 if kind == "png" else 4)
    np.testing.assert_allclose(photo.placed(spot(photo.view)).box, spot(whole).box, atol=0.5)
    np.testing.assert_array_equal(photo.pixels(), whole)


def test_too_many_pixels_and_damage() -> None:
    sample = jpeg(Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)))
    with pytest.raises(DataError, match="expected at most 1,000 pixels, got 1003 x 806"):
        Photo(sample, 200, most=1000)
    assert isinstance(sample.image, bytes)
    cut = Sample(sample.image[: len(sample.image) // 2], None, "photo")
    for longest in (None, 500, 100):
        with pytest.raises(DataError, match="not a readable image"):
            Photo(cut, longest)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("left", [-90.0, -20.5, 0.5, 40.25, 130.0, 400.0])
def test_the_part_around_a_face_gives_its_crop(align: bool, left: float) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (120, 150, 3), np.uint8)
    crop = FaceCrop(margin=0.2, align=align)
    for top in (-300.0, -7.25, 33.5, 100.0):
        face = Face((left, top, 41.5, 47.0), 1.0, ((left + 9, top + 12), (left + 29, top + 22), *[(0.0, 0.0)] * 3))
        wanted = crop.cut(picture, face)
        for view in (picture, Image.fromarray(picture)):
            np.testing.assert_array_equal(crop.cut(*Photo(view).around(face, crop)), wanted)


class Placed(YuNet):
    """Finds faces at given places, as fractions of the picture's sides."""

    def __init__(self, places: list[tuple[float, float, float]], longest: int = 640) -> None:
        self.places, self.longest, self.seen = places, longest, []  # type: ignore[var-annotated]

    def __call__(self, picture: Any) -> list[Face]:
        width, height = picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]
        self.seen.append((width, height))
        return [Face((width * x, height * y, width * side, width * side), 0.9) for x, y, side in self.places]


def large(places: list[tuple[float, float, float]], size: tuple[int, int] = (2688, 2016)) -> Image.Image:
    """A photograph with drawn faces there."""
    picture = Image.new("RGB", size, (90, 80, 70))
    for face, (x, y, side) in zip(drawn_faces(len(places)), places, strict=True):
        shape = (round(size[0] * side),) * 2
        picture.paste(
            Image.fromarray(face).resize(shape, Image.Resampling.BICUBIC), (round(size[0] * x), round(size[1] * y))
        )
    return picture


LARGE = [(0.1, 0.2, 0.2), (0.5, 0.3, 0.25)]
SMALL = (0.1, 0.7, 0.04)


@pytest.fixture(scope="module")
def weights(finished: Path) -> Path:
    return finished / "best.safetensors"


def recognizer(weights: Path, places: Any, **options: Any) -> tuple[Recognizer, Placed]:
    detector = Placed(places)
    return Recognizer(weights, detector=detector, margin=0.0, threads=1, **options), detector


def test_large_photographs_give_nearly_the_same(weights: Path, tmp_path: Path) -> None:
    large(LARGE).save(tmp_path / "photo.jpg", quality=95)
    (few, seen), (whole, seen_whole) = recognizer(weights, LARGE), recognizer(weights, LARGE, decode="all")
    found, wanted = few(tmp_path / "photo.jpg"), whole(tmp_path / "photo.jpg")
    assert (seen.seen, seen_whole.seen) == ([(672, 504)], [(2688, 2016)])
    assert found.size == wanted.size == (2688, 2016)
    for face, other in zip(found.faces, wanted.faces, strict=True):
        np.testing.assert_allclose(face.box, other.box, atol=0.1)
        assert face.label == other.label
        np.testing.assert_allclose(face.values, other.values, atol=0.05)
    assert not np.array_equal(found.faces[0].values, wanted.faces[0].values)  # it was decoded in part


def test_a_small_face_gets_all_pixels(weights: Path, tmp_path: Path) -> None:
    places = [*LARGE, SMALL]
    large(places).save(tmp_path / "photo.jpg", quality=95)
    found, wanted = (recognizer(weights, places, decode=kind)[0](tmp_path / "photo.jpg") for kind in ("needed", "all"))
    for face, other in zip(found.faces, wanted.faces, strict=True):
        np.testing.assert_allclose(face.box, other.box)
        np.testing.assert_allclose(face.values, other.values, atol=1e-6)


def test_other_detectors_and_whole_pictures_get_all_pixels(weights: Path, tmp_path: Path) -> None:
    large(LARGE).save(tmp_path / "photo.jpg")
    pixels = decode(Sample(tmp_path / "photo.jpg", None, "photo"))
    shapes = []

    def other(picture: Picture) -> list[Face]:
        shapes.append(picture.shape)
        return [Face((10, 10, 400, 400))]

    for each in (Recognizer(weights, detector=other, threads=1), Recognizer(weights, faces="whole", threads=1)):
        np.testing.assert_array_equal(each(tmp_path / "photo.jpg").faces[0].values, each(pixels).faces[0].values)
    assert shapes == [(2016, 2688, 3)] * 2
    with pytest.raises(ValueError, match="decode: expected 'needed' or 'all'"):
        Recognizer(weights, faces="whole", decode="some")  # type: ignore[arg-type]


def test_a_file_that_goes_away_meanwhile(weights: Path, tmp_path: Path) -> None:
    large([*LARGE, SMALL]).save(tmp_path / "photo.jpg")
    each, detector = recognizer(weights, [*LARGE, SMALL])
    inner = detector.__class__.__call__

    def gone(self: Placed, picture: Any) -> list[Face]:
        (tmp_path / "photo.jpg").unlink()
        return inner(self, picture)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Placed, "__call__", gone)
        result = each([tmp_path / "photo.jpg"], errors="keep")[0]
    assert result.faces == ()
    assert "photo.jpg is missing" in str(result.error)


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
def test_the_precision_reaches_the_detector(weights: Path, monkeypatch: Any, precision: str | None) -> None:
    asked = []

    def as_detector(*_: Any, **options: Any) -> Placed:
        asked.append(options["dtype"])
        return Placed([])

    monkeypatch.setattr("fastfer.predict.recognizer.as_detector", as_detector)
    Recognizer(weights, threads=1, precision=precision)
    assert asked == ["bfloat16" if precision == "bfloat16" else None]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory as they like")
def test_the_memory_of_a_picture_serves_the_next_one(weights: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    engine = engine_file(weights, tmp_path / "net.ffe")
    code = (
        "import resource, fastfer\n"
        f"r = fastfer.Recognizer({str(engine)!r}, detector=lambda p: [(9, 9, 60, 60)], threads=1)\n"
        "def faults():\n  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        f"for _ in range(5): r({str(tmp_path / 'photo.jpg')!r})\n"
        "before = faults()\n"
        f"for _ in range(10): r({str(tmp_path / 'photo.jpg')!r})\n"
        "print((faults() - before) / 10)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(printed) < 50  # its pixels alone have 300 pages


def test_the_command_draws_into_the_whole_picture(weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    large(LARGE).save(tmp_path / "photo.jpg")
    monkeypatch.setattr("fastfer.predict.recognizer.as_detector", lambda *_, **__: Placed(LARGE))
    for kind in ("needed", "all"):
        out = tmp_path / kind
        command = [str(tmp_path / "photo.jpg"), "--weights", str(weights), "--out", str(out), "--annotate"]
        assert main([*command, "--decode", kind, "--quiet"]) == 0
        with Image.open(out / "annotated" / "photo.jpg.jpg") as drawn:
            assert drawn.size == (2688, 2016)
        assert json.loads((out / "run.json").read_text())["decode"] == kind
