# SPDX-License-Identifier: Apache-2.0
"""Published weight files by name: fetched once, checked against what is written here, kept in a cache.

Environment: ``FASTFER_CACHE`` is the folder of the cache (default: ``fastfer`` in XDG_CACHE_HOME or ~/.cache);
``HF_HUB_OFFLINE=1`` or ``FASTFER_OFFLINE=1`` forbids the network, so that only cached files are found.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_TORCH = "https://download.pytorch.org/models/mobilenet_v3_large"
_TIMM = "https://huggingface.co/timm/mobilenetv1_100.ra4_e3600_r224_in1k/{}/dda9ab42e23f3061aa191630817df76e8fe9cace/{}"
_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
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


def cached_file(name: str) -> Path:
    """The file of ``SOURCES[name]``, from the cache or from the network. Raises DownloadError, saying why."""
    source = SOURCES[name]
    path = _cache() / name.replace("/", "--") / source.url.rsplit("/", 1)[-1]
    record = path.with_name(f"{path.name}.digest")  # what a pointer said when the file was fetched
    if path.is_file():
        known = source.digest or (record.read_text().strip() if record.is_file() else None)
        if known is not None and not _matches(path, known):
            raise DownloadError(f"{name}: {path} is not the published file ({known}): remove it to fetch it again")
        return path
    for variable in ("HF_HUB_OFFLINE", "FASTFER_OFFLINE"):
        if os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off"):
            raise DownloadError(f"{name}: not in the cache ({path}), and {variable} forbids to fetch {source.url}")
    try:
        digest = source.digest or _pointed_at(source.pointer)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            size = _fetch(source.url, temporary)
            if not _matches(temporary, digest):
                raise ValueError(f"checksum: expected {digest}, got another one of {size} bytes")
            record.write_text(digest + "\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{name}: cannot fetch {source.url} ({error}); fetch it by other means and give its path instead"
        ) from error
    return path


def _cache() -> Path:
    if folder := os.environ.get("FASTFER_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastfer"


@contextmanager
def _open(url: str) -> Iterator[IO[bytes]]:
    request = urllib.request.Request(url, headers={"User-Agent": "fastfer"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        yield answer


def _pointed_at(url: str | None) -> str:
    """The digest in a Git-LFS pointer."""
    if url is None:
        raise ValueError("no checksum is known for it")
    with _open(url) as answer:
        text = answer.read(1024).decode("ascii", "replace")
    found = re.search(r"^oid (sha256:[0-9a-f]{64})$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"{url}: expected a Git-LFS pointer, got {text[:60]!r}")
    return found[1]


def _fetch(url: str, path: Path) -> int:
    """Write what is at ``url`` to ``path``; returns its size."""
    size = 0
    with _open(url) as answer, path.open("wb") as file:
        while chunk := answer.read(_CHUNK):
            size += len(chunk)
            if size > _LARGEST:
                raise ValueError(f"expected at most {_LARGEST} bytes")
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size


def _matches(path: Path, digest: str) -> bool:
    method, _, digits = digest.partition(":")
    with path.open("rb") as file:
        sums = hashlib.file_digest(file, lambda: hashlib.new(method, usedforsecurity=False))
    return sums.hexdigest().startswith(digits)
