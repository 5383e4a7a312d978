# SPDX-License-Identifier: Apache-2.0
"""JAFFE (Lyons et al. 1998): 213 grey images of ten women and seven expressions.

The name says whom and what: ``KA.AN1.39.tiff`` is subject KA, anger. Re-uploads change the extension. No official
split: leave one subject out, and give mean and standard deviation over the ten.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastfer.data.labels import BASIC_NAMES, canonical_name
from fastfer.data.layouts import Layout, Request, images_in, named_images, search
from fastfer.data.manifest import Manifest, Sample

_NAME = re.compile(r"^(?P<subject>[A-Z]{2})\.(?P<code>AN|DI|FE|HA|NE|SA|SU)[0-9]+\.[0-9]+(?=\.)")


def _find(root: Path) -> list[Path]:
    return search(root, lambda folder: any(_NAME.search(path.name) for path in images_in(folder)))


def _read(root: Path, request: Request) -> Manifest:
    found, strange = named_images(root, _NAME)
    samples = [
        Sample(path, canonical_name(match["code"]), name, subject=match["subject"])
        for name, (path, match) in found.items()
    ]
    notes = (f"{strange} images without JAFFE's names ignored",) if strange else ()
    return Manifest("jaffe", "files", root, samples, BASIC_NAMES, notes)


LAYOUTS: tuple[Layout, ...] = (Layout("files", "ROOT/[jaffe/]KA.AN1.39.tiff and the like", _find, _read),)
