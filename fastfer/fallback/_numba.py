# SPDX-License-Identifier: Apache-2.0
"""Compilation, threads and arrays of the Numba kernels.

A parallel kernel is a ``prange`` over chunks that are cut by shape alone, and whatever chunks add up is merged in
chunk order: results do not depend on the number of threads.

Threading layer: OpenMP first, since Numba's OpenMP pool binds to the libgomp that torch has loaded and so shares torch's
threads; then TBB; then workqueue, which two Python threads must not enter at once, behind a lock.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfer.backend import num_threads

Array = npt.NDArray[Any]

CHUNKS = 64
"""Chunks that a kernel's work is cut into, at most."""

SERIAL_WORK = 1 << 15
"""Multiply-adds below which waking other threads costs more than it gains; torch's grain size."""

_OPTIONS = {"error_model": "numpy", "nogil": True}
_SOURCES = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in Path(__file__).parent.glob("*.py"))

if not os.environ.get("NUMBA_THREADING_LAYER") and not os.environ.get("NUMBA_THREADING_LAYER_PRIORITY"):
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    """A lazily compiled function, cached on disk where the package or the user's cache folder can be written."""
    try:
        dispatcher = numba.njit(function, cache=True, **_OPTIONS, **options)
    except RuntimeError:  # no writable place
        return numba.njit(function, **_OPTIONS, **options)
    # Numba drops a cached kernel when its own file changes; it also has to go when a file that it calls into does.
    with contextlib.suppress(AttributeError):
        index = dispatcher._cache._cache_file
        index._source_stamp = (index._source_stamp, sorted(_SOURCES))
    return dispatcher


def inline(function: Callable[..., Any]) -> Any:
    """Compile a piece of a kernel that is inlined into its callers."""
    return numba.njit(function, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a piece of a kernel, for other kernels to call."""
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def single(function: Callable[..., Any]) -> Any:
    """Compile a function that runs on the calling thread."""
    return _compiled(function, no_cfunc_wrapper=True)


_setup_lock = threading.Lock()
_workqueue_lock = threading.Lock()
_state = {"guard": None, "forked": False}


def _after_fork() -> None:
    _state["forked"] = True


os.register_at_fork(after_in_child=_after_fork)


def _guard() -> Any:
    """Start Numba's threads and return what a parallel call has to hold."""
    with _setup_lock:
        if _state["guard"] is None:
            # Numba sets OpenMP's thread count, which is torch's too.
            before = torch.get_num_threads()
            numba.np.ufunc.parallel._launch_threads()
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)
            queue = numba.threading_layer() == "workqueue"
            _state["guard"] = _workqueue_lock if queue else contextlib.nullcontext()
    return _state["guard"]


class parallel:  # noqa: N801 - a decorator
    """Compile a function with a ``prange``; call it with the work in multiply-adds, then its arguments.

    The thread count is that of ``fastfer.backend.num_threads()`` within what Numba has; Numba's own setting comes back
    after the call. A forked child runs alone: OpenMP's threads do not survive a fork.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._parallel = _compiled(function, parallel=True, no_cfunc_wrapper=True)
        self._serial: Any = None

    def __call__(self, work: int, *args: Any) -> None:
        if _state["forked"]:
            if self._serial is None:
                self._serial = numba.njit(self._function, **_OPTIONS)
            self._serial(*args)
            return
        with _guard():
            before = numba.get_num_threads()
            threads = min(num_threads(), numba.config.NUMBA_NUM_THREADS) if work > SERIAL_WORK else 1
            numba.set_num_threads(threads)
            try:
                self._parallel(*args)
            finally:
                numba.set_num_threads(before)


def chunks(items: int, work: int, limit: int = CHUNKS) -> int:
    """Number of chunks for ``items`` rows of ``work`` multiply-adds together; from the shape alone."""
    return max(1, min(items, limit, work // SERIAL_WORK + 1))


def flat(x: Tensor) -> Array:
    """A dense tensor's elements in storage order, as a 1-D array without a copy."""
    return x.detach().as_strided((x.numel(),), (1,)).numpy()


def nhwc(x: Tensor) -> Array:
    """Elements of an activation (N, C, H, W) in the order N, H, W, C; no copy when it is dense channels_last."""
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy().reshape(-1)


def image(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """A fresh channels_last (N, channels, height, width) with the N and dtype of ``x``."""
    return torch.empty((x.shape[0], channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)


def buffer(x: Tensor, *shape: int) -> Array:
    """A fresh array of the dtype of ``x``."""
    return np.empty(shape, np.float32 if x.dtype == torch.float32 else np.float64)


_EMPTY = {torch.float32: np.empty(0, np.float32), torch.float64: np.empty(0, np.float64)}


def empty(x: Tensor) -> Array:
    """The array of no elements that stands for an absent argument, of the dtype of ``x``."""
    return _EMPTY[x.dtype]
