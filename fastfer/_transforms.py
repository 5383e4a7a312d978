# SPDX-License-Identifier: Apache-2.0
"""Derivatives that the ops' own backward does not give: torch.func's transforms, and forward mode.

A registered op hides its inside from both. Forward mode would take its outputs for constants, without a word, and
torch.func refuses its backward. So there an op runs as the plain torch of the reference backend, which torch can
differentiate in any way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch: Any = torch._C._functorch
_unpack: Any = forward_ad.unpack_dual


def in_forward_mode() -> bool:
    """Whether the caller is inside of a ``torch.autograd.forward_ad.dual_level``."""
    return forward_ad._current_level >= 0


def _innermost(t: Tensor) -> Tensor:
    """The tensor inside all of torch.func's wrappers."""
    while _functorch.is_functorch_wrapped_tensor(t):
        t = _functorch.get_unwrapped(t)
    return t


def differentiates(tensors: Iterable[object]) -> bool:
    """Whether a transform or forward mode wants derivatives of a call with these tensors."""
    stack = _functorch.get_interpreter_stack() or ()
    kinds = {level.key() for level in stack}
    if kinds & {_functorch.TransformType.Grad, _functorch.TransformType.Jvp}:
        return True
    given = [t for t in tensors if isinstance(t, Tensor)]
    if stack and torch.is_grad_enabled() and any(_innermost(t).requires_grad for t in given):
        return True
    return has_tangent(given)


def has_tangent(tensors: Iterable[object]) -> bool:
    """Whether one of the tensors carries a tangent of forward mode."""
    if not in_forward_mode():
        return False
    return any(_unpack(t).tangent is not None for t in tensors if isinstance(t, Tensor))
