# SPDX-License-Identifier: Apache-2.0
"""Data sets larger than memory, as tar files in WebDataset's manner, written once and read from start to end.

A folder holds ``NAME-00000.tar`` and so on and, written last, ``shards.json``, which lists them. An image is two
members of one key: KEY.png (or .jpg and so on, its bytes as they came) and KEY.json with "label" (a class name), "id",
and where known "subject" and "soft" (a distribution over the classes). Shards from elsewhere, which may have KEY.cls
(a class's index or name) instead, get their list from `index_shards`. `fastfer.data.shard_loader` makes batches.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastfer._files import file_digest
from fastfer.data.files import replace_atomically, write_text
from fastfer.data.formats import FORMATS, IMAGE_SUFFIXES, open_image
from fastfer.data.images import decode
from fastfer.data.manifest import Sample
from fastfer.data.split import DataError
from fastfer.faces.face import Picture

INDEX = "shards.json"
LAYOUT = 1
_SUFFIXES = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
_LARGEST = 1 << 28  # bytes of the members of one image; photographs have up to a tenth of it
_MEMBERS = 16  # of one image


@dataclass(frozen=True)
class Record:
    """One stored image, still encoded; ``label`` is an index into the set's names, ``place`` is for messages."""

    image: bytes
    label: int
    id: str
    subject: str | None
    soft: NDArray[np.float32] | None
    place: str

    def decode(self) -> Picture:
        """uint8 (H, W) for grey, (H, W, 3) RGB for anything else. DataError for bytes that are no image."""
        return decode(Sample(self.image, None, self.place))


class ShardWriter:
    """Writes the shards of a set; a context manager, whose end writes the index and whose failure leaves nothing.

    ``images`` is how many go into one file; 100 to 300 MB a file read well. The same images give the same bytes.
    DataError where the folder holds shards already.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        *,
        name: str = "images",
        images: int = 10_000,
        protocol: str = "",
        soft_mode: str = "crossentropy",
    ) -> None:
        if images < 1:
            raise ValueError(f"images: expected 1 or more to a shard, got {images}")
        if not names or len(set(names)) != len(names):
            raise ValueError(f"names: expected distinct class names, got {list(names)!r}")
        self._folder, self._name, self._images = Path(folder), name, images
        if (self._folder / INDEX).exists():
            raise DataError(f"{self._folder} holds shards already ({INDEX})")
        self._head = {"names": list(names), "protocol": protocol, "soft_mode": soft_mode}
        self._names = {name: index for index, name in enumerate(names)}
        self._labels: Counter[str] = Counter()
        self._soft: bool | None = None
        self._members: list[tuple[str, bytes]] = []
        self._shards: list[dict[str, Any]] = []

    def add(
        self,
        image: Picture | bytes | Path,
        label: str,
        *,
        id: str | None = None,
        subject: str | None = None,
        soft: NDArray[np.float32] | None = None,
    ) -> None:
        """An image as pixels, (H, W) or RGB (H, W, 3), stored as PNG; or as an encoded file, stored as it is."""
        if label not in self._names:
            raise DataError(f"label: expected one of {', '.join(self._names)}, got {label!r}")
        if self._soft not in (None, soft is not None) or (soft is not None and soft.shape != (len(self._names),)):
            raise DataError(f"soft: expected a distribution over {len(self._names)} classes for all images or for none")
        self._soft = soft is not None
        count = self._labels.total()
        suffix, content = _encoded(image)
        entry: dict[str, Any] = {"label": label, "id": str(count) if id is None else id}
        if subject is not None:
            entry["subject"] = subject
        if soft is not None:
            entry["soft"] = [float(value) for value in soft]
        key = f"{count:08d}"
        self._members += [(f"{key}.{suffix}", content), (f"{key}.json", json.dumps(entry).encode())]
        self._labels[label] += 1
        if len(self._members) == 2 * self._images:
            self._flush()

    def _flush(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._name}-{len(self._shards):05d}.tar"
        with replace_atomically(path) as temporary:
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as file:
                for name, content in self._members:
                    member = tarfile.TarInfo(name)  # owner, time and mode are constants
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
            digest = file_digest(temporary)
        self._shards.append({"file": path.name, "images": len(self._members) // 2, "sha256": digest})
        self._members = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._members:
                    self._flush()
                if not self._shards:
                    raise DataError(f"{self._folder}: expected images to write, got none")
                labels = {name: self._labels[name] for name in self._names}
                _write_index(self._folder, {**self._head, "soft": bool(self._soft), "labels": labels}, self._shards)
        finally:
            if not (self._folder / INDEX).exists():
                for shard in self._shards:
                    (self._folder / shard["file"]).unlink(missing_ok=True)


def _write_index(folder: Path, head: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    write_text(folder / INDEX, json.dumps({"fastfer": LAYOUT, **head, "shards": shards}, indent=1) + "\n")


def _encoded(image: Picture | bytes | Path) -> tuple[str, bytes]:
    """Suffix and bytes of the member."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise DataError(f"image: expected uint8 (H, W) or (H, W, 3), got {image.dtype} {image.shape}")
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        return "png", buffer.getvalue()
    content = image if isinstance(image, bytes) else Path(image).read_bytes()
    try:
        with open_image(content) as opened:
            name = "JPEG" if opened.format == "MPO" else str(opened.format)  # a JPEG with a second view in it
            return FORMATS[name][0].removeprefix("."), content
    except Exception as error:  # as in fastfer.data.images.decode
        place = "image" if isinstance(image, bytes) else str(image)
        raise DataError(f"{place}: expected an image file of a known format, got {error}") from None


