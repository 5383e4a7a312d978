# SPDX-License-Identifier: Apache-2.0
"""Many calls: memory stays where it is, and calls from several Python threads at once do not disturb each other."""

from __future__ import annotations

import gc
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import Variant, native_calls, variants
from torch import Tensor

from fastfer import backend, ops

STATM = Path("/proc/self/statm")
GROWTH = 4 << 20
"""Bytes that resident memory may grow by: 42 a call over 100,000 calls."""

Work = Callable[[], list[Tensor]]


@pytest.fixture(params=[p for p in variants(every_isa=False) if p.values[0].backend != "reference"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Variant]:
    """Every CPU backend with kernels of its own, native on its best ISA."""
    with request.param.active():
        yield request.param


def resident() -> int:
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def workload(seed: int, size: int, channels: int = 8) -> Work:
    """Forward and backward of several ops on images (2, ``channels``, ``size``, ``size``)."""
    g = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    def norm() -> ops.Norm:
        return ops.Norm(*(torch.rand(channels, generator=g) + 0.5 for _ in range(4)))

    x = values(2, channels, size, size).contiguous(memory_format=torch.channels_last)
    dw, pw, dense = values(channels, 1, 3, 3), values(channels, channels, 1, 1), values(channels, channels, 3, 3)
    norm1, norm2 = norm(), norm()
    for leaf in (x, dw, pw, dense, norm1.weight, norm2.bias):
        leaf.requires_grad_()
    dy = values(2, channels, size, size).contiguous(memory_format=torch.channels_last)
    dy_pooled = values(2, channels, size // 2, size // 2)

    def grads(y: Tensor, upstream: Tensor, *leaves: Tensor) -> list[Tensor]:
        return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]

    def run() -> list[Tensor]:
        n1, n2 = (ops.Norm(n.weight, n.bias, n.running_mean.clone(), n.running_var.clone()) for n in (norm1, norm2))
        block = ops.separable_conv2d(
            x, dw, pw, norm1=n1, act1="relu", norm2=n2, act2="hardswish", padding=1, training=True
        )
        results = grads(block, dy, x, dw, pw, norm1.weight, norm2.bias)
        results += grads(
            ops.conv2d(x, dense, norm=n1, act="relu", padding=1, training=True), dy, x, dense, norm1.weight
        )
        results += grads(ops.batch_norm(x, n1, act="silu", training=True), dy, x, norm1.weight)
        results += grads(ops.max_pool2d(x, 2), dy_pooled, x)
        results += grads(ops.silu(x), dy, x)
        with torch.no_grad():
            results.append(ops.depthwise_conv2d(x, dw, padding=1))
            results.append(ops.separable_conv2d(x, dw, pw, norm2=norm2, act2="relu", padding=1))
        return [*results, n1.running_mean, n1.running_var, n2.running_mean, n2.running_var]

    return run


def small_calls() -> list[Callable[[], Tensor]]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 5, 5, generator=g).contiguous(memory_format=torch.channels_last)
    dw, pw = torch.randn(4, 1, 3, 3, generator=g), torch.randn(6, 4, 1, 1, generator=g)
    return [
        lambda: ops.hardswish(x),
        lambda: ops.depthwise_conv2d(x, dw, padding=1),
        lambda: ops.pointwise_conv2d(x, pw),
        lambda: ops.separable_conv2d(x, dw, pw, act2="relu", padding=1),
    ]


def repeat(calls: int) -> None:
    """About ``calls`` calls of ops, some with gradients."""
    forward, training, done = 40 * small_calls(), workload(0, 6), 0
    while done < calls:
        done += len(training()) + len(forward)
        with torch.no_grad():
            for call in forward:
                call()


@pytest.mark.skipif(not STATM.exists(), reason="no /proc/self/statm on this system")
def test_memory_stays_where_it_is(kernels: Variant, threads: None) -> None:
    torch.set_num_threads(1)
    repeat(3000)
    calls, before = sum(native_calls().values()), resident()
    if kernels.backend == "native":
        while sum(native_calls().values()) - calls < 100_000:
            repeat(20_000)
    else:
        repeat(10_000)
    grown = resident() - before
    assert grown < GROWTH, f"resident memory grew by {grown / 2**20:.1f} MiB"


def test_memory_that_stays_is_noticed(threads: None) -> None:
    if not STATM.exists():
        pytest.skip("no /proc/self/statm on this system")
    before = resident()
    with mmap.mmap(-1, 1 << 24) as kept:  # malloc might serve it from memory that it holds
        kept.write(b"\1" * (1 << 24))
        assert resident() - before > GROWTH


def test_python_threads_at_once_get_the_same_bits_as_alone(kernels: Variant) -> None:
    """Three threads repeat their work while a fourth calls with other shapes."""
    works = [workload(seed, size) for seed, size in ((1, 12), (2, 12), (3, 24))]
    others = [workload(4, 7, channels=17), workload(5, 40, channels=3), workload(6, 16, channels=33)]
    alone = [work() for work in works]
    start, stop = threading.Barrier(len(works) + 1), threading.Event()

    def repeated(index: int) -> int:
        start.wait()
        same = (torch.equal(a, b) for _ in range(15) for a, b in zip(works[index](), alone[index], strict=True))
        return sum(not equal for equal in same)

    def disturb() -> int:
        start.wait()
        rounds = 0
        while not stop.is_set():
            others[rounds % len(others)]()
            rounds += 1
        return rounds

    with ThreadPoolExecutor(len(works) + 1) as pool:
        other = pool.submit(disturb)
        try:
            different = list(pool.map(repeated, range(len(works))))
        finally:
            stop.set()
        assert other.result() > 0
    assert different == [0, 0, 0], f"results unlike those of a call alone, by thread: {different}"
    assert backend.plan()["separable_conv"] == kernels.backend
