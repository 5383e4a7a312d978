# SPDX-License-Identifier: Apache-2.0
"""Whether calling a module would run its class's forward and nothing else.

A fused op takes the tensors of several modules and calls none of them. What somebody put on such a module would be
skipped without a word: a hook (pruning, the old weight and spectral norms and accelerate work by hooks), a forward of
its own, or another class in its place (SyncBatchNorm, a parametrised, wrapped or sharded module). So a module fuses its
parts only where all of them are plain, and otherwise calls them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import nn
from torch.nn.modules import module as _torch

Class = TypeVar("Class", bound=type[nn.Module])
_any_global_hook: Callable[[], bool] = _torch._has_any_global_hook


class _Part(NamedTuple):
    """A submodule whose tensors an op takes: its name, class, that class's forward, and its own parts."""

    name: str
    kind: type[nn.Module]
    forward: Any
    parts: tuple[Any, ...]


_FORWARD: dict[type, Any] = {nn.Linear: nn.Linear.forward, nn.Sequential: nn.Sequential.forward}
"""Classes that an op stands for, and the forward that it computes."""

_PARTS: dict[type, tuple[_Part, ...]] = {nn.Linear: (), nn.Sequential: ()}


def fused(**parts: type[nn.Module]) -> Callable[[Class], Class]:
    """Decorates a class whose forward is one op, with the names and classes of the submodules that the op replaces."""

    def register(cls: Class) -> Class:
        _FORWARD[cls] = cls.forward
        _PARTS[cls] = tuple(_Part(name, kind, _FORWARD[kind], _PARTS[kind]) for name, kind in parts.items())
        return cls

    return register


def _untouched(state: dict[str, Any]) -> bool:
    """Whether a module of this ``__dict__`` has no hooks and no forward of its own."""
    return not (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )


def plain(module: Any) -> bool:
    """Whether the module is exactly of a class registered here, with that class's forward, and nothing hooked on it.

    Hooks that torch calls for every module are asked for by `fuses`.
    """
    cls = type(module)
    return _FORWARD.get(cls) is cls.forward and _untouched(module.__dict__)


def _parts_are_plain(state: dict[str, Any], parts: tuple[_Part, ...]) -> bool:
    """Whether the ``parts`` of the module of this ``__dict__`` are plain; 0.3 us each, in every call of a block."""
    modules = state["_modules"]
    for name, kind, forward, inner in parts:
        part = modules[name] if name in modules else state.get(name)
        if part is None:
            continue
        if type(part) is not kind or kind.forward is not forward:
            return False
        of_part = part.__dict__
        if not _untouched(of_part) or (inner and not _parts_are_plain(of_part, inner)):
            return False
    return True


def fuses(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether ``module``, of ``cls`` or derived from it, may run the op of ``cls`` in place of its parts."""
    return _parts_are_plain(module.__dict__, _PARTS[cls]) and not _any_global_hook()


def replaceable(module: Any) -> bool:
    """Whether an op may run in place of the whole module, parts included."""
    return plain(module) and fuses(module, type(module))


def unseen(module: Any) -> bool:
    """Whether nobody but the caller has seen the tensor that ``module`` just returned.

    No hook has, and no forward of another class; of a sequence the last module is asked, too.
    """
    if not replaceable(module):
        return False
    if isinstance(module, nn.Sequential):
        return len(module) > 0 and unseen(module[-1])
    return True
