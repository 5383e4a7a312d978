# SPDX-License-Identifier: Apache-2.0
"""What counts as equal: multiples of a dtype's epsilon by the kind of computation, and by the length of its sums.

Rounding of a sum of n terms grows like sqrt(n)·eps for signed terms (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 2.8); the multiples allow a few times that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULTIPLES: dict[str, dict[torch.dtype, float]] = {
    "exact": {torch.float32: 0.0, torch.float64: 0.0},
    # One formula per element; exp costs some, and a derivative near its zero cancels.
    "elementwise": {torch.float32: 8.0, torch.float64: 16.0},
    # Sums of products.
    "reduction": {torch.float32: 4.0, torch.float64: 4.0},
    # Several reductions with normalisations between, each passing on the rounding of the one before.
    "chain": {torch.float32: 24.0, torch.float64: 24.0},
}
COSINE = {"exact": 0.0, "elementwise": 2.0, "reduction": 2.0, "chain": 2.0}
"""Multiples of eps that 1 - cosine may reach; its own float64 rounding is added."""

BIAS = 0.25
"""Share of the elementwise tolerance that the mean signed error may reach: rounding has no direction."""


def tolerance(dtype: torch.dtype, kind: str, length: int = 1) -> float:
    """Allowed error relative to the scale of the data, for sums of ``length`` terms."""
    return MULTIPLES[kind][dtype] * math.sqrt(max(length, 1)) * torch.finfo(dtype).eps


def assert_close(
    got: Tensor, want: Tensor, kind: str, length: int = 1, *, scale: float | Tensor | None = None, name: str = "value"
) -> None:
    """``got`` (float32 or float64) is ``want`` (float64): element by element, in direction, and without a signed bias.

    Errors are relative to |want| + ``scale``; scale (by default the largest |want|) is the size of the terms where they
    may cancel. NaN and infinities have to be in the same places.
    """
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if want.numel() == 0:
        return
    wide, want = got.detach().double().cpu(), want.detach().double().cpu()
    finite = want.isfinite()
    same = torch.equal(wide.isnan(), want.isnan()) and torch.equal(
        wide[~finite].nan_to_num(), want[~finite].nan_to_num()
    )
    assert same, f"{name}: NaN or infinity in other places: got {wide[~finite][:8]}, expected {want[~finite][:8]}"
    if not bool(finite.any()):
        return
    size = want[finite].abs().max() if scale is None else torch.as_tensor(scale, dtype=torch.float64)
    size = torch.broadcast_to(size, want.shape)
    smallest = 0.0 if kind == "exact" else torch.finfo(got.dtype).smallest_normal
    allowed = tolerance(got.dtype, kind, length) * (want.abs() + size) + smallest
    error = wide - want
    worst = torch.where(finite, error.abs() - allowed, -math.inf).argmax()
    if not bool((error.abs() <= allowed)[finite].all()):
        excess = float(error.flatten()[worst].abs() / (want.abs() + size).flatten()[worst]) / torch.finfo(got.dtype).eps
        multiple = MULTIPLES[kind][got.dtype] * math.sqrt(max(length, 1))
        raise AssertionError(
            f"{name}: element {int(worst)} of {tuple(want.shape)}: got {float(wide.flatten()[worst])!r}, expected "
            f"{float(want.flatten()[worst])!r}: {excess:.1f} eps of the scale, allowed {multiple:.1f}"
        )
    if want.numel() >= 16 and kind != "exact":
        _assert_same_vector(wide[finite], want[finite], size[finite], got.dtype, kind, length, name)


def _assert_same_vector(
    got: Tensor, want: Tensor, size: Tensor, dtype: torch.dtype, kind: str, length: int, name: str
) -> None:
    eps, norm = torch.finfo(dtype).eps, float(want.norm() * got.norm())
    cancelled = float(want.norm()) < math.sqrt(want.numel()) * float(size.mean()) * 1e-3
    if norm > 0 and not cancelled:
        cosine = float(want @ got) / norm
        allowed = COSINE[kind] * eps * math.sqrt(max(length, 1)) + 1e-14
        assert 1 - cosine <= allowed, f"{name}: 1 - cosine is {1 - cosine:.2e}, allowed {allowed:.2e}"
    bias = float((got - want).mean().abs())
    allowed = BIAS * tolerance(dtype, kind, length) * float((want.abs() + size).mean())
    assert bias <= allowed, f"{name}: mean signed error is {bias:.2e}, allowed {allowed:.2e}"
