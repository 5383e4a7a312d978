# SPDX-License-Identifier: Apache-2.0
"""Registration of the ops: the only module that calls ``torch.library``.

An op is called in two ways. When something listens to torch's dispatcher (``torch.compile``, tracing, dispatch modes,
``vmap``, autocast, the profiler, tensor subclasses), through the dispatcher, as any registered op. In plain eager mode
straight to the backend, with gradients by way of a ``torch.autograd.Function``: each of the dispatcher's crossings into
Python turns all arguments into boxed values and back, 45 us of the 170 us that a training step of a small block took.
``torch.export``, and with it ONNX, sees neither, but the op's plain torch; so do torch.func's transforms and forward
mode (`fastfer._transforms`).

An op is called with its signature, a NamedTuple of `fastfer.signatures`; only torch sees its values as a flat list.

Where the backend stores activations in 16 bits (`backend.half_storage`), results that are `Stored` have the dtype of
the activations, and all others, what is kept for backward or belongs to parameters, the dtype that is computed in.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad
from torch.autograd.function import once_differentiable

from fastfer import _checks, _memory, _raw, _transforms, backend
from fastfer._shapes import Shapes
from fastfer._signature import Gradient, Results, Signature

_LIB: Any = torch.library.Library("fastfer", "DEF")  # type: ignore[no-untyped-call]
_OPS: dict[str, Any] = {}
_C: Any = torch._C
_JIT: Any = torch.jit
_HALF = frozenset(_checks.HALF_DTYPES)
Fields = TypeVar("Fields")
Result = TypeVar("Result")


_included, _excluded = _C._dispatch_tls_local_include_set, _C._dispatch_tls_local_exclude_set
_autocasts, _profiles = _C._is_any_autocast_enabled, _C._autograd._profiler_enabled


def _keys() -> tuple[int, int]:
    """The dispatch keys that this thread adds to, and takes from, those of the tensors."""
    return _included().raw_repr(), _excluded().raw_repr()


def _plain_keys() -> frozenset[tuple[int, int]]:
    plain = _keys()
    with torch.inference_mode():
        return frozenset((plain, _keys()))


_PLAIN = _plain_keys()
_recording = threading.local()
_AUTOCAST = _C.DispatchKeySet(_C.DispatchKey.AutocastCPU) | _C.DispatchKeySet(_C.DispatchKey.AutocastCUDA)
_MARK = _C.DispatchKey.NestedTensor
"""Excluded in this thread inside `dispatched`: `_keys` sees it, so that calls outside are not slowed by asking. No op
of this package takes nested tensors."""


def _is_plain() -> bool:
    """Whether nothing but torch's own gradients would see a call to an op."""
    return (
        not torch.compiler.is_compiling()
        and ((keys := _keys()) in _PLAIN or keys == getattr(_recording, "keys", None))
        and not _autocasts()
        and not _profiles()
        and _forward_ad._current_level < 0
    )


@contextmanager
def recorded() -> Iterator[None]:
    """Inside, and inside of the dispatch mode that listens now, this thread's calls go straight to the backend: who
    records a step hears of the kernels themselves, and of what is allocated for them."""
    _recording.keys = _keys()
    try:
        yield
    finally:
        _recording.keys = None


def is_jit_traced() -> bool:
    """Whether ``torch.jit.trace`` listens."""
    return bool(_JIT.is_tracing())


def gradients_on() -> bool:
    """Whether calls keep what backward needs, where a tensor asks for it.

    Under ``torch.jit.trace`` always: its check traces again without gradients, and expects the same calls. Of an op
    without parameters no tensor asks for it in that second trace, so such an op asks `is_jit_traced` itself.
    """
    return torch.is_grad_enabled() or is_jit_traced()


