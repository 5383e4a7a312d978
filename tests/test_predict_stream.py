# SPDX-License-Identifier: Apache-2.0
"""Streams: frames in order, persons numbered, probabilities smoothed, frames of live sources dropped."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predict_cases import Picture, drawn_faces, framed, scene

from fastfer import Recognizer
from fastfer.predict import RecognizedFace, SourceError, Tracker
from fastfer.predict.source import Reader, is_url

Place = tuple[int, int]
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def recognizer(finished: Path) -> Recognizer:
    return Recognizer(finished / "best.safetensors", detector=framed, margin=0.0, threads=1)


def walking(places: list[list[Place]]) -> list[Picture]:
    """A picture a frame, the faces at these places."""
    faces = drawn_faces(7)
    return [scene(faces[: len(each)], each) for each in places]


def video(path: Path, pictures: list[Picture], fps: float = 25.0) -> Path:
    """Written losslessly, so that the frames can be found again."""
    cv2 = pytest.importorskip("cv2")
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), fps, (width, height))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write FFV1")
    for picture in pictures:
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
    writer.release()
    return path


def face(left: float, top: float, values: tuple[float, ...] = (0.2, 0.5, 0.3), size: float = 40) -> RecognizedFace:
    best = int(np.argmax(values))
    return RecognizedFace(
        (left, top, size, size), None, 0.9, CLASSES[best], values[best], CLASSES, np.array(values, np.float32)
    )


def numbers(tracker: Tracker, *faces: RecognizedFace) -> list[int | None]:
    return [found.track for found in tracker(faces)]


def test_frames_are_those_of_single_pictures(recognizer: Recognizer) -> None:
    pictures = walking([[(10, 20), (100, 40)], [(14, 20), (100, 44)], [], [(250, 180)]])
    frames = list(recognizer.stream(pictures, track=False))
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    for frame, picture in zip(frames, pictures, strict=True):
        alone = recognizer(picture)
        assert [f.box for f in frame.faces] == [f.box for f in alone.faces]
        for got, wanted in zip(frame.faces, alone.faces, strict=True):
            np.testing.assert_array_equal(got.values, wanted.values)
            assert got.track is None
        assert frame.picture is picture
        assert frame.size == (320, 240)


def test_a_video_file(recognizer: Recognizer, tmp_path: Path) -> None:
    pictures = walking([[(10 + 4 * i, 20), (200, 40 + 2 * i)] for i in range(20)])
    path = video(tmp_path / "walk.avi", pictures)
    frames = list(recognizer.stream(path))
    assert [frame.index for frame in frames] == list(range(20))
    assert [round(frame.time, 3) for frame in frames] == [round(i / 25, 3) for i in range(20)]
    assert all([f.track for f in frame.faces] == [1, 2] for frame in frames)
    assert all(frame.dropped == 0 for frame in frames)
    assert frames[5].source == str(path)
    wanted = recognizer(pictures[7]).faces[1]
    np.testing.assert_allclose(frames[7].faces[1].values, wanted.values, atol=0.02)
    skipping = list(recognizer.stream(str(path), every=6, batch=2))
    assert [frame.index for frame in skipping] == [0, 6, 12, 18]
    assert [f.box for f in skipping[2].faces] == [f.box for f in frames[12].faces]


def test_a_stream_may_be_left(recognizer: Recognizer, tmp_path: Path) -> None:
    path = video(tmp_path / "walk.avi", walking([[(10, 20)]] * 60))
    frames = recognizer.stream(path)
    assert next(frames).index == 0
    frames.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "fastfer-frames"]


def test_iterables_are_read_as_they_come(recognizer: Recognizer) -> None:
    pictures, read = walking([[(10, 20)]] * 5), []

    def camera() -> Iterator[Picture]:
        for index, picture in enumerate(pictures):
            read.append((index, threading.current_thread()))
            yield picture

    for count, frame in enumerate(recognizer.stream(camera()), 1):
        assert frame.index == count - 1
        assert read == [(index, threading.current_thread()) for index in range(count)]


def test_damaged_pictures_of_a_stream(recognizer: Recognizer, tmp_path: Path) -> None:
    picture = walking([[(10, 20)]])[0]
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    frames = list(recognizer.stream([picture, tmp_path / "cut.png", picture]))
    assert [frame.error is None for frame in frames] == [True, False, True]
    assert [len(frame.faces) for frame in frames] == [1, 0, 1]
    assert [f.faces[0].track for f in (frames[0], frames[2])] == [1, 1]


def test_a_live_source_drops_frames(recognizer: Recognizer) -> None:
    picture, count = walking([[(10, 20)]])[0], 40

    def camera() -> Iterator[Picture]:
        for _ in range(count):
            time.sleep(0.005)
            yield picture

    shown = []
    for frame in recognizer.stream(camera(), live=True):
        shown.append(frame)
        time.sleep(0.04)  # slower than the camera
    assert len(shown) < count / 2
    assert shown[-1].index == count - 1
    assert sum(frame.dropped for frame in shown) + len(shown) == count
    assert all(b.index - a.index == 1 + b.dropped for a, b in pairwise(shown))


def test_errors_of_a_live_source_reach_the_reader(recognizer: Recognizer) -> None:
    def camera() -> Iterator[Picture]:
        yield walking([[(10, 20)]])[0]
        raise OSError("unplugged")

    frames = recognizer.stream(camera(), live=True)
    assert len(next(frames).faces) == 1
    with pytest.raises(OSError, match="unplugged"):
        next(frames)


def test_sources_that_cannot_be_opened(recognizer: Recognizer, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    for source, message in (
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path, "no such file"),
        (tmp_path / "empty.mp4", "the file is empty"),
        (tmp_path / "text.mp4", "damaged, or no video"),
        (99, "camera 99: cannot be opened"),
        (tmp_path / "new\nline.mp4", r"new\\nline.mp4: no such file"),
    ):
        with pytest.raises(SourceError, match=message):
            recognizer.stream(source)


def test_a_video_that_is_cut_off(recognizer: Recognizer, tmp_path: Path) -> None:
    whole = video(tmp_path / "whole.avi", walking([[(10 + i, 20)] for i in range(60)]))
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    frames = recognizer.stream(cut)
    assert [next(frames).index for _ in range(20)] == list(range(20))
    with pytest.raises(SourceError, match="of 60 frames: damaged or cut off"):
        list(frames)


@pytest.mark.parametrize(
    ("source", "changes", "error", "message"),
    [
        (3.5, {}, TypeError, "expected a path, URL, camera number or iterable"),
        (True, {}, TypeError, "got bool"),
        ([], {"every": 0}, ValueError, "every: expected an int of 1 or more, got 0"),
        ([], {"batch": True}, ValueError, "batch"),
        ([], {"smooth": 0.5, "track": False}, ValueError, "smooth: expected 0 without track"),
        ([], {"smooth": 1.0}, ValueError, "smooth"),
    ],
)
def test_wrong_arguments(
    recognizer: Recognizer, source: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        recognizer.stream(source, **changes)


def test_videos_need_opencv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'fastfer\[video\]'"):
        Reader(tmp_path / "a.mp4")


def test_addresses() -> None:
    assert is_url("rtsp://10.0.0.1/a")
    assert is_url("https://x/y.mp4")
    assert not is_url("c:/videos/a.mp4")
    assert not is_url("videos/a.mp4")


def test_persons_keep_their_numbers() -> None:
    tracker = Tracker()
    assert numbers(tracker, face(0, 0), face(100, 0)) == [1, 2]
    assert numbers(tracker, face(105, 0), face(5, 0)) == [2, 1]  # in whatever order they come
    assert numbers(tracker, face(10, 0)) == [1]
    assert numbers(tracker, face(15, 0), face(200, 100)) == [1, 3]
    assert numbers(tracker, face(110, 0)) == [2]  # was away for two frames


def test_persons_who_pass_each_other() -> None:
    tracker = Tracker()
    for step in range(20):  # 8 pixels a frame; they are over each other in the middle
        left, right = face(8 * step, 0), face(152 - 8 * step, 12)
        assert numbers(tracker, left, right) == [1, 2], step


def test_a_lost_person_is_found_along_the_way() -> None:
    tracker = Tracker(patience=5)
    for step in range(6):
        assert numbers(tracker, face(6 * step, 0)) == [1]
    for _ in range(3):
        assert numbers(tracker) == []
    assert numbers(tracker, face(6 * 9, 0)) == [1]
    for _ in range(6):
        tracker([])
    assert numbers(tracker, face(60, 0)) == [2]  # too late: a number is not used again


def test_a_quick_person_is_followed_and_a_stranger_is_not_taken_for_one() -> None:
    tracker = Tracker()
    assert numbers(tracker, face(0, 0)) == [1]
    assert numbers(tracker, face(36, 0)) == [1]  # hardly overlaps
    assert numbers(tracker, face(300, 300)) == [2]
    assert numbers(tracker, face(300, 300, size=200)) == [3]  # far larger


def test_smoothing() -> None:
    tracker = Tracker(smooth=0.75)
    first = tracker([face(0, 0, (0.2, 0.5, 0.3))])[0]
    assert first.label == "b"
    second = tracker([face(2, 0, (0.9, 0.05, 0.05))])[0]
    np.testing.assert_allclose(second.values, [0.375, 0.3875, 0.2375], atol=1e-6)
    assert second.label == "b"
    assert second.score == pytest.approx(0.3875)
    third = tracker([face(2, 0, (0.9, 0.05, 0.05)), face(200, 0, (0.1, 0.1, 0.8))])
    assert [f.label for f in third] == ["a", "c"]  # each person by itself
    assert sum(third[0].probabilities.values()) == pytest.approx(1)
    plain = Tracker()([face(0, 0, (0.9, 0.05, 0.05))])[0]
    np.testing.assert_array_equal(plain.values, np.float32([0.9, 0.05, 0.05]))


def test_smoothing_in_a_stream(recognizer: Recognizer) -> None:
    faces = drawn_faces(2)
    pictures = [scene(faces[i : i + 1], [(10, 20)]) for i in (0, 1, 1)]
    plain = [recognizer(picture).faces[0].values for picture in pictures]
    smooth = [frame.faces[0].values for frame in recognizer.stream(pictures, smooth=0.5)]
    np.testing.assert_allclose(smooth[0], plain[0], atol=1e-6)
    np.testing.assert_allclose(smooth[1], (plain[0] + plain[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(smooth[2], plain[0] / 4 + plain[1] / 4 + plain[2] / 2, atol=1e-6)


@pytest.mark.parametrize("changes", [{"overlap": 0}, {"overlap": 1}, {"patience": -1}, {"smooth": 1}])
def test_wrong_settings_of_the_tracker(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="overlap, patience, smooth"):
        Tracker(**changes)
