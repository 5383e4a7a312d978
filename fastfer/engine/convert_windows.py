# SPDX-License-Identifier: Apache-2.0
"""Handlers of what looks through windows along axes: poolings and resizing, for tensors of any dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastfer.engine import strided, tensors, windows
from fastfer.engine.convert import Conversion, generally
from fastfer.engine.convert_tensor import ints, tensor
from fastfer.engine.strided import Strided
from fastfer.engine.views import Uncovered, View

Any_ = View | Strided


def _pooled(into: Conversion, x: Any, rank: int, taps: Callable[[int, int], windows.Taps], maximum: bool) -> Any_:
    """Windows along the last ``rank`` dimensions, of the axis' number and size."""
    form = strided.strided(tensor(into, x))
    first = len(form.dims) - rank
    tables = {first + i: taps(i, form.sizes[first + i]) for i in range(rank)}
    moving = {i: t for i, t in tables.items() if not _still(t, form.sizes[i])}
    if len(moving) > 2:
        raise Uncovered("windows along more than two dimensions")
    return tensors.resampled(into.graph, form, moving, maximum) if moving else strided.seen(form)


def _still(taps: windows.Taps, size: int) -> bool:
    """Whether each element stays as it is."""
    return taps[0].shape == (size, 1) and bool((taps[0][:, 0] == np.arange(size)).all() and (taps[1] == 1).all())


def _average(rank: int) -> Callable[..., Any_]:
    def handler(
        into: Conversion, self: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: Any = None,
    ) -> Any_:  # fmt: skip
        kernel = ints(kernel_size, rank)
        steps, pads = ints(stride, rank, kernel), ints(padding, rank)

        def taps(i: int, size: int) -> windows.Taps:
            return windows.sliding(
                size, kernel[i], steps[i], pads[i], pads[i], ceiled=ceil_mode, counted=count_include_pad,
                divisor=None if divisor_override is None else float(divisor_override) if i == 0 else 1.0,
            )  # fmt: skip

        return _pooled(into, self, rank, taps, False)

    return handler


def _maximum(rank: int) -> Callable[..., Any_]:
    def handler(
        into: Conversion, self: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Any_:  # fmt: skip
        kernel = ints(kernel_size, rank)
        steps, pads, apart = ints(stride, rank, kernel), ints(padding, rank), ints(dilation, rank)

        def taps(i: int, size: int) -> windows.Taps:
            return windows.sliding(size, kernel[i], steps[i], pads[i], pads[i], dilation=apart[i], ceiled=ceil_mode)

        return _pooled(into, self, rank, taps, True)

    return handler


for _rank in (1, 2, 3):
    generally(f"aten.avg_pool{_rank}d")(_average(_rank))
    generally(f"aten.max_pool{_rank}d")(_maximum(_rank))


def _adaptive(rank: int, maximum: bool) -> Callable[..., Any]:
    def handler(into: Conversion, self: Any, output_size: Any) -> Any:
        wanted = [None if n is None else int(n) for n in ints(output_size, rank)]
        y = _pooled(into, self, rank, lambda i, size: windows.adaptive(size, wanted[i] or size), maximum)
        return (y,) if maximum else y

    return handler


for _rank in (1, 2):
    generally(f"aten.adaptive_avg_pool{_rank}d")(_adaptive(_rank, False))
    generally(f"aten.adaptive_max_pool{_rank}d")(_adaptive(_rank, True))


def _new_sizes(x: Any, rank: int, values: dict[str, Any]) -> tuple[list[int], list[float | None]]:
    """New sizes and scales, of an op's ``output_size`` and ``scale_factors`` or ``scales``."""
    old = x.sizes[-rank:]
    given = values.get("scale_factors")
    if given is None:
        given = [values.get(name) for name in (["scales"] if rank == 1 else ["scales_h", "scales_w"])]
    scales: list[float | None] = [None if s is None else float(s) for s in given]
    size = values.get("output_size")
    sizes = (
        [int(n) for n in size] if size is not None else [int(n * (s or 1)) for n, s in zip(old, scales, strict=True)]
    )
    return sizes, scales


def _nearest(rank: int, exact: bool) -> Callable[..., Any_]:
    def handler(into: Conversion, **values: Any) -> Any_:
        x: Any = values.get("input", values.get("self"))
        sizes, scales = _new_sizes(x, rank, values)
        first = len(x.sizes) - rank
        tables = {
            first + i: windows.nearest(x.sizes[first + i], sizes[i], scales[i], exact)
            for i in range(rank)
            if sizes[i] != x.sizes[first + i]
        }
        return tensors.taken(into.graph, x, tables) if tables else x

    return handler


def _smooth(rank: int, taps: Callable[..., windows.Taps]) -> Callable[..., Any_]:
    def handler(into: Conversion, align_corners: bool = False, **values: Any) -> Any_:
        x: Any = values.get("input", values.get("self"))
        sizes, scales = _new_sizes(x, rank, values)
        return _pooled(into, x, rank, lambda i, size: taps(size, sizes[i], align_corners, scales[i]), False)

    return handler


for _rank, _form in ((1, "linear1d"), (2, "bilinear2d")):
    generally(f"aten.upsample_{_form}")(_smooth(_rank, windows.linear))
    generally(f"aten.upsample_nearest{_rank}d")(_nearest(_rank, False))
    generally(f"aten._upsample_nearest_exact{_rank}d")(_nearest(_rank, True))
generally("aten.upsample_bicubic2d")(_smooth(2, windows.cubic))
