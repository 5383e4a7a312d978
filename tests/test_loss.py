# SPDX-License-Identifier: Apache-2.0
"""Centre, triplet and cross-entropy loss on every backend and ISA against float64 torch."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest
import torch
from conftest import Variant
from draws import dtypes, kernels, normal
from flat import Flat
from guard import Guarded
from loss_oracle import center_formula, classes_of, entropy_oracle, triplet_formula, upstream
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import backend, ops

BATCHES = ((64, 640, 7), (1, 1, 1), (3, 5, 2), (17, 33, 4), (40, 16, 8), (130, 9, 30), (5, 70, 40))
"""Samples, features (or for cross-entropy no meaning), classes."""
SMOOTHING = (0.0, 0.1, 1.0)


@dtypes
@pytest.mark.parametrize("batch", BATCHES, ids=lambda b: "x".join(map(str, b)))
def test_center(variant: Variant, batch: tuple[int, int, int], dtype: torch.dtype) -> None:
    count, dim, classes = batch
    labels = classes_of(count, classes)
    x, centers = (normal(n, dim, dtype=dtype, seed=n).requires_grad_() for n in (count, classes))
    with variant.runs(*kernels("center_loss", dtype, "fwd", "bwd")):
        loss = ops.center_loss(x, labels, centers)
        grads = torch.autograd.grad(loss, (x, centers), upstream(dtype))
    wide = [t.detach().double().requires_grad_() for t in (x, centers)]
    want = center_formula(wide[0], labels, wide[1])
    assert loss.shape == ()
    assert_close(loss, want.detach(), "reduction", count * dim, name="loss")
    for name, got, right in zip(
        ("dx", "dcenters"), grads, torch.autograd.grad(want, wide, upstream(torch.float64)), strict=True
    ):
        assert_close(got, right, "reduction", count, name=name)
    with torch.no_grad(), variant.runs(*kernels("center_loss", dtype, "fwd")):
        assert torch.equal(ops.center_loss(x, labels, centers), loss)


@dtypes
def test_update_of_the_centers(variant: Variant, dtype: torch.dtype) -> None:
    x, centers = normal(20, 9, dtype=dtype), normal(6, 9, dtype=dtype, seed=1)
    labels = classes_of(20, 5)  # no sample of the last class
    want = centers.double()
    for j in range(6):
        members = x[labels == j].double()
        want[j] -= 0.3 * (centers[j].double() - members).sum(0) / (1 + len(members))
    loss = ops.center_loss(x.requires_grad_(), labels, centers)
    before = centers.clone()
    assert ops.update_centers_(centers, x.detach(), labels, 0.3) is centers
    assert_close(centers, want, "reduction", 20)
    assert torch.equal(centers[5], before[5])
    loss.backward()  # with the centres of the forward pass
    assert x.grad is not None
    assert_close(x.grad, x.detach().double() - before.double()[labels], "elementwise")


@cache
def triplet_case(count: int, dim: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, labels, and in float64 the loss and its gradient."""
    x, labels = normal(count, dim, dtype=dtype, seed=dim), classes_of(count, classes)
    wide = x.double().requires_grad_()
    want = triplet_formula(wide, labels, 0.8)
    return x, labels, want.detach(), torch.autograd.grad(want, wide, upstream(torch.float64))[0]


@dtypes
@pytest.mark.parametrize("batch", BATCHES, ids=lambda b: "x".join(map(str, b)))
def test_triplet(variant: Variant, batch: tuple[int, int, int], dtype: torch.dtype) -> None:
    data, labels, want, want_grad = triplet_case(*batch, dtype)
    x = data.clone().requires_grad_()
    with variant.runs(*kernels("triplet_loss", dtype, "fwd", "bwd")):
        loss = ops.triplet_loss(x, labels, 0.8)
        grad = torch.autograd.grad(loss, x, upstream(dtype))[0]
    assert_close(loss, want, "chain", batch[1], name="loss", scale=10.0)
    assert_close(grad, want_grad, "chain", batch[0], name="dx")
    with torch.no_grad(), variant.runs(*kernels("triplet_loss", dtype, "fwd")):
        assert torch.equal(ops.triplet_loss(x, labels, 0.8), loss)


