# SPDX-License-Identifier: Apache-2.0
"""The figures by name, what each is made of, and where the papers show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
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
    """title, what it is made of, where the papers show one, and the function "MODULE.NAME" of this package that draws.

    Modules are imported when a figure is drawn: matplotlib is an extra. With ``faces`` the function takes `Faces`, too.
    """

    title: str
    source: str
    papers: str
    function: str
    faces: bool = False

    def draw(self, sources: Sequence[Path], faces: Faces) -> Figure:
        """The figure of these sources."""
        module, _, name = self.function.rpartition(".")
        function: Callable[..., Figure] = getattr(import_module(f"fastfer.figures.{module}"), name)
        return function(sources, faces) if self.faces else function(sources)


FIGURES: dict[str, Kind] = {
    "confusion": Kind(
        title="confusion matrices, one a run",
        source="run folders",
        papers="FGW-FER Fig. 11, PAtt-Lite Fig. 2-5, 8, VGG16 Fig. 8, 9, SepConv Fig. 5",
        function="scores.confusion",
    ),
    "per-class": Kind(
        title="precision, recall and F1 of each class",
        source="run folders",
        papers="FGW-FER 5.1, PAtt-Lite Table 9",
        function="scores.per_class",
    ),
    "curves": Kind(
        title="learning curves",
        source="run folders",
        papers="none; what a reader of a run asks for",
        function="scores.curves",
    ),
    "lambda": Kind(
        title="accuracy against the weight of the centre loss",
        source="folder of the table mobilenetv3-lambda",
        papers="MobileNetV3 Fig. 6",
        function="tables.sweep",
    ),
    "size": Kind(
        title="accuracy against parameters, and seconds an image",
        source="folders of tables",
        papers="PAtt-Lite Fig. 9, 10, FGW-FER Table 1",
        function="tables.size",
    ),
    "maps": Kind(
        title="attention maps and Grad-CAM over right and wrong faces",
        source="one weight file or run folder, and faces",
        papers="FGW-FER Tables 6, 7, PAtt-Lite Fig. 6, 7",
        function="embedding.maps",
        faces=True,
    ),
    "tsne": Kind(
        title="embeddings in the plane by t-SNE",
        source="one weight file or run folder, and faces",
        papers="none; how far the centre loss draws the classes together (MobileNetV3 4.4)",
        function="embedding.tsne",
        faces=True,
    ),
}


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
