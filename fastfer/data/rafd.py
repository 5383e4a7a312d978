# SPDX-License-Identifier: Apache-2.0
"""Radboud Faces Database (Langner et al. 2010): 67 models, eight expressions, three gazes, five cameras.

Everything is in the file name. The usual subset is the frontal camera (090) with all gazes, 1,608 images; all five
cameras have 8,040. The images show head and shoulders, so a face crop belongs before the network. No official split:
images go by model.
"""

from __future__ import annotations

from pathlib import Path

from fastfer.data.labels import CLASS_NAMES
from fastfer.data.layouts import Layout, Request
from fastfer.data.manifest import Manifest
from fastfer.data.named_files import RAFD, keep_split_by_person, named_images, named_samples, place_of
from fastfer.data.split import DataError
from fastfer.data.tree import Tree

CAMERAS: tuple[int, ...] = (0, 45, 90, 135, 180)
CAMERA_SETS: dict[str, tuple[int, ...]] = {"frontal": (90,), "half": (45, 90, 135), "all": CAMERAS}
"""Words that ``cameras`` takes; "half" leaves out the two profiles."""
GAZES: tuple[str, ...] = ("left", "frontal", "right")


def _find(tree: Tree) -> list[Path]:
    return place_of(tree, RAFD)


def _read(root: Path, request: Request) -> Manifest:
    cameras, gazes = _cameras(request.options.cameras), request.options.gazes or GAZES
    _require_known("gazes", tuple(gazes), GAZES)
    kept = []
    for name, (path, match) in named_images(request.tree, root, RAFD).items():
        if int(match["camera"]) not in cameras:
            request.leave_out("other cameras", path)
        elif match["gaze"].lower() not in gazes:
            request.leave_out("other gazes", path)
        else:
            kept.append((name, (path, match)))
    samples, notes = keep_split_by_person(named_samples(root, kept, request))
    note = f"cameras {', '.join(f'{each:03}' for each in cameras)}, gazes {', '.join(gazes)}"
    return Manifest("rafd", "files", root, samples, CLASS_NAMES, (note, *notes))


def _cameras(asked: tuple[int | str, ...] | str | None) -> tuple[int, ...]:
    """Angles, given as numbers or as one of CAMERA_SETS."""
    asked = tuple(asked or ("frontal",))
    if len(asked) == 1 and asked[0] in CAMERA_SETS:
        return CAMERA_SETS[str(asked[0])]
    _require_known("cameras", asked, (*CAMERAS, *CAMERA_SETS))
    return tuple(angle for angle in CAMERAS if angle in asked)


def _require_known(option: str, asked: tuple[object, ...], known: tuple[object, ...]) -> None:
    unknown = [str(each) for each in asked if each not in known]
    if unknown:
        raise DataError(f"{option}: expected some of {', '.join(map(str, known))}, got {', '.join(unknown)}")


LAYOUTS: tuple[Layout, ...] = (
    Layout("files", "ROOT/[CLASS/]*Rafd090_01_Caucasian_female_angry_frontal.jpg, in any folders", _find, _read),
)
