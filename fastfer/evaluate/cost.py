# SPDX-License-Identifier: Apache-2.0
"""What a network costs: parameters, multiply-adds, bytes, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastfer.models import FerModel
from fastfer.models.info import count_macs

BATCHES = (1, 32)


@dataclass(frozen=True)
class Cost:
    """Sizes, and milliseconds of one forward pass by batch size: the median of ``runs`` runs after a warm-up.

    ``macs`` are for one image of ``input_shape`` (C, H, W); ``file_size`` in bytes is None where there is no file.
    Times are of the network alone, without preprocessing, on ``device``, with ``threads`` CPU threads.
    """

    parameters: int
    running_statistics: int
    macs: int
    input_shape: tuple[int, int, int]
    file_size: int | None
    device: str
    threads: int
    latency_ms: dict[int, float] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)


def measure_cost(
    model: FerModel, shape: tuple[int, int, int], file_size: int | None = None, seconds: float = 1.0
) -> Cost:
    """`Cost` for images of ``shape`` (C, H, W); about ``seconds`` of timing a batch size, none for 0.

    A batch size that the network refuses (PAtt-Lite as published: one image) is left out.
    """
    parameter = next(model.parameters())
    times: dict[int, list[float]] = {}
    model.eval()
    if seconds > 0:
        for batch in BATCHES:
            if batch == 1 and model.options.get("attention") == "batch":
                continue
            x = torch.rand(batch, *shape, device=parameter.device, dtype=parameter.dtype)
            times[batch] = _time(lambda x=x: model(x), parameter.device, seconds)  # type: ignore[misc]
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        running_statistics=sum(b.numel() for b in model.buffers() if b.is_floating_point()),
        macs=count_macs(model, shape),
        input_shape=shape,
        file_size=file_size,
        device=_device_name(parameter.device),
        threads=torch.get_num_threads(),
        latency_ms={batch: round(statistics.median(each) * 1e3, 4) for batch, each in times.items()},
        runs={batch: len(each) for batch, each in times.items()},
    )


def _time(run: Callable[[], Tensor], device: torch.device, seconds: float) -> list[float]:
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(3):
            run()
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            _synchronise(device)
            start = time.perf_counter()
            run()
            _synchronise(device)
            times.append(time.perf_counter() - start)
    return times


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