class Storable(Protocol):
    """What `write_shards` reads of a split."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...


def write_shards(folder: str | Path, split: Storable, *, images: int = 10_000, name: str = "images") -> Shards:
    """Store a split, in memory (``images``) or decoded one by one (``load(index)``), with all that it says of them."""
    held, load = getattr(split, "images", ()), getattr(split, "load", None)
    extra = [getattr(split, key, None) for key in ("ids", "subjects", "soft")]
    head = {key: getattr(split, key) for key in ("protocol", "soft_mode") if hasattr(split, key)}
    with ShardWriter(folder, split.names, name=name, images=images, **head) as writer:
        for index, label in enumerate(split.labels.tolist()):
            pixels = np.asarray(held[index] if load is None else load(index))
            id, subject, soft = (None if column is None else column[index] for column in extra)
            planes = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
            picture = np.ascontiguousarray(planes[..., 0] if planes.ndim == 3 and planes.shape[2] == 1 else planes)
            writer.add(picture, split.names[label], id=id, subject=subject, soft=soft)
    return Shards(folder)


def index_shards(folder: str | Path, names: Sequence[str], *, protocol: str = "") -> Shards:
    """List the tar files of a folder, in the order of their names, after reading all of them.

    DataError where there is a list already or no tar file, and for anything in them that `Shards.records` refuses.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise DataError(f"{folder} holds shards already ({INDEX})")
    labels, shards = dict.fromkeys(names, 0), []
    for path in sorted(folder.glob("*.tar")):
        found = [_record(f"{path}, {key}", key, group, names, soft=False).label for key, group in groups(path)]
        for label in found:
            labels[names[label]] += 1
        shards.append({"file": path.name, "images": len(found), "sha256": file_digest(path)})
    if not shards:
        raise DataError(f"{folder}: expected files *.tar, got none")
    head = {"names": list(names), "protocol": protocol, "soft_mode": "crossentropy", "soft": False, "labels": labels}
    _write_index(folder, head, shards)
    return Shards(folder)