class Op(Generic[Fields, Result]):
    """A registered op: ``registered`` is torch's, calling this object takes the shorter way where it can."""

    __slots__ = (
        "differentiate",
        "family",
        "name",
        "native",
        "ordinary",
        "reference",
        "registered",
        "requires_grad",
        "results",
        "shapes",
        "signature",
    )

    def __init__(self, name: str, family: str, signature: Signature, results: Results) -> None:
        self.name, self.family, self.signature, self.results = name, family, signature, results
        self.shapes = Shapes(name, signature)
        self.native = f"fastfer.backends.native.{family}"
        self.ordinary, self.requires_grad = signature.ordinary, signature.requires_grad
        self.registered: Any = getattr(torch.ops.fastfer, name).default
        self.differentiate: Any = None
        self.reference: Any = getattr(importlib.import_module(f"fastfer.backends.reference.{family}"), name)

    def __call__(self, fields: Fields) -> Result:
        if not _is_plain():
            # Dynamo cannot trace the look at the mark, which only the engine's own tracing sets.
            if not torch.compiler.is_dynamo_compiling() and _C._dispatch_tls_is_dispatch_key_excluded(_MARK):
                return self.dispatched(fields)
            if torch.compiler.is_exporting():  # standard operators only, so that the graph runs without this package
                exported: Result = self.reference(fields)
                return exported
            if not torch.compiler.is_compiling() and _transforms.differentiates(self.signature.tensors(fields)):
                differentiated: Result = self.reference(fields)
                return differentiated
            return self.dispatched(fields)
        x = self.ordinary(fields)
        if x is None:
            return self.dispatched(fields)
        if torch.is_grad_enabled() and self.requires_grad(fields):
            if self.differentiate is None:
                return self.dispatched(fields)
            result = self.differentiate(fields, *self.signature.tensors(fields))
            made: Result = result if self.results.single else self.results.cls(*result)
            return made
        return self.run(x, fields) if x.is_cpu or x.is_cuda else self.dispatched(fields)

    def named(self, result: Any) -> Result:
        """What torch returns, by its names."""
        made: Result = result if self.results.single else self.results.cls(*result)
        return made

    def dispatched(self, fields: Fields) -> Result:
        """Through torch's dispatcher."""
        return self.named(self.registered(*self.signature.flatten(fields)))

    def needs_gradient(self, fields: Fields) -> bool:
        """Whether a call has to keep what backward needs."""
        return gradients_on() and bool(self.requires_grad(fields))

    def run(self, x: Tensor, fields: Fields) -> Result:
        """The active backend's function; ``x`` is the first tensor."""
        functions = backend.implementation(self.family, "cpu" if x.is_cpu else "cuda")
        if x.is_cpu and type(functions) is ModuleType and functions.__name__ != self.native:
            self._look_at_memory(fields)
        function = getattr(functions, self.name)
        if x.dtype in _HALF:
            return self._run_half(function, fields, x.dtype, type(functions) is ModuleType)
        result: Result = function(fields)
        return result

    def _look_at_memory(self, fields: Fields) -> None:
        """ValueError for a tensor whose storage was freed: torch and Numba read from it. The extension looks itself."""
        for leaf, t in zip(self.signature.tensor_leaves, self.signature.tensors(fields), strict=True):
            if t is not None:
                _memory.check_address(self.name, leaf.name, t)

    def _run_half(self, function: Callable[[Fields], Any], fields: Fields, dtype: torch.dtype, plain: bool) -> Result:
        """A call with 16-bit activations. ``plain`` functions know none: they compute in float32, on float32 copies."""
        if not plain:
            return self.typed(function(fields))
        arguments = self.signature.flatten(fields)
        widened = (t.float() if isinstance(t, Tensor) and t.dtype in _HALF else t for t in arguments)
        result = function(self.signature.unflatten(*widened))
        if self.results.single:
            narrow: Result = result.to(dtype)
            return narrow
        values = (t.to(dtype) if stored else t for t, stored in zip(result, self.results.stored, strict=True))
        made: Result = self.results.cls(*values)
        return made

    def typed(self, result: Any) -> Result:
        """Results of 16-bit activations: those that are not `Stored` in float32, empty ones, too."""
        if not self.results.single:
            lifted = (
                t if stored or t.dtype not in _HALF else t.float()
                for t, stored in zip(result, self.results.stored, strict=True)
            )
            result = self.results.cls(*lifted)
        made: Result = result
        return made


@contextmanager
def dispatched() -> Iterator[None]:
    """Every call that this thread makes inside is one of the registered op, which ``torch.export`` and modes see."""
    with _C._ExcludeDispatchKeyGuard(_C.DispatchKeySet(_MARK)):
        yield


def define(
    name: str, family: str, takes: type[Fields], returns: type[Result], fake: Callable[[Fields], Result]
) -> Op[Fields, Result]:
    """Define ``fastfer::<name>``; its body is the function of that name in the active backend's ``family`` module.

    ``takes`` is its signature, ``returns`` a NamedTuple of tensors, or Tensor. Backends and ``fake`` take the one and
    return the other.
    """
    signature, results = Signature(takes), Results(returns)
    _LIB.define(f"{name}({signature.schema}) -> {results.schema}", tags=(torch.Tag.pt2_compliant_tag,))
    op: Op[Fields, Result] = Op(name, family, signature, results)

    check = _raw.checker(name, signature, op.shapes)

    def body(*args: Any) -> Any:
        with _C._ExcludeDispatchKeyGuard(_AUTOCAST):  # what is cast was cast: plain torch is not to cast again
            return op.run(args[0], check(args))

    def typed_fake(*args: Any) -> Any:
        result = fake(signature.unflatten(*args))
        return op.typed(result) if args[0].dtype in _HALF else result

    for device in ("CPU", "CUDA"):
        _LIB.impl(name, body, device)
    torch.library.register_fake(f"fastfer::{name}", typed_fake, lib=_LIB)
    _OPS[name] = op
    return op


