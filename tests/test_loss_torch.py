# SPDX-License-Identifier: Apache-2.0
"""Losses as torch ops and modules: gradcheck, opcheck, compilation, autocast, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Variant
from draws import dtypes, normal
from torch import Tensor

from fastfer import nn, ops


def test_gradcheck(cpu_backend: Variant) -> None:
    x, labels = normal(7, 4, dtype=torch.float64).requires_grad_(), torch.tensor([0, 1, 2, 1, 0, 2, 2])
    centers = normal(3, 4, dtype=torch.float64, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, c: ops.center_loss(a, labels, c), (x, centers))
    assert torch.autograd.gradcheck(lambda a: ops.triplet_loss(a, labels, 1.5), x)
    weight = torch.tensor([0.5, 2.0, 1.0, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: ops.cross_entropy(a, labels, weight=weight, label_smoothing=0.2), x)


@dtypes
def test_opcheck(cpu_backend: Variant, dtype: torch.dtype) -> None:
    space, labels = torch.ops.fastfer, torch.tensor([0, 1, 2, 1, 0])
    x, centers = normal(5, 4, dtype=dtype), normal(3, 4, dtype=dtype)
    leaves, one = (x.clone().requires_grad_(), centers.clone().requires_grad_()), torch.ones((), dtype=dtype)
    cpu_backend.opcheck(space.center_loss.default, (leaves[0], labels, leaves[1]))
    cpu_backend.opcheck(space.center_loss_backward.default, (one, x, labels, centers, [True, True]))
    cpu_backend.opcheck(space.center_loss_backward.default, (one, x, labels, centers, [True, False]))
    cpu_backend.opcheck(space.triplet_loss.default, (x, labels, 2.0))
    cpu_backend.opcheck(space.triplet_loss_train.default, (leaves[0], labels, 2.0))
    _, pairs, slopes = space.triplet_loss_train(x, labels, 2.0)
    cpu_backend.opcheck(space.triplet_loss_backward.default, (one, x, pairs, slopes))
    for target in (labels, torch.softmax(x, 1)):
        cpu_backend.opcheck(space.cross_entropy.default, (x, target, None, 0.1))
        cpu_backend.opcheck(space.cross_entropy_train.default, (leaves[0], target, x[0].abs(), 0.1))


def test_compile(cpu_backend: Variant) -> None:
    x, labels, centers = normal(6, 5, dtype=torch.float32), torch.tensor([0, 1, 2, 1, 0, 2]), torch.zeros(3, 5)

    def function(x: Tensor, centers: Tensor) -> Tensor:
        total = ops.center_loss(x, labels, centers) + ops.triplet_loss(x, labels) + ops.cross_entropy(x, labels)
        ops.update_centers_(centers, x.detach(), labels)
        return total

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaf, moved = x.clone().requires_grad_(), centers.clone()
        value = run(leaf, moved)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0], moved))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_autocast_computes_in_float32(cpu_backend: Variant) -> None:
    x, labels = normal(6, 5, dtype=torch.float32).bfloat16().requires_grad_(), torch.tensor([0, 1, 2, 1, 0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        losses = (
            ops.center_loss(x, labels, torch.zeros(3, 5)),
            ops.triplet_loss(x, labels),
            ops.cross_entropy(x, labels, weight=torch.ones(5)),
        )
    assert all(loss.dtype == torch.float32 for loss in losses)
    sum(losses).backward()
    assert x.grad is not None


def test_labels_out_of_range(cpu_backend: Variant) -> None:
    x = torch.zeros(3, 4, requires_grad=True)
    for labels, bad in (([0, 4, 1], 4), ([0, -1, 1], -1)):
        with pytest.raises(IndexError, match=rf"cross_entropy: labels: expected 0 <= label < 4, got {bad}"):
            ops.cross_entropy(x, torch.tensor(labels))
        with pytest.raises(IndexError, match=rf"center_loss: labels: expected 0 <= label < 4, got {bad}"):
            ops.center_loss(x, torch.tensor(labels), torch.zeros(4, 4))
        with pytest.raises(IndexError, match=rf"center_loss: labels: expected 0 <= label < 4, got {bad}"):
            ops.update_centers_(torch.zeros(4, 4), x.detach(), torch.tensor(labels))


LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.center_loss(torch.zeros(2), LABELS, torch.zeros(2, 2)), ValueError, "features: expected 2 dim"),
        (lambda: ops.center_loss(torch.zeros(2, 3), LABELS, torch.zeros(2, 2)), ValueError,
         r"centers: expected shape \(2, 3\), got \(2, 2\)"),
        (lambda: ops.center_loss(torch.zeros(2, 3), LABELS.int(), torch.zeros(2, 3)), TypeError,
         "center_loss: labels: expected dtype int64, got int32"),
        (lambda: ops.update_centers_(torch.zeros(2, 3), torch.zeros(2, 3), LABELS, 1.5), ValueError,
         "update_centers_: alpha: expected 0 <= alpha <= 1, got 1.5"),
        (lambda: ops.triplet_loss(torch.zeros(3, 2), LABELS), ValueError, r"labels: expected shape \(3,\), got \(2,\)"),
        (lambda: ops.triplet_loss(torch.zeros(2, 2), LABELS, -1.0), ValueError, "margin: expected a number >= 0"),
        (lambda: ops.cross_entropy(torch.zeros(2, 0), LABELS), ValueError, "logits: expected at least one class"),
        (lambda: ops.cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4)), ValueError,
         r"labels: expected shape \(2, 3\), got \(2, 4\)"),
        (lambda: ops.cross_entropy(torch.zeros(2, 3), LABELS, weight=torch.zeros(2)), ValueError,
         r"weight: expected shape \(3,\), got \(2,\)"),
        (lambda: ops.cross_entropy(torch.zeros(2, 3), LABELS, label_smoothing=2.0), ValueError,
         "label_smoothing: expected 0 <= label_smoothing <= 1, got 2.0"),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_center_module() -> None:
    module = nn.CenterLoss(3, 4, alpha=0.25)
    assert list(module.state_dict()) == ["centers"]
    assert not list(module.parameters())
    x, labels = normal(6, 4, dtype=torch.float32).requires_grad_(), torch.tensor([0, 1, 2, 1, 0, 2])
    loss = module(x, labels)
    torch.testing.assert_close(loss, 0.5 * x.square().sum())
    want = ops.update_centers_(torch.zeros(3, 4), x.detach(), labels, 0.25)
    assert torch.equal(module.centers, want)
    loss.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, x.detach())
    with torch.no_grad():
        module(x, labels)
    module.eval()(x, labels)
    assert torch.equal(module.centers, want)
    assert repr(module) == "CenterLoss(3, 4, alpha=0.25)"


def test_other_modules() -> None:
    x, labels = normal(6, 4, dtype=torch.float32), torch.tensor([0, 1, 2, 1, 0, 2])
    assert torch.equal(nn.TripletLoss(0.7)(x, labels), ops.triplet_loss(x, labels, 0.7))
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0])
    ours, theirs = (m(weight=weight, label_smoothing=0.1) for m in (nn.CrossEntropyLoss, torch.nn.CrossEntropyLoss))
    torch.testing.assert_close(ours(x, labels), theirs(x, labels))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for build in (
        lambda: nn.TripletLoss(-1),
        lambda: nn.CrossEntropyLoss(label_smoothing=2),
        lambda: nn.CenterLoss(0, 3),
    ):
        with pytest.raises(ValueError, match="expected"):
            build()
