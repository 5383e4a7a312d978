# SPDX-License-Identifier: Apache-2.0
"""Downloads of ImageNet starts: once, proved, from their publishers alone, and never by half."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stock_mobilenets import TimmV1

from fastfer.models import DownloadError, create_model
from fastfer.models.pretrained import SOURCES, Source, cached_file, download


@pytest.fixture
def server(timm: tuple[TimmV1, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list]]:
    """A server of the timm file; its address, and the paths that were asked for."""
    content, asked = timm[1].read_bytes(), []
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(content).hexdigest()}\nsize 1\n"
    bodies = {"/model.safetensors": content, "/pointer": pointer.encode(), "/cut.safetensors": content[:-9]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
                return
            if self.path.startswith("/drip"):
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                return
            body = bodies.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a pointer's reader stops early
                self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setattr(download, "_SCHEMES", ("http",))
    monkeypatch.setattr(download, "_HOSTS", ("127.0.0.1",))
    monkeypatch.setenv("FASTFER_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "FASTFER_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}", asked
        web.shutdown()
        thread.join()


def served(address: str, name: str = "model", digest: str | None = None) -> Source:
    return Source(f"{address}/{name}.safetensors", digest, None if digest else f"{address}/pointer")


def test_download_once_then_from_the_cache(server: tuple, timm: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    address, asked = server
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", served(address))
    model = create_model("patt_lite", pretrained="timm/mobilenetv1_100")
    assert model.pretrained.source == "timm/mobilenetv1_100"
    assert asked == ["/pointer", "/model.safetensors"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cached_file("timm/mobilenetv1_100").read_bytes() == timm[1].read_bytes()
    assert len(asked) == 2
    cached_file("timm/mobilenetv1_100").write_bytes(b"something else")
    with pytest.raises(DownloadError, match=r"model.safetensors is not the published file \(sha256:.*remove it"):
        create_model("patt_lite", pretrained="timm/mobilenetv1_100")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda a: served(a, "cut"), "checksum: expected sha256:.*, got another one of .* bytes"),
        (lambda a: served(a, digest="sha256:0000"), "checksum: expected sha256:0000, got"),
        (lambda a: served(a, "missing", "md5:00"), "404"),
        (lambda a: Source(f"{a}/model.safetensors", None, f"{a}/cut.safetensors"), "expected a Git-LFS pointer"),
        (lambda a: served("http://127.0.0.1:1"), "refused"),
    ],
)
def test_a_failed_download_is_an_error(
    server: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable, message: str
) -> None:
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", source(server[0]))
    with pytest.raises(DownloadError, match=f"(?s)timm/mobilenetv1_100: cannot fetch .*{message}.*give its path"):
        create_model("patt_lite", pretrained="timm/mobilenetv1_100")
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


@pytest.mark.parametrize(
    "place", ["http://localhost:1/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://127.0.0.1.evil.example/x"]
)
def test_redirects_to_other_places_are_refused(
    server: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    source = Source(f"{server[0]}/to/{place}", "sha256:00")
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", source)
    with pytest.raises(DownloadError, match=r"expected an address at 127.0.0.1 by http, got|[Rr]edirect"):
        cached_file("timm/mobilenetv1_100")
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


def test_only_https_to_the_publishers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFER_CACHE", str(tmp_path / "cache"))
    for url in ("http://download.pytorch.org/x", "https://pytorch.org.example.com/x", "file:///etc/passwd"):
        monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", Source(url, "sha256:00"))
        with pytest.raises(DownloadError, match=r"expected an address at download.pytorch.org, .* by https, got"):
            cached_file("timm/mobilenetv1_100")
    for source in SOURCES.values():
        if source.url.startswith("https"):
            download._check_address(source.url)
    download._check_address("https://cdn-lfs.hf.co/x")


def test_a_dripping_server_ends_at_the_deadline(server: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_DEADLINE", 0.3)
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", Source(f"{server[0]}/drip", "sha256:00"))
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=r"not finished after 0\.3 seconds"):
        cached_file("timm/mobilenetv1_100")
    assert time.monotonic() - begun < 3
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


def test_a_file_without_its_record_is_proved_again(server: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", served(server[0]))
    path = cached_file("timm/mobilenetv1_100")
    path.with_name(f"{path.name}.digest").unlink()
    assert cached_file("timm/mobilenetv1_100") == path
    assert server[1][-1] == "/pointer"
    path.write_bytes(b"something else")
    with pytest.raises(DownloadError, match="is not the published file"):
        cached_file("timm/mobilenetv1_100")
    monkeypatch.setenv("FASTFER_OFFLINE", "1")
    with pytest.raises(DownloadError, match="the record of its checksum is not in the cache, and FASTFER_OFFLINE"):
        cached_file("timm/mobilenetv1_100")


def test_planted_links_are_not_followed(server: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", served(server[0]))
    mine = tmp_path / "mine"
    mine.write_text("mine")
    path = tmp_path / "cache" / "timm--mobilenetv1_100" / "model.safetensors"
    path.parent.mkdir(parents=True)
    for name in (path.name, f"{path.name}.digest"):
        path.with_name(name).symlink_to(mine)
        with pytest.raises(DownloadError, match="is a link, which this package does not make"):
            cached_file("timm/mobilenetv1_100")
        path.with_name(name).unlink()
    assert mine.read_text() == "mine"


def test_threads_fetch_side_by_side(server: tuple, timm: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", served(server[0]))
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(cached_file, ["timm/mobilenetv1_100"] * 16))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == timm[1].read_bytes()
    assert sorted(entry.name for entry in paths[0].parent.iterdir()) == [paths[0].name, f"{paths[0].name}.digest"]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "FASTFER_OFFLINE"])
def test_offline(server: tuple, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match=f"not in the cache .*{variable} forbids to fetch https://download"):
        create_model("mobilenetv3_cpsca", pretrained="torchvision/mobilenet_v3_large")
    assert server[1] == []


def test_published_sources_are_pinned() -> None:
    for name, source in SOURCES.items():
        assert source.url.startswith("https://"), name
        assert bool(source.digest) != bool(source.pointer), name
        if source.digest:
            method, digits = source.digest.split(":")
            assert method in hashlib.algorithms_available
            assert len(bytes.fromhex(digits)) >= 4
