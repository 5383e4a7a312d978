# SPDX-License-Identifier: Apache-2.0
"""Batches of uint8 from shards, decoded in threads ahead of their use.

What epoch e yields follows from (seed, e) alone: not from the number of threads, and with ``share="images"`` not from
the number of processes either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastfer.data.shards import Record, Shards
from fastfer.data.split import DataError
from fastfer.faces.face import Picture


@dataclass(frozen=True)
class Batch:
    """images uint8 (N, C, H, W), labels int64 (N,), soft float32 (N, K) or None, ids of the N images."""

    images: Tensor
    labels: Tensor
    soft: Tensor | None
    ids: tuple[str, ...]


class ShardLoader:
    """Reads a set of shards in batches; ``batches(epoch)`` is one pass.

    Args:
        shards: what to read
        batch_size: images of a step, over all processes
        shuffle: images that the shuffle buffer holds, encoded; 0 keeps the stored order
        seed: with the epoch, decides the order
        rank: of this process
        world: processes that share the work
        share: "images": every process reads all files and decodes its part of each batch, so that a step sees the same
            images as in one process; "shards": a process reads files of its own, and images that do not fill whole
            batches everywhere are left out of the epoch
        drop_last: leave out a last batch that is not full
        transform: applied to each picture, (H, W) or (H, W, 3), e.g. a face crop or a resize; images of one batch must
            come out in one shape
        threads: that decode
        prefetch: batches kept ready
        pin_memory: page-locked images, for copies to a GPU that do not wait
        skip_corrupt: leave out what cannot be decoded, and name it in ``skipped``, instead of raising DataError
    """

    def __init__(
        self,
        shards: Shards,
        batch_size: int,
        *,
        shuffle: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        share: Literal["images", "shards"] = "images",
        drop_last: bool = False,
        transform: Callable[[Picture], Picture] | None = None,
        threads: int = 2,
        prefetch: int = 4,
        pin_memory: bool = False,
        skip_corrupt: bool = False,
    ) -> None:
        least = {"batch_size": (batch_size, 1), "shuffle": (shuffle, 0), "seed": (seed, 0), "world": (world, 1)}
        least |= {"threads": (threads, 1), "prefetch": (prefetch, 1)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise ValueError(f"{name}: expected {bound} or more, got {value}")
        if not 0 <= rank < world:
            raise ValueError(f"rank: expected 0 to {world - 1}, got {rank}")
        self.shards, self.batch_size, self.seed, self.shuffle = shards, batch_size, seed, shuffle
        self.rank, self.world, self.share, self.drop_last = rank, world, share, drop_last
        self.transform, self.threads, self.prefetch = transform, threads, prefetch
        self.pin_memory, self.skip_corrupt = pin_memory, skip_corrupt
        self.skipped: list[str] = []
        self._steps = self._count_steps()

    def _count_steps(self) -> int:
        if self.share == "shards":
            return self._steps_of_own_shards()
        if self.share != "images":
            raise ValueError(f"share: expected images or shards, got {self.share!r}")
        whole, last = divmod(len(self.shards), self.batch_size)
        if 0 < last < self.world and not self.drop_last:
            raise ValueError(f"drop_last: expected True, as {self.world} processes cannot share a last batch of {last}")
        if self.batch_size < self.world:
            raise ValueError(f"batch_size: expected {self.world} or more for {self.world} processes")
        return whole + (last > 0 and not self.drop_last)

    def _steps_of_own_shards(self) -> int:
        """As many as every process can fill in every epoch, whichever files fall to it."""
        if self.batch_size % self.world:
            raise ValueError(f"batch_size: expected a multiple of {self.world} processes, got {self.batch_size}")
        each = len(self.shards.files) // self.world
        if each == 0:
            raise ValueError(
                f"world: expected at most {len(self.shards.files)} processes, one a file; got {self.world}"
            )
        return sum(sorted(self.shards.counts)[:each]) // (self.batch_size // self.world)

    def __len__(self) -> int:
        """Batches of an epoch, the same for every process."""
        return self._steps

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of this process. Leaving the loop early ends the threads."""
        with ThreadPoolExecutor(self.threads, "fastfer-decode") as pool:
            pipe = _Pipe(self._groups(epoch), pool, self._decode, self.prefetch)
            try:
                for batch, skipped in pipe:
                    self.skipped += skipped
                    if batch is not None:
                        yield batch
            finally:
                pipe.close()

    def _groups(self, epoch: int) -> Iterator[list[Record]]:
        """The records of this process's batches."""
        files, buffer = np.random.SeedSequence([self.seed, epoch]).spawn(2)
        order = np.arange(len(self.shards.files))
        if self.shuffle:
            order = np.random.default_rng(files).permutation(order)
        own = self.share == "shards"
        records = self.shards.records((order[self.rank :: self.world] if own else order).tolist())
        if self.shuffle:
            stream = buffer.spawn(self.world)[self.rank] if own else buffer
            records = _shuffled(records, self.shuffle, np.random.default_rng(stream))
        size = self.batch_size // self.world if own else self.batch_size
        for _ in range(self._steps):
            group = list(islice(records, size))
            yield group if own else _part(group, self.rank, self.world)

    def _decode(self, records: list[Record]) -> tuple[Batch | None, list[str]]:
        """The batch, None where nothing is left of it, and what was skipped."""
        pictures: list[Picture] = []
        kept: list[Record] = []
        skipped: list[str] = []
        for record in records:
            try:
                picture = record.decode()
                picture = picture if self.transform is None else self.transform(picture)
            except DataError as error:
                if not self.skip_corrupt:
                    raise
                skipped.append(str(error))
                continue
            if pictures and picture.shape != pictures[0].shape:
                raise DataError(
                    f"{record.place}: expected an image of shape {pictures[0].shape} like {kept[0].id}, got "
                    f"{picture.shape}; give a transform that makes them one size"
                )
            pictures.append(picture)
            kept.append(record)
        if not kept:
            return None, skipped
        stacked = np.stack(pictures)
        planes = stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(planes))
        soft = [record.soft for record in kept if record.soft is not None]
        return Batch(
            images.pin_memory() if self.pin_memory else images,
            torch.tensor([record.label for record in kept]),
            torch.from_numpy(np.stack(soft)) if soft else None,
            tuple(record.id for record in kept),
        ), skipped


