# SPDX-License-Identifier: Apache-2.0
"""`fastfer.web` against other pages, and against those who mean harm: an error for them, service for the rest."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("aiohttp")  # the extra web
import aiohttp
from aiohttp import WSMsgType
from predict_cases import drawn_faces
from web_cases import ask, client, encoded, fitted, framed, running, scene

from fastfer.web.guard import Guard, is_loopback
from fastfer.web.limits import Limits
from fastfer.web.recognizers import Recognizers

LIMITS = Limits(
    message_bytes=200_000,
    pixels=500_000,
    faces=2,
    connections=24,
    sessions=6,
    first_seconds=1.0,
    idle_seconds=60.0,
    send_seconds=2.0,
)


@pytest.fixture(scope="module")
def recognizers(tmp_path_factory: pytest.TempPathFactory) -> Recognizers:
    return Recognizers(fitted(tmp_path_factory.mktemp("web")), detector=framed, threads=1)


@pytest.fixture(scope="module")
def url(recognizers: Recognizers) -> Iterator[str]:
    with running(recognizers, LIMITS) as address:
        yield address


@pytest.fixture(autouse=True)
def _still_serves(url: str) -> Iterator[None]:
    """After each test the server answers the next page."""
    yield
    (answer,) = ask(url, encoded(scene(drawn_faces(1))))
    assert len(answer["faces"]) == 1


def status(url: str, path: str = "/", **headers: str) -> int:
    async def run() -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{url}{path}", headers=headers) as answer:
            return answer.status

    return asyncio.run(run())


def joined(url: str, **headers: str) -> int:
    """The status of a WebSocket's handshake."""

    async def run() -> int:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.ws_connect(f"{url}/socket", headers=headers):
                    return 101
            except aiohttp.WSServerHandshakeError as error:
                return error.status

    return asyncio.run(run())


def raw(url: str, data: bytes, wait: float = 5.0) -> bytes:
    """What the server says to bytes, until it hangs up or says nothing for a while."""
    parts = urlsplit(url)
    received = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=wait) as connection:
        connection.sendall(data)
        try:
            while part := connection.recv(65536):
                received += part
        except (TimeoutError, ConnectionError):
            pass
    return received


def test_other_origins_are_refused(url: str) -> None:
    port = urlsplit(url).port
    assert joined(url, Origin=url) == 101
    assert joined(url, Origin=f"http://localhost:{port}", Host=f"localhost:{port}") == 101
    others = ("https://example.com", f"http://localhost:{port}", f"http://127.0.0.1:{port + 1}", "null", "", f"{url}/")
    for origin in others:
        assert joined(url, Origin=origin) == 403, origin
        assert status(url, "/app.js", Origin=origin) == 403, origin
    assert joined(url) == 403  # no browser's


