# SPDX-License-Identifier: Apache-2.0
"""What torch's globals must not change: the memory that ops write, under any default dtype, device and ``with``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from conftest import Variant
from properties import Row, draw_case
from test_properties import ROWS
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
