# SPDX-License-Identifier: Apache-2.0
"""Cases of every CUDA family in one storage type, each against the reference in float64 on the same values.

Run on the host machine by test_cuda_types.py and on a GPU by test_cuda.py. Tolerances follow the eps of the storage
type. Together the cases launch every kernel instance that ships.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from flat import Flat
from torch import Tensor

from fastfer._checks import ACTIVATIONS
from fastfer.backends.cuda.loader import Bound, Launch

EPS = 1e-3
SILU, HARDSWISH, SIGMOID = (ACTIVATIONS.index(name) for name in ("silu", "hardswish", "sigmoid"))


class Check:
    """Draws arguments in one storage type, and compares a function's results with the reference's."""

    def __init__(
        self, launch: Launch, family: str, dtype: torch.dtype, device: str = "cpu", eps: float | None = None
    ) -> None:
        module = importlib.import_module(f"fastfer.backends.cuda.{family}")
        self.got = Flat(Bound(module, launch))
        self.want = Flat(importlib.import_module(f"fastfer.backends.reference.{family}"))
        self.family, self.dtype, self.device, self.eps = family, dtype, device, eps or torch.finfo(dtype).eps
        self.compute = torch.float64 if dtype == torch.float64 else torch.float32
        self.generator = torch.Generator().manual_seed(5)

    def stored(self, *size: int) -> Tensor:
        """Activations, images in NHWC."""
        x = torch.randn(size, generator=self.generator, dtype=torch.float64).to(self.device, self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def weight(self, *size: int) -> Tensor:
        """Weights of products, which round them to the storage type, scaled by what they sum over."""
        return (self.stored(*size) / max(size[1] if len(size) > 1 else 1, 1) ** 0.5).to(self.compute).contiguous()

    def parameter(self, *size: int) -> Tensor:
        """Parameters in the compute type."""
        return torch.randn(size, generator=self.generator, dtype=torch.float64).to(self.device, self.compute)

    def norm(self, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight, bias, mean, variance."""
        weight, bias, mean, var = (self.parameter(channels) for _ in range(4))
        return weight, bias, mean, var.abs() + 0.5

    def __call__(self, name: str, *args: Any, maxima: tuple[int, ...] = ()) -> Any:
        """The function's results, compared; of ``maxima``, which rounding to 16 bits moves, only in wider types."""
        got = getattr(self.got, name)(*args)
        wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        want = getattr(self.want, name)(*wide)
        pairs = list(zip(*((r,) if isinstance(r, Tensor) else r for r in (got, want)), strict=True))
        # What cancels, as a bias's gradient does before batch statistics, is measured by the call's other results.
        least = max(float(right.abs().max()) for _, right in pairs if right.numel() and right.is_floating_point()) / 10
        for i, (each, right) in enumerate(pairs):
            text = f"{self.family}.{name}, result {i}"
            assert each.shape == right.shape, text
            if i in maxima and self.dtype.itemsize == 2:
                continue
            if not each.is_floating_point():
                assert torch.equal(each, right), text
            elif each.numel():
                assert each.dtype in (self.dtype, self.compute), text
                scale = max(float(right.abs().max()), least)
                error = float((each.double() - right).abs().max())
                assert error <= 24 * self.eps * scale, f"{text}: {error} of {scale}"
        return got


def check_elementwise(run: Check) -> None:
    for act in range(len(ACTIVATIONS)):
        for offset in (0, 1):
            x, dy = run.stored(37)[offset:], run.stored(37)[offset:]
            run("activation", x, act)
            run("activation_backward", dy, x, act)


def check_norm(run: Check) -> None:
    for channels in (5, 24):
        x, dout, (weight, bias, mean, var) = (
            run.stored(3, channels, 6, 7),
            run.stored(3, channels, 6, 7),
            run.norm(channels),
        )
        for batch in (True, False):
            _, stats = run("batch_norm_train", x, weight, bias, mean, var, EPS, HARDSWISH, batch)
            run("batch_norm_backward", dout, x, weight, bias, stats, HARDSWISH, batch, [True, True])


