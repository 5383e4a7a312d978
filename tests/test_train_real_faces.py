# SPDX-License-Identifier: Apache-2.0
"""The three large networks learn from real faces: some steps on a handful of images, at a small size where it may be.

The size and the number of steps say nothing about what the networks reach; they say that recipe, loss, kernels and
optimiser work together.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from train_runs import read_metrics

from fastfer.data import FER2013_CODES
from fastfer.train import configure, train

pytestmark = pytest.mark.usefixtures("one_thread")

PER_CLASS = {"Training": 3, "PublicTest": 1}


@pytest.fixture(scope="module")
def faces(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fer2013.csv of the first faces of each class and usage."""
    folder = tmp_path_factory.mktemp("faces")
    labels = list(csv.DictReader((real_data / "faces48" / "labels.csv").open(newline="")))
    mosaic = np.asarray(Image.open(sorted((real_data / "faces48").glob("sheet*.webp"))[0]).convert("L"))
    tiles = mosaic.reshape(32, 48, 32, 48).transpose(0, 2, 1, 3).reshape(-1, 48, 48)
    left = {code: sum(PER_CLASS.values()) for code in map(str, range(len(FER2013_CODES)))}
    rows = []
    for label, tile in zip(labels, tiles, strict=False):
        code = label["emotion"]
        if left[code]:
            left[code] -= 1
            usage = "PublicTest" if left[code] < PER_CLASS["PublicTest"] else "Training"
            rows.append(f"{code},{' '.join(map(str, tile.ravel()))},{usage}")
    (folder / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]))
    return folder


SMOKE: dict[str, dict[str, Any]] = {
    "mobilenetv3_cpsca": {"input": {"size": 64}},
    "vgg16_csa": {"input": {"size": 48}},
    "patt_lite": {},  # its patches are cut from 224×224 alone
}


@pytest.mark.parametrize("model", SMOKE)
def test_the_loss_falls_on_real_faces(faces: Path, tmp_path: Path, model: str) -> None:
    options: dict[str, Any] = {"batch_size": 7, "epochs": 4, "schedule": "constant", "lr": 2e-3, "ema": 0.0}
    still = {"flip": 0.5, "degrees": 0.0, "shift": 0.0, "zoom": 0.0, "contrast": 0.0, "erase": 0.0}
    options |= {"augment": still, "threads": 1, **SMOKE[model]}
    config = configure("best", model=model, data="fer2013", root=str(faces), out=str(tmp_path / "run"), **options)
    train(config)
    losses = [float(row["loss"]) for row in read_metrics(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.1
