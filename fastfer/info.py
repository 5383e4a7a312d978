# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.info [--json]``: versions, what was built, what this machine has, what runs and why not."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from fastfer import backend

_PACKAGES = (
    "fastfer",
    "torch",
    "numpy",
    "numba",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "safetensors",
    "jsonargparse",
    "torchmetrics",
    "captum",
    "onnx",
    "onnxruntime",
)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name of the CPU, as the operating system gives it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _native() -> dict[str, Any]:
    try:
        module: Any = importlib.import_module("fastfer._C")
    except ImportError as error:
        return {"built": False, "reason": str(error)}
    return {
        "built": True,
        "compiler": module.compiler,
        "cuda": {"architectures": list(module.cuda.archs), "toolkit": module.cuda.toolkit} if module.cuda else None,
        "isas_compiled": module.isas(),
        "isas_detected": module.isas(True),
        "isa_used": module.isa(),
        "openmp_runtime": module.openmp_runtime(),
        "kernels": len(module.kernels()),
    }


def collect() -> dict[str, Any]:
    """Everything the command prints, as plain data."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    return {
        "versions": {name: found for name in _PACKAGES if (found := _version(name))}
        | {"python": platform.python_version()},
        "system": {"platform": platform.platform(), "cpu": cpu_model(), "cores": os.cpu_count()},
        "threads": {
            "used": backend.num_threads(),
            "torch": torch.get_num_threads(),
            "FASTFER_NUM_THREADS": os.environ.get("FASTFER_NUM_THREADS"),
        },
        "native": _native(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in devices],
        "backends": {
            name: {"available": entry.available, "devices": list(entry.devices), "detail": entry.reason}
            for name, entry in backend.list_backends().items()
        },
        "families": {device: backend.plan(device) for device in (("cpu", "cuda") if devices else ("cpu",))},
        "environment": {key: os.environ[key] for key in ("FASTFER_BACKEND", "FASTFER_ISA") if key in os.environ},
    }


def _lines(value: Any, indent: int = 0) -> list[str]:
    pad = "  " * indent
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += [f"{pad}{key}:", *_lines(item, indent + 1)]
        else:
            shown = ", ".join(map(str, item)) or "none" if isinstance(item, list) else item
            lines.append(f"{pad}{key}: {shown}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Prints the report; exit code 2 when a forced backend or ISA cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m fastfer.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    args = parser.parse_args(argv)
    try:
        report = collect()
    except (RuntimeError, ValueError) as error:
        print(f"fastfer.info: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2) if args.json else "\n".join(_lines(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
