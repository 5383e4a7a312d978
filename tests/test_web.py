# SPDX-License-Identifier: Apache-2.0
"""The server of `fastfer.web`: its page, pictures over the WebSocket, settings, the command line."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp")  # the extra web
import aiohttp
from PIL import Image
from predict_cases import Picture, drawn_faces
from web_cases import ask, client, encoded, fitted, framed, running, scene

from fastfer import Recognizer, weights
from fastfer._lawful_use import LAWFUL_USE
from fastfer.data import BASIC_NAMES
from fastfer.faces.face import Face
from fastfer.predict import DetectorNotFoundError
from fastfer.runtime import load, native
from fastfer.web import cli
from fastfer.web.guard import HEADERS
from fastfer.web.limits import Limits
from fastfer.web.recognizers import Recognizers
from fastfer.web.server import FILES


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def recognizers(engine: Path) -> Recognizers:
    return Recognizers(engine, detector=framed, threads=1)


@pytest.fixture(scope="module")
def url(recognizers: Recognizers) -> Iterator[str]:
    with running(recognizers) as address:
        yield address


def get(address: str, **options: object) -> tuple[int, str, dict[str, str]]:
    async def run() -> tuple[int, str, dict[str, str]]:
        async with aiohttp.ClientSession() as session, session.get(address, **options) as answer:
            return answer.status, await answer.text(), dict(answer.headers)

    return asyncio.run(run())


def test_page(url: str) -> None:
    status, text, headers = get(url)
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert LAWFUL_USE in text
    assert "{{" not in text
    for name, value in HEADERS.items():
        assert headers[name] == value
    # All that the page takes is served, and nothing else is referred to: it works without a network.
    names = set(re.findall(r'(?:src|href)="([^"]+)"', text))
    names |= set(re.findall(r'from "\./([^"]+)"', get(f"{url}/app.js")[1]))
    assert names == set(FILES) - {"index.html"}
    for name in names:
        status, content, headers = get(f"{url}/{name}")
        assert status == 200
        assert headers["Content-Type"] == f"{FILES[name]}; charset=utf-8"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", content)
    assert get(f"{url}/no")[0] == 404
    assert get(f"{url}/no")[2]["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


def test_hello(url: str, recognizers: Recognizers) -> None:
    async def run() -> dict[str, object]:
        async with client(url) as page:
            return page.hello

    hello = asyncio.run(run())
    assert hello["weights"][0]["name"] == "fitted.ffe"  # type: ignore[index]
    assert hello["weights"][0]["precisions"][:2] == [None, "float32"]  # type: ignore[index]
    assert hello["settings"]["faces"] == "detect"  # type: ignore[index]
    assert hello["detector_missing"] is None
    assert hello["limits"] == {"bytes": Limits().message_bytes, "pixels": Limits().pixels}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_faces_of_a_picture(url: str, engine: Path, kind: str) -> None:
    data = encoded(scene(drawn_faces(3)), kind)
    (answer,) = ask(url, data)
    wanted = Recognizer(engine, detector=framed, threads=1)(data)
    assert answer["type"] == "faces"
    assert answer["size"] == list(wanted.size or ())
    assert answer["left_out"] == 0
    assert len(answer["faces"]) == 3
    assert answer["faces"] == [face.to_dict() for face in wanted.faces]
    assert [face["label"] for face in answer["faces"]] == list(BASIC_NAMES[:3])
    assert list(answer["faces"][0]["probabilities"]) == list(BASIC_NAMES)
    assert set(answer["milliseconds"]) == {"decode", "detect", "classify"}
    assert all(value > 0 for value in answer["milliseconds"].values())


def test_pictures_of_every_mode(url: str) -> None:
    grey = Image.fromarray(drawn_faces(1)[0])
    messages = []
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
        messages.append(_png(deep if mode == "I;16" else grey.convert(mode)))
    answers = ask(url, {"faces": "whole"}, *messages)
    assert answers[0]["type"] == "settings"
    for answer in answers[1:]:
        assert answer["type"] == "faces", answer
        assert answer["size"] == [48, 48]
        assert answer["faces"][0]["box"] == [0, 0, 48, 48]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shipped(engine: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of weights that ship: another network of the same size."""
    name, data = "fgw_fer-ferplus", fitted(engine.parent, "other", seed=5).read_bytes()
    row = weights.Shipped(
        "fgw_fer", "ferplus", "other.ffe", hashlib.sha256(data).hexdigest(), 0, BASIC_NAMES, 0, 0, 0, 1, ()
    )
    monkeypatch.setattr(weights, "FOLDER", engine.parent)
    monkeypatch.setattr(weights, "table", lambda: (row,))
    return name


def test_settings_choose_the_recognizer(engine: Path, shipped: str) -> None:
    face = drawn_faces(1)[0]
    data = encoded(face)
    with running(Recognizers(engine, detector=framed, threads=1)) as url:
        answers = ask(url, {"faces": "whole", "precision": "float32"}, data, {"weights": shipped}, data)
    first, one, second, other = answers
    assert first["precision"] == "float32"
    assert first["classes"] == list(BASIC_NAMES)
    assert first["input"] == [1, 48, 48]
    assert second["settings"]["faces"] == "whole"  # what was chosen before stays
    for answer, source in ((one, engine), (other, engine.parent / "other.ffe")):
        assert answer["faces"][0] == Recognizer(source, faces="whole", threads=1)(face).faces[0].to_dict()
    assert one["faces"][0] != other["faces"][0]


def test_precisions_are_those_that_the_kernels_have(engine: Path) -> None:
    before, seen = native().isa(), set()
    try:
        for isa in native().isas(True):
            native().set_isa(isa)
            own = load(engine, dtype="bfloat16", threads=1)._plan.way != "float32"
            wanted = (None, "float32", "bfloat16") if own else (None, "float32")
            assert Recognizers(engine, faces="whole", threads=1).offers[engine.name] == wanted
            seen.add(own)
    finally:
        native().set_isa(before)
    assert False in seen  # the baseline


def test_a_camera_numbers_and_smooths(url: str) -> None:
    first, second = (encoded(scene(faces)) for faces in (drawn_faces(1), drawn_faces(4)[3:]))
    answers = ask(url, {"live": True, "smooth": 0.5}, first, second, {"live": False, "smooth": 0}, first, second)
    one, mixed, plain, other = (answers[index]["faces"][0] for index in (1, 2, 4, 5))
    assert one["track"] == mixed["track"] == 1
    assert plain["track"] is other["track"] is None
    assert one["probabilities"] == plain["probabilities"]
    for name in BASIC_NAMES:
        middle = (plain["probabilities"][name] + other["probabilities"][name]) / 2
        assert mixed["probabilities"][name] == pytest.approx(middle, abs=2e-6)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("{", "settings: expected JSON"),
        ("[" * 100_000, "settings: expected JSON"),
        ("[]", "settings: expected an object"),
        ({"path": "/etc/passwd"}, "settings: expected weights, precision, faces, live, smooth, got 'path'"),
        ({"weights": "/etc/passwd"}, "weights: expected one of fitted.ffe"),
        ({"weights": ["fitted.ffe"]}, "weights: expected one of"),
        ({"precision": "int8"}, "precision: expected one of null, float32"),
        ({"precision": {}}, "precision: expected one of"),
        ({"faces": "some"}, "faces: expected detect or whole, got 'some'"),
        ({"live": 1}, "live: expected true or false, got 1"),
        ({"smooth": 1}, "smooth: expected a number of 0 to 0.95, got 1"),
        ({"smooth": True}, "smooth: expected a number"),
        ('{"smooth": NaN}', "smooth: expected a number"),
        ('{"smooth": 1e999}', "smooth: expected a number"),
        ('{"smooth": 1' + "0" * 400 + "}", "smooth: expected a number"),
        ('{"weights": "\\u001b[2J"}', "weights: expected one of fitted.ffe"),
    ],
)
def test_wrong_settings_change_nothing(url: str, message: str | dict[str, object], expected: str) -> None:
    picture = encoded(scene(drawn_faces(1)))
    before, error, after = ask(url, picture, message, picture)
    assert error["type"] == "error"
    assert error["message"].startswith(expected)
    assert len(error["message"]) <= 500
    assert error["message"].isprintable()
    assert after["faces"] == before["faces"]


def test_without_a_detector(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **options: object) -> None:
        raise DetectorNotFoundError("no face detector: here is none")

    monkeypatch.setattr("fastfer.faces.detector.engine_bytes", missing)
    recognizers = Recognizers(engine, threads=1)
    assert recognizers.detector_missing == "no face detector: here is none"
    assert recognizers.start.faces == "whole"
    with running(recognizers) as url:
        whole, wrong = ask(url, encoded(drawn_faces(1)[0]), {"faces": "detect"})
    assert whole["faces"][0]["box"] == [0, 0, 48, 48]
    assert wrong["message"] == "faces: expected whole, got 'detect'"
    with pytest.raises(DetectorNotFoundError):
        Recognizers(engine, detector="here.onnx", threads=1)


def test_a_slow_picture_does_not_stop_the_others(engine: Path) -> None:
    blocked, waiting = threading.Event(), threading.Event()

    def detector(picture: Picture) -> list[Face]:
        if picture.shape[0] == 50:
            waiting.set()
            assert blocked.wait(60)
        return []

    async def run(url: str) -> None:
        async with client(url) as slow, client(url) as quick:
            task = asyncio.create_task(slow.ask(encoded(np.zeros((50, 60, 3), np.uint8))))
            await asyncio.to_thread(waiting.wait, 60)
            for _ in range(3):
                assert (await quick.ask(encoded(np.zeros((40, 60, 3), np.uint8))))["faces"] == []
            assert not task.done()
            blocked.set()
            assert (await task)["type"] == "faces"

    with running(Recognizers(engine, detector=detector, threads=1)) as url:
        asyncio.run(run(url))


def test_loading_does_not_stop_the_others(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizers = Recognizers(engine, detector=framed, threads=1)
    load, blocked, waiting = recognizers._load, threading.Event(), threading.Event()

    def slow(key: tuple[str, str | None]) -> dict[str, Recognizer]:
        waiting.set()
        assert blocked.wait(60)
        return load(key)

    async def run(url: str) -> None:
        async with client(url) as one, client(url) as two, client(url) as quick:
            tasks = [asyncio.create_task(page.ask({"precision": "float32"})) for page in (one, two)]
            await asyncio.to_thread(waiting.wait, 60)
            assert len((await quick.ask(encoded(scene(drawn_faces(2)))))["faces"]) == 2
            assert not any(task.done() for task in tasks)
            blocked.set()
            assert [(await task)["precision"] for task in tasks] == ["float32"] * 2

    monkeypatch.setattr(recognizers, "_load", slow)
    with running(recognizers) as url:
        asyncio.run(run(url))


def test_names_and_precisions(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision: expected one of float32.*, got 'int8'"):
        Recognizers(engine, faces="whole", precision="int8")
    with pytest.raises(ValueError, match="faces: expected 'detect' or 'whole', got 'some'"):
        Recognizers(engine, faces="some")
    with pytest.raises(FileNotFoundError, match="weights: expected the file of an engine"):
        Recognizers(tmp_path / "none.ffe", faces="whole")
    loaded = Recognizers(engine, faces="whole", precision="float32", threads=1)
    assert loaded.start.precision == "float32"
    assert loaded.get(loaded.start) is loaded.get(loaded.start)


def started(engine: Path, *arguments: str) -> subprocess.Popen[str]:
    """The server as a process that tells whether torch was imported, when it ends."""
    code = (
        "import sys; from fastfer.web.cli import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "--weights", str(engine), "--faces", "whole", "--port", "0", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_command_serves_without_torch_until_a_signal(engine: Path) -> None:
    with started(engine) as process:
        try:
            assert process.stdout is not None
            match = re.match(r"fastfer: (http://127\.0\.0\.1:\d+)/", process.stdout.readline())
            assert match
            (answer,) = ask(match[1], encoded(drawn_faces(1)[0]))
            assert answer["faces"][0]["label"] in BASIC_NAMES
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, errors) == (0, "False\n", "")


def test_command_ends_open_pages(engine: Path) -> None:
    with started(engine) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1].rstrip("/")

            async def run() -> int | None:
                async with client(url) as page:
                    process.terminate()
                    await page.socket.receive(timeout=20)
                    return page.socket.close_code

            start = time.monotonic()
            assert asyncio.run(run()) in (1001, 1006)  # Windows knows no gentle end
            process.wait(20)
            assert time.monotonic() - start < 15
        finally:
            process.kill()


def test_command_refuses(engine: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert cli.main(["--weights", "no\nfile"]) == 2
    assert "\\nfile', which is no file" in capsys.readouterr().err
    assert cli.main(["--port", "70000"]) == 2
    assert capsys.readouterr().err == "fastfer.web: --port: expected 0 to 65535, got 70000\n"
    assert cli.main(["--faces", "whole", "--detector", "x"]) == 2
    assert "expected none with --faces whole" in capsys.readouterr().err
    assert cli.main(["--weights", str(engine), "--detector", "none.onnx"]) == 2
    assert "detector: expected the file of a face detector, got 'none.onnx'" in capsys.readouterr().err
    port = url.rpartition(":")[2]
    assert cli.main(["--weights", str(engine), "--faces", "whole", "--port", port]) == 1
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err


def test_aiohttp_is_asked_for_by_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("fastfer.web") and name != "fastfer.web.cli"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert cli.main(["--weights", "none"]) == 2
    assert "pip install 'fastfer[web]'" in capsys.readouterr().err


def test_answers_are_json(url: str) -> None:
    (answer,) = ask(url, encoded(scene(drawn_faces(2))))
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
