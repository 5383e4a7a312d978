# SPDX-License-Identifier: Apache-2.0
"""Radboud Faces Database (Langner et al. 2010): 67 models, eight expressions, three gazes, five cameras.

Everything is in the file name. The usual subset is the frontal camera (090) with all gazes, 1,608 images. The images
show head and shoulders, so a face crop belongs before the network. No official split: images go by model.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastfer.data.labels import CLASS_NAMES, canonical_name
from fastfer.data.layouts import Layout, Request, images_in, named_images, search
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.split import DataError

CAMERAS: tuple[int, ...] = (0, 45, 90, 135, 180)
GAZES: tuple[str, ...] = ("left", "frontal", "right")

# Names may carry prefixes (cropped_...); "Kid" stands where the ethnicity is, left and right are gazes.
_NAME = re.compile(
    r"Rafd(?P<camera>[0-9]{3})_(?P<model>[0-9]{2})_(?:Caucasian|Moroccan|Kid)_(?:female|male)_"
    r"(?P<expression>angry|contemptuous|disgusted|fearful|happy|neutral|sad|surprised)_(?P<gaze>left|frontal|right)"
)


def _find(root: Path) -> list[Path]:
    return search(root, lambda folder: any(_NAME.search(path.name) for path in images_in(folder)))


def _read(root: Path, request: Request) -> Manifest:
    cameras, gazes = request.options.cameras or (90,), request.options.gazes or GAZES
    _require_known("cameras", cameras, CAMERAS)
    _require_known("gazes", gazes, GAZES)
    found, strange = named_images(root, _NAME)
    samples = [
        Sample(path, canonical_name(match["expression"]), name, subject=match["model"])
        for name, (path, match) in found.items()
        if int(match["camera"]) in cameras and match["gaze"] in gazes
    ]
    notes = [f"cameras {', '.join(f'{each:03}' for each in cameras)}, gazes {', '.join(gazes)}"]
    if strange:
        notes.append(f"{strange} images without RaFD's names ignored")
    return Manifest("rafd", "files", root, samples, CLASS_NAMES, tuple(notes))


def _require_known(option: str, asked: tuple[object, ...], known: tuple[object, ...]) -> None:
    unknown = [str(each) for each in asked if each not in known]
    if unknown:
        raise DataError(f"{option}: expected some of {', '.join(map(str, known))}, got {', '.join(unknown)}")


LAYOUTS: tuple[Layout, ...] = (Layout("files", "ROOT/*Rafd090_01_Caucasian_female_angry_frontal.jpg", _find, _read),)
