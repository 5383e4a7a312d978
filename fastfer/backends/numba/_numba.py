# SPDX-License-Identifier: Apache-2.0
"""Compilation, arguments and threads of the Numba kernels.

A kernel is a function of a chunk number. Chunks are cut by shape alone, and whatever they add up is merged in chunk
order, so results do not depend on the number of threads. Each kernel compiles once per dtype to a C callback, and one
``prange`` loop calls them all: a parallel function for every kernel took three to five times as long to compile.

Threading layer: OpenMP first, since Numba's OpenMP pool binds to the libgomp that torch has loaded and so shares
torch's threads; then TBB; then workqueue, which two Python threads must not enter at once, behind a lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numba as typed_numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import prange
from numba.core import ccallback
from numba.np.ufunc import parallel
from torch import Tensor

from fastfer.backend import num_threads
from fastfer.backends.numba._cache import seal
from fastfer.backends.numba._span import SpanType, intrinsic, make_span

# Numba's annotations leave out many of its options.
numba: Any = typed_numba
types: Any = numba.types
Array = npt.NDArray[Any]
Pointer = Any
"""The packed arguments of a kernel, for ``arguments``; its Numba type carries the dtype."""

CHUNKS = 64
"""Chunks that a kernel's work is cut into, at most."""

SERIAL_WORK = 1 << 15
"""Multiply-adds below which waking other threads costs more than it gains; torch's grain size."""

_OPTIONS = {"error_model": "numpy", "nogil": True}
_DTYPES = {torch.float32: types.float32, torch.float64: types.float64}
_VERSION = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
_VERSION.update(llvm.get_host_cpu_name().encode())

if not os.environ.get("NUMBA_THREADING_LAYER") and not os.environ.get("NUMBA_THREADING_LAYER_PRIORITY"):
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def inline(function: Callable[..., Any]) -> Any:
    """Compile a piece of a kernel that is inlined into its callers."""
    return numba.njit(function, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)


def piece(function: Callable[..., Any]) -> Any:
    """Compile a piece of a kernel, for kernels to call."""
    return numba.njit(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)


@intrinsic
def arguments(typingctx: Any, pointer: Any, codes: Any) -> Any:
    """``arguments(pointer, "FDLi")``: a kernel's arguments as a tuple.

    Codes: F a span of the kernel's dtype, D of float64, L of int64, I of int32, B of uint8, 2 slots each, address and
    elements; i an integer.
    """
    spans = {"F": SpanType(pointer.dtype), "D": SpanType(types.float64), "L": SpanType(types.int64)}
    spans |= {"I": SpanType(types.int32), "B": SpanType(types.uint8)}
    kinds = [spans.get(code, types.int64) for code in codes.literal_value]
    result = types.Tuple(kinds)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(64)
        slots = builder.bitcast(args[0], word.as_pointer())
        total = sum(1 if kind == types.int64 else 2 for kind in kinds)
        words = iter([builder.load(builder.gep(slots, [ir.Constant(word, k)])) for k in range(total)])
        values = [
            next(words) if kind == types.int64 else make_span(context, builder, kind, next(words), next(words))
            for kind in kinds
        ]
        return context.make_tuple(builder, result, values)

    return result(pointer, codes), codegen


