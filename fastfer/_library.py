# SPDX-License-Identifier: Apache-2.0
"""Registration of the ops: the only module that calls ``torch.library``.

``Library.define`` and ``impl`` cost about 2.5 us a call under inference_mode, the ``custom_op`` decorator 4 and more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastfer import backend

_LIB: Any = torch.library.Library("fastfer", "DEF")  # type: ignore[no-untyped-call]
_NAMES: dict[str, str] = {}


def define(schema: str, family: str, fake: Callable[..., Any]) -> Any:
    """Define ``fastfer::<schema>``; its body is the function of that name in the active backend's ``family`` module."""
    name = schema.partition("(")[0]
    _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("cpu", "cuda"):
        _LIB.impl(name, _body(name, family, key), key.upper())
    torch.library.register_fake(f"fastfer::{name}", fake, lib=_LIB)
    _NAMES[name] = family
    return getattr(torch.ops.fastfer, name).default


def _body(name: str, family: str, device: str) -> Callable[..., Any]:
    def body(*args: Any) -> Any:
        return getattr(backend.implementation(family, device), name)(*args)

    return body


def autograd(op: Any, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Attach the gradient; ``setup(ctx, inputs, output)`` saves tensors, ``backward(ctx, *grads)`` calls an op.

    What ``torch.library.register_autograd`` does, without its ``fill_defaults``: that walks the schema once for each
    argument on each call, 93 us for the 21 arguments of the fused block. The ops have no defaults to fill.
    """
    below: Any = torch._C._AutoDispatchBelowAutograd
    after: Any = torch._C._after_autograd_keyset

    def forward(ctx: Any, keys: Any, *args: Any) -> Any:
        with below():
            result = op.redispatch(keys & after, *args)
        setup(ctx, args, result)
        return result

    def gradient(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        try:
            ctx.needs_input_grad = needs[1:]  # without ``keys``
            return (None, *backward(ctx, *grads))
        finally:
            ctx.needs_input_grad = needs

    function: Any = type(f"{op.name()}_autograd", (torch.autograd.Function,), {
        "forward": staticmethod(forward), "backward": staticmethod(gradient)
    })  # fmt: skip

    def dispatch(keys: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            return function.apply(keys, *args)
        with below():
            return op.redispatch(keys & after, *args)

    _LIB.impl(op.name().partition("::")[2], dispatch, "Autograd", with_keyset=True)


def autocast_float32(op: Any) -> None:
    """Under autocast the op's tensors are lifted to float32: kernels have no reduced-precision storage yet."""
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(op.name(), device, torch.float32, lib=_LIB)


def registered() -> dict[str, str]:
    """Every op's name and its family."""
    return dict(_NAMES)