def _part(group: list[Record], rank: int, world: int) -> list[Record]:
    """As torch.tensor_split: the first parts are one longer where the length does not divide."""
    size, longer = divmod(len(group), world)
    start = rank * size + min(rank, longer)
    return group[start : start + size + (rank < longer)]


def _shuffled(records: Iterator[Record], size: int, random: np.random.Generator) -> Iterator[Record]:
    """Each place of a buffer of ``size`` is refilled from the stream; what is left at its end comes in random order."""
    buffer = list(islice(records, size))
    for record in records:
        at = int(random.integers(len(buffer)))
        yield buffer[at]
        buffer[at] = record
    for at in random.permutation(len(buffer)):
        yield buffer[at]


_Decoded = tuple[Batch | None, list[str]]


class _Pipe:
    """Groups of records, read in a thread and decoded in a pool, at most ``ahead`` of them before they are taken."""

    def __init__(
        self,
        groups: Iterator[list[Record]],
        pool: ThreadPoolExecutor,
        decode: Callable[[list[Record]], _Decoded],
        ahead: int,
    ) -> None:
        self._queue: SimpleQueue[Future[_Decoded] | None] = SimpleQueue()
        self._free = threading.Semaphore(ahead)
        self._closed = False
        self._reader = threading.Thread(
            target=self._read, args=(groups, pool, decode), name="fastfer-read", daemon=True
        )
        self._reader.start()

    def _read(
        self,
        groups: Iterator[list[Record]],
        pool: ThreadPoolExecutor,
        decode: Callable[[list[Record]], _Decoded],
    ) -> None:
        try:
            for group in groups:
                self._free.acquire()
                if self._closed:
                    return
                self._queue.put(pool.submit(decode, group))
        except BaseException as error:  # to be raised where the batches are used
            failed: Future[_Decoded] = Future()
            failed.set_exception(error)
            self._queue.put(failed)
        finally:
            self._queue.put(None)

    def __iter__(self) -> Iterator[_Decoded]:
        while (future := self._queue.get()) is not None:
            result = future.result()
            self._free.release()
            yield result

    def close(self) -> None:
        """End the reader and drop what is not decoded yet."""
        self._closed = True
        self._free.release()
        self._reader.join()
        while not self._queue.empty():
            if (future := self._queue.get()) is not None:
                future.cancel()
