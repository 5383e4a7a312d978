# SPDX-License-Identifier: Apache-2.0
"""What a result says about where it was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import fastfer
from bench.contenders import backend_of
from bench.measure import Ceilings, cache_bytes


def allocator() -> str:
    """The glibc setting: "tuned" where freed blocks are kept, "installed" where large ones go back to the kernel."""
    return "tuned" if os.environ.get("MALLOC_MMAP_MAX_") == "0" else "installed"


def isa(contender: str) -> str:
    """Instruction set that a contender's kernels were chosen for."""
    if backend_of(contender) == "native" and fastfer.list_backends()["native"].available:
        from fastfer import _C

        return _C.isa()
    return torch.backends.cpu.get_cpu_capability().lower()


def cpu() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of the packages; empty for one that is missing."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def describe(ceilings: Ceilings, disturbed: list[str]) -> dict[str, Any]:
    """Processor, threads, allocator, versions, measured ceilings, and the cases that other work disturbed."""
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "cache_mib": cache_bytes() >> 20,
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "isa": isa("fastfer_native"),
        "torch_isa": isa("torch"),
        "versions": versions("torch", "numba"),
        "ceilings": asdict(ceilings),
        "disturbed": disturbed,
    }
