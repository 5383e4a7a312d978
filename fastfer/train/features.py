# SPDX-License-Identifier: Apache-2.0
"""Features of a frozen backbone, computed once: the layers that do not train see each image no second time.

Of every training image there are a fixed number of augmented copies, of which each epoch takes the next; of the
validation images there is one, and its mirror image where a run tests with it. The engine computes them where the
kernels are native, the network itself elsewhere, both in float32: ten blocks of bfloat16 sums are off by 0.4 % of the
largest value in the mean, values that are rounded to it at the end by far less. They lie in memory, or in a folder, in
files that later runs with the same images, layers and options find by their digest. A table is laid out (N, H, W, C),
in bfloat16 or float32.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastfer import backend, compile
from fastfer._files import file_digest, replace_atomically, write_bytes
from fastfer._version import __version__
from fastfer.data import Preprocess, Split
from fastfer.evaluate.predict import predict
from fastfer.models import FerModel
from fastfer.nn import Chain
from fastfer.train.config import TrainConfig
from fastfer.train.feed import MemoryFeed, Portion, generator
from fastfer.train.placement import Placement

_BATCH = 64
_SHARE = 0.8  # of the machine's memory: more would push the training itself to the disk
_LAYOUT = 1
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_Tables = dict[int, Tensor]


@contextmanager
def entered_at(model: FerModel, block: int) -> Iterator[None]:
    """Inside, ``model`` takes the output of the first ``block`` blocks of its backbone instead of images."""
    chain = backbone_of(model)
    chain.entry = block
    try:
        yield
    finally:
        chain.entry = 0


def backbone_of(model: FerModel) -> Chain:
    """ValueError for a network without a backbone that can be entered."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Chain):
        raise ValueError(f"feature_copies: expected 0 for {model.name}, which has no pretrained backbone")
    return backbone


def frozen_blocks(model: FerModel) -> int:
    """How many blocks at the start of the backbone have nothing that trains."""
    blocks = list(backbone_of(model))
    trains = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    return trains.index(True) if True in trains else len(blocks)


