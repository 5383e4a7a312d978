# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels compiled at first use, by CuPy, from the headers that nvcc compiles when the package is built.

An instance is compiled for the current device when it is first launched (under a second; CuPy keeps it on disk). That
loads a module: call every op once before capturing a CUDA graph. CuPy always compiles with -ftz=true, so float32
results below 1.2e-38 are zero, which they are not from nvcc.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import re
from pathlib import Path
from typing import Any

import torch

from fastfer.backends.cuda.launch import Launch


@functools.cache
def import_cupy() -> Any:
    """The module ``cupy``; ImportError says which extra brings it."""
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        extra = "cuda12" if (torch.version.cuda or "13").startswith("12") else "cuda13"
        remedy = f"pip install 'fastfer[{extra}]', which brings cupy-{extra}x"
        raise ImportError(f"CuPy could not be imported: {remedy} ({error})") from error


@functools.cache
def include_dir() -> Path:
    """The folder with ``<family>/cuda.cuh``: inside the installed package, or ``csrc`` of a source checkout."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "_include", package.parent / "csrc"):
        if (folder / "cuda" / "device.cuh").is_file():
            return folder
    raise FileNotFoundError(f"no kernel headers: neither {package / '_include'} nor csrc beside it has cuda/device.cuh")


@functools.cache
def header(kernel: str) -> str:
    """The header that has the kernel template of this name, from `include_dir`."""
    declaration = re.compile(rf"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?{kernel}\(")
    for path in sorted(include_dir().glob("*/cuda.cuh")):
        if declaration.search(path.read_text(encoding="utf-8")):
            return path.relative_to(include_dir()).as_posix()
    raise ValueError(f"no header has a kernel {kernel}")


@functools.cache
def source(header: str) -> str:
    """Source text that includes ``header``, with a digest of all headers: CuPy's disk cache does not look into them."""
    digest = hashlib.sha256()
    for path in sorted(include_dir().rglob("*.cuh")):
        digest.update(path.read_bytes())
    return f'// {digest.hexdigest()}\n#include "{header}"\nusing namespace ff::cuda;\n'


def options() -> tuple[str, ...]:
    """Compiler options beside the architecture, which CuPy adds."""
    return "-std=c++17", f"-I{include_dir()}"


@functools.cache
def _function(device: int, kernel: str) -> Any:
    code = source(header(kernel.partition("<")[0]))
    module = import_cupy().RawModule(code=code, options=options(), name_expressions=(kernel,))
    return module.get_function(kernel)


class _Stream:
    """A stream's address behind the protocol that CuPy reads."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@functools.cache
def _cupy_stream(device: int, address: int) -> Any:
    """CuPy's object for a stream of the current device, kept for good: a device's default stream has address 0 on every
    one, and CuPy 14 destroys the stream behind such an object together with it, though it is not CuPy's.
    """
    stream = import_cupy().cuda.Stream
    if hasattr(stream, "from_external"):
        return stream.from_external(_Stream(address))
    return import_cupy().cuda.ExternalStream(address, device)  # CuPy 13


class CupyLaunch(Launch):
    """Kernels compiled when they are first asked for."""

    def run(
        self, kernel: str, device: torch.device, grid: tuple[int, int, int], threads: int, words: tuple[Any, ...]
    ) -> None:
        address = torch.cuda.current_stream(device).cuda_stream
        with import_cupy().cuda.Device(device.index), _cupy_stream(device.index, address):
            _function(device.index, kernel)(grid, (threads,), words)
