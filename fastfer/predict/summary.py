# SPDX-License-Identifier: Apache-2.0
"""What a run found: counts, the share of each class over time, and sheets with the surest faces of each class."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastfer._files import replace_atomically, write_bytes
from fastfer.faces.face import Face, FaceCrop
from fastfer.predict import records
from fastfer.predict.draw import COLOURS
from fastfer.predict.photo import Photo, reduction
from fastfer.predict.results import RecognizedFace

_TILE, _COLUMNS, _ROWS = 96, 8, 4
_BINS = 120


class Sheets:
    """Keeps small pictures of the faces with the highest scores of each class."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[float, int, Image.Image]]] = {}
        self._seen = 0

    def add(self, photo: Photo, faces: Iterable[RecognizedFace]) -> None:
        """Look at the faces of a picture."""
        for face in faces:
            self._seen += 1
            kept = self._kept.setdefault(face.label, [])
            full = len(kept) >= _COLUMNS * _ROWS
            if full and face.score <= kept[0][0]:
                continue
            crop, found = FaceCrop(margin=0.1), Face(face.box)
            photo.refine(reduction(crop.side(found), _TILE))
            face_alone = Image.fromarray(crop.cut(*photo.around(found, crop)))
            tile = face_alone.convert("RGB").resize((_TILE, _TILE), Image.Resampling.BILINEAR)
            (heapq.heapreplace if full else heapq.heappush)(kept, (face.score, -self._seen, tile))

    def save(self, folder: Path) -> list[Path]:
        """One PNG a class, ``<class>.png``, the surest face first."""
        written = []
        for label, kept in self._kept.items():
            rows = -(-len(kept) // _COLUMNS)
            sheet = Image.new("RGB", (_COLUMNS * (_TILE + 4) + 4, rows * (_TILE + 4) + 28), "white")
            pen = ImageDraw.Draw(sheet)
            pen.text((6, 4), f"{label}: the {len(kept)} surest", fill="black", font=ImageFont.load_default(size=16))
            for at, (_, _, tile) in enumerate(sorted(kept, key=lambda item: item[:2], reverse=True)):
                row, column = divmod(at, _COLUMNS)
                sheet.paste(tile, (4 + column * (_TILE + 4), 26 + row * (_TILE + 4)))
            path = folder / f"{_file_name(label)}.png"
            folder.mkdir(parents=True, exist_ok=True)
            _save(sheet, path)
            written.append(path)
        return written


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in " -_" else "_" for c in label)[:80] or "_"


def _save(image: Image.Image, path: Path) -> None:
    with replace_atomically(path) as temporary:
        image.save(temporary, format="PNG")


class Totals:
    """Counts of a run, and where in it each label stands."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.pictures = self.failed = self.without = 0
        self.labels = dict.fromkeys(self.classes, 0)
        self.sources: set[str] = set()
        self._places: list[float] = []  # seconds where there is one stream alone, else the picture's number
        self._numbers: list[int] = []
        self._seconds: list[float] = []

    def add(self, source: str, seconds: float | None, labels: Iterable[str], failed: bool) -> None:
        """Count a picture or frame."""
        names = list(labels)
        self.sources.add(source)
        self.failed += failed
        self.without += not names and not failed
        for name in names:
            self.labels[name] = self.labels.get(name, 0) + 1
            self._places.append(float(self.pictures))
            self._numbers.append(self.classes.index(name) if name in self.classes else len(self.classes))
            self._seconds.append(float("nan") if seconds is None else seconds)
        self.pictures += 1

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "sources": len(self.sources),
            "pictures": self.pictures,
            "failed": self.failed,
            "without_face": self.without,
            "faces": sum(self.labels.values()),
            "labels": self.labels,
        }

    def shares(self) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
        """(classes, bins) shares of the faces, the bins' edges, and whether these are seconds."""
        timed = len(self.sources) == 1 and bool(self._seconds) and np.isfinite(self._seconds).all()
        places = np.array(self._seconds if timed else self._places)
        if not len(places):
            return np.zeros((len(self.classes), 0)), np.zeros(1), False
        end = float(places.max())
        edges = np.linspace(float(places.min()), end if end > places.min() else end + 1, min(_BINS, len(places)) + 1)
        counts = np.stack(
            [np.histogram(places[np.array(self._numbers) == i], edges)[0] for i in range(len(self.classes))]
        ).astype(np.float64)
        return counts / np.maximum(counts.sum(0), 1), edges, bool(timed)


def plot(totals: Totals) -> Image.Image:
    """Shares of the classes over time, or over the pictures in their order, as stacked columns."""
    shares, edges, timed = totals.shares()
    width, height, left, top = 960, 420, 50, 20
    image = Image.new("RGB", (width + left + 170, height + top + 50), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    count = shares.shape[1]
    for column in range(count):
        x0, x1 = left + width * column // count, left + width * (column + 1) // count - 1
        bottom = float(top + height)
        for index, share in enumerate(shares[:, column]):
            if share > 0:
                pen.rectangle((x0, bottom - share * height, x1, bottom), fill=COLOURS[index % len(COLOURS)])
                bottom -= share * height
    pen.rectangle((left, top, left + width, top + height), outline="black")
    for share in (0, 0.25, 0.5, 0.75, 1):
        pen.text((left - 6, top + height * (1 - share)), f"{share:.0%}", fill="black", font=font, anchor="rm")
    for at, value in ((0.0, edges[0]), (0.5, (edges[0] + edges[-1]) / 2), (1.0, edges[-1])):
        pen.text((left + at * width, top + height + 6), f"{value:.4g}", fill="black", font=font, anchor="mt")
    pen.text(
        (left + width / 2, top + height + 28), "seconds" if timed else "picture", fill="black", font=font, anchor="mt"
    )
    for index, name in enumerate(totals.classes):
        y = top + 22 * index
        pen.rectangle((left + width + 14, y, left + width + 30, y + 14), fill=COLOURS[index % len(COLOURS)])
        pen.text((left + width + 36, y), name, fill="black", font=font)
    return image


def write(
    folder: Path, results: Path, form: records.Format, classes: Sequence[str], sheets: Sheets, run: dict[str, Any]
) -> Totals:
    """``summary.json``, ``shares.png`` and ``sheets/<class>.png`` of a file of results, earlier runs' included.

    The sheets show faces of this run alone.
    """
    totals = Totals(classes)
    for source, seconds, faces, failed in records.read(results, form):
        totals.add(source, seconds, (label for label, _ in faces), failed)
    text = json.dumps({**run, **totals.to_dict()}, indent=2, ensure_ascii=False)
    write_bytes(folder / "summary.json", f"{text}\n".encode())
    if any(totals.labels.values()):
        _save(plot(totals), folder / "shares.png")
        sheets.save(folder / "sheets")
    return totals
