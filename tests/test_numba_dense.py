# SPDX-License-Identifier: Apache-2.0
"""The Numba kernels of dense convolution and batch normalisation against float64 autograd of plain torch operations."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from flat import Flat
from guard import Guarded
from oracle import KINKS, TORCH
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("numba", reason="numba is not installed: pip install 'fastfer[numba]'")

from fastfer._checks import ACTIVATIONS
from fastfer.backends.numba import conv2d, norm

conv2d, norm = Flat(conv2d), Flat(norm)

DTYPES = (torch.float32, torch.float64)
EPS = 1e-3
DIMS = (0, 2, 3)


class Conv(NamedTuple):
    """x (n, c, h, w), weight (o, c, *kernel), padding (top, left, bottom, right)."""

    n: int
    c: int
    h: int
    w: int
    o: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)

    @property
    def out(self) -> tuple[int, int]:
        top, left, bottom, right = self.padding
        return (
            (self.h + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (self.w + left + right - self.kernel[1]) // self.stride[1] + 1,
        )

    @property
    def options(self) -> tuple[list[int], list[int]]:
        return list(self.stride), list(self.padding)


CONVS = (
    Conv(2, 1, 9, 12, 8),
    Conv(3, 3, 8, 11, 32, stride=(2, 2), padding=(0, 0, 1, 1)),
    Conv(2, 17, 5, 7, 33),
    Conv(1, 2, 10, 16, 1, (7, 7), padding=(3, 3, 3, 3)),
    Conv(2, 8, 6, 4, 16, (1, 1), padding=(0, 0, 0, 0)),
    Conv(5, 20, 3, 3, 7),
    Conv(1, 4, 12, 9, 40, (5, 4), (3, 2), (4, 0, 1, 2)),
    Conv(2, 5, 7, 6, 3, (2, 3), (3, 4), (0, 1, 2, 0)),  # strides that leave inputs without gradient
    Conv(2, 3, 4, 5, 6, (3, 3), (2, 1), (0, 0, 0, 0)),
    Conv(1, 2, 1, 1, 4, (3, 2), padding=(5, 4, 6, 3)),  # more padding than kernel
    Conv(1, 1, 1, 1, 1, (1, 1), padding=(0, 0, 0, 0)),
    Conv(1, 6, 20, 130, 18, (3, 1), (1, 2), (1, 0, 1, 0)),  # a row longer than a block
    Conv(3, 2, 6, 6, 96),
)
FUSED = [  # bias, norm, act, batch statistics
    (False, False, 0, False),
    (True, False, 3, False),
    (True, True, 1, True),
    (False, True, 5, False),
    (False, True, 0, True),
]


def values(g: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    t = torch.randn(shape, generator=g).to(dtype)
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def norm_tensors(g: torch.Generator, channels: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Weight, bias, running mean, running variance."""
    weight, bias, mean, var = (values(g, channels, dtype=dtype) for _ in range(4))
    return weight, bias, mean, var.abs() + 0.5


def leaf(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.float64, copy=True).requires_grad_()


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor | None, case: Conv) -> Tensor:
    top, left, bottom, right = case.padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, case.stride)


def torch_norm(y: Tensor, n: Sequence[Tensor | None], batch: bool) -> Tensor:
    weight, bias, mean, var = n
    if weight is None or mean is None or var is None:
        return y
    return F.batch_norm(y, mean.to(y.dtype, copy=True), var.to(y.dtype, copy=True), weight, bias, batch, 0.1, EPS)


def far_from_kinks(z: Tensor, act: int, dtype: torch.dtype) -> bool:
    margin = 2000 * torch.finfo(dtype).eps
    return all(bool(((z - kink).abs() > margin).all()) for kink in KINKS.get(ACTIVATIONS[act], ()))


def assert_stats(stats: Tensor, y: Tensor, length: int) -> None:
    wide = y.detach().double()
    var, mean = torch.var_mean(wide, DIMS, correction=0)
    count = y.numel() // y.shape[1]
    for name, row, want in zip(
        ("mean", "invstd", "unbiased variance"),
        stats,
        (mean, (var + EPS).rsqrt(), var * count / max(count - 1, 1)),
        strict=True,
    ):
        assert_close(row, want, "chain", length, name=name, scale=1 + float(wide.abs().max()))


