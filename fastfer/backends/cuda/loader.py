# SPDX-License-Identifier: Apache-2.0
"""Two ways to the same CUDA kernels: those that nvcc built into the extension, and CuPy, which compiles at first use.

A kernel is named by its template instance as C++ writes it, such as ``activation_fwd<float, Act::relu, 4, 256>``. The
modules ``backends.cuda.<family>`` hold each op once: functions whose first argument is the `Launch` that runs kernels.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastfer._types import compute_dtype as compute_dtype  # what arithmetic on an element is done in
from fastfer.backends.cuda.launch import Launch as Launch

DTYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bf16", torch.float16: "f16"}
"""C++ name of each storage type (csrc/cuda/device.cuh); the 16-bit ones compute in float32."""


def extension() -> Any:
    """The submodule ``fastfer._C.cuda``; ImportError, with the reason, where the package was built without it."""
    kernels = getattr(importlib.import_module("fastfer._C"), "cuda", None)
    if not kernels:
        raise ImportError("the extension was built without CUDA: reinstall with FASTFER_CUDA=on and nvcc on the PATH")
    return kernels


def availability(name: str) -> tuple[bool, str]:
    """Whether "cuda" (nvcc) or "cupy" can run here, and what with or why not."""
    if name not in ("cuda", "cupy"):
        raise ValueError(f"availability: name: expected cuda or cupy, got {name!r}")
    try:
        if name == "cuda":
            built = extension()
        else:
            from fastfer.backends.cuda import jit

            cupy = jit.import_cupy()
            jit.include_dir()
    except (ImportError, FileNotFoundError) as error:
        return False, str(error)
    if not torch.cuda.is_available():
        return False, f"torch {torch.__version__} sees no CUDA device"
    if name == "cupy":
        return True, f"CuPy {cupy.__version__}"
    unsupported = [
        f"sm_{major}{minor}"
        for major, minor in map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
        if not runs_on(built.archs, major, minor)
    ]
    if unsupported:
        return False, f"built for {built.archs}, but the machine has {', '.join(unsupported)}: set FASTFER_CUDA_ARCHS"
    return True, f"nvcc {built.toolkit // 1000}.{built.toolkit // 10 % 100}, {built.archs}"


def runs_on(archs: str, major: int, minor: int) -> bool:
    """Whether code for ``archs`` ("80-real,90a-real,120": CMake's CUDA_ARCHITECTURES) runs on sm_<major><minor>.

    Machine code runs on its own major version from its minor on, PTX on everything later; an "a" or "f" binds both.
    CMake's words (native, all) are taken to cover what is here.
    """
    for arch in archs.split(","):
        number, _, kind = arch.partition("-")
        digits = number.rstrip("af")
        if not digits.isdigit():
            return True
        built = int(digits[:-1]), int(digits[-1])
        if digits != number:
            if built == (major, minor):
                return True
        elif (kind != "virtual" and built[0] == major and built[1] <= minor) or (
            kind != "real" and built <= (major, minor)
        ):
            return True
    return False


class NvccLaunch(Launch):
    """Kernels of ``fastfer._C.cuda``."""

    def run(
        self, kernel: str, device: torch.device, grid: tuple[int, int, int], threads: int, words: tuple[Any, ...]
    ) -> None:
        built, handle = _handle(kernel)
        stream = torch.cuda.current_stream(device).cuda_stream
        if device.index == torch.cuda.current_device():
            built.launch(handle, *grid, threads, words, stream)
        else:
            with torch.cuda.device(device):
                built.launch(handle, *grid, threads, words, stream)


@functools.cache
def _handle(kernel: str) -> tuple[Any, int]:
    built = extension()
    return built, built.handle(kernel)


class Bound:
    """The functions of a family's module with ``launch`` as their first argument."""

    half_storage = True

    def __init__(self, module: ModuleType, launch: Launch) -> None:
        self._module, self._launch = module, launch

    def __getattr__(self, name: str) -> Any:
        function = functools.partial(getattr(self._module, name), self._launch)
        setattr(self, name, function)
        return function


def implementation(name: str, family: str) -> Bound | None:
    """The family's functions by loader "cuda" or "cupy"; None for a family without CUDA kernels."""
    if importlib.util.find_spec(f"fastfer.backends.cuda.{family}") is None:
        return None
    if name == "cuda":
        launch: Launch = NvccLaunch()
    else:
        from fastfer.backends.cuda.jit import CupyLaunch

        launch = CupyLaunch()
    return Bound(importlib.import_module(f"fastfer.backends.cuda.{family}"), launch)


def type_name(op: str, x: Tensor) -> str:
    """C++ name of x's dtype; TypeError for one without kernels."""
    try:
        return DTYPES[x.dtype]
    except KeyError:
        expected = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f"{op}: x: expected dtype {expected}, got {x.dtype}") from None


def product_types(op: str, x: Tensor) -> str:
    """C++ names of x's dtype and of what products round its elements to: the same, or tf32 where torch allows it.

    Torch allows it by ``torch.set_float32_matmul_precision("high")`` or ``torch.backends.cuda.matmul``; what cuDNN is
    allowed does not count, so that float32 is float32 by default.
    """
    name = type_name(op, x)
    rounded = name == "float" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return f"{name}, {'tf32' if rounded else name}"


def lanes(*tensors: Tensor) -> int:
    """Elements that fit into the 16 bytes a thread moves at once where every tensor is aligned to them, else 1."""
    if any(t.data_ptr() % 16 for t in tensors):
        return 1
    return 16 // tensors[0].element_size()


def nhwc(x: Tensor) -> Tensor:
    """``x`` dense in channels_last order: itself, or a copy."""
    dense = (x.shape[1] * x.shape[2] * x.shape[3], 1, x.shape[1] * x.shape[3], x.shape[1])
    if x.stride() == dense:
        return x
    return torch.empty_strided(x.shape, dense, dtype=x.dtype, device=x.device).copy_(x)


def empty_nhwc(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """A new (N, channels, height, width) tensor in channels_last order, of the dtype and device of ``like``."""
    size = (like.shape[0], channels, height, width)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
