# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the public functions: every message says which argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastfer import backend
from fastfer._types import ACTIVATIONS as ACTIVATIONS
from fastfer._types import DTYPES as DTYPES
from fastfer._types import HALF_DTYPES as HALF_DTYPES
from fastfer._types import compute_dtype as compute_dtype

_CODES: dict[object, int] = {name: code for code, name in enumerate(ACTIVATIONS)}

MOST = (1 << 31) - 1
"""Largest kernel side, stride, padding and channel count: kernels multiply sizes, and C's int holds no more."""


def act_code(op: str, name: str | None, arg: str = "act") -> int:
    """Code of an activation name; ``None`` is "none"."""
    if name is None:
        return 0
    code = _CODES.get(name) if isinstance(name, str) else None
    if code is None:
        raise ValueError(f"{op}: {arg}: expected one of {', '.join(ACTIVATIONS)} or None, got {name!r}")
    return code


def pair(op: str, arg: str, value: int | Sequence[int], minimum: int = 1) -> list[int]:
    """``value`` or ``(vertical, horizontal)`` as a list of two ints from ``minimum`` to `MOST`."""
    items = [value, value] if isinstance(value, int) else list(value)
    if len(items) == 2:
        vertical, horizontal = items
        if isinstance(vertical, int) and isinstance(horizontal, int):
            if minimum <= vertical <= MOST and minimum <= horizontal <= MOST:
                return items
            if vertical > MOST or horizontal > MOST:
                raise ValueError(f"{op}: {arg}: expected ints <= {MOST}, got {value!r}")
    raise ValueError(f"{op}: {arg}: expected an int or a pair of ints >= {minimum}, got {value!r}")


def padding4(op: str, value: int | Sequence[int]) -> list[int]:
    """Padding as [top, left, bottom, right] from an int, (vertical, horizontal) or the four sides."""
    items = [value] * 4 if isinstance(value, int) else list(value)
    if len(items) == 2:
        items = [items[0], items[1], items[0], items[1]]
    if len(items) == 4:
        top, left, bottom, right = items
        if isinstance(top, int) and isinstance(left, int) and isinstance(bottom, int) and isinstance(right, int):
            if 0 <= top <= MOST and 0 <= left <= MOST and 0 <= bottom <= MOST and 0 <= right <= MOST:
                return items
            if max(items) > MOST:
                raise ValueError(f"{op}: padding: expected ints <= {MOST}, got {value!r}")
    raise ValueError(
        f"{op}: padding: expected an int, (vertical, horizontal) or (top, left, bottom, right), all >= 0, got {value!r}"
    )


def is_tensor(op: str, arg: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        kind, hint = type(x), ""
        if kind.__module__.startswith("torch.fx"):
            hint = " of torch.fx.symbolic_trace, which has no shape to check: torch.export traces this package's ops"
        raise TypeError(f"{op}: {arg}: expected a torch.Tensor, got {kind.__name__}{hint}")
    return x


def floating(op: str, arg: str, x: object) -> Tensor:
    """A float32 or float64 tensor; bfloat16 or float16 where the backend stores those, or autocast will lift them."""
    t = is_tensor(op, arg, x)
    if t.dtype not in DTYPES and not (
        t.dtype in HALF_DTYPES and (torch.is_autocast_enabled(t.device.type) or backend.half_storage(t.device.type))
    ):
        raise TypeError(f"{op}: {arg}: expected dtype float32 or float64, got {str(t.dtype).removeprefix('torch.')}")
    return t


def image(op: str, arg: str, x: object, channels: int | None = None) -> Tensor:
    """An activation (N, C, H, W), with C == ``channels`` where given."""
    t = floating(op, arg, x)
    if t.dim() != 4:
        raise ValueError(f"{op}: {arg}: expected 4 dimensions (N, C, H, W), got shape {tuple(t.shape)}")
    if channels is not None and t.shape[1] != channels:
        raise ValueError(f"{op}: {arg}: expected {channels} channels, got shape {tuple(t.shape)}")
    return t


def like(
    op: str, arg: str, t: object, ref: Tensor, shape: Sequence[int], ref_name: str = "x", stored: bool = False
) -> Tensor:
    """A tensor of ``shape`` on the device of ``ref``: a parameter, in `compute_dtype`, or ``stored`` with its dtype."""
    p, dtype = is_tensor(op, arg, t), ref.dtype if stored else compute_dtype(ref)
    if p.shape == shape and p.dtype == dtype and (p.is_cpu if ref.is_cpu else p.device == ref.device):
        return p
    if tuple(p.shape) != tuple(shape):
        raise ValueError(f"{op}: {arg}: expected shape {tuple(shape)}, got {tuple(p.shape)}")
    if p.device != ref.device:
        raise ValueError(f"{op}: {arg}: expected device {ref.device} as {ref_name}, got {p.device}")
    if p.dtype != dtype and not torch.is_autocast_enabled(ref.device.type):
        reason = f" as {ref_name}" if dtype == ref.dtype else f", in which {ref_name} is computed"
        raise TypeError(f"{op}: {arg}: expected dtype {dtype}{reason}, got {p.dtype}")
    return p


def out_size(op: str, size: int, before: int, after: int, kernel: int, stride: int, axis: str) -> int:
    """Output size of a convolution or pooling axis; an error where the kernel does not fit."""
    span = size + before + after
    if span < kernel:
        raise ValueError(
            f"{op}: {axis}: expected padded size >= kernel {kernel}, got {size} + {before} + {after} = {span}"
        )
    return (span - kernel) // stride + 1