class Shards:
    """A set of shards by its index; nothing else is read before `records`.

    names     class names in the order of the labels
    labels    images by class name
    counts    images of each file
    has_soft  whether every image has a distribution over the classes
    soft_mode, protocol  as of the split that was stored
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not isfile(path):
            raise DataError(f"{self.folder} holds no shards: no {INDEX}, which ShardWriter writes last")
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry["fastfer"] != LAYOUT:
                raise DataError(f"{path}: expected layout {LAYOUT}, got {entry['fastfer']!r}")
            self.names: tuple[str, ...] = tuple(str(name) for name in entry["names"])
            self.labels = {str(name): int(count) for name, count in entry["labels"].items()}
            self.files = tuple(str(shard["file"]) for shard in entry["shards"])
            self.counts = tuple(int(shard["images"]) for shard in entry["shards"])
            self._digests = tuple(str(shard["sha256"]) for shard in entry["shards"])
            self.has_soft, self.soft_mode = bool(entry["soft"]), str(entry["soft_mode"])
            self.protocol = str(entry["protocol"])
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: expected the index of ShardWriter, got another file ({error!r})") from None
        if any(Path(file).name != file for file in self.files) or min((0, *self.counts)) < 0:
            raise DataError(f"{path}: expected names of files beside it and counts from 0")
        missing = [file for file in self.files if not isfile(self.folder / file)]
        if missing:
            raise DataError(f"{path}: lists {len(self.files)} shards, of which are missing: {', '.join(missing[:5])}")

    def __len__(self) -> int:
        return sum(self.counts)

    def fingerprint(self) -> str:
        """SHA-256 over names and files: equal for equal sets."""
        return hashlib.sha256(repr((self.names, self._digests)).encode()).hexdigest()

    def verify(self) -> None:
        """Read every file and compare it with the index. DataError naming the first that differs."""
        for file, digest in zip(self.files, self._digests, strict=True):
            if file_digest(self.folder / file) != digest:
                raise DataError(f"{self.folder / file} is not the file that {INDEX} lists: its sha256 differs")

    def records(self, order: Iterable[int] | None = None) -> Iterator[Record]:
        """The images of the shards ``order`` (default: all), one shard after the other, in the order stored.

        DataError for a file that is cut, or holds what a shard does not.
        """
        for index in range(len(self.files)) if order is None else order:
            path, count = self.folder / self.files[index], 0
            for key, members in groups(path):
                count += 1
                yield _record(f"{path}, {key}", key, members, self.names, self.has_soft)
            if count != self.counts[index]:
                raise DataError(f"{path}: expected {self.counts[index]} images, got {count}; the file seems to be cut")


def _record(place: str, key: str, members: dict[str, bytes], names: Sequence[str], soft: bool) -> Record:
    images = [suffix for suffix in members if suffix in _SUFFIXES]
    if len(images) != 1 or not members.keys() & {"json", "cls"}:
        found = ", ".join(sorted(members))
        raise DataError(f"{place}: expected one image and json or cls, got {found}; the file may be cut")
    try:
        entry = json.loads(members.get("json", b"{}"))
        name = str(entry.get("label", members.get("cls", b"").decode())).strip()
        label = names.index(name) if name in names else int(name)
        if not 0 <= label < len(names):
            raise ValueError(f"label: expected 0 to {len(names) - 1}, got {label}")
        distribution = np.array(entry["soft"], np.float32) if soft else None
        if distribution is not None and distribution.shape != (len(names),):
            raise ValueError(f"soft: expected {len(names)} numbers, got {distribution.shape}")
        if distribution is not None and not (distribution.min() >= 0 and abs(float(distribution.sum()) - 1) < 1e-4):
            raise ValueError(f"soft: expected numbers from 0 that sum to 1, got {distribution.tolist()[:8]}")
        return Record(members[images[0]], label, str(entry.get("id", key)), entry.get("subject"), distribution, place)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{place}: expected a label of {', '.join(names)}, and soft as listed, got {error!r}") from None


def groups(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {suffix: bytes}) of consecutive members of one key."""
    key = ""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as file:
            for member in file:
                _check_member(path, member)
                stem, _, suffix = member.name.partition(".")
                if stem != key and members:
                    yield key, members
                    members = {}
                content = file.extractfile(member)
                key, members[suffix.lower()] = stem, content.read() if content else b""
                if len(members) > _MEMBERS or sum(map(len, members.values())) > _LARGEST:
                    raise DataError(f"{path}, {key}: expected at most {_MEMBERS} members of {_LARGEST} bytes in all")
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is not a readable tar file ({error}); it seems to be cut") from error
    if members:
        yield key, members


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    """DataError for what no shard has. A sparse member of a few bytes may stand for any number of zeros, and one of
    negative size leads the reader back to where it was.
    """
    if not member.isfile() or member.issparse() or member.type == tarfile.GNUTYPE_SPARSE:
        raise DataError(f"{path}, {member.name}: expected a plain file")
    if not 0 <= member.size <= _LARGEST:
        raise DataError(f"{path}, {member.name}: expected 0 to {_LARGEST} bytes, got {member.size}")