def conv_case(
    case: Conv, fused: tuple[bool, bool, int, bool], dtype: torch.dtype
) -> tuple[list[Tensor | None], list[Tensor | None], Tensor]:
    """x, weight, bias and the norm's tensors, away from the activation's kinks; z in float64."""
    has_bias, has_norm, act, batch = fused
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        x, weight = values(g, *case[:1], *case[1:4], dtype=dtype), values(g, case.o, case.c, *case.kernel, dtype=dtype)
        bias = values(g, case.o, dtype=dtype) if has_bias else None
        n: list[Tensor | None] = list(norm_tensors(g, case.o, dtype)) if has_norm else [None] * 4
        wide = [None if t is None else t.double() for t in (x, weight, bias, *n)]
        z = torch_norm(torch_conv(wide[0], wide[1], wide[2], case), wide[3:], batch)  # type: ignore[arg-type]
        if far_from_kinks(z, act, dtype):
            return [x, weight.contiguous(), bias], n, z
    raise AssertionError(f"{case} with {fused} always comes near a kink")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("case", "fused"),
    # One value has no variance.
    [(c, f) for c in CONVS for f in FUSED if not f[3] or c.n * c.out[0] * c.out[1] > 1],
)
def test_conv2d(case: Conv, fused: tuple[bool, bool, int, bool], dtype: torch.dtype) -> None:
    _, has_norm, act, batch = fused
    pixels = case.n * case.out[0] * case.out[1]
    tensors, n, _ = conv_case(case, fused, dtype)
    x, weight, bias = leaves = [leaf(t) for t in tensors]
    n_weight, n_bias = leaf(n[0]), leaf(n[1])
    assert x is not None
    assert weight is not None
    plain = torch_conv(x, weight, bias, case)
    want = TORCH[ACTIVATIONS[act]](torch_norm(plain, [n_weight, n_bias, *n[2:]], batch))
    args = (*tensors, *n, EPS, act, *case.options)
    length = case.c * case.kernel[0] * case.kernel[1]

    out, y, stats = conv2d.conv2d_train(*args, batch)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, want, "chain", length, name="out")
    if has_norm or act:
        assert_close(y, plain, "reduction", length, name="y")
    else:
        assert y.numel() == 0
    assert stats.shape == ((3, case.o) if has_norm else (0,))
    if batch:
        assert_stats(stats, plain, pixels)
    else:
        assert_close(conv2d.conv2d(*args), want, "chain", length, name="inference")

    dout = values(torch.Generator().manual_seed(1), *want.shape, dtype=dtype)
    want.backward(dout.double())
    rest = (y, tensors[1], n[0], n[1], stats, act, *case.options, batch)
    inputs = (*leaves, n_weight, n_bias)
    # What batch statistics cancel, and the bias before them entirely, leaves the rounding of terms of this size.
    term = float(dout.abs().max()) * (1 if n[0] is None else float(n[0].abs().max() * stats[1].abs().max()))
    for mask in (
        *itertools.product((True, False), (True,), (True, False)),
        (True, False, False),
        (False, False, False),
    ):
        grads = conv2d.conv2d_backward(dout, tensors[0], *rest, list(mask))
        for name, grad, wide, asked in zip(
            ("x", "weight", "bias", "n_weight", "n_bias"), grads, inputs, (*mask, mask[1], mask[1]), strict=True
        ):
            if not asked or (wide is None and name != "bias"):
                assert grad.numel() == 0, name
            elif wide is None:
                assert grad.shape == (case.o,)
            else:
                terms = case.o * case.kernel[0] * case.kernel[1] if name == "x" else pixels
                scale = float(wide.grad.abs().max()) + term * terms**0.5
                assert_close(grad, wide.grad, "chain", terms, name=f"d {name}", scale=scale)


def test_layouts_of_the_input() -> None:
    g = torch.Generator().manual_seed(0)
    big = torch.randn(4, 6, 11, 13, generator=g)
    weight = torch.randn(4, 3, 3, 3, generator=g)
    none, options = (None,) * 5, (0.0, 1, [1, 1], [1, 1, 1, 1])
    for x in (big[::2, 1:4, ::2, 1:-1], big[:1, :1].expand(2, 3, 11, 13), big[:, :3].transpose(2, 3)):
        dense = x.contiguous(memory_format=torch.channels_last)
        want = conv2d.conv2d(dense, weight, *none, *options)
        turned = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
        for each in (x, x.contiguous()):
            assert torch.equal(conv2d.conv2d(each, turned, *none, *options), want)
        grads = [
            conv2d.conv2d_backward(dy, each, want, w, None, None, x.new_empty(0), *options[1:], False, [True] * 3)
            for dy, each, w in ((want, dense, weight), (want.contiguous(), x, turned))
        ]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