def check_pool(run: Check) -> None:
    for size, kernel, stride, padding in (
        ((9, 8), [3, 3], [2, 2], [1, 1, 1, 1]),
        ((19, 18), [17, 17], [2, 1], [0] * 4),
    ):
        x = run.stored(2, 5, *size)
        y, places = run("max_pool2d_train", x, kernel, stride, padding)
        run("max_pool2d_backward", run.stored(*y.shape), places, list(size), kernel, stride, padding)
    x = run.stored(2, 33, 5, 6)
    _, _, places = run("global_avg_max_pool", x)
    run("global_avg_max_pool_backward", run.stored(2, 33), run.stored(2, 33), places, [5, 6])


def check_conv2d(run: Check) -> None:
    x, weight, (n_weight, n_bias, mean, var) = run.stored(2, 3, 9, 8), run.weight(17, 3, 3, 3), run.norm(17)
    window, bias = ([2, 1], [1, 0, 1, 2]), run.parameter(17)
    out, y, stats = run("conv2d_train", x, weight, bias, n_weight, n_bias, mean, var, EPS, SILU, *window, True)
    dout, norm = run.stored(*out.shape), (n_weight, n_bias, stats)
    run("conv2d_backward", dout, x, y, weight, *norm, SILU, *window, True, [True] * 3)
    pool = ([3, 2], [2, 2], [1, 0, 1, 1])
    for batch in (True, False):
        layer = (x, weight, bias, n_weight, n_bias, mean, var, EPS, HARDSWISH)
        out, y, best, places, stats = run("conv2d_pool_train", *layer, *window, *pool, batch, maxima=(2, 3))
        kept = (x, y, best, places, weight, n_weight, n_bias, stats, HARDSWISH)
        run("conv2d_pool_backward", run.stored(*out.shape), *kept, *window, *pool, batch, [True] * 3)


