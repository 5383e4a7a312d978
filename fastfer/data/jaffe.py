# SPDX-License-Identifier: Apache-2.0
"""JAFFE (Lyons et al. 1998): 213 grey images of ten women and seven expressions.

The name says whom and what: ``KA.AN1.39.tiff`` is subject KA, anger. No official split: leave one subject out, and
give mean and standard deviation over the ten.
"""

from __future__ import annotations

from pathlib import Path

from fastfer.data.labels import BASIC_NAMES
from fastfer.data.layouts import Layout, Request
from fastfer.data.manifest import Manifest
from fastfer.data.named_files import JAFFE, keep_split_by_person, named_images, named_samples, place_of
from fastfer.data.tree import Tree


def _find(tree: Tree) -> list[Path]:
    return place_of(tree, JAFFE)


def _read(root: Path, request: Request) -> Manifest:
    found = named_images(request.tree, root, JAFFE)
    samples, notes = keep_split_by_person(named_samples(root, found.items(), request))
    return Manifest("jaffe", "files", root, samples, BASIC_NAMES, notes)


LAYOUTS: tuple[Layout, ...] = (
    Layout("files", "ROOT/[jaffe/][CLASS/]KA.AN1.39.tiff and the like, in any folders", _find, _read),
)