def test_triplet_without_triplets(variant: Variant) -> None:
    """One class, all different classes, one sample, none: loss 0 and no gradient; a lone sample is only a negative."""
    for labels in ([0, 0, 0, 0], [0, 1, 2, 3], [5], []):
        x = normal(len(labels), 3, dtype=torch.float32).requires_grad_()
        loss = ops.triplet_loss(x, torch.tensor(labels, dtype=torch.int64), 0.5)
        assert loss == 0
        assert not bool(torch.autograd.grad(loss, x)[0].any())
    x = torch.tensor([[0.0], [3.0], [4.0]], requires_grad=True)
    loss = ops.triplet_loss(x, torch.tensor([-7, -7, 9]), 0.5)  # any integers are labels
    assert float(loss.detach()) == pytest.approx((max(0, 0.5 + 3 - 4) + 0.5 + 3 - 1) / 2)
    assert torch.autograd.grad(loss, x)[0].flatten().tolist() == [-0.5, 1.0, -0.5]


def test_triplet_ties_go_to_the_first(variant: Variant) -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1])
    loss = ops.triplet_loss(x, labels, 10.0)
    got = torch.autograd.grad(loss, x)[0]
    wide = x.detach().double().requires_grad_()
    want = torch.autograd.grad(triplet_formula(wide, labels, 10.0), wide)[0]
    assert_close(got, want, "chain", 10)


def test_triplet_of_equal_samples(variant: Variant) -> None:
    """Distance 0 has a loss of the margin, and no gradient rather than NaN."""
    x = torch.ones(4, 3, requires_grad=True)
    loss = ops.triplet_loss(x, torch.tensor([0, 0, 1, 1]), 0.25)
    assert loss == 0.25
    assert not bool(torch.autograd.grad(loss, x)[0].any())


@dtypes
@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(variant: Variant, dtype: torch.dtype, smoothing: float, kind: str, weighted: bool) -> None:
    for count, _, classes in BATCHES:
        logits = (3 * normal(count, classes, dtype=dtype, seed=count)).requires_grad_()
        weight = torch.rand(classes, generator=torch.Generator().manual_seed(1)).to(dtype) + 0.5 if weighted else None
        target = classes_of(count, classes)
        if kind == "soft":
            target = torch.softmax(normal(count, classes, dtype=dtype, seed=9), 1)
        with variant.runs(*kernels("cross_entropy", dtype, "fwd")):
            loss = ops.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)
            grad = torch.autograd.grad(loss, logits, upstream(dtype))[0]
        want, want_grad = entropy_oracle(logits, target, weight, smoothing)
        text = f"{count} samples, {classes} classes"
        assert_close(loss, want, "chain", classes, name=f"loss of {text}", scale=3.0)
        assert_close(grad, want_grad, "chain", classes, name=f"gradient of {text}", scale=2.0 / count)
        with torch.no_grad(), variant.runs(*kernels("cross_entropy", dtype, "fwd")):
            assert torch.equal(ops.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing), loss)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_as_torch(variant: Variant, value: float) -> None:
    labels = torch.tensor([0, 1, 2, 1, 0])
    for smoothing in (0.0, 0.1):
        for column in (1, 2):  # row 1 has label 1
            logits = normal(5, 3, dtype=torch.float32)
            logits[1, column] = value
            logits.requires_grad_()
            loss = ops.cross_entropy(logits, labels, label_smoothing=smoothing)
            grad = torch.autograd.grad(loss, logits, upstream(torch.float32))[0]
            want, want_grad = entropy_oracle(logits, labels, None, smoothing)
            assert_close(loss, want, "chain", 10, name="loss", scale=3.0)
            assert_close(grad, want_grad, "chain", 10, name="gradient", scale=1.0)
    x, centers = normal(5, 4, dtype=torch.float32), normal(3, 4, dtype=torch.float32)
    x[1, 2] = value
    x.requires_grad_()
    loss = ops.center_loss(x, labels, centers)
    assert torch.equal(loss.isnan(), center_formula(x, labels, centers).isnan())
    (grad,) = torch.autograd.grad(loss, x)
    assert torch.equal(grad.isnan(), (x - centers[labels]).isnan())
    loss = ops.triplet_loss(x, labels, 0.3)
    if math.isnan(value):
        assert bool(loss.isnan())