NORMS = [(2, 5, 9, 7), (3, 8, 4, 4), (2, 1, 16, 16), (1, 70, 3, 2), (4, 33, 1, 1), (2, 16, 13, 30), (1, 3, 1, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("shape", NORMS)
def test_batch_norm(shape: tuple[int, ...], batch: bool, act: int, dtype: torch.dtype) -> None:
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        x = 2 * values(g, *shape, dtype=dtype) + 1
        n = norm_tensors(g, shape[1], dtype)
        wide, weight, bias = (leaf(t) for t in (x, n[0], n[1]))
        assert wide is not None
        z = torch_norm(wide, [weight, bias, *(t.double() for t in n[2:])], batch)
        if far_from_kinks(z, act, dtype):
            break
    want = TORCH[ACTIVATIONS[act]](z)
    pixels = x.numel() // shape[1]
    out, stats = norm.batch_norm_train(x, *n, EPS, act, batch)
    assert_close(out, want, "chain", pixels, name="out")
    assert out.is_contiguous(memory_format=torch.channels_last)
    if batch:
        assert_stats(stats, x, pixels)
    else:
        assert torch.equal(norm.batch_norm(x, *n, EPS, act), out)
    dout = values(g, *shape, dtype=dtype)
    want.backward(dout.double())
    scale = float((n[0].abs() * stats[1]).max() * dout.abs().max())
    for mask in itertools.product((True, False), repeat=2):
        grads = norm.batch_norm_backward(dout, x, n[0], n[1], stats, act, batch, list(mask))
        asked = (mask[0], mask[1], mask[1])
        for name, grad, of, wanted in zip(("x", "weight", "bias"), grads, (wide, weight, bias), asked, strict=True):
            if wanted:
                assert of is not None
                size = scale * (1 if name == "x" else pixels**0.5)
                assert_close(grad, of.grad, "chain", pixels, name=f"d {name}", scale=size)
            else:
                assert grad.numel() == 0


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (2, 8, 7, 9), (2, 65, 8, 8)])
def test_statistics_of_values_far_from_zero(shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    x = values(g, *shape, dtype=torch.float32) + 1e4
    n = norm_tensors(g, shape[1], torch.float32)
    eye = torch.eye(shape[1]).view(shape[1], shape[1], 1, 1)
    plain = conv2d.conv2d_train(x, eye, None, *n, EPS, 0, [1, 1], [0, 0, 0, 0], True)[2]
    for stats in (norm.batch_norm_train(x, *n, EPS, 0, True)[1], plain):
        torch.testing.assert_close(stats[2].double(), x.double().var(DIMS), rtol=1e-5, atol=0)
        torch.testing.assert_close(stats[0].double(), x.double().mean(DIMS), rtol=1e-7, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "case", [Conv(1, 3, 9, 8, 5), Conv(1, 4, 7, 7, 40, (3, 2), (2, 2), (1, 0, 0, 1)), Conv(2, 1, 9, 9, 8)]
)
def test_non_finite_stays_in_its_windows(case: Conv, value: float) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight = values(g, *case[:4], dtype=torch.float32), torch.randn(case.o, case.c, *case.kernel, generator=g)
    x[0, 0, 3, 4], x[-1, -1, 0, 0] = value, value
    got = conv2d.conv2d(x, weight, *(None,) * 5, 0.0, 0, *case.options)
    want = torch_conv(x.double(), weight.double(), None, case)
    assert_close(got, want, "reduction", case.c * 9)
    dy = values(g, *want.shape, dtype=torch.float32)
    dy[0, 2, 1, 1] = value
    nothing = x.new_empty(0)
    dx, dw, db = conv2d.conv2d_backward(
        dy, x, nothing, weight, None, None, nothing, 0, *case.options, False, [True] * 3
    )[:3]
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    torch_conv(leaves[0], leaves[1], None, case).backward(dy.double())
    assert_close(dx, leaves[0].grad, "reduction", case.o * 9, name="dx")
    assert torch.equal(db.isfinite(), dy.sum(DIMS).isfinite())
    assert torch.equal(dw.isfinite().all(1), leaves[1].grad.isfinite().all(1))


def test_nan_in_the_statistics() -> None:
    g = torch.Generator().manual_seed(0)
    x = values(g, 2, 5, 6, 6, dtype=torch.float32)
    x[1, 2, 3, 3], x[0, 4, 0, 0] = float("nan"), float("inf")
    n = norm_tensors(g, 5, torch.float32)
    out, stats = norm.batch_norm_train(x, *n, EPS, 1, True)
    want = torch.relu(torch_norm(x.double(), [t.double() for t in n], True))
    assert torch.equal(stats[0].isfinite(), x.mean(DIMS).isfinite())
    assert torch.equal(out.isnan(), want.isnan())


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 4, 0, 5), (2, 4, 3, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(6, 4, 3, 3), torch.randn(6)
    n, options = norm_tensors(torch.Generator(), 6, torch.float32), ([1, 1], [2, 2, 2, 2])
    y = conv2d.conv2d(x, weight, bias, *(None,) * 4, 0.0, 0, *options)
    assert y.shape == (shape[0], 6, shape[2] + 2, shape[3] + 2)
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand(y.shape))
    out, y, stats = conv2d.conv2d_train(x, weight, bias, *n, EPS, 1, *options, shape[0] > 0)
    grads = conv2d.conv2d_backward(out, x, y, weight, n[0], n[1], stats, 1, *options, shape[0] > 0, [True] * 3)
    assert [tuple(t.shape) for t in grads] == [shape, (6, 4, 3, 3), (6,), (6,), (6,)]
    assert not grads[1].any()
    m = norm_tensors(torch.Generator(), 4, torch.float32)
    out, stats = norm.batch_norm_train(x, *m, EPS, 1, True)
    assert out.shape == x.shape
    assert stats.shape == (3, 4)
    grads = norm.batch_norm_backward(out, x, m[0], m[1], stats, 1, True, [True, True])
    assert [tuple(t.shape) for t in grads] == [shape, (4,), (4,)]
    assert not grads[1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_outside(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    for case in CONVS:
        x, weight = values(g, *case[:4], dtype=dtype), values(g, case.o, case.c, *case.kernel, dtype=dtype).contiguous()
        n = norm_tensors(g, case.o, dtype)
        with Guarded() as guarded:
            out, y, stats = conv2d.conv2d_train(x, weight, None, *n, EPS, 1, *case.options, True)
            conv2d.conv2d(x, weight, None, *n, EPS, 1, *case.options)
            conv2d.conv2d_backward(out, x, y, weight, n[0], n[1], stats, 1, *case.options, True, [True] * 3)
            norm.batch_norm_backward(
                out, y, n[0], n[1], norm.batch_norm_train(y, *n, EPS, 0, True)[1], 1, True, [True, True]
            )
        guarded.check(at_least=8)


CHUNKED = (  # large enough for several chunks
    Conv(3, 8, 40, 40, 8),
    Conv(2, 12, 31, 29, 40, stride=(2, 2)),
    Conv(40, 24, 3, 3, 7),
)


def everything(case: Conv, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, weight = values(g, *case[:4], dtype=torch.float32), torch.randn(case.o, case.c, *case.kernel, generator=g)
    n = norm_tensors(g, case.o, torch.float32)
    results = [conv2d.conv2d(x, weight, None, *n, EPS, 3, *case.options)]
    for batch in (True, False):
        out, y, stats = conv2d.conv2d_train(x, weight, None, *n, EPS, 3, *case.options, batch)
        results += [out, y, stats]
        results += conv2d.conv2d_backward(out, x, y, weight, n[0], n[1], stats, 3, *case.options, batch, [True] * 3)
    out, stats = norm.batch_norm_train(y, *n, EPS, 5, True)
    return [*results, out, stats, *norm.batch_norm_backward(y, out, n[0], n[1], stats, 5, True, [True, True])]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("case", CHUNKED)
def test_results_do_not_depend_on_the_number_of_threads(case: Conv, threads: None) -> None:
    torch.set_num_threads(1)
    want = everything(case, 0)
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert same(everything(case, 0), want), f"{count} threads"


def test_calls_from_two_python_threads() -> None:
    want = [everything(case, 0) for case in CHUNKED[:2]]
    failed: list[int] = []

    def work(index: int) -> None:
        for _ in range(3):
            if not same(everything(CHUNKED[index], 0), want[index]):
                failed.append(index)

    workers: list[threading.Thread] = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed
