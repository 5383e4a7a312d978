# SPDX-License-Identifier: Apache-2.0
"""Calls of ``torch.ops.fastfer`` by hand: what has passed no check of ``fastfer.ops`` is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Variant
from torch import Tensor

from fastfer import _library, backend, ops
from fastfer._shapes import Shapes
from fastfer._signature import Signature
from fastfer.signatures.shapes import shapes

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
        (lambda: RAW.activation(X.int(), 1), TypeError, "x: expected dtype float32 or float64"),
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


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a gradient of another size": (
        lambda: RAW.depthwise_conv2d_backward(X, X, W, [1, 1], [0] * 4, [True] * 3),
        r"d_out: expected shape \(2, 3, 4, 4\), got \(2, 3, 6, 6\)",
    ),
    "statistics of other channels": (
        lambda: RAW.batch_norm_backward(X, X, CHANNELS, CHANNELS, torch.ones(3, 4), 0, True, [True] * 2),
        r"stats: expected shape \(3, 3\), got \(3, 4\)",
    ),
    "a saved tensor that is missing": (
        lambda: RAW.conv2d_backward(X, X, torch.empty(0), DENSE, *[None] * 2, torch.empty(0), 1, [1, 1], [0] * 4, False,
                                    [True] * 3),
        r"y: expected shape \(2, o, 6, 6\)|y: expected shape \(2, 3, 6, 6\)",
    ),
    "a norm without its second tensor": (
        lambda: RAW.conv2d(X, DENSE, None, CHANNELS, None, CHANNELS, CHANNELS, 1e-5, 0, [1, 1], [0] * 4),
        r"norm_bias: expected a tensor of shape \(3\), got None",
    ),
    "places outside of the image": (
        lambda: RAW.global_max_pool_backward(X[:, :, 0, 0], torch.full((2, 3), 16, dtype=torch.int32), [4, 4]),
        "positions: expected 0 to 15, got 16 to 16",
    ),
    "places of another type": (
        lambda: RAW.max_pool2d_backward(X, torch.zeros(2, 3, 6, 6, dtype=torch.int32), [6, 6], [1, 1], [1, 1], [0] * 4),
        "positions: expected dtype torch.uint8, got torch.int32",
    ),
    "a window that does not fit": (
        lambda: RAW.max_pool2d(X, [7, 1], [1, 1], [0] * 4),
        "padding: expected a padded image of at least the window",
    ),
    "padding beyond half a pooling's window": (
        lambda: RAW.max_pool2d(X, [2, 2], [1, 1], [2, 0, 0, 0]),
        "padding: expected at most half the kernel",
    ),
    "no tensor at all": (
        lambda: RAW.depthwise_conv2d(X, None, None, [1, 1], [0] * 4),
        "weight: expected a tensor, got None",
    ),
}  # fmt: skip
CHANNELS, DENSE = torch.ones(3), torch.ones(3, 3, 1, 1)


@pytest.mark.parametrize("name", WRONG)
def test_what_belongs_together_is_checked(name: str, cpu_backend: Variant) -> None:
    call, message = WRONG[name]
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()


def test_saved_tensors_may_have_any_strides(cpu_backend: Variant) -> None:
    x = torch.randn(2, 3, 6, 5)
    out, y, stats = RAW.depthwise_norm_train(
        x, W, None, CHANNELS, CHANNELS, CHANNELS, CHANNELS, 1e-5, 1, [1, 1], [1] * 4, True
    )
    rest = (W, CHANNELS, CHANNELS), (1, [1, 1], [1] * 4, True, [True] * 3)
    want = RAW.depthwise_norm_backward(out, x, y, *rest[0], stats, *rest[1])
    strange = stats.t().contiguous().t()
    assert not strange.is_contiguous()
    got = RAW.depthwise_norm_backward(out.contiguous(), x, y.contiguous(), *rest[0], strange, *rest[1])
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


class Unchecked(NamedTuple):
    """A signature with a tensor that has no line."""

    x: Tensor
    weight: Tensor


def test_a_tensor_without_a_shape_cannot_be_registered() -> None:
    """So that a field that is renamed, or a new op, is noticed at import."""
    marked = shapes(x="n c")(Unchecked)
    with pytest.raises(TypeError, match=r"a line of .* for every tensor, got none for \['weight'\]"):
        Shapes("unchecked", Signature(marked))
    with pytest.raises(TypeError, match=r"Unchecked: expected shapes of its tensors, got \['wight'\]"):
        Shapes("unchecked", Signature(shapes(x="n c", weight="c", wight="c")(Unchecked)))


def test_every_tensor_of_every_op_is_checked() -> None:
    for name in _library.registered():
        op = _library.op_of(name)
        checked = op.shapes
        tensors = [argument.name for argument in op.registered._schema.arguments if "Tensor" in str(argument.type)]
        assert sorted(tensor.name for tensor in checked.tensors) == sorted(tensors), name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend_name", ["native", "numba", "reference"])
def test_freed_storage_on_the_plain_path(backend_name: str, layout: torch.memory_format) -> None:
    if not backend.list_backends()[backend_name].available:
        pytest.skip(f"no {backend_name} backend")
    with backend.use(backend_name):
        x = torch.randn(2, 3, 6, 6).contiguous(memory_format=layout)
        weight = W.clone()
        x.untyped_storage().resize_(0)
        weight.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="expected a tensor whose storage holds its elements, got 0 bytes"):
            ops.global_avg_pool(x)
        with pytest.raises(ValueError, match="expected a tensor whose storage holds its elements, got 0 bytes"):
            ops.depthwise_conv2d(X, weight)


def _full(backend_name: str, seed: int, count: int) -> Any:
    return pytest.param(backend_name, seed, count, marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("backend_name", "seed", "count"),
    [
        ("native", 0, 200),
        *(_full("native", seed, 25_000) for seed in range(1, 5)),
        _full("numba", 5, 5_000),
        _full("reference", 6, 5_000),
    ],
)
def test_random_calls_do_not_crash(backend_name: str, seed: int, count: int) -> None:
    """In a process of its own: forward and backward, tensors, numbers and flags altered."""
    if not backend.list_backends()[backend_name].available:
        pytest.skip(f"no {backend_name} backend")
    script = Path(__file__).parent / "raw_calls.py"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "FASTFER_BACKEND": backend_name,
    }
    command = [sys.executable, str(script), str(seed), str(count)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert run.stdout.strip() == "alive", f"seed {seed}: exit {run.returncode}: {run.stderr[-2000:]}"