class FrozenFeatures:
    """What the frozen first blocks of ``model`` make of the images of a stage that keeps ``copies`` of each.

    ValueError where there is no frozen block, or the tables do not fit into memory.
    """

    def __init__(
        self, model: FerModel, source: Split, preprocess: Preprocess, config: TrainConfig, copies: int, device: Any
    ) -> None:
        self._model, self._source, self._preprocess, self._config = model, source, preprocess, config
        self.copies, self._device = copies, device
        self.blocks = frozen_blocks(model)
        if not self.blocks:
            raise ValueError("feature_copies: expected frozen layers at the start of the backbone, got none")
        self._dtype = _DTYPES[config.feature_precision]
        self._trained: _Tables = {}
        self._shown: dict[tuple[str, bool], Tensor] = {}
        self._frozen: nn.Sequential | None = None
        self._run: Callable[[Tensor], Tensor] | None = None
        self._shape = self._probed()
        self._require_memory(copies * len(source))

    def _probed(self) -> tuple[int, int, int]:
        """(H, W, C) of an image's features."""
        with torch.no_grad():
            _, c, h, w = self._copied()(self._example().to(self._device)).shape
        return h, w, c

    def _example(self) -> Tensor:
        return self._preprocess(torch.from_numpy(self._source.images[:1]))

    def _require_memory(self, rows: int) -> None:
        bytes_ = rows * int(np.prod(self._shape)) * self._dtype.itemsize
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self._config.feature_folder is None and bytes_ > _SHARE * memory:
            raise ValueError(
                f"feature_copies: {self.copies} of each image take {bytes_ / 1e9:.1f} GB of this machine's "
                f"{memory / 1e9:.1f} GB; expected fewer, or feature_folder, which keeps them in files"
            )

    def table(self, epoch: int) -> Tensor:
        """Features of the training images, in their order, of the copy that ``epoch`` (from 1) takes."""
        number = (epoch - 1) % self.copies
        if number not in self._trained:
            draws = generator(self._config.seed, "augment", number + 1)
            augment = self._config.augment
            key = {"augment": asdict(augment), "seed": self._config.seed, "copy": number}
            self._trained[number] = self._made(self._source, lambda x: augment(x, draws), key)
        return self._trained[number]

    def logits(self, model: FerModel, split: Split, flip: bool, batch_size: int) -> Tensor:
        """Logits (N, K) of ``model``, which has the same frozen blocks, as `evaluate.predict` gives them."""
        found = []
        for mirrored in (False, True) if flip else (False,):
            key = (split.fingerprint(), mirrored)
            if key not in self._shown:
                change: Callable[[Tensor], Tensor] = (lambda x: x.flip(3)) if mirrored else (lambda x: x)
                self._shown[key] = self._made(split, change, {"mirrored": mirrored})
            with entered_at(model, self.blocks):
                found.append(predict(model, self._shown[key], as_input, batch_size=batch_size))
        return torch.stack(found).mean(0)

    def _copied(self) -> nn.Sequential:
        return copy.deepcopy(nn.Sequential(*list(backbone_of(self._model))[: self.blocks])).eval()

    def _settled(self) -> nn.Sequential:
        """The frozen blocks as they are when first asked for: a run that goes on has put in its weights by then."""
        if self._frozen is None:
            self._frozen = self._copied()
        return self._frozen

    @torch.no_grad()
    def _made(self, split: Split, change: Callable[[Tensor], Tensor], key: dict[str, Any]) -> Tensor:
        rows = (len(split), *self._shape)
        folder = self._config.feature_folder
        if folder is None:
            table = torch.empty(rows, dtype=self._dtype)
            self._fill(table, split, change)
            return table
        digest = hashlib.sha256(json.dumps([key, self._common(split)], sort_keys=True).encode()).hexdigest()
        path = Path(folder) / f"features-{digest[:32]}.bin"
        if not _is_whole(path, digest, rows, self._dtype):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(path) as temporary:
                self._fill(_mapped(temporary, rows, self._dtype, "w+"), split, change)
            found = {"layout": _LAYOUT, "digest": digest, "sha256": file_digest(path)}
            write_bytes(path.with_suffix(".json"), json.dumps(found, indent=1).encode())
        return _mapped(path, rows, self._dtype, "c")

    def _common(self, split: Split) -> dict[str, Any]:
        """What decides the numbers of every table."""
        weights = hashlib.sha256()
        for name, value in self._settled().state_dict().items():
            weights.update(
                f"{name} {tuple(value.shape)}".encode() + value.detach().cpu().contiguous().numpy().tobytes()
            )
        return {
            "version": __version__,
            "images": split.fingerprint(),
            "preprocess": self._preprocess.to_json(),
            "weights": weights.hexdigest(),
            "dtype": str(self._dtype),
            "by": "engine" if self._on_engine() else f"network on {torch.device(self._device).type}",
        }

    def _on_engine(self) -> bool:
        return torch.device(self._device).type == "cpu" and backend.plan("cpu")["conv2d"] == "native"

    def _fill(self, table: Tensor, split: Split, change: Callable[[Tensor], Tensor]) -> None:
        images, run = torch.from_numpy(split.images), self._runner()
        for start in range(0, len(split), _BATCH):
            x = change(self._preprocess(images[start : start + _BATCH].to(self._device)))
            table[start : start + len(x)] = run(x).permute(0, 2, 3, 1).to("cpu", self._dtype)

    def _runner(self) -> Callable[[Tensor], Tensor]:
        if self._run is None and self._on_engine():
            shape = tuple(self._example().shape)
            engine = compile(self._settled(), shape, threads=torch.get_num_threads(), sizes="fixed")
            self._run = lambda x: engine(x.contiguous())
        elif self._run is None:
            self._run = self._settled()
        return self._run


class FeatureFeed(MemoryFeed):
    """A split whose images are their features; order and labels are those of the images."""

    def __init__(self, split: Split, config: TrainConfig, placement: Placement, features: FrozenFeatures) -> None:
        super().__init__(split, replace(config, resident="never"), placement)
        self._features = features

    def portions(self, epoch: int) -> Iterator[Portion]:
        """In a random order, of the copy that the epoch takes."""
        self._images = self._features.table(epoch)
        yield from super().portions(epoch)


def as_input(table: Tensor) -> Tensor:
    """Rows of a table as the network takes them: (N, H, W, C) -> float32 (N, C, H, W), channels_last."""
    return table.float().permute(0, 3, 1, 2)


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype, mode: Any) -> Tensor:
    kind = np.float32 if dtype == torch.float32 else np.int16
    mapped: Tensor = torch.from_numpy(np.memmap(path, kind, mode, shape=shape)).view(dtype)
    return mapped


def _is_whole(path: Path, digest: str, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the file holds the table of ``digest`` as it was written; any other is made anew."""
    try:
        said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        known = isinstance(said, dict) and said.get("layout") == _LAYOUT and said.get("digest") == digest
        size = path.stat().st_size == int(np.prod(shape)) * dtype.itemsize
        return known and size and said.get("sha256") == file_digest(path)
    except (OSError, ValueError):
        return False
