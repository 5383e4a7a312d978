# SPDX-License-Identifier: Apache-2.0
"""The figures by name, what each is made of, and where the papers show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastfer.data.files import replace_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureError(ValueError):
    """The input cannot give the figure; the message says what was expected."""


@dataclass(frozen=True)
class Faces:
    """Which faces a figure shows: part ``split`` of the data set at ``root``; ``limit`` images at most."""

    data: str | None = None
    root: Path | None = None
    split: str = "validation"
    limit: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Kind:
    """title, what it is made of, where the papers show one, and the function that draws it."""

    title: str
    source: str
    papers: str
    draw: Callable[[Sequence[Path], Faces], Figure]


def _confusion(folders: Sequence[Path], faces: Faces) -> Figure:
    from fastfer.figures.scores import confusion

    return confusion(folders)


def _per_class(folders: Sequence[Path], faces: Faces) -> Figure:
    from fastfer.figures.scores import per_class

    return per_class(folders)


def _curves(folders: Sequence[Path], faces: Faces) -> Figure:
    from fastfer.figures.scores import curves

    return curves(folders)


def _sweep(folders: Sequence[Path], faces: Faces) -> Figure:
    from fastfer.figures.tables import sweep

    return sweep(folders)


def _size(folders: Sequence[Path], faces: Faces) -> Figure:
    from fastfer.figures.tables import size

    return size(folders)


def _maps(folders: Sequence[Path], faces: Faces) -> Figure:
    from fastfer.figures.embedding import maps

    return maps(folders, faces)


def _tsne(folders: Sequence[Path], faces: Faces) -> Figure:
    from fastfer.figures.embedding import tsne

    return tsne(folders, faces)


FIGURES: dict[str, Kind] = {
    "confusion": Kind(
        "confusion matrices, one a run", "run folders", "FGW-FER Fig. 11, PAtt-Lite Fig. 2-5, 8, VGG16 Fig. 8, 9, "
        "SepConv Fig. 5", _confusion,
    ),
    "per-class": Kind("precision, recall and F1 of each class", "run folders", "FGW-FER 5.1, PAtt-Lite Table 9",
                      _per_class),
    "curves": Kind("learning curves", "run folders", "none; what a reader of a run asks for", _curves),
    "lambda": Kind("accuracy against the weight of the centre loss", "folder of the table mobilenetv3-lambda",
                   "MobileNetV3 Fig. 6", _sweep),
    "size": Kind("accuracy against parameters, and seconds an image", "folders of tables",
                 "PAtt-Lite Fig. 9, 10, FGW-FER Table 1", _size),
    "maps": Kind("attention maps and Grad-CAM over right and wrong faces", "one weight file or run folder, and faces",
                 "FGW-FER Tables 6, 7, PAtt-Lite Fig. 6, 7", _maps),
    "tsne": Kind("embeddings in the plane by t-SNE", "one weight file or run folder, and faces",
                 "none; how far the centre loss draws the classes together (MobileNetV3 4.4)", _tsne),
}  # fmt: skip


def draw(name: str, sources: Sequence[Path], out: Path, faces: Faces | None = None) -> Path:
    """Draw figure ``name`` from ``sources`` into ``out``/NAME.png and return its path.

    FigureError for an unknown name, or sources that do not hold what the figure needs; ImportError, naming the extra,
    for a package that is missing. Nothing is written then.
    """
    if name not in FIGURES:
        raise FigureError(f"figure: expected one of {', '.join(FIGURES)}, got {name!r}")
    if not sources:
        raise FigureError(f"sources: {name} is drawn from {FIGURES[name].source}; got none")
    if missing := [path for path in sources if not path.exists()]:
        raise FigureError(f"sources: expected {FIGURES[name].source}, got {missing[0]}, which is not there")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = FIGURES[name].draw(sources, faces or Faces())
    FigureCanvasAgg(figure)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path
