# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels compiled at first use, by CuPy, from the headers that nvcc compiles when the package is built.

``launch("elementwise/cuda.cuh", "ff::cuda::activation_fwd<float, ff::cuda::Act::relu, 4, 256>", ...)`` compiles that
instance for the current device (under a second; CuPy keeps it on disk) and runs it. The first call of an instance
loads a module: make it before capturing a CUDA graph. CuPy always compiles with -ftz=true, so float32 results below
1.2e-38 are zero, which they are not from nvcc.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from pathlib import Path
from typing import Any

import torch


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
    package = Path(__file__).resolve().parent
    for folder in (package / "_include", package.parent / "csrc"):
        if (folder / "cuda" / "device.cuh").is_file():
            return folder
    raise FileNotFoundError(f"no kernel headers: neither {package / '_include'} nor csrc beside it has cuda/device.cuh")


@functools.cache
def source(header: str) -> str:
    """Source text that includes ``header``, with a digest of all headers: CuPy's disk cache does not look into them."""
    digest = hashlib.sha256()
    for path in sorted(include_dir().rglob("*.cuh")):
        digest.update(path.read_bytes())
    return f'// {digest.hexdigest()}\n#include "{header}"\n'


def options() -> tuple[str, ...]:
    """Compiler options beside the architecture, which CuPy adds."""
    return "-std=c++17", f"-I{include_dir()}"


@functools.cache
def _function(device: int, header: str, expression: str) -> Any:
    module = import_cupy().RawModule(code=source(header), options=options(), name_expressions=(expression,))
    return module.get_function(expression)


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


class _Stream:
    """A stream's address behind the protocol that CuPy reads."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@functools.lru_cache(maxsize=64)
def _cupy_stream(address: int) -> Any:
    stream = import_cupy().cuda.Stream
    if hasattr(stream, "from_external"):
        return stream.from_external(_Stream(address))
    return import_cupy().cuda.ExternalStream(address)  # CuPy 13


def launch(header: str, expression: str, items: int, threads: int, args: tuple[int, ...], stream: int) -> None:
    """Run a grid-stride kernel over ``items`` on ``stream``, on the device of the first argument. Does not synchronise.

    ``expression`` names the template instance; ``args`` are device addresses, the first one valid, and 64-bit sizes. At
    most as many blocks run as the device holds at 2048 threads a multiprocessor.
    """
    # Asked of the address: torch and CuPy each have a CUDA runtime, and a current device in it.
    device = import_cupy().cuda.runtime.pointerGetAttributes(args[0]).device
    blocks = min(-(-items // threads), _multiprocessors(device) * (2048 // threads))
    with import_cupy().cuda.Device(device), _cupy_stream(stream):
        _function(device, header, expression)((blocks,), (threads,), args)
