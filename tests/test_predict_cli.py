# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.predict``: inputs of every kind, results as they come, bad input, going on after an end."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from predict_cases import drawn_faces, engine_file

from fastfer import Recognizer
from fastfer.predict import records
from fastfer.predict.cli import main
from fastfer.predict.inputs import expanded
from fastfer.predict.results import FrameResult, RecognizedFace, Result

CLASSES = ("a", "b")


@pytest.fixture(scope="module")
def engine(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_file(finished / "best.safetensors", tmp_path_factory.mktemp("engine") / "net.ffe")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in two folders, and what is none."""
    root = tmp_path / "pictures"
    (root / "more" / "deep").mkdir(parents=True)
    for index, face in enumerate(drawn_faces(5)):
        place = root if index < 3 else root / "more" / "deep"
        Image.fromarray(face).save(place / f"face{index}.png")
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"x")
    return root


def run(engine: Path, *arguments: Any) -> int:
    return main([*map(str, arguments), "--weights", str(engine), "--faces", "whole", "--threads", "1"])


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder(engine: Path, folder: Path, capsys: Any) -> None:
    assert run(engine, folder) == 0
    printed = capsys.readouterr()
    found = lines(printed.out)
    names = ["face0.png", "face1.png", "face2.png", "more/deep/face3.png", "more/deep/face4.png"]
    assert [record["source"] for record in found] == [str(folder / name) for name in names]
    recognizer = Recognizer(engine, faces="whole", threads=1)
    for record, face in zip(found, drawn_faces(5), strict=True):
        wanted = recognizer(face).faces[0].to_dict()
        assert record["faces"] == [wanted]
        assert record["size"] == [48, 48]
        assert record["error"] is None
    assert "5 pictures, 5 faces, 0 failed" in printed.err


def test_inputs_of_every_kind(folder: Path) -> None:
    (folder / "clip.mp4").write_bytes(b"x")
    standard = io.BytesIO(os.fsencode(f"{folder / 'face1.png'}\r\n\n{folder / 'more'}\n"))
    given = [str(folder / "face0.png"), f"{folder}/f*2.png", "-", str(folder), "0", "camera:3", "rtsp://host/a"]
    items, problems = expanded(given, standard)
    assert not problems
    assert [(item.kind, Path(item.name).name) for item in items] == [
        ("picture", "face0.png"),
        ("picture", "face2.png"),
        ("picture", "face1.png"),
        ("picture", "face3.png"),
        ("picture", "face4.png"),
        ("stream", "clip.mp4"),
        ("stream", "0"),
        ("stream", "3"),
        ("stream", "a"),
    ]
    assert [item.source for item in items[-3:]] == [0, 3, "rtsp://host/a"]
    assert items[3].place == "deep/face3.png"


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "x.png")
    items, _ = expanded([str(tmp_path / name) for name in "abca"], io.BytesIO())
    assert [item.place for item in items] == ["x.png", "x-2.png", "x-3.png"]


def test_inputs_that_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    given = [str(tmp_path / "empty"), str(tmp_path / "*.png"), str(tmp_path / "gone.png")]
    items, problems = expanded(given, io.BytesIO())
    assert not items
    assert [problem.message for problem in problems] == [
        "no pictures or videos in this folder",
        "nothing matches this pattern",
        "no such file or folder",
    ]


def test_lists_with_zero_bytes(tmp_path: Path) -> None:
    strange = tmp_path / "a\nb.png"
    Image.fromarray(drawn_faces(1)[0]).save(strange)
    items, problems = expanded(["-"], io.BytesIO(os.fsencode(strange) + b"\0"), null=True)
    assert [item.name for item in items] == [str(strange)]
    assert not problems


def bad_pictures(root: Path) -> None:
    face = Image.fromarray(drawn_faces(1)[0])
    root.mkdir()
    (root / "zero.jpg").write_bytes(b"")
    face.save(root / "whole.png")
    (root / "cut.png").write_bytes((root / "whole.png").read_bytes()[:300])
    (root / "text.jpg").write_text("no picture at all")
    (root / "line\nbreak\x1b[31m.png").write_bytes(b"\x89PNG")
    Image.new("1", (20_001, 10)).save(root / "bomb.png")


def good_pictures(root: Path) -> None:
    face = Image.fromarray(drawn_faces(1)[0])
    root.mkdir()
    face.convert("RGB").save(root / "rgb.jpg", quality=95)
    face.convert("CMYK").save(root / "cmyk.jpg", quality=95)
    face.convert("P").save(root / "palette.png")
    face.convert("LA").save(root / "alpha.png")
    face.convert("RGBA").save(root / "rgba.png")
    Image.fromarray(np.asarray(face).astype(np.uint16) << 8).save(root / "deep.png")
    face.resize((1, 1)).save(root / "tiny.png")
    face.save(root / "moving.gif", save_all=True, append_images=[face.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 3
    face.rotate(180).save(root / "upside_down.png", exif=exif)


def test_bad_pictures_get_a_message_each_and_the_rest_goes_on(engine: Path, tmp_path: Path, capsys: Any) -> None:
    bad_pictures(tmp_path / "bad")
    good_pictures(tmp_path / "good")
    assert run(engine, tmp_path / "bad", tmp_path / "good", tmp_path / "gone.png") == 1
    printed = capsys.readouterr()
    found = {Path(record["source"]).name: record for record in lines(printed.out)}
    assert {name for name, record in found.items() if record["error"]} == {
        "zero.jpg",
        "cut.png",
        "text.jpg",
        "line\nbreak\x1b[31m.png",
        "bomb.png",
    }
    assert len(found) == 6 + 9
    for message in (
        "zero.jpg is not a readable image (the file is empty)",
        "cut.png is not a readable image",
        "text.jpg is not a readable image (no known format)",
        "bomb.png is not a readable image (20001x10 pixels",
        r"line\nbreak\x1b[31m.png",
        "gone.png: no such file or folder",
        "moving.gif: an animation: its first picture",
        "15 pictures, 10 faces, 6 failed",
    ):
        assert message in printed.err
    assert "\x1b" not in printed.err + printed.out
    whole = found["whole.png"]["faces"][0]["probabilities"]
    for name in ("alpha.png", "rgba.png", "upside_down.png", "deep.png", "palette.png", "rgb.jpg", "cmyk.jpg"):
        values = found[name]["faces"][0]["probabilities"]
        assert all(abs(values[label] - whole[label]) < 0.06 for label in whole), name


def test_pictures_without_faces_are_noted(engine: Path, folder: Path, monkeypatch: Any, capsys: Any) -> None:
    import fastfer.predict.cli as cli

    def blind(*arguments: Any, **options: Any) -> Recognizer:
        return Recognizer(engine, detector=lambda picture: [], threads=1)

    monkeypatch.setattr(cli, "Recognizer", blind)
    assert main([str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("no face found") == 5
    assert all(record["faces"] == [] and record["error"] is None for record in lines(printed.out))


def test_a_table(engine: Path, folder: Path, capsys: Any) -> None:
    (folder / "zero.png").write_bytes(b"")
    assert run(engine, folder, "--csv", "--quiet") == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 6
    recognizer = Recognizer(engine, faces="whole", threads=1)
    first = recognizer(drawn_faces(1)[0]).faces[0]
    assert rows[0]["label"] == first.label
    assert float(rows[0]["score"]) == pytest.approx(first.score, abs=1e-6)
    assert [float(rows[0][f"p_{name}"]) for name in first.classes] == pytest.approx(first.values.tolist(), abs=1e-6)
    assert [float(rows[0][side]) for side in ("left", "top", "width", "height")] == [0, 0, 48, 48]
    assert "the file is empty" in rows[3]["error"]
    assert rows[3]["label"] == ""


@pytest.mark.parametrize("form", ["json", "csv"])
def test_results_in_a_folder(engine: Path, folder: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    assert run(engine, folder, "--out", out, f"--{form}", "--annotate", "--quiet") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["pictures"], summary["faces"], summary["failed"], summary["without_face"]) == (5, 5, 0, 0)
    assert sum(summary["labels"].values()) == 5
    assert summary["run"]["weights"] == "net.ffe"
    for name in ("face0.png.jpg", "more/deep/face4.png.jpg"):
        with Image.open(out / "annotated" / name) as image:
            assert image.size == (48, 48)
    with Image.open(out / "shares.png") as image:
        assert image.size[0] > 900
    labels = {name for name, count in summary["labels"].items() if count}
    assert {path.stem for path in (out / "sheets").iterdir()} == labels
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize("kept", [0, 0.3, 0.55, 0.99, 1.0])
def test_a_run_goes_on_where_it_was_ended(engine: Path, folder: Path, tmp_path: Path, form: str, kept: float) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(engine, folder, "--out", whole, f"--{form}", "--quiet") == 0
    assert run(engine, folder, "--out", out, f"--{form}", "--quiet") == 0
    file = out / ("results.csv" if form == "csv" else "results.jsonl")
    content = file.read_bytes()
    file.write_bytes(content[: round(kept * len(content))])
    if kept:
        assert run(engine, folder, "--out", out, f"--{form}", "--quiet") == 2  # not asked to go on
    assert run(engine, folder, "--out", out, f"--{form}", "--quiet", "--resume") == 0
    assert file.read_bytes() == (whole / file.name).read_bytes()
    assert json.loads((out / "summary.json").read_text())["faces"] == 5


@pytest.mark.full
def test_a_killed_run_has_lost_nothing(engine: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "many", tmp_path / "out"
    root.mkdir()
    for index, face in enumerate(drawn_faces(200)):
        Image.fromarray(face).resize((300, 300)).save(root / f"{index:03}.png")
    command = [sys.executable, "-m", "fastfer.predict", str(root), "--out", str(out), "--weights", str(engine)]
    process = subprocess.Popen([*command, "--faces", "whole", "--threads", "1", "--annotate", "--quiet"])
    file = out / "results.jsonl"
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = file.read_bytes()
    assert 20 <= before.count(b"\n") < 200
    assert run(engine, root, "--out", out, "--annotate", "--quiet", "--resume") == 0
    after = file.read_bytes()
    assert after.startswith(before[: before.rindex(b"\n") + 1])
    assert [Path(record["source"]).name for record in lines(after.decode())] == [f"{i:03}.png" for i in range(200)]


def test_going_on_with_other_arguments_is_refused(engine: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert run(engine, folder, "--out", out) == 0
    assert run(engine, folder, "--out", out, "--resume", "--every", "2") == 2
    assert "--resume: expected the arguments of the earlier run" in capsys.readouterr().err
    (out / "results.jsonl").write_text("something else\n")
    assert run(engine, folder, "--out", out, "--resume") == 2
    assert "expected results of fastfer.predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--annotate"], "--annotate: expected --out"),
        (["--resume"], "--resume: expected --out"),
        (["--every", "0"], "--every"),
        (["--smooth", "1"], "--smooth"),
        (["--workers=-1"], "--workers"),
        (["--threads", "0"], "threads"),
        (["--weights", "nothing"], "expected the file of an engine"),
    ],
)
def test_wrong_arguments(engine: Path, folder: Path, arguments: list[str], message: str, capsys: Any) -> None:
    assert main([str(folder), "--weights", str(engine), "--faces", "whole", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_output_that_cannot_be_written(engine: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("x")
    assert run(engine, folder, "--out", tmp_path / "file") == 2
    assert "error:" in capsys.readouterr().err
    assert run(engine, folder, "--out", tmp_path / "file" / "below") == 2
    full = Path("/dev/full")
    if full.exists():
        code = "import sys; from fastfer.predict.cli import main; sys.exit(main(sys.argv[1:]))"
        arguments = [str(folder), "--weights", str(engine), "--faces", "whole"]
        with full.open("wb") as file:
            ended = subprocess.run([sys.executable, "-c", code, *arguments], stdout=file, stderr=subprocess.PIPE)
        assert ended.returncode == 2
        assert b"No space left" in ended.stderr


def test_an_opencv_without_windows(engine: Path, folder: Path, monkeypatch: Any, capsys: Any) -> None:
    class Headless:
        error = ValueError

        @staticmethod
        def imshow(*_: Any) -> None:
            raise ValueError("The function is not implemented")

    monkeypatch.setattr("fastfer.predict.run.opencv", Headless)
    assert run(engine, folder, "--show") == 2  # once, and not for each picture
    assert capsys.readouterr().err.count("this OpenCV opens no windows") == 1


def test_a_reader_that_has_enough(engine: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "fastfer.predict", str(folder), "--weights", str(engine), "--faces", "whole"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert b"Traceback" not in errors


def test_videos(engine: Path, tmp_path: Path, capsys: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (96, 96))
    for face in drawn_faces(12):
        writer.write(np.repeat(np.kron(face, np.ones((2, 2), np.uint8))[..., None], 3, 2))
    writer.release()
    (tmp_path / "text.mp4").write_text("no video")
    out = tmp_path / "out"
    assert run(engine, path, tmp_path / "text.mp4", "--out", out, "--track", "--every", "2", "--annotate") == 1
    assert "text.mp4: cannot be opened (damaged" in capsys.readouterr().err
    found = lines((out / "results.jsonl").read_text())
    assert [record["frame"] for record in found] == [0, 2, 4, 6, 8, 10, 0]
    assert [record["time"] for record in found[:6]] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert {face["track"] for record in found for face in record["faces"]} == {1}
    assert found[-1]["error"] is not None
    annotated = cv2.VideoCapture(str(out / "annotated" / "clip.avi.mp4"))
    assert annotated.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert annotated.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    annotated.release()
    whole = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(whole[: len(whole) // 3])  # in the middle of the first video
    (tmp_path / "text.mp4").unlink()
    assert run(engine, path, "--out", out, "--track", "--every", "2", "--annotate", "--resume") == 0
    assert lines((out / "results.jsonl").read_text()) == found[:6]


def test_a_camera_that_is_not_there(engine: Path, capsys: Any) -> None:
    pytest.importorskip("cv2")
    assert run(engine, "camera:98") == 1
    assert "camera 98: cannot be opened (not there, in use by another program" in capsys.readouterr().err


def face(label: str, score: float, track: int | None = None) -> RecognizedFace:
    values = np.float32([score, 1 - score] if label == "a" else [1 - score, score])
    return RecognizedFace((1.0, 2.0, 3.0, 4.0), None, 0.8, label, score, CLASSES, values, track)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_records_are_read_back(tmp_path: Path, form: records.Format) -> None:
    path = tmp_path / "results"
    results = [
        Result((face("a", 0.75), face("b", 0.5)), (9, 9), "x\n,\"'\udc80.png"),
        Result((), (9, 9), "y.png"),
        Result((), None, "z.png", "broken\x1b"),
        FrameResult((face("b", 0.625, 3),), (9, 9), "v.mp4", None, 7, 1.5),
        FrameResult((), (9, 9), "v.mp4", None, 8, 1.75),
    ]
    with path.open("wb") as file:
        write = records.Writer(file, form, CLASSES, header=True)
        for result in results:
            write(result)
    assert list(records.read(path, form)) == [
        ("x\\n,\"'\\udc80.png", None, [("a", 0.75), ("b", 0.5)], False),
        ("y.png", None, [], False),
        ("z.png", None, [], True),
        ("v.mp4", 1.5, [("b", 0.625)], False),
        ("v.mp4", 1.75, [], False),
    ]
    assert b"\x1b" not in path.read_bytes()
    assert records.resumable(path, form) == {"x\\n,\"'\\udc80.png", "y.png", "z.png"}
    assert len(list(records.read(path, form))) == 3  # the video begins again
