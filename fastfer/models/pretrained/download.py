# SPDX-License-Identifier: Apache-2.0
"""Published weight files by name: fetched once, checked against what is written here, kept in a cache.

Environment: ``FASTFER_CACHE`` is the folder of the cache (default: ``fastfer`` in XDG_CACHE_HOME or ~/.cache);
``HF_HUB_OFFLINE=1`` or ``FASTFER_OFFLINE=1`` forbids the network, so that only cached files are found.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastfer import _cache
from fastfer._files import replace_atomically, write_bytes

_TORCH = "https://download.pytorch.org/models/mobilenet_v3_large"
_TIMM = "https://huggingface.co/timm/mobilenetv1_100.ra4_e3600_r224_in1k/{}/dda9ab42e23f3061aa191630817df76e8fe9cace/{}"
_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_DEADLINE = 900.0  # seconds for a file: 20 MB at 25 kB/s
_SCHEMES = ("https",)
_HOSTS = ("download.pytorch.org", "huggingface.co", "hf.co", "storage.googleapis.com")
"""Of the publishers, and where Hugging Face keeps its files."""
_LARGEST = 1 << 30  # bytes; the files are 17 to 22 MB


class DownloadError(RuntimeError):
    """A weight file that could not be had. Nothing was loaded."""


@dataclass(frozen=True)
class Source:
    """Where a file is and how it is known to be the right one.

    ``digest`` is "sha256:" or "md5:" and as many hexadecimal digits as its publisher gives; or ``pointer`` is the
    address of a Git-LFS pointer, at a fixed commit, that holds the sha256.
    """

    url: str
    digest: str | None = None
    pointer: str | None = None


SOURCES: dict[str, Source] = {
    # The eight digits are in the names themselves, as torch.hub checks them; v2 is torchvision's later training.
    "torchvision/mobilenet_v3_large": Source(f"{_TORCH}-8738ca79.pth", "sha256:8738ca79"),
    "torchvision/mobilenet_v3_large_v2": Source(f"{_TORCH}-5c1a4163.pth", "sha256:5c1a4163"),
    "keras/mobilenet_1_0_224": Source(
        "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/mobilenet_1_0_224_tf_no_top.h5",
        "md5:725ccbd03d61d7ced5b5c4cd17e7d527",
    ),
    "timm/mobilenetv1_100": Source(
        _TIMM.format("resolve", "model.safetensors"), pointer=_TIMM.format("raw", "model.safetensors")
    ),
}
"""Files by name."""


def cached_file(name: str, source: Source | None = None) -> Path:
    """The file of ``source``, by default ``SOURCES[name]``, from the cache or from the network, under that name.

    Raises DownloadError, saying why.
    """
    source = source or SOURCES[name]
    path = _cache.folder() / name.replace("/", "--") / source.url.rsplit("/", 1)[-1]
    record = path.with_name(f"{path.name}.digest")  # what a pointer said when the file was fetched
    for each in (path, record):
        if each.is_symlink():
            raise DownloadError(f"{name}: {each} is a link, which this package does not make: remove it")
    try:
        if path.is_file():
            known = source.digest or _recorded(record) or _looked_up(name, source)
            if not _matches(path, known):
                raise DownloadError(f"{name}: {path} is not the published file ({known}): remove it to fetch it again")
            return path
        _require_network(name, f"not in the cache ({path})", source.url)
        digest = source.digest or _pointed_at(source.pointer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as temporary:  # a name of its own for each process and thread
            size = _fetch(source.url, temporary)
            if not _matches(temporary, digest):
                raise ValueError(f"checksum: expected {digest}, got another one of {size} bytes")
            write_bytes(record, f"{digest}\n".encode())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DownloadError(
            f"{name}: cannot fetch {source.url} ({error or type(error).__name__}); fetch it by other means and give "
            "its path instead"
        ) from error
    return path


def _recorded(record: Path) -> str | None:
    try:
        text = record.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"sha256:[0-9a-f]{64}", text) else None


def _looked_up(name: str, source: Source) -> str:
    """The digest from the network, for a file in the cache whose record is gone: unproved it is not used."""
    _require_network(name, "the record of its checksum is not in the cache", str(source.pointer))
    return _pointed_at(source.pointer)


def _require_network(name: str, why: str, url: str) -> None:
    for variable in ("HF_HUB_OFFLINE", "FASTFER_OFFLINE"):
        if os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off"):
            raise DownloadError(f"{name}: {why}, and {variable} forbids to fetch {url}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Only to hosts that are allowed."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    """ValueError for anything but https to a host of the publishers."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in _SCHEMES or not any(host == known or host.endswith(f".{known}") for known in _HOSTS):
        raise ValueError(f"expected an address at {', '.join(_HOSTS)} by {'/'.join(_SCHEMES)}, got {url[:200]}")


@contextmanager
def _open(url: str) -> Iterator[Iterator[bytes]]:
    """The content at ``url``, piece by piece. TimeoutError where it takes longer than a file of this size may."""
    _check_address(url)
    opener = urllib.request.OpenerDirector()  # without the handlers of files and ftp that urlopen has
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    end = time.monotonic() + _DEADLINE
    request = urllib.request.Request(url, headers={"User-Agent": "fastfer"})
    with opener.open(request, timeout=min(_TIMEOUT, _DEADLINE)) as answer:
        expected = answer.headers.get("Content-Length")

        def pieces() -> Iterator[bytes]:
            size = 0
            while piece := answer.read1(_CHUNK):  # what is there, so that a server that drips does not hold us
                if time.monotonic() > end:
                    raise TimeoutError(f"not finished after {_DEADLINE:g} seconds")
                size += len(piece)
                yield piece
            if expected is not None and expected.isdigit() and size != int(expected):
                raise ValueError(f"expected {expected} bytes, got {size}")

        yield pieces()


def _pointed_at(url: str | None) -> str:
    """The digest in a Git-LFS pointer."""
    if url is None:
        raise ValueError("no checksum is known for it")
    content = b""
    with _open(url) as pieces:
        for piece in pieces:
            content += piece
            if len(content) > 1024:
                break
    text = content[:1024].decode("ascii", "replace")
    found = re.search(r"^oid (sha256:[0-9a-f]{64})$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"{url}: expected a Git-LFS pointer, got {text[:60]!r}")
    return found[1]


def _fetch(url: str, path: Path) -> int:
    """Write what is at ``url`` to ``path``; returns its size."""
    size = 0
    with _open(url) as pieces, path.open("wb") as file:
        for piece in pieces:
            size += len(piece)
            if size > _LARGEST:
                raise ValueError(f"expected at most {_LARGEST} bytes")
            file.write(piece)
    return size


def _matches(path: Path, digest: str) -> bool:
    method, _, digits = digest.partition(":")
    with path.open("rb") as file:
        sums = hashlib.file_digest(file, lambda: hashlib.new(method, usedforsecurity=False))
    return sums.hexdigest().startswith(digits)
