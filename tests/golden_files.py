# SPDX-License-Identifier: Apache-2.0
"""The project's own golden files: what they hold, and ``python tests/golden_files.py`` to make them anew.

They pin today's behaviour on every machine and backend; that it is right is what the other tests show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastfer.data import Face, FaceCrop, Preprocess, drawn

FOLDER = Path(__file__).parent / "golden"
PREPROCESS = FOLDER / "preprocess.npz"
Arrays = dict[str, np.ndarray]


def pattern(*shape: int) -> np.ndarray:
    """A uint8 picture without a period in it, from whole numbers alone."""
    total = np.zeros(shape, np.int64)
    for axis, factor in zip(np.indices(shape), (31, 47, 89, 17), strict=False):
        total += factor * axis + axis * axis * (factor % 5 + 1)
    return (total % 251).astype(np.uint8)


def one_face(picture: np.ndarray) -> list[Face]:
    """A detector: a face in the middle of any picture, head tilted to the side."""
    height, width = picture.shape[:2]
    eyes = ((width * 0.4, height * 0.4), (width * 0.6, height * 0.46))
    return [Face((width * 0.3, height * 0.3, width * 0.4, height * 0.4), 0.9, (*eyes, *((0.0, 0.0),) * 3))]


def preprocess_cases() -> Iterator[tuple[str, Preprocess, Callable[[Preprocess], Tensor]]]:
    """(name, settings, their uint8 output)."""
    faces = torch.from_numpy(drawn.draw_faces(np.arange(2, dtype=np.int64), seed=1))
    colour = torch.from_numpy(pattern(1, 3, 31, 45))
    dark = torch.from_numpy(pattern(2, 1, 40, 40) // 5 + 20)
    scene = pattern(60, 90, 3)
    grey = {"mean": (0.5,), "std": (0.25,)}
    yield "stored", Preprocess(**grey), lambda p: p.pixels(faces)
    yield "shrunk", Preprocess(**grey, size=(20, 17)), lambda p: p.pixels(faces)
    yield "vgg16_csa", Preprocess(**grey, size=(32, 32), colour="grey", equalise=True), lambda p: p.pixels(colour)
    yield "equalised", Preprocess(**grey, equalise=True), lambda p: p.pixels(dark)
    yield "patt_lite", Preprocess.symmetric(3, size=(56, 56), colour="rgb"), lambda p: p.pixels(faces[:1])
    yield "mobilenetv3", Preprocess.imagenet(size=(24, 24)), lambda p: p.pixels(colour)
    for align in (False, True):
        crop = FaceCrop(0.2, align)
        settings = Preprocess.imagenet(size=(24, 24), crop=crop)
        yield f"crop-{'align' if align else 'upright'}", settings, lambda p: p.picture(scene, one_face)[None]


def preprocess_arrays() -> Arrays:
    """ "NAME/bytes": uint8 output; "NAME/mean", "NAME/corner": per channel, of the float32 output."""
    arrays: Arrays = {}
    for name, settings, run in preprocess_cases():
        output = run(settings)
        y = settings.normalise(output)
        arrays[f"{name}/bytes"] = output.numpy()
        arrays[f"{name}/mean"] = y.double().mean((0, 2, 3)).numpy()
        arrays[f"{name}/corner"] = y[:, :, :4, :4].contiguous().numpy()
    return arrays


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(PREPROCESS, allow_pickle=False, **preprocess_arrays())


if __name__ == "__main__":
    main()
