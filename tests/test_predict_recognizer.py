# SPDX-License-Identifier: Apache-2.0
"""`fastfer.Recognizer`: pictures of every kind to faces, the same numbers as the network itself gives."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predict_cases import FRAME, Picture, drawn_faces, engine_file, framed, scene

import fastfer
from fastfer import Recognizer
from fastfer.data import DataError, Face, FaceCrop, InputSpec, Preprocess, pixels, planes
from fastfer.evaluate.predict import predict
from fastfer.evaluate.source import load
from fastfer.predict.prepare import Prepare


@pytest.fixture(scope="module")
def weights(finished: Path) -> Path:
    return finished / "best.safetensors"


@pytest.fixture(scope="module")
def recognizer(weights: Path) -> Recognizer:
    return Recognizer(weights, detector=framed, margin=0.0, threads=1)


@pytest.fixture(scope="module")
def whole(weights: Path) -> Recognizer:
    return Recognizer(weights, faces="whole", threads=1)


def expected(weights: Path, faces: Picture) -> Any:
    known = load(weights)
    with torch.inference_mode():
        return predict(known.model, torch.from_numpy(faces), known.preprocess).softmax(1).numpy()


def test_faces_in_a_picture(recognizer: Recognizer, weights: Path) -> None:
    faces = drawn_faces(3)
    result = recognizer(scene(faces, [(10, 20), (100, 40), (250, 180)]))
    assert result.size == (320, 240)
    assert result.error is None
    assert [face.box for face in result.faces] == [(10, 20, 48, 48), (100, 40, 48, 48), (250, 180, 48, 48)]
    wanted = expected(weights, faces)
    for face, row in zip(result.faces, wanted, strict=True):
        np.testing.assert_allclose(face.values, row, atol=1e-5)
        assert face.label == recognizer.classes[row.argmax()]
        assert face.score == face.values.max() == max(face.probabilities.values())
        assert list(face.probabilities) == list(recognizer.classes)
        assert face.detection == 0.9
        assert face.points is not None
        assert len(face.points) == 5
        assert face.track is None


def test_whole_pictures_need_no_detector(whole: Recognizer, weights: Path) -> None:
    faces = drawn_faces(70)  # more than go through the network at a time
    results = whole(list(faces))
    np.testing.assert_allclose(np.stack([r.faces[0].values for r in results]), expected(weights, faces), atol=1e-5)
    assert results[0].faces[0].box == (0, 0, 48, 48)
    assert results[0].faces[0].detection is None


def test_every_kind_of_picture_gives_the_same(whole: Recognizer, tmp_path: Path) -> None:
    face = drawn_faces(2)[1]
    rgb = np.repeat(face[..., None], 3, 2)
    Image.fromarray(face).save(tmp_path / "face.png")
    buffer = io.BytesIO()
    Image.fromarray(face).save(buffer, "PNG")
    kinds = [
        face, face[..., None], rgb, str(tmp_path / "face.png"), tmp_path / "face.png", buffer.getvalue(),
        Image.fromarray(face), Image.fromarray(rgb), np.asfortranarray(rgb), rgb[:, ::-1][:, ::-1],
    ]  # fmt: skip
    wanted = whole(face).faces[0].values
    for kind in kinds:
        np.testing.assert_array_equal(whole(kind).faces[0].values, wanted)
    assert whole(tmp_path / "face.png").source == str(tmp_path / "face.png")
    batch = whole(np.stack([rgb, rgb]))
    assert len(batch) == 2
    np.testing.assert_array_equal(batch[1].faces[0].values, wanted)


def test_bgr(whole: Recognizer) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    swapped = whole(np.ascontiguousarray(colours[..., ::-1]), bgr=True).faces[0].values
    np.testing.assert_array_equal(swapped, whole(colours).faces[0].values)
    assert not np.array_equal(whole(colours[..., ::-1]).faces[0].values, swapped)


def test_exif_turns_the_picture(recognizer: Recognizer, tmp_path: Path) -> None:
    picture = scene(drawn_faces(1), [(30, 60)])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    Image.fromarray(np.rot90(picture)).save(tmp_path / "turned.png", exif=exif)
    turned, upright = recognizer(tmp_path / "turned.png"), recognizer(picture)
    assert turned.size == (320, 240)
    assert turned.faces[0].box == upright.faces[0].box
    np.testing.assert_array_equal(turned.faces[0].values, upright.faces[0].values)


def test_recognizers_are_pickled(recognizer: Recognizer, whole: Recognizer) -> None:
    picture = scene(drawn_faces(2), [(10, 20), (100, 40)])
    for each in (recognizer, whole):
        again = pickle.loads(pickle.dumps(each))(picture)
        assert [face.label for face in again.faces] == [face.label for face in each(picture).faces]
        np.testing.assert_array_equal(again.faces[0].values, each(picture).faces[0].values)


def test_pictures_one_after_the_other(whole: Recognizer, tmp_path: Path) -> None:
    faces, read = drawn_faces(150), []

    def images() -> Iterator[Any]:
        for index, face in enumerate(faces):
            read.append(index)
            yield face if index != 3 else tmp_path / "missing.png"

    alone = [whole(face).faces[0].values for face in faces]
    for workers in (0, 2):
        read.clear()
        results = whole.map(images(), errors="keep", workers=workers)
        next(results)
        assert len(read) < 80  # not all at once
        found = [None, *results]
        assert len(found) == 150
        assert found[3] is not None
        assert "missing" in str(found[3].error)
        for index in (1, 2, 4, 70, 149):
            result = found[index]
            assert result is not None
            np.testing.assert_array_equal(result.faces[0].values, alone[index])
    with pytest.raises(DataError, match="missing"):
        list(whole.map(images(), workers=2))
    with pytest.raises(ValueError, match="workers"):
        whole.map([], workers=-1)


def test_no_face_and_small_ones(weights: Path) -> None:
    blank = np.zeros((50, 60, 3), np.uint8)
    assert Recognizer(weights, detector=lambda picture: [], threads=1)(blank).faces == ()
    assert Recognizer(weights, detector=lambda picture: None, threads=1)(blank).faces == ()

    def rows(picture: Picture) -> Any:
        return np.array([[5, 5, 30, 30, 0.8], [2, 2, 4, 4, 0.9], [9, 9, 20, 20, 0.1]])

    found = Recognizer(weights, detector=rows, threads=1)(blank).faces
    assert [face.box for face in found] == [(5, 5, 30, 30)]
    all_of_them = Recognizer(weights, detector=rows, threads=1, min_score=0.05, min_size=0)(blank).faces
    assert [face.detection for face in all_of_them] == [0.9, 0.8, 0.1]


def test_a_face_at_the_border(weights: Path) -> None:
    edge = Recognizer(weights, detector=lambda picture: [Face((-10.5, 30.0, 40.0, 44.0))], threads=1)
    assert np.isfinite(edge(np.full((50, 60), 7, np.uint8)).faces[0].values).all()


def test_several_pictures_with_errors(recognizer: Recognizer, tmp_path: Path) -> None:
    picture = scene(drawn_faces(2), [(10, 20), (100, 40)])
    (tmp_path / "empty.jpg").write_bytes(b"")
    images = [picture, tmp_path / "empty.jpg", tmp_path / "missing.png", picture[:10], np.zeros((4, 4)), picture]
    results = recognizer(images, errors="keep")
    assert [len(result.faces) for result in results] == [2, 0, 0, 0, 0, 2]
    assert [result.error is None for result in results] == [True, False, False, True, False, True]
    assert "empty" in str(results[1].error)
    assert "missing" in str(results[2].error)
    assert "uint8" in str(results[4].error)
    np.testing.assert_array_equal(results[0].faces[1].values, results[5].faces[1].values)
    with pytest.raises(DataError, match="empty"):
        recognizer(images)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (3, TypeError, "expected a path, encoded bytes, a Pillow image, or a numpy array"),
        (np.zeros((4, 4, 3), np.float32), TypeError, "expected dtype uint8, got float32"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"got shape \(4, 4, 4\)"),
        (np.zeros((0, 4), np.uint8), DataError, "expected pixels"),
        (b"no image", DataError, "not a readable image"),
    ],
)
def test_what_is_no_picture(whole: Recognizer, image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        whole(image)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"faces": "some"}, ValueError, "faces: expected 'detect' or 'whole'"),
        ({"faces": "whole", "detector": framed}, ValueError, "detector: expected none"),
        ({"detector": 3}, TypeError, "detector: expected a path or a callable"),
        ({"detector": "no/such.onnx"}, FileNotFoundError, "no/such.onnx"),
        ({"detector": framed, "min_score": 0}, ValueError, "min_score"),
        ({"detector": framed, "precision": "int8"}, ValueError, "precision: expected float32 or bfloat16"),
        ({"detector": framed, "threads": 0}, ValueError, "threads"),
    ],
)
def test_wrong_arguments(weights: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Recognizer(weights, **changes)


def test_weights_that_are_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"expected the file of an engine \(.ffe\)"):
        Recognizer("no_such_weights", faces="whole")
    with pytest.raises(TypeError, match="weights: expected a name, a path or an Engine, got int"):
        Recognizer(3, faces="whole")  # type: ignore[arg-type]


def test_an_engine_that_says_nothing_of_its_images() -> None:
    model = fastfer.create_model("fgw_fer").eval()
    with pytest.raises(ValueError, match="expected its preprocessing"):
        Recognizer(fastfer.compile(model, threads=1), faces="whole")


def test_detectors_that_give_something_else(weights: Path) -> None:
    blank = np.zeros((50, 60, 3), np.uint8)
    with pytest.raises(ValueError, match="expected faces, or rows of 4, 5 or 15 finite numbers"):
        Recognizer(weights, detector=lambda picture: [(1, 2, 3)], threads=1)(blank)
    opencv = Recognizer(weights, detector=lambda picture: [[9, 8, 20, 30, *range(10), 0.95]], threads=1)(blank)
    assert opencv.faces[0].points == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
    assert opencv.faces[0].detection == 0.95


def test_an_engine_file_runs_without_torch(weights: Path, whole: Recognizer, tmp_path: Path) -> None:
    file = engine_file(weights, tmp_path / "engine.ffe")
    face = drawn_faces(3)[2]
    Image.fromarray(face).save(tmp_path / "face.png")
    code = (
        "import sys, fastfer\n"
        f"r = fastfer.Recognizer({str(file)!r}, faces='whole', threads=1)\n"
        f"face = r({str(tmp_path / 'face.png')!r}).faces[0]\n"
        "assert not {'torch', 'cv2', 'onnx', 'safetensors'} & set(sys.modules), sorted(sys.modules)\n"
        "print(face.label, repr(face.score))\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    wanted = whole(face).faces[0]
    assert printed[0] == wanted.label
    assert float(printed[1]) == pytest.approx(wanted.score, abs=1e-6)


def test_a_weight_file_is_compiled_once(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFER_CACHE", str(tmp_path))
    faces = drawn_faces(2)
    first = [Recognizer(weights, faces="whole", precision=kind)(faces[0]).faces[0] for kind in (None, "bfloat16")]
    kept = sorted(tmp_path.rglob("*.ffe"))
    assert len(kept) == 2
    code = (
        "import sys; sys.modules['torch'] = None\nimport fastfer\n"
        f"for kind in (None, 'bfloat16'):\n  print(fastfer.Recognizer({str(weights)!r}, faces='whole', precision=kind)"
        f"({str(tmp_path / 'face.png')!r}).faces[0].score)\n"
    )
    Image.fromarray(faces[0]).save(tmp_path / "face.png")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [float(line) for line in run.stdout.split()] == pytest.approx([face.score for face in first], abs=1e-6)
    kept[0].write_bytes(kept[0].read_bytes()[:-9])  # damaged: compiled again
    Recognizer(weights, faces="whole")
    monkeypatch.setattr("fastfer._cache._code", lambda: "other")  # code that compiles otherwise: the old one goes
    Recognizer(weights, faces="whole", precision="bfloat16")
    assert len(sorted(tmp_path.rglob("*.ffe"))) == 2
    assert any("other" in path.name for path in tmp_path.rglob("*.ffe"))
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("FASTFER_CACHE", str(tmp_path / "file"))  # nothing can be kept there, which is no error
    assert Recognizer(weights, faces="whole")(faces[0]).faces[0].score == pytest.approx(first[0].score, abs=1e-6)


SPECS = [
    InputSpec(Preprocess((0.5,), (0.2,), size=(64, 64), colour="grey"), (64, 64), (1, 48, 48)),
    InputSpec(Preprocess((0.5,), (0.2,), size=(40, 56), colour="grey", equalise=True), (40, 56), (3, 100, 80)),
    InputSpec(Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), size=(96, 96), colour="rgb"), (96, 96), (3, 100, 100)),
    InputSpec(Preprocess((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), size=(96, 96), colour="rgb"), (96, 96), (1, 48, 48)),
    InputSpec(Preprocess((0.5,), (0.2,)), (48, 48), (1, 48, 48)),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", [(48, 48), (131, 77), (20, 30)])
def test_preparation_is_that_of_the_training(spec: InputSpec, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    assert spec.size is not None
    prepare = Prepare(spec, (len(spec.preprocess.mean), *spec.size))
    for picture in (rng.integers(0, 256, size, np.uint8), rng.integers(0, 200, (*size, 3), np.uint8)):
        planar = torch.from_numpy(np.atleast_3d(picture).transpose(2, 0, 1).copy())[None]
        got = prepare(picture, None)
        np.testing.assert_array_equal(got, spec.preprocess.pixels(spec.form(planar))[0].numpy())
        normalised = prepare.batch([got], as_bytes=False)
        np.testing.assert_allclose(normalised, spec(planar).numpy(), atol=1e-6)


def test_preparation_cuts_as_the_training() -> None:
    crop = FaceCrop(margin=0.2, align=True)
    spec = InputSpec(Preprocess((0.5,), (0.2,), size=(48, 48), colour="grey", crop=crop), (48, 48), (1, 48, 48))
    picture, face = scene(drawn_faces(1), [(30, 60)]), framed(scene(drawn_faces(1), [(30, 60)]))[0]
    cut = crop.cut(picture, face)
    np.testing.assert_array_equal(Prepare(spec, (1, 48, 48))(picture, face), Prepare(spec, (1, 48, 48))(cut, None))
    assert (cut == np.array(FRAME)).all(2).any()  # the margin shows the frame


@pytest.mark.parametrize("size", [(48, 48), (201, 177), (1, 1), (33, 500)])
def test_steps_in_numpy_give_the_same_bytes(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    grey, rgb = rng.integers(0, 256, size, np.uint8), rng.integers(0, 256, (*size, 3), np.uint8)
    planar = [torch.from_numpy(np.atleast_3d(x).transpose(2, 0, 1).copy())[None] for x in (grey, rgb)]
    np.testing.assert_array_equal(planes.equalise(grey), pixels.equalise(planar[0])[0, 0].numpy())
    np.testing.assert_array_equal(planes.grey(rgb), pixels.grey(planar[1])[0, 0].numpy())
    for target in ((48, 48), (224, 96), size):
        for x, planes_of_x in zip((grey, rgb), planar, strict=True):
            wanted = pixels.resize(planes_of_x, target)[0].permute(1, 2, 0).numpy().reshape(*target, *x.shape[2:])
            np.testing.assert_array_equal(planes.resize(x, target), wanted)
