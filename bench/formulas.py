# SPDX-License-Identifier: Apache-2.0
"""An op beside the same formula in stock PyTorch: forward alone, or forward and the gradients of all leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

import fastfer
from bench.contenders import FASTFER, Problem, compiled
from bench.measure import Runner

CONTENDERS = (*FASTFER, "torch_channels_last", "torch_compile")
Formula = Callable[..., Tensor]


def _results(formula: Formula, leaves: Sequence[Tensor], upstream: Tensor | None) -> tuple[Tensor, ...]:
    """The result, as a row where it is one number, and with ``upstream`` the gradients of the leaves."""
    out = formula(*leaves)
    if upstream is None:
        return (out.reshape(-1) if out.dim() == 0 else out,)
    grads = torch.autograd.grad(out, leaves, upstream)
    return tuple(t.detach().reshape(-1) if t.dim() == 0 else t.detach() for t in (out, *grads))


def problem(
    ours: Formula, stock: Formula, leaves: Sequence[Tensor], upstream: Tensor | None, macs: int, terms: int
) -> Problem:
    """``ours`` and ``stock`` of the same leaves; ``upstream`` None is inference. One copy: this work stays in cache."""
    traffic = sum(t.numel() for t in leaves) * 4 * (1 if upstream is None else 3)

    def oracle() -> list[Tensor]:
        wide = [t.double().requires_grad_(upstream is not None) for t in leaves]
        with fastfer.use("reference"):
            return list(_results(ours, wide, None if upstream is None else upstream.double()))

    def build(name: str) -> Runner:
        copies = [t.clone().requires_grad_(upstream is not None) for t in leaves]
        formula = ours if name in FASTFER else compiled(stock) if name == "torch_compile" else stock
        return lambda slot: _results(formula, copies, upstream)

    mode = torch.no_grad if upstream is None else nullcontext
    return Problem(macs, traffic, terms, 1, mode, oracle, build)
