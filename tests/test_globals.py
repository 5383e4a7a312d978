# SPDX-License-Identifier: Apache-2.0
"""What torch's globals must not change: the memory that ops write, under any default dtype, device and ``with``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from conftest import Variant
from properties import Row, draw_case
from property_rows import ROWS
from torch import Tensor

import fastfer
from fastfer import ops


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


GLOBALS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default-device-meta": lambda: default_device("meta"),
    "with-meta": lambda: torch.device("meta"),
    "default-float64": lambda: default_dtype(torch.float64),
    "default-float16": lambda: default_dtype(torch.float16),
    "default-bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference": torch.inference_mode,
}
"""Contexts around calls whose tensors are all on the CPU."""


def same(got: object, want: object) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["default-device-meta", "with-meta", "default-float64", "default-bfloat16"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_op_gives_the_same_bits(row: Row, name: str, cpu_backend: Variant) -> None:
    for seed in range(2):
        case, _ = draw_case(row, seed)
        want = case.run(case.draw.dtype)
        with GLOBALS[name]():
            got = case.run(case.draw.dtype)
        same((got.outputs, got.grads, got.state), (want.outputs, want.grads, want.state))


@pytest.mark.parametrize("name", list(GLOBALS))
def test_large_results(name: str) -> None:
    """Those of more than a megabyte stand on pages of their own."""
    x = torch.randn(2, 32, 80, 80).contiguous(memory_format=torch.channels_last)
    tokens = torch.randn(2, 200, 700)

    def run() -> list[Tensor]:
        y = ops.max_pool2d(x, 3, 1, 1)
        return [y, ops.silu(x), ops.dot_product_attention(tokens, tokens, tokens)]

    want = run()
    with GLOBALS[name]():
        got = run()
    same([t.clone() for t in got], want)


@pytest.mark.parametrize("name", ["default-device-meta", "with-meta", "default-float64"])
@pytest.mark.parametrize("network", fastfer.list_models())
def test_networks_train(network: str, name: str) -> None:
    torch.manual_seed(0)
    model = fastfer.create_model(network)
    size = 64 if network != "patt_lite" else 128
    x = torch.randn(2, model.in_chans, size, size)
    state = {key: t.clone() for key, t in model.state_dict().items()}

    def step() -> list[Tensor]:
        model.load_state_dict(state)
        model.zero_grad()
        torch.manual_seed(1)  # of dropout
        y = model(x)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None), *model.buffers()]

    want = [t.clone() for t in step()]
    with GLOBALS[name]():
        same(step(), want)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_signs_that_are_still_to_be_applied(row: Row, cpu_backend: Variant) -> None:
    """The imaginary part of a conjugate is a view whose elements have the other sign in memory."""
    case, _ = draw_case(row, 0)
    want = case.run(case.draw.dtype)
    views = {name: case.draw.views.get(name, lambda t: t) for name in case.draw.leaves}
    case.draw.views = {name: lambda t, view=view: torch._neg_view(-view(t)) for name, view in views.items()}
    case.upstream = [torch._neg_view(-t) for t in case.upstream]
    got = case.run(case.draw.dtype)
    same((got.outputs, got.grads, got.state), (want.outputs, want.grads, want.state))


@pytest.mark.parametrize("padding", [1 << 30, (1 << 31) - 1])
def test_outputs_larger_than_any_memory_are_refused(padding: int) -> None:
    x, w = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
    for op in (ops.conv2d, ops.depthwise_conv2d):
        with pytest.raises((ValueError, RuntimeError, MemoryError), match=r"bytes|memory|size|^$"):
            op(x, w, padding=padding)


@pytest.mark.parametrize("huge", [1 << 31, 1 << 32, 1 << 63, 1 << 70])
def test_sizes_beyond_32_bits_are_refused_by_name(huge: int) -> None:
    x, w = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
    for op in (ops.conv2d, ops.depthwise_conv2d):
        with pytest.raises(ValueError, match=f"{op.__name__}: stride: expected ints <= 2147483647, got {huge}"):
            op(x, w, stride=huge)
        with pytest.raises(ValueError, match=f"{op.__name__}: padding: expected ints <= 2147483647, got {huge}"):
            op(x, w, padding=huge)
    for name in ("kernel", "stride"):
        with pytest.raises(ValueError, match=f"max_pool2d: {name}: expected ints <= 2147483647, got {huge}"):
            ops.max_pool2d(x, **({"kernel": 2} | {name: huge}))


def test_labels_that_another_thread_changes(cpu_backend: Variant) -> None:
    logits, labels, stop = torch.randn(4096, 3), torch.zeros(4096, dtype=torch.int64), threading.Event()

    def change() -> None:
        while not stop.is_set():
            labels.fill_(1 << 40)
            labels.zero_()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            with contextlib.suppress(IndexError, RuntimeError):
                ops.cross_entropy(logits, labels)
    finally:
        stop.set()
        thread.join()
    torch.testing.assert_close(ops.cross_entropy(logits, labels), torch.nn.functional.cross_entropy(logits, labels))
