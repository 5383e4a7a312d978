# SPDX-License-Identifier: Apache-2.0
"""Fine-tune weights that ship on pictures of your own: a folder for each class, ROOT/train/happy/1.jpg.

    python examples/fine_tune.py ROOT --epochs 20 --out runs/mine

Classes are mapped to those of the weights by name ("happy" is happiness); others start fresh. Without ROOT it draws a
small tree of faces first, so that it runs as it is. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import fastfer
from fastfer.data.drawn import BASIC_NAMES, draw_faces
from fastfer.engine.trained import trained
from fastfer.train import TrainConfig, train


def draw_tree(root: Path) -> Path:
    """Two splits of drawn faces."""
    for split, count, seed in (("train", 8, 1), ("validation", 3, 2)):
        labels = np.arange(count * len(BASIC_NAMES)) % len(BASIC_NAMES)
        for i, (face, label) in enumerate(zip(draw_faces(labels, seed), labels, strict=True)):
            path = root / split / BASIC_NAMES[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(face).save(path)
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuned"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model="fgw_fer", data="image_folder", root=str(given.root or draw_tree(Path(folder))),
            from_weights=str(fastfer.weights.path("fgw_fer")), epochs=given.epochs, batch_size=16, lr=1e-3,
            out=str(given.out),
        )  # fmt: skip
        report = train(config, overwrite=True)
    print(f"validation accuracy {report['best']['accuracy']:.1%} after epoch {report['best']['epoch']}")
    model, known = trained(given.out / "best.safetensors")
    engine = fastfer.compile(model, **known)
    engine.save(given.out / "model.ffe")
    print(f"{given.out / 'model.ffe'}: {engine}")


if __name__ == "__main__":
    main()
