# SPDX-License-Identifier: Apache-2.0
"""Centre, triplet and cross-entropy loss on CUDA tensors; the functions and kept tensors of `backends.reference.loss`.

Nothing waits for the device: labels in its memory are checked by the kernels, which a wrong one stops, as torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, compute_dtype, type_name
from fastfer.backends.reference.loss import check_labels

THREADS = 256
_SAMPLES = THREADS // 32
"""Samples of a block, where a warp takes one."""


def _labels(op: str, labels: Tensor, classes: int) -> Tensor:
    """``labels`` dense; those on the host are checked at once."""
    if not labels.is_cuda:
        check_labels(op, labels, classes)
    return labels.contiguous()


def _new(like: Tensor, *size: int) -> Tensor:
    """Memory in the compute dtype."""
    return torch.empty(size, dtype=compute_dtype(like), device=like.device)


def center_loss(launch: Launch, features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """½ sum_n |x_n - c_y(n)|²."""
    x, labels, centers = features.contiguous(), _labels("center_loss", labels, len(centers)), centers.contiguous()
    losses = _new(x, len(x), 1)
    name, grid = f"center_fwd<{type_name('center_loss', x)}>", (-(-len(x) // _SAMPLES), 1, 1)
    launch(name, x, grid, THREADS, x, labels, centers, losses, *x.shape, len(centers))
    return norm.column_sums(launch, losses).reshape(()).to(x.dtype)


def center_loss_backward(
    launch: Launch, dloss: Tensor, features: Tensor, labels: Tensor, centers: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of features and centers; those not in ``mask`` are empty."""
    x, labels, centers = features.contiguous(), _labels("center_loss", labels, len(centers)), centers.contiguous()
    dtype = type_name("center_loss", x)
    dx, dcenters = (torch.empty_like(t) if flag else x.new_empty(0) for t, flag in zip((x, centers), mask, strict=True))
    if mask[0]:
        arguments = (x, labels, centers, dloss, dx, dx.numel(), x.shape[1], len(centers))
        launch.strided(f"center_bwd<{dtype}>", x, dx.numel(), THREADS, *arguments)
    if mask[1]:
        arguments = (x, labels, centers, dloss, dcenters, dcenters.numel(), *x.shape, len(centers))
        launch.strided(f"center_bwd_centers<{dtype}>", x, dcenters.numel(), THREADS, *arguments)
    return dx, dcenters


def triplet_loss_train(
    launch: Launch, features: Tensor, labels: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (), hardest positive and negative (N, 2) int64 of each anchor, slopes (N, 2)."""
    x, labels, dtype = features.contiguous(), labels.contiguous(), type_name("triplet_loss", features)
    count = len(x)
    loss, pairs, slopes, distances = x.new_empty(()), labels.new_empty((count, 2)), _new(x, count, 2), _new(x, count, 2)
    launch(f"triplet_pairs<{dtype}>", x, (count, 1, 1), THREADS, x, labels, distances, pairs, *x.shape)
    launch(f"triplet_loss<{dtype}>", x, (1, 1, 1), THREADS, distances, pairs, loss, slopes, count, float(margin))
    return loss, pairs, slopes


def triplet_loss(launch: Launch, features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|)."""
    return triplet_loss_train(launch, features, labels, margin)[0]


def triplet_loss_backward(launch: Launch, dloss: Tensor, features: Tensor, pairs: Tensor, slopes: Tensor) -> Tensor:
    """Gradient of the features (N, D)."""
    x = features.contiguous()
    dx = torch.empty_like(x)
    arguments = (x, pairs, slopes, dloss, dx, dx.numel(), *x.shape)
    launch.strided(f"triplet_bwd<{type_name('triplet_loss', x)}>", x, dx.numel(), THREADS, *arguments)
    return dx


def cross_entropy_train(
    launch: Launch, logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Loss () and its gradient by the logits (N, K)."""
    x, dtype = logits.contiguous(), type_name("cross_entropy", logits)
    soft = target.is_floating_point()
    target = target.contiguous() if soft else _labels("cross_entropy", target, x.shape[1])
    factors = (0 if soft else target, target if soft else 0, 0 if weight is None else weight.contiguous())
    terms, loss, grad = _new(x, len(x), 2), x.new_empty(()), torch.empty_like(x)
    grid, sizes = (-(-len(x) // _SAMPLES), 1, 1), (*x.shape, float(smoothing))
    launch(f"cross_entropy_terms<{dtype}>", x, grid, THREADS, x, *factors, terms, *sizes)
    grid = (max(grid[0], 1), 1, 1)  # the loss of no samples is NaN, as torch's
    launch(
        f"cross_entropy_grad<{dtype}>",
        x,
        grid,
        THREADS,
        x,
        *factors,
        norm.column_sums(launch, terms),
        loss,
        grad,
        *sizes,
    )
    return loss, grad


def cross_entropy(launch: Launch, logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> Tensor:
    """Mean cross-entropy as `torch.nn.functional.cross_entropy`."""
    return cross_entropy_train(launch, logits, target, weight, smoothing)[0]
