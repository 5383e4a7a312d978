# SPDX-License-Identifier: Apache-2.0
"""What the two ways to compiled CUDA kernels share: availability, dtype codes, and the launch on torch's stream.

A loader is an object with one function per kernel, ``kernel(codes..., addresses..., sizes..., stream)``, all ints:
the submodule ``fastfer._C.cuda`` (nvcc) or ``fastfer.cupy.<family>.Kernels`` (CuPy).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""Code of each storage type (csrc/cuda/switch.h); the 16-bit ones compute in float32."""


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
            from fastfer import jit

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


def launch(kernel: Callable[..., None], device: torch.device, *args: int) -> None:
    """``kernel(*args, stream)`` with ``device`` current and torch's current stream there. Does not synchronise."""
    if device.index == torch.cuda.current_device():
        kernel(*args, torch.cuda.current_stream(device).cuda_stream)
    else:
        with torch.cuda.device(device):
            kernel(*args, torch.cuda.current_stream(device).cuda_stream)
