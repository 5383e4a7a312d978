# SPDX-License-Identifier: Apache-2.0
"""Where training images come from: a split in memory, or shards that are read and decoded ahead of their use.

Both give batches of uint8, which go to the device as they are; conversion and augmentation happen there. A split that
fits lies on the device from the start, and its batches are gathered there. What epoch e yields follows from (seed, e)
alone, whatever the number of processes and wherever the images lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastfer.data import ShardLoader, Shards, Split
from fastfer.train.config import TrainConfig
from fastfer.train.objective import Targets
from fastfer.train.placement import Placement

Source = Split | Shards
_STREAMS = {"weights": 0, "order": 1, "augment": 2, "dropout": 3, "labels": 4}
RESIDENT_SHARE = 0.25
"""Largest part of a device's free memory that "auto" fills with training images; the rest is for activations."""
_SHUFFLED = 10_000  # encoded images in the shuffle buffer of a stream: some hundred megabytes of photographs


def derived_seed(seed: int, stream: str, epoch: int = 0, process: int = 0) -> int:
    """A 63-bit seed for one purpose in one epoch, and where it may differ between processes, in one of them."""
    words = [seed, _STREAMS[stream], epoch, *([process] if process else [])]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(seed: int, stream: str, epoch: int, process: int = 0) -> torch.Generator:
    """A generator of `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, stream, epoch, process))


@dataclass(frozen=True)
class Portion:
    """This process's part of a batch: images uint8 (N, H, W) or (N, C, H, W), targets; ``batch`` counts the whole."""

    images: Tensor
    targets: Targets
    batch: int


def is_resident(mode: str, size: int, device: torch.device, free: int | None = None) -> bool:
    """Whether ``size`` bytes of images are to lie on ``device``, of which ``free`` bytes are (default: as it says).

    "always" and "never" say it themselves; "auto" is for CUDA, up to `RESIDENT_SHARE` of what is free.
    """
    if mode != "auto" or device.type != "cuda":
        return mode == "always"
    if free is None:
        free = torch.cuda.mem_get_info(device)[0]
    return size <= RESIDENT_SHARE * free


class Feed(Protocol):
    """Batches of the training images; ``steps`` an epoch."""

    steps: int
    last_batch: int
    resident: bool

    def __len__(self) -> int: ...

    def portions(self, epoch: int) -> Iterator[Portion]:
        """Every image once, in an order of its own each epoch."""
        ...


class MemoryFeed:
    """A split in memory: the host's, or where it is ``resident`` the device's."""

    def __init__(self, split: Split, config: TrainConfig, placement: Placement) -> None:
        images, device = torch.from_numpy(split.images), placement.device
        self.resident = is_resident(config.resident, images.nbytes, device)
        self._images = images.to(device) if self.resident else images
        self._targets = Targets.of(split)
        self._seed, self._batch_size, self._placement = config.seed, config.batch_size, placement
        self.steps = math.ceil(len(split) / config.batch_size)
        self.last_batch = _last(len(split), config.batch_size)

    def __len__(self) -> int:
        return len(self._targets)

    def portions(self, epoch: int) -> Iterator[Portion]:
        """In a random order; in the mode "probability" with labels drawn for this epoch."""
        at = self._images.device  # all draws are the host's, the same for every device
        order = torch.randperm(len(self), generator=generator(self._seed, "order", epoch)).to(at)
        targets = self._targets.drawn(generator(self._seed, "labels", epoch)).to(at)
        for chosen in torch.split(order, self._batch_size):
            mine = self._placement.part(chosen)
            yield Portion(self._images[mine], targets.take(mine), len(chosen))


class ShardFeed:
    """Shards, shuffled file by file and within a buffer."""

    resident = False

    def __init__(self, shards: Shards, config: TrainConfig, placement: Placement) -> None:
        self._loader = ShardLoader(
            shards,
            config.batch_size,
            shuffle=_SHUFFLED,
            seed=config.seed,
            rank=placement.rank,
            world=placement.processes,
            pin_memory=placement.device.type == "cuda",
            skip_corrupt=config.data_options.skip_corrupt,
        )
        self._seed, self._rank, self._mode = config.seed, placement.rank, shards.soft_mode
        self._size, self._batch_size = len(shards), config.batch_size
        self.steps = len(self._loader)
        self.last_batch = _last(self._size, config.batch_size)

    def __len__(self) -> int:
        return self._size

    def portions(self, epoch: int) -> Iterator[Portion]:
        """As the loader gives them; in the mode "probability" with labels drawn for this epoch."""
        draws = generator(self._seed, "labels", epoch, self._rank)
        for step, batch in enumerate(self._loader.batches(epoch), start=1):
            targets = Targets(batch.labels, batch.soft, self._mode).drawn(draws)
            yield Portion(batch.images, targets, self._batch_size if step < self.steps else self.last_batch)


def make_feed(source: Source, config: TrainConfig, placement: Placement) -> MemoryFeed | ShardFeed:
    """The feed of a split or of shards. ValueError where a process would go without images."""
    last = _last(len(source), config.batch_size)
    if last < placement.processes:
        raise ValueError(
            f"batch_size: {placement.processes} processes cannot share the last batch of {last} of {len(source)} "
            "images; expected another batch_size or train_images"
        )
    return ShardFeed(source, config, placement) if isinstance(source, Shards) else MemoryFeed(source, config, placement)


def class_counts(source: Source) -> dict[str, int]:
    """Training images by class."""
    return dict(source.labels) if isinstance(source, Shards) else source.counts()


def soft_mode(source: Source) -> str | None:
    """What the soft labels are for; None without soft labels."""
    has_soft = source.has_soft if isinstance(source, Shards) else source.soft is not None
    return source.soft_mode if has_soft else None


def image_shape(source: Source) -> tuple[int, int, int]:
    """(C, H, W) of the stored images; of shards, of their first."""
    if isinstance(source, Split):
        return source.channels, source.images.shape[-2], source.images.shape[-1]
    height, width, *channels = next(iter(source.records())).decode().shape
    return (channels[0] if channels else 1), height, width


def _last(images: int, batch_size: int) -> int:
    return images % batch_size or batch_size