@intrinsic
def _call(typingctx: Any, address: Any, context_address: Any, i: Any) -> Any:
    """Call the kernel at ``address`` with its arguments and a chunk number."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kernel_type = ir.FunctionType(ir.VoidType(), [word, word])
        builder.call(builder.inttoptr(args[0], kernel_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), codegen


def _named(function: Callable[..., Any], suffix: str) -> Callable[..., Any]:
    """The function under a name, and so a cache file, of its own for these sources, this CPU and ``suffix``.

    Numba drops a cached kernel when its own file changes, not when one that it calls into does.
    """
    name = f"{function.__name__}_{suffix}_{_VERSION.hexdigest()[:12]}"
    copy = FunctionType(function.__code__, function.__globals__, name)
    copy.__module__, copy.__qualname__ = function.__module__, name
    return copy


def _serial(address: int, context: int, count: int) -> None:
    for i in range(count):
        _call(address, context, i)


def _parallel(address: int, context: int, count: int) -> None:
    for i in prange(count):
        _call(address, context, np.int64(i))


def _cached(function: Callable[..., Any], **options: Any) -> Any:
    """Compile at first use, kept on disk where the package's or the user's cache folder can be written."""
    function = _named(function, "loop")
    compiled = numba.njit(function, no_cfunc_wrapper=True, **_OPTIONS, **options)
    with contextlib.suppress(RuntimeError):  # no writable place
        compiled.enable_caching()
        seal(compiled)
    return compiled


_serial_loop, _parallel_loop = _cached(_serial), _cached(_parallel, parallel=True)
_lock = threading.RLock()
_workqueue_lock = threading.Lock()
_state: dict[str, Any] = {"guard": None, "forked": False}


def _after_fork() -> None:
    _state["forked"] = True


os.register_at_fork(after_in_child=_after_fork)


def _guard() -> Any:
    """Start Numba's threads, once, and return what a parallel call has to hold."""
    with _lock:
        if _state["guard"] is None:
            # Numba sets OpenMP's thread count, which is torch's too.
            before = torch.get_num_threads()
            threads: Any = parallel
            threads._launch_threads()
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)
            queue = numba.threading_layer() == "workqueue"
            _state["guard"] = _workqueue_lock if queue else contextlib.nullcontext()
    return _state["guard"]


def _run(address: int, context: int, count: int, work: int) -> None:
    """Call a kernel for every chunk. A forked child runs alone, since OpenMP's threads do not survive a fork."""
    threads = min(num_threads(), count, numba.config.NUMBA_NUM_THREADS)
    if threads == 1 or work <= SERIAL_WORK or _state["forked"]:
        _serial_loop(address, context, count)
        return
    with _guard():
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            _parallel_loop(address, context, count)
        finally:
            numba.set_num_threads(before)


class kernel:  # noqa: N801 - a decorator
    """A kernel ``f(pointer, i)`` that works on chunk ``i``; compiled per dtype at its first launch."""

    def __init__(self, function: Callable[[Pointer, int], None]) -> None:
        self._function = function
        self._callbacks: dict[torch.dtype, Any] = {}

    def _compile(self, dtype: torch.dtype) -> Any:
        with _lock:
            if dtype not in self._callbacks:
                signature = types.void(types.CPointer(_DTYPES[dtype]), types.int64)
                function = _named(self._function, str(_DTYPES[dtype]))
                callback: Any = ccallback.CFunc(function, (signature.args, signature.return_type), {}, _OPTIONS)
                with contextlib.suppress(RuntimeError):  # no writable place
                    callback.enable_caching()
                    seal(callback)
                callback.compile()
                self._callbacks[dtype] = callback
        return self._callbacks[dtype]

    def __call__(self, dtype: torch.dtype, count: int, work: int, *args: Tensor | Array | int | None) -> None:
        """Run chunks 0 .. ``count``, ``work`` multiply-adds together; arguments in the order of the kernel's codes.

        Tensors and arrays are dense and pass their storage; None passes an array of no elements.
        """
        callback = self._callbacks.get(dtype) or self._compile(dtype)
        slots: list[int] = []
        for arg in args:
            if arg is None:
                slots += (0, 0)
            elif isinstance(arg, Tensor):
                slots += (arg.data_ptr(), arg.numel())
            elif isinstance(arg, np.ndarray):
                slots += (arg.ctypes.data, arg.size)
            else:
                slots.append(arg)
        packed = (ctypes.c_int64 * len(slots))(*slots)
        _run(callback.address, ctypes.addressof(packed), count, work)


def chunks(items: int, work: int, limit: int = CHUNKS) -> int:
    """Number of chunks for ``items`` rows of ``work`` multiply-adds together; from the shape alone."""
    return max(1, min(items, limit, work // SERIAL_WORK + 1))


def nhwc(x: Tensor) -> Tensor:
    """``x`` (N, C, H, W) with its elements in the order N, H, W, C; itself where it is dense channels_last."""
    return x.contiguous(memory_format=torch.channels_last)


def image(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """A fresh channels_last (N, channels, height, width) with the N and dtype of ``x``."""
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