def check_separable_conv(run: Check) -> None:
    for kernel, stride in (((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((5, 5), 2), ((2, 3), 2)):
        x, weight = run.stored(2, 9, 11, 10), run.parameter(9, 1, *kernel)
        window = ([stride, stride], [1, 2, 2, 1])
        y = run("depthwise_conv2d", x, weight, run.parameter(9), *window)
        run("depthwise_conv2d_backward", run.stored(*y.shape), x, weight, *window, [True] * 3)
        layers = (weight, run.parameter(9), *run.norm(9), EPS, SILU), (run.weight(70, 9, 1, 1), run.parameter(70))
        run("separable_conv2d", x, *layers[0], *layers[1], *run.norm(70), EPS, HARDSWISH, *window)
    x, dw, pw = run.stored(2, 9, 6, 7), run.parameter(9, 1, 3, 3), run.weight(20, 9, 1, 1)
    norms, window = (run.norm(9), run.norm(20)), ([1, 1], [1] * 4)
    layers = (dw, None, *norms[0], EPS, SILU), (pw, None, *norms[1], EPS, HARDSWISH)
    out, y1, y2, stats1, stats2 = run("separable_conv2d_train", x, *layers[0], *layers[1], *window, True)
    kept = (dw, *norms[0][:2], stats1, SILU, pw, *norms[1][:2], stats2, HARDSWISH)
    run("separable_conv2d_backward", run.stored(*out.shape), x, y1, y2, *kept, *window, True, [True] * 4)


def check_bottleneck(run: Check) -> None:
    for outputs, kernel, stride in ((5, 3, 1), (7, 5, 2), (0, 3, 2), (0, 2, 1)):
        x, expand, dw = run.stored(2, 5, 9, 8), run.weight(20, 5, 1, 1), run.parameter(20, 1, kernel, kernel)
        norms, window = [run.norm(20), run.norm(20), run.norm(outputs)], ([stride, stride], [1, 2, 2, 1])
        project = run.weight(outputs, 20, 1, 1) if outputs else None
        norm3 = norms[2] if outputs else (None,) * 4
        layers, residual = (expand, *norms[0], EPS, dw, *norms[1], EPS), (outputs, kernel, stride) == (5, 3, 1)
        options = (SILU, residual, window[0], [1] * 4 if residual else window[1])
        for batch in (True, False):
            out, *kept, stats1, stats2, stats3 = run(
                "inverted_bottleneck_train", x, *layers, project, *norm3, EPS, *options, batch
            )
            sides = (expand, *norms[0][:2], stats1, dw, *norms[1][:2], stats2, project, *norm3[:2], stats3)
            run("inverted_bottleneck_backward", run.stored(*out.shape), x, *kept, *sides, *options, batch, [True] * 2)


def check_cbam(run: Check) -> None:
    for channels, size in ((16, 7), (5, 3)):
        x, dout = run.stored(2, channels, 6, 7), run.stored(2, channels, 6, 7)
        mlp = run.parameter(4, channels) / 4, run.parameter(4), run.parameter(channels, 4), run.parameter(channels)
        weight, norm = run.parameter(1, 2, size, size) / size, run.norm(1)
        _, pooled, positions, planes, at, stats = run("cbam_train", x, *mlp, weight, *norm, EPS, True)
        kept = (pooled, positions, planes, at, stats, *mlp[:3], weight, *norm[:2])
        run("cbam_backward", dout, x, *kept, True, [True] * 3)


def check_coordinate(run: Check) -> None:
    for channels, size, kind in ((16, (6, 19), 2), (5, (9, 4), 1), (33, (3, 5), 0)):
        x, dout, middle = run.stored(2, channels, *size), run.stored(2, channels, *size), 8
        weight, bias, norm = (
            run.parameter(middle, channels, 1, 1) / channels**0.5,
            run.parameter(middle),
            run.norm(middle),
        )
        gates = [t for _ in range(2) for t in (run.parameter(channels, middle, 1, 1) / 3, run.parameter(channels))]
        arguments = (weight, bias, *norm, EPS, HARDSWISH, *gates, kind, True)
        _, *kept = run("coordinate_attention_train", x, *arguments)
        layers = (weight, *norm[:2], HARDSWISH, gates[0], gates[2], kind, True)
        run("coordinate_attention_backward", dout, x, *kept, *layers, [True, True])
    x = run.stored(2, 16, 6, 19)
    grads = [run.stored(*t.shape) for t in run("cpsca_pool", x)]
    run("cpsca_pool_backward", *grads, x)


def check_gate(run: Check) -> None:
    for channels, linear, pool in ((16, False, True), (5, True, False)):
        x, mlp = (
            run.stored(2, channels, 6, 7),
            (run.parameter(4, channels) / 4, run.parameter(4), run.parameter(channels, 4)),
        )
        bias, pixel = run.parameter(channels), (run.parameter(1, channels if linear else 2, 1, 1) / 4, run.parameter(1))
        for channel in ((*mlp, bias), (run.parameter(1, 1, 3), None, None, None)):
            arguments = (*channel, SILU, SIGMOID, *pixel, linear, pool)
            out, means, pixels = run("gate_train", x, *arguments)
            run("gate_backward", run.stored(*out.shape), x, means, pixels, *arguments, [True] * 3)


def check_attention(run: Check) -> None:
    q, k, v, scale = run.stored(2, 19, 9) / 2, run.stored(2, 37, 9), run.stored(2, 37, 70), run.parameter(1)
    out, stats = run("dot_product_attention_train", q, k, v, scale, 0.5)
    run("dot_product_attention_backward", run.stored(2, 19, 70), q, k, v, scale, 0.5, out, stats, [True] * 4)
    x, h, weight = run.stored(2, 5, 12), run.stored(2, 5, 12), run.parameter(9, 24) / 5
    layer = (weight, run.parameter(9), run.parameter(1, 9), run.parameter(1))
    _, u, weights = run("additive_attention_train", x, h, *layer)
    run("additive_attention_backward", run.stored(2, 12), x, h, weight, layer[2], u, weights, [True] * 3)


def check_loss(run: Check) -> None:
    x, labels, centers, dloss = (
        run.stored(11, 20),
        torch.arange(11, device=run.device) % 4,
        run.parameter(4, 20),
        run.stored(1)[0],
    )
    run("center_loss", x, labels, centers)
    run("center_loss_backward", dloss, x, labels, centers, [True, True])
    _, pairs, slopes = run("triplet_loss_train", x, labels, 0.5)
    run("triplet_loss_backward", dloss, x, pairs, slopes)
    run("cross_entropy_train", run.stored(11, 7), labels, run.parameter(7).abs() + 0.5, 0.1)
    run("cross_entropy_train", run.stored(11, 7), torch.softmax(run.stored(11, 7).float(), 1).to(run.dtype), None, 0.0)


CASES: dict[str, Callable[[Check], None]] = {
    name.removeprefix("check_"): value for name, value in globals().items() if name.startswith("check_")
}
