# SPDX-License-Identifier: Apache-2.0
"""Calls of public ops whose activations are exact in a storage type, beside float64, and how near results have to be.

Run on the host machine by test_half_storage.py and on a GPU by test_cuda_ops.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from properties import Case, Draw, Result, Row
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastfer import backend
from fastfer._checks import ACTIVATIONS, HALF_DTYPES

SMOOTH = (None, "silu", "sigmoid")
"""Activations whose derivative has no jump, which rounding to 16 bits would cross."""
LOWERED = {
    *("additive_attention", "conv2d", "depthwise_conv2d", "dot_product_attention", "inverted_bottleneck"),
    *("pointwise_conv2d", "separable_conv2d"),
}
"""Ops whose activations autocast casts, as torch's products; losses are lifted, all others take them as they come."""
LOSSES = {"center_loss", "cross_entropy", "triplet_loss"}


class SmoothDraw(Draw):
    """At least one image, and only smooth activations."""

    def option(self, name: str, choices: Any) -> Any:
        smooth = [choice for choice in choices if choice in SMOOTH]
        return super().option(name, smooth if smooth and {*choices} <= {None, *ACTIVATIONS} else choices)

    def batch(self) -> int:
        return self.random.randint(1, 3)


def output_dtype(row: Row, stored: torch.dtype, autocast: torch.dtype | None = None) -> torch.dtype:
    """Of a call with activations in ``stored``, by itself or under autocast."""
    if row.name == "update_centers_":  # float32 centres, in place
        return torch.float32
    if autocast is None:
        return stored
    return autocast if row.name in LOWERED else torch.float32 if row.name in LOSSES else stored


def drawn(row: Row, seed: int, stored: torch.dtype) -> tuple[Case, Result]:
    """A call whose activations and upstream gradients are exact in ``stored``, and its result in float64."""
    draw = SmoothDraw(seed)
    call = row.draw(draw)
    draw.leaves |= {name: draw.leaves[name].to(stored).double() for name in draw.stored}
    case = Case(draw, call, list(draw.leaves))
    with backend.use("reference"):
        case.run(torch.float64)
        case.upstream = [t.to(stored).double() for t in case.upstream]
        return case, case.run(torch.float64)


def assert_near(name: str, got: Tensor, want: Tensor, terms: float, eps: float) -> None:
    """In the Euclidean norm; ``terms`` is the size of what may cancel."""
    assert got.shape == want.shape, name
    error, allowed = float((got.double() - want).norm()), eps * (float(want.norm()) + terms)
    assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


def compare(case: Case, got: Result, want: Result, output: torch.dtype, stored: torch.dtype) -> None:
    # Of 16 bits what is stored is rounded most, of others the sums.
    eps = (8 if stored in HALF_DTYPES else 96) * torch.finfo(stored).eps
    upstream = math.sqrt(sum(float(t.square().sum()) for t in case.upstream))
    least = [float(t.min()) for name, t in case.draw.state.items() if name.endswith(".var")]
    gain = max(1.0, *(v**-0.5 for v in least)) if least else 1.0
    if case.draw.options.get("training"):  # batch statistics of few values: a variance may be near 0
        gain = max(gain, 1e-3**-0.5)
    for i, (a, b) in enumerate(zip(got.outputs, want.outputs, strict=True)):
        assert a.dtype == output, f"output {i}"
        assert_near(f"output {i}", a, b, 0.0, eps)
    assert got.grads.keys() == want.grads.keys()
    for name, grad in got.grads.items():
        assert_near(f"gradient of {name}", grad, want.grads[name], gain * upstream, eps)
    for name, tensor in got.state.items():
        assert tensor.dtype == (stored if stored == torch.float64 else torch.float32), name
        assert_near(name, tensor, want.state[name], 0.0, eps)


def assert_fakes_agree(run: Callable[[], object]) -> None:
    """Every op and gradient that ``run`` calls gives, on fakes, results of the same shapes, strides and dtypes."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "fastfer":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    with Recorded():
        run()
    assert calls
    for func, args in calls:
        torch.library.opcheck(func, args, test_utils="test_faketensor")
