# SPDX-License-Identifier: Apache-2.0
"""What an installed wheel must do: ``python tests/wheel_smoke.py [ENGINE.ffe]``, from anywhere, without pytest.

With a file torch is not needed; without one torch compiles the weights that ship. Prints the label of a drawn face.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fastfer
from fastfer import _C, runtime
from fastfer.data.drawn import BASIC_NAMES, draw_faces


def compiled(folder: str) -> Path:
    from fastfer.engine.trained import trained
    from fastfer.weights import path

    model, known = trained(path("fgw_fer"))
    target = Path(folder) / "fgw_fer.ffe"
    fastfer.compile(model, **known).save(target)
    return target


def main() -> None:
    start = time.perf_counter()
    here = Path(fastfer.__file__).resolve()
    assert not here.is_relative_to(Path(__file__).resolve().parents[1]), f"{here} is the source tree, not the wheel"
    faces = draw_faces(np.arange(7), seed=1)[:, None]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(sys.argv[1]) if len(sys.argv) > 1 else compiled(folder)
        for isa in _C.isas(True):
            _C.set_isa(isa)
            engine = runtime.load(file)
            scores = engine(faces)
            assert scores.shape == (7, len(engine.class_names))
            best = [engine.class_names[k] for k in scores.argmax(1)]
            assert best[BASIC_NAMES.index("happiness")] == "happiness", f"{isa}: {best}"
            assert best[BASIC_NAMES.index("surprise")] == "surprise", f"{isa}: {best}"
    face = fastfer.Recognizer(file, faces="whole")(faces[1, 0]).faces[0] if len(sys.argv) > 1 else None
    label = face.label if face else best[1]
    print(f"fastfer {fastfer.__version__} on {', '.join(_C.isas(True))}: a happy face is {label}, after "
          f"{time.perf_counter() - start:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
