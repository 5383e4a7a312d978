# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.engine_faces --data fer2013.csv WEIGHTS...``: what an engine's precision costs on real faces.

For each weight file, instruction set and dtype: accuracy on the faces of PublicTest, the share on which the engine's
class is torch's, and the largest difference of a logit over the largest logit. int8 is calibrated on faces of Training,
by the ranges of a file that was fine-tuned for it where there are any. Emulated instruction sets run on fewer faces.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastfer
from fastfer import runtime
from fastfer.data import Preprocess, fer2013
from fastfer.models import FerModel, load_weights, read_metadata
from fastfer.runtime import Engine

_BATCH = 64


def _pixels(images: Any, preprocess: Preprocess) -> Iterator[Tensor]:
    """Batches of faces, uint8 (N, C, H, W), as the network was trained on but for the normalisation."""
    for part in torch.from_numpy(np.asarray(images))[:, None].split(_BATCH):
        yield preprocess.pixels(part).contiguous()


def _logits(call: Any, batches: Iterator[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([call(batch) for batch in batches])


def _engine(model: FerModel, preprocess: Preprocess, dtype: str, faces: Any) -> Engine:
    images = None
    if dtype == "int8" and model.int8_ranges is None:
        images = [preprocess.normalise(batch) for batch in _pixels(faces[:512], preprocess)]
    size = (model.in_chans, *(preprocess.size or model.input_size))
    return fastfer.compile(model, size, dtype=dtype, mean=preprocess.mean, std=preprocess.std, calibration=images)


def rows(
    weights: Path, splits: dict[str, Any], isas: list[str], dtypes: list[str], limits: dict[str, int | None]
) -> Iterator[str]:
    """Lines of the table for one weight file."""
    model, preprocess = load_weights(weights), Preprocess.from_metadata(read_metadata(weights))
    test = splits["PublicTest"]
    images, labels = test.images[: limits["faces"]], torch.from_numpy(np.asarray(test.labels[: limits["faces"]]))
    want = _logits(lambda batch: model(preprocess.normalise(batch)), _pixels(images, preprocess))
    accuracy = (want.argmax(1) == labels).float().mean().item()
    name = model.name if model.int8_ranges is None else f"{model.name}, fine-tuned for int8"
    yield f"| {name} | torch float32 | | {len(images)} | {accuracy:.2%} | | |"
    before = runtime.native().isa()
    try:
        for isa in isas:
            runtime.native().set_isa(isa)
            count = limits["emulated"] if "emulated" in isa else len(images)
            for dtype in dtypes:
                engine = _engine(model, preprocess, dtype, splits["Training"].images)
                got = _logits(engine, _pixels(images[:count], preprocess))
                accuracy = (got.argmax(1) == labels[:count]).float().mean().item()
                same = (got.argmax(1) == want[:count].argmax(1)).float().mean().item()
                error = ((got - want[:count]).abs().max() / want.abs().max()).item()
                yield f"| {name} | {dtype} | {isa} | {len(got)} | {accuracy:.2%} | {same:.2%} | {error:.1e} |"
    finally:
        runtime.native().set_isa(before)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine_faces", description=__doc__)
    parser.add_argument("weights", nargs="+", type=Path)
    parser.add_argument("--data", required=True, help="fer2013.csv, or the folder that holds it")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--isas", nargs="+", default=["auto"], help="instruction sets (default: the best)")
    parser.add_argument("--limit", type=int, help="faces (default: all)")
    parser.add_argument("--emulated", type=int, default=256, help="faces of emulated instruction sets (default: 256)")
    options = parser.parse_args()
    splits = fer2013.load(options.data)
    print("| network | precision | instruction set | faces | accuracy | class as torch's | largest error |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    limits = {"faces": options.limit, "emulated": options.emulated}
    for path in options.weights:
        for line in rows(path, splits, options.isas, options.dtypes, limits):
            print(line, flush=True)


if __name__ == "__main__":
    main()
