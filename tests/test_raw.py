# SPDX-License-Identifier: Apache-2.0
"""Calls of ``torch.ops.fastfer`` by hand: what has passed no check of ``fastfer.ops`` is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Variant

from fastfer import _library, _shapes, ops

RAW = torch.ops.fastfer
X, W = torch.randn(2, 3, 6, 6), torch.randn(3, 1, 3, 3)


def freed() -> torch.Tensor:
    t = torch.randn(4, 3, 6, 6)[2:]
    t.untyped_storage().resize_(0)
    return t


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RAW.depthwise_conv2d(X, W, None, [0, 1], [0] * 4), ValueError, "stride: expected ints of 1 to"),
        (lambda: RAW.depthwise_conv2d(X, W, None, [1, 1 << 40], [0] * 4), ValueError, "stride: expected ints of 1 to"),
        (lambda: RAW.depthwise_conv2d(X, W, None, [1, 1], [0, 0, -1, 0]), ValueError, "padding: expected ints of 0 to"),
        (lambda: RAW.max_pool2d(X, [1 << 33, 1], [1, 1], [0] * 4), ValueError, "kernel: expected ints of 1 to"),
        (lambda: RAW.global_avg_pool_backward(X[:, :, 0, 0], [-1, 4]), ValueError, "size: expected ints of 0 to"),
        (lambda: RAW.activation(X, 7), ValueError, "act: expected 0 <= code < 7, got 7"),
        (lambda: RAW.activation(X, -1), ValueError, "act: expected 0 <= code < 7, got -1"),
        (lambda: RAW.activation_backward(X, X.double(), 1), TypeError, "x: expected dtype torch.float32 as the others"),
        (lambda: RAW.depthwise_conv2d(X, W.double(), None, [1, 1], [0] * 4), TypeError, "weight: expected dtype"),
        (lambda: RAW.activation(X.half(), 1), TypeError, "x: expected dtype float32 or float64"),
        (lambda: RAW.activation(freed(), 1), TypeError, "x: expected a dense tensor with memory|storage"),
    ],
)  # fmt: skip
def test_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises((error, ValueError), match=message):
        call()


def test_right_calls_run(cpu_backend: Variant) -> None:
    got = RAW.depthwise_conv2d(X, W, None, [1, 1], [1, 1, 1, 1])
    assert torch.equal(got, ops.depthwise_conv2d(X, W, padding=1))
    assert torch.equal(RAW.activation(torch._neg_view(-X), 1), ops.relu(X))


def test_every_tensor_of_a_forward_op_has_a_shape() -> None:
    """A field that was given another name must not fall out of the table: kernels trust shapes."""
    for name in _library.registered():
        names = [leaf.name for leaf in _library.op_of(name).signature.tensor_leaves]
        if name != "activation" and not name.endswith("_backward"):
            assert names == list(_shapes.lines(name, names)), name


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 400), *(pytest.param(seed, 25_000, marks=pytest.mark.full) for seed in range(1, 5))]
)
def test_random_shapes_do_not_crash_a_forward_op(seed: int, count: int) -> None:
    """In a process of its own; the backward ops' shapes are not checked yet."""
    script = Path(__file__).parent / "raw_calls.py"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    }
    command = [sys.executable, str(script), str(seed), str(count)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.stdout.strip() == "alive", f"seed {seed}: exit {run.returncode}: {run.stderr[-2000:]}"