def test_empty(variant: Variant) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    x, centers = torch.zeros(0, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    loss = ops.center_loss(x, none, centers)
    assert loss == 0
    assert [g.shape for g in torch.autograd.grad(loss, (x, centers))] == [x.shape, centers.shape]
    assert ops.center_loss(torch.zeros(2, 0), none.new_zeros(2), torch.zeros(1, 0)) == 0
    assert ops.triplet_loss(torch.zeros(2, 0), none.new_zeros(2)) == 0
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = ops.cross_entropy(logits, none)
    assert bool(loss.isnan())  # as torch: a mean of nothing
    assert torch.autograd.grad(loss, logits)[0].shape == (0, 4)


def test_views(kernel_variant: Variant) -> None:
    big, labels = normal(12, 30, dtype=torch.float32), classes_of(12, 4)[::2]
    spread = classes_of(12, 4, 5).view(2, 6).t()[:, 1]
    centers = normal(9, 4, dtype=torch.float32).t()
    for view in (big[::2, 3:21:2], big[:6, :9].t().contiguous().t(), big[:1, :9].expand(6, 9)):
        for target in (labels, spread):
            for run in (
                lambda t, y: ops.center_loss(t, y, centers),
                lambda t, y: ops.triplet_loss(t, y, 1.0),
                lambda t, y: ops.cross_entropy(t, y, weight=big[0, ::2][:9].abs()),
            ):
                x, dense = view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()
                got, want = run(x, target), run(dense, target.contiguous())
                assert torch.equal(got, want)
                assert torch.equal(torch.autograd.grad(got, x)[0], torch.autograd.grad(want, dense)[0])


@dtypes
def test_threads_give_the_same_bits(kernel_variant: Variant, dtype: torch.dtype, threads: None) -> None:
    x, labels = normal(301, 170, dtype=dtype), classes_of(301, 7)
    centers, results = normal(7, 170, dtype=dtype, seed=1), []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        leaves = [x.clone().requires_grad_(), centers.clone().requires_grad_()]
        losses = (
            ops.center_loss(leaves[0], labels, leaves[1]),
            ops.triplet_loss(leaves[0], labels, 5.0),
            ops.cross_entropy(leaves[0], labels, label_smoothing=0.1),
        )
        results.append([*(t.detach() for t in losses), *torch.autograd.grad(sum(losses), leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_random_shapes(variant: Variant) -> None:
    seed = random.randrange(1 << 30)
    draw = random.Random(seed)
    for _ in range(4):
        count, dim, classes = draw.randint(2, 50), draw.randint(1, 80), draw.randint(1, 20)
        x, labels = (
            normal(count, dim, dtype=torch.float32, seed=seed).requires_grad_(),
            classes_of(count, classes, seed),
        )
        centers, wide = normal(classes, dim, dtype=torch.float32, seed=seed + 1), x.detach().double().requires_grad_()
        text = f"{count}x{dim}, {classes} classes, seed {seed}"
        few = labels % dim
        for name, run, formula in (
            ("center", lambda t, y, c: ops.center_loss(t, y, c), center_formula),
            ("triplet", lambda t, y, c: ops.triplet_loss(t, y, 2.0), lambda t, y, c: triplet_formula(t, y, 2.0)),
            ("entropy", lambda t, y, c: ops.cross_entropy(t, y), lambda t, y, c: F.cross_entropy(t, y)),
        ):
            y = few if name == "entropy" else labels
            got, want = run(x, y, centers), formula(wide, y, centers.double())
            assert_close(
                got, want.detach(), "chain", count * dim, name=f"{name} {text}", scale=float(want.detach()) + 10
            )
            got_grad, want_grad = torch.autograd.grad(got, x)[0], torch.autograd.grad(want, wide)[0]
            assert_close(got_grad, want_grad, "chain", count + dim, name=f"gradient of {name} {text}", scale=1.0)


@dtypes
def test_nothing_beside_the_outputs_is_written(kernel_variant: Variant, dtype: torch.dtype) -> None:
    module = Flat(backend.implementation("loss", "cpu"))
    for count, dim, classes in ((3, 5, 2), (17, 33, 4), (9, 16, 9)):
        x, centers, labels = (
            normal(count, dim, dtype=dtype),
            normal(classes, dim, dtype=dtype),
            classes_of(count, classes),
        )
        one = torch.ones((), dtype=dtype)
        with Guarded() as guarded:
            module.center_loss(x, labels, centers)
            module.center_loss_backward(one, x, labels, centers, [True, True])
            _, pairs, slopes = module.triplet_loss_train(x, labels, 1.0)
            module.triplet_loss_backward(one, x, pairs, slopes)
            module.cross_entropy_train(x, labels, None, 0.1)
        guarded.check(at_least=2)