def test_names_that_were_made_to_point_here_are_refused(url: str) -> None:
    port = urlsplit(url).port
    for host in (
        f"evil.example:{port}",
        "evil.example",
        f"127.0.0.1.evil.example:{port}",
        f"192.168.0.1:{port}",
        "a@127.0.0.1",
        "127.0.0.1/",
        "[::1",
        "127.0.0.1:x",
        "127.0.0.1:99999999",
    ):
        assert status(url, Host=host) == 403, host
        assert joined(url, Host=host, Origin=f"http://{host}") == 403, host
    for host in (f"localhost:{port}", "localhost", f"[::1]:{port}", "LOCALHOST", "127.0.0.1:9000"):  # a forwarded port
        assert status(url, Host=host) == 200, host
    assert raw(url, b"GET / HTTP/1.0\r\n\r\n").split()[1] == b"403"
    assert raw(url, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n").split()[1] in (b"400", b"403")


def test_which_names_a_server_has() -> None:
    def names(guard: Guard, *hosts: str) -> list[bool]:
        return [guard._is_ours(host) for host in hosts]

    assert names(Guard("192.168.0.7"), "192.168.0.7", "localhost", "192.168.0.8") == [True, False, False]
    assert names(Guard("0.0.0.0", ["My.Host"]), "192.168.0.7", "my.host", "evil") == [True, True, False]
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "a.b")] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/../cli.py",
        "/static/index.html",
        "/%2e%2e/cli.py",
        "/..%2fcli.py",
        "//etc/passwd",
        "/app.js/..",
        "/index.html",
        "/app.js%00",
        "/%ff",
        "/" + "a" * 5000,
    ],
)
def test_there_are_no_other_files(url: str, path: str) -> None:
    answer = raw(url, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.split()[1] in (b"404", b"400"), answer[:200]
    assert b"import" not in answer


def test_other_methods_and_damaged_requests(url: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        head = f"{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
        assert raw(url, head.encode()).split()[1] == b"405"
    assert raw(url, b"GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").split()[1] == b"400"
    huge = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"
    many = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 5000 + b"\r\n"
    for data in (huge, many, b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n"):
        answer = raw(url, data)
        assert not answer or answer.split()[1].startswith(b"4"), answer[:100]
    random = np.random.default_rng(0)
    for _ in range(20):
        raw(url, random.bytes(300), 2.0)


def bomb(side: int) -> bytes:
    """A PNG of some kilobytes that says, and holds, side x side pixels of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (side // 8 + 1)) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_that_are_none(url: str) -> None:
    good, random = encoded(scene(drawn_faces(1)), "JPEG"), np.random.default_rng(1)
    wrong = [
        b"",
        b"\0",
        b"abc",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"GIF89a",
        random.bytes(5000),
        good[:100],
        b"\xff\xd8" + random.bytes(1000),
        b"RIFF\0\0\0\0WEBPVP8 ",
    ]
    for answer in ask(url, *wrong):
        assert answer["type"] == "error"
        assert "image" in answer["message"]
        assert len(answer["message"]) < 200
    (small,) = ask(url, bomb(8000))
    assert small["message"] == "picture: expected at most 500,000 pixels, got 8000 x 8000"
    (large,) = ask(url, bomb(30_000))
    assert large["message"].startswith("picture is not a readable image (Image size (900000000 pixels) exceeds")


def test_damaged_pictures_never_end_a_session(url: str) -> None:
    random = np.random.default_rng(2)
    messages = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        good = np.frombuffer(encoded(scene(drawn_faces(1)), kind), np.uint8)
        for _ in range(6):
            bad = good.copy()
            bad[random.integers(0, min(2000, len(bad)), 8)] = random.integers(0, 256, 8)
            messages.append(bad.tobytes()[: len(bad) // random.integers(1, 4)])
    answers = ask(url, *messages, encoded(scene(drawn_faces(1))))
    assert {answer["type"] for answer in answers} <= {"faces", "error"}
    assert len(answers[-1]["faces"]) == 1


def test_the_best_faces_of_very_many(url: str) -> None:
    (answer,) = ask(url, encoded(scene(drawn_faces(5))))
    assert len(answer["faces"]) == 2
    assert answer["left_out"] == 3


def test_messages_that_are_too_large_end_the_session(url: str) -> None:
    async def run(data: bytes | str) -> int | None:
        async with client(url) as page:
            if isinstance(data, bytes):
                await page.socket.send_bytes(data)
            else:
                await page.socket.send_str(data)
            message = await page.socket.receive(timeout=20)
            assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
            return page.socket.close_code

    assert asyncio.run(run(b"\0" * 250_000)) == 1009
    assert asyncio.run(run("a" * 250_000)) == 1009


def test_bytes_that_are_no_frames_end_the_session(url: str) -> None:
    head = f"GET /socket HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nOrigin: {url}\r\nUpgrade: websocket\r\n"
    head += "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    random = np.random.default_rng(3)
    frames = [random.bytes(400) for _ in range(10)]
    frames.append(b"\x81\xff" + struct.pack(">Q", 1 << 62) + b"abcd")  # a length of exabytes
    frames.append(b"\x81\x83abcd\xff\xff\xff")  # text that is no UTF-8
    for data in frames:
        answer = raw(url, head.encode() + data, 1.0)
        assert answer.startswith(b"HTTP/1.1 101")


def test_a_page_that_sends_without_reading_waits(recognizers: Recognizers) -> None:
    picture = encoded(scene(drawn_faces(1)))

    async def run(url: str) -> None:
        async with client(url) as rude, client(url) as kind:

            async def flood() -> None:
                while True:
                    await rude.socket.send_bytes(picture)

            task = asyncio.create_task(flood())
            start = time.perf_counter()
            for _ in range(10):
                assert (await kind.ask(picture))["type"] == "faces"
            assert time.perf_counter() - start < 20
            task.cancel()
            rude.socket._response.close()  # a goodbye would stand behind all that was sent

    with running(recognizers, LIMITS) as address:
        asyncio.run(run(address))


def test_messages_come_no_faster_than_the_rate(recognizers: Recognizers) -> None:
    async def run(url: str) -> float:
        async with client(url) as page:
            start = time.perf_counter()
            for _ in range(15):
                await page.ask("{}")
            return time.perf_counter() - start

    with running(recognizers, Limits(rate=5.0)) as url:
        assert asyncio.run(run(url)) > 1.5  # the first second's worth may come at once
    with running(recognizers, Limits(rate=1e6)) as url:
        assert asyncio.run(run(url)) < 1.5


def test_more_pages_than_allowed(url: str) -> None:
    async def run() -> None:
        pages = []
        async with aiohttp.ClientSession() as session:
            for _ in range(LIMITS.sessions):
                pages.append(await session.ws_connect(f"{url}/socket", origin=url))
                assert (await pages[-1].receive_json(timeout=20))["type"] == "hello"
            extra = await session.ws_connect(f"{url}/socket", origin=url)
            assert (await extra.receive_json(timeout=20))["message"] == "6 pages are open, try again later"
            await extra.receive(timeout=20)
            assert extra.close_code == 1013
            await pages.pop().close()
            await asyncio.sleep(0.1)
            again = await session.ws_connect(f"{url}/socket", origin=url)
            assert (await again.receive_json(timeout=20))["type"] == "hello"

    asyncio.run(run())


def test_more_connections_than_allowed(url: str) -> None:
    parts = urlsplit(url)
    held = [socket.create_connection((parts.hostname, parts.port), timeout=10) for _ in range(LIMITS.connections)]
    try:
        time.sleep(0.2)
        assert b"503" in raw(url, b"")
        # Those that say nothing are dropped after first_seconds, and make room.
        held[0].sendall(b"GET / HTTP/1.1\r\nHost: loc")  # nor does half a request help
        start = time.monotonic()
        for connection in held:
            with suppress(ConnectionError):
                assert connection.recv(10) == b""
        assert time.monotonic() - start < 8
    finally:
        for connection in held:
            connection.close()
    assert status(url) == 200


def test_idle_pages_are_closed(recognizers: Recognizers) -> None:
    async def run(url: str) -> int | None:
        async with client(url) as page:
            await page.ask("{}")
            await page.socket.receive(timeout=20)
            return page.socket.close_code

    with running(recognizers, Limits(idle_seconds=0.3)) as url:
        assert asyncio.run(run(url)) == 1001


def test_a_fault_of_the_server_is_an_error_and_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(picture: object) -> list[object]:
        raise RuntimeError("a secret path")

    broken_one = Recognizers(fitted(tmp_path), detector=broken, threads=1)
    with running(broken_one) as url:
        error, fine, after = ask(url, encoded(drawn_faces(1)[0]), {"faces": "whole"}, encoded(drawn_faces(1)[0]))
    assert error == {"type": "error", "message": "the server failed on this; its log says why"}
    assert "a secret path" in caplog.text
    assert fine["type"] == "settings"
    assert after["type"] == "faces"
