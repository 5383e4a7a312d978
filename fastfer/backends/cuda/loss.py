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
from fastfer.signatures.loss import (
    Center,
    CenterBackward,
    CenterGradients,
    Entropy,
    EntropyTrained,
    Triplet,
    TripletBackward,
    TripletTrained,
)

THREADS = 256
_SAMPLES = THREADS // 32
"""Samples of a block, where a warp takes one."""


def _labels(op: str, labels: Tensor, classes: int) -> Tensor:
    """``labels`` dense; those on the host are checked at once."""
    if labels.is_cpu:
        check_labels(op, labels, classes)
    return labels.contiguous()


def _new(like: Tensor, *size: int) -> Tensor:
    """Memory in the compute dtype."""
    return torch.empty(size, dtype=compute_dtype(like), device=like.device)


def center_loss(launch: Launch, a: Center) -> Tensor:
    """½ sum_n |x_n - c_y(n)|²."""
    x, centers = a.features.contiguous(), a.centers.contiguous()
    labels = _labels("center_loss", a.labels, len(centers))
    losses = _new(x, len(x), 1)
    name, grid = f"center_fwd<{type_name('center_loss', x)}>", (-(-len(x) // _SAMPLES), 1, 1)
    launch(name, x, grid, THREADS, x, labels, centers, losses, *x.shape, len(centers))
    return norm.column_sums(launch, losses).reshape(()).to(x.dtype)


def center_loss_backward(launch: Launch, a: CenterBackward) -> CenterGradients:
    """Gradients of features and centers."""
    x, centers, dtype = a.features.contiguous(), a.centers.contiguous(), type_name("center_loss", a.features)
    labels = _labels("center_loss", a.labels, len(centers))
    dx = torch.empty_like(x) if a.needs.features else x.new_empty(0)
    dcenters = torch.empty_like(centers) if a.needs.centers else x.new_empty(0)
    if a.needs.features:
        arguments = (x, labels, centers, a.d_out, dx, dx.numel(), x.shape[1], len(centers))
        launch.strided(f"center_bwd<{dtype}>", x, dx.numel(), THREADS, *arguments)
    if a.needs.centers:
        arguments = (x, labels, centers, a.d_out, dcenters, dcenters.numel(), *x.shape, len(centers))
        launch.strided(f"center_bwd_centers<{dtype}>", x, dcenters.numel(), THREADS, *arguments)
    return CenterGradients(dx, dcenters)


def triplet_loss_train(launch: Launch, a: Triplet) -> TripletTrained:
    """Loss, hardest positive and negative of each anchor, slopes."""
    x, labels, dtype = a.features.contiguous(), a.labels.contiguous(), type_name("triplet_loss", a.features)
    count = len(x)
    loss, pairs, slopes, distances = x.new_empty(()), labels.new_empty((count, 2)), _new(x, count, 2), _new(x, count, 2)
    launch(f"triplet_pairs<{dtype}>", x, (count, 1, 1), THREADS, x, labels, distances, pairs, *x.shape)
    launch(f"triplet_loss<{dtype}>", x, (1, 1, 1), THREADS, distances, pairs, loss, slopes, count, float(a.margin))
    return TripletTrained(loss, pairs, slopes)


def triplet_loss(launch: Launch, a: Triplet) -> Tensor:
    """Mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|)."""
    return triplet_loss_train(launch, a).loss


def triplet_loss_backward(launch: Launch, a: TripletBackward) -> Tensor:
    """Gradient of the features (N, D)."""
    x = a.features.contiguous()
    dx = torch.empty_like(x)
    arguments = (x, a.pairs, a.slopes, a.d_loss, dx, dx.numel(), *x.shape)
    launch.strided(f"triplet_bwd<{type_name('triplet_loss', x)}>", x, dx.numel(), THREADS, *arguments)
    return dx


def cross_entropy_train(launch: Launch, a: Entropy) -> EntropyTrained:
    """Loss and its derivative by the logits."""
    x, dtype, soft = a.logits.contiguous(), type_name("cross_entropy", a.logits), a.target.is_floating_point()
    target = a.target.contiguous() if soft else _labels("cross_entropy", a.target, x.shape[1])
    factors = (0 if soft else target, target if soft else 0, 0 if a.weight is None else a.weight.contiguous())
    terms, loss, slopes = _new(x, len(x), 2), x.new_empty(()), torch.empty_like(x)
    grid, sizes = (-(-len(x) // _SAMPLES), 1, 1), (*x.shape, float(a.smoothing))
    launch(f"cross_entropy_terms<{dtype}>", x, grid, THREADS, x, *factors, terms, *sizes)
    grid = (max(grid[0], 1), 1, 1)  # the loss of no samples is NaN, as torch's
    arguments = (x, *factors, norm.column_sums(launch, terms), loss, slopes, *sizes)
    launch(f"cross_entropy_grad<{dtype}>", x, grid, THREADS, *arguments)
    return EntropyTrained(loss, slopes)


def cross_entropy(launch: Launch, a: Entropy) -> Tensor:
    """Mean cross-entropy as `torch.nn.functional.cross_entropy`."""
    return cross_entropy_train(launch, a).loss
