# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.engine_faces --data fer2013.csv WEIGHTS...``: what an engine's precision costs on real faces.

For each weight file and dtype: accuracy on the faces of PublicTest, the share on which the engine's class is torch's,
and the largest difference of a logit over the largest logit. int8 is calibrated on faces of Training.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import fastfer
from fastfer.data import fer2013
from fastfer.models import FerModel, load_weights, read_metadata
from fastfer.runtime import Engine

_BATCH = 64


def _pixels(images: Any, model: FerModel) -> Iterator[Tensor]:
    """Batches of faces, uint8 (N, C, H, W), at the network's size."""
    for part in torch.from_numpy(np.asarray(images))[:, None].split(_BATCH):
        scaled = (
            part
            if part.shape[2:] == model.input_size
            else F.interpolate(part.float(), model.input_size, mode="bilinear")
        )
        yield scaled.round().byte().expand(-1, model.in_chans, -1, -1).contiguous()


def _normalised(pixels: Tensor, header: dict[str, Any]) -> Tensor:
    mean, std = (torch.tensor(header[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (pixels / 255 - mean) / std


def _logits(call: Any, batches: Iterator[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([call(batch) for batch in batches])


def _engine(model: FerModel, header: dict[str, Any], dtype: str, faces: Any) -> Engine:
    mean, std = header["mean"], header["std"]
    images = None
    if dtype == "int8":
        images = [_normalised(batch, header) for batch in _pixels(faces[:512], model)]
    return fastfer.compile(model, dtype=dtype, mean=mean, std=std, calibration=images)


def rows(weights: Path, splits: dict[str, Any], dtypes: list[str], limit: int | None) -> Iterator[str]:
    """Lines of the table for one weight file."""
    model, header = load_weights(weights), read_metadata(weights)
    if not (header.get("mean") and header.get("std")):
        raise ValueError(f"{weights}: expected 'mean' and 'std' in its header")
    test = splits["PublicTest"]
    images, labels = test.images[:limit], torch.from_numpy(np.asarray(test.labels[:limit]))
    want = _logits(lambda batch: model(_normalised(batch, header)), _pixels(images, model))
    accuracy = (want.argmax(1) == labels).float().mean().item()
    yield f"| {model.name} | torch float32 | {accuracy:.2%} | | |"
    for dtype in dtypes:
        got = _logits(_engine(model, header, dtype, splits["Training"].images), _pixels(images, model))
        accuracy = (got.argmax(1) == labels).float().mean().item()
        same = (got.argmax(1) == want.argmax(1)).float().mean().item()
        error = ((got - want).abs().max() / want.abs().max()).item()
        yield f"| {model.name} | engine {dtype} | {accuracy:.2%} | {same:.2%} | {error:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine_faces", description=__doc__)
    parser.add_argument("weights", nargs="+", type=Path)
    parser.add_argument("--data", required=True, help="fer2013.csv, or the folder that holds it")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--limit", type=int, help="faces (default: all)")
    options = parser.parse_args()
    splits = fer2013.load(options.data)
    print("| network | runtime | accuracy | class as torch's | largest error |\n| --- | --- | ---: | ---: | ---: |")
    for path in options.weights:
        for line in rows(path, splits, options.dtypes, options.limit):
            print(line, flush=True)


if __name__ == "__main__":
    main()