def op(name: str) -> Op[Any, Any]:
    """The op ``fastfer::<name>``."""
    found: Op[Any, Any] = _OPS[name]
    return found


def autograd(
    op: Op[Any, Any],
    backward: Callable[[Any], Any],
    takes: Any = None,
    returns: Any = None,
    kept: Callable[[Any, Any], tuple[Any, Any]] | None = None,
) -> None:
    """Attach the gradient: ``backward`` is an op, or a function that takes a signature and returns gradients.

    What it takes and returns says, by names, what is saved and where gradients go (`fastfer._signature`). ``kept`` may
    replace arguments and results before they are saved.

    What ``torch.library.register_autograd`` does, without its ``fill_defaults``: that walks the schema once for each
    argument on each call, 93 us for the 21 arguments of the fused block. The ops have no defaults to fill.
    """
    if isinstance(backward, Op):
        takes, returns = backward.signature.cls, backward.results.cls
        backward.shapes.kept |= frozenset(op.results.names)
    signature, gradient = op.signature, Gradient(op.signature, op.results, Signature(takes), Results(returns))
    save = gradient.save(kept)
    below: Any = _C._AutoDispatchBelowAutograd
    after: Any = _C._after_autograd_keyset

    def forward(ctx: Any, fields: Any, *tensors: Tensor | None) -> Any:
        x = tensors[0]
        assert x is not None
        result = op.run(x, fields) if x.is_cpu or x.is_cuda else op.dispatched(fields)
        save(ctx, fields, result)
        return result

    def forward_below(ctx: Any, keys: Any, *args: Any) -> Any:
        with below():
            result = op.registered.redispatch(keys & after, *args)
        save(ctx, signature.unflatten(*args), op.named(result))
        return result

    # The first input of both is no tensor: the signature, or the dispatch keys.
    eager = {leaf.name: i for i, leaf in enumerate(signature.tensor_leaves, 1)}
    flat = {leaf.name: i for i, leaf in enumerate(signature.leaves, 1)}
    eager_gradient = gradient.function(backward, eager, 1 + len(eager))
    gradient_below = gradient.function(backward, flat, 1 + len(flat))

    # Function.apply looks for torch.func's wrappers among all arguments first: where calls are plain there are none.
    op.differentiate = super(torch.autograd.Function, _function(f"{op.name}_eager", forward, eager_gradient)).apply
    dispatched = _function(f"{op.name}_autograd", forward_below, gradient_below)

    def dispatch(keys: Any, *args: Any) -> Any:
        if _transforms.has_tangent(args):
            raise NotImplementedError(f"torch.ops.fastfer.{op.name}: expected a call of fastfer.ops in forward mode")
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return dispatched.apply(keys, *args)
        with below():
            return op.registered.redispatch(keys & after, *args)

    _LIB.impl(op.name, dispatch, "Autograd", with_keyset=True)


def _function(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Any:
    return type(name, (torch.autograd.Function,), {
        "forward": staticmethod(forward), "backward": staticmethod(once_differentiable(backward))
    })  # fmt: skip


def autocast(op: Op[Any, Any], lower: bool = False) -> None:
    """The op under autocast. All tensors are lifted to float32, except on backends that store activations in 16 bits.

    There the arguments that are `Stored` stay as they are, or with ``lower`` are cast to autocast's dtype, as torch
    does it for products.
    """
    places = {i for i, leaf in enumerate(op.signature.leaves) if leaf.stored}
    for device in ("cpu", "cuda"):
        _autocast_on(op, device, places, lower)


def _autocast_on(op: Any, device: str, places: set[int], lower: bool) -> None:
    key = f"Autocast{device.upper()}"
    off = _C.DispatchKeySet(getattr(_C.DispatchKey, key))

    def cast(i: int, arg: Any, half: bool) -> Any:
        if not isinstance(arg, Tensor) or arg.dtype not in _HALF | {torch.float32} or arg.device.type != device:
            return arg
        if half and i in places:
            return arg.to(torch.get_autocast_dtype(device)) if lower else arg
        return arg.float()

    def kernel(keys: Any, *args: Any) -> Any:
        half = backend.half_storage(device)
        with _C._ExcludeDispatchKeyGuard(off):
            return op.registered(*(cast(i, arg, half) for i, arg in enumerate(args)))

    _LIB.impl(op.name, kernel, key, with_keyset=True)


def registered() -> dict[str, str]:
    """Every op's name and its family."""
    return {name: op.family for name, op in _OPS.items()}


def op_of(name: str) -> Op[Any, Any]:
    """The registered op ``name``."""
    op: Op[Any, Any] = _OPS[name]
    return op
