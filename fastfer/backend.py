# SPDX-License-Identifier: Apache-2.0
"""Choice of backend per device: the best available one by default, a forced one by ``use`` or ``FASTFER_BACKEND``.

Each backend is a package with one module per op family, all with the same functions; a family that a backend has no
module for runs on ``reference``, and ``plan()`` says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

import torch

from fastfer import _environment

FAMILIES = (
    "elementwise",
    "separable_conv",
    "bottleneck",
    "conv2d",
    "norm",
    "pool",
    "cbam",
    "coordinate",
    "gate",
    "attention",
    "loss",
)
_PACKAGES = {"native": "native", "numba": "numba", "cuda": "cuda", "cupy": "cuda", "reference": "reference"}
_ORDER = {"cpu": ("native", "numba", "reference"), "cuda": ("cuda", "cupy", "reference")}


@dataclass(frozen=True)
class Backend:
    """Whether a backend can run here, and if not, why."""

    name: str
    devices: tuple[str, ...]
    available: bool
    reason: str


def _probe(name: str) -> tuple[bool, str]:
    if name == "reference":
        return True, "plain torch"
    if name == "native":
        try:
            module: Any = importlib.import_module("fastfer._C")
        except ImportError as error:
            return False, f"the extension was not built: {error}"
        return True, f"ISA {module.isa()}"
    if name == "numba":
        found = importlib.util.find_spec("numba") is not None
        return found, "Numba kernels" if found else "numba is not installed: pip install 'fastfer[numba]'"
    launcher: Any = importlib.import_module("fastfer.backends.cuda.loader")
    available, reason = launcher.availability(name)
    return bool(available), str(reason)


def _force_isa(name: str) -> None:
    """FASTFER_ISA: an ISA that this build or CPU lacks is an error, never a quiet change of kernels."""
    available, reason = _probe("native")
    if not available:
        raise RuntimeError(f"FASTFER_ISA={name} was asked for, but the native backend is not available: {reason}")
    _environment.force_isa(importlib.import_module("fastfer._C"), name)


if _ISA := _environment.variable("FASTFER_ISA"):
    _force_isa(_ISA)

_probed: dict[str, Backend] = {}


def _backend(name: str) -> Backend:
    if name not in _probed:
        devices = tuple(device for device, names in _ORDER.items() if name in names)
        _probed[name] = Backend(name, devices, *_probe(name))
    return _probed[name]


def list_backends() -> dict[str, Backend]:
    """Every backend by name, available or not, with the reason."""
    return {name: _backend(name) for name in _PACKAGES}


def _parse(spec: str) -> dict[str, str]:
    """Forced backend per device from "name" or "name,name" (one for each device); empty for "auto"."""
    forced: dict[str, str] = {}
    for name in (part.strip() for part in spec.split(",")):
        if name in ("", "auto"):
            continue
        if name not in _PACKAGES:
            raise ValueError(f"backend: expected one of auto, {', '.join(_PACKAGES)}, got {name!r}")
        entry = _backend(name)
        if not entry.available:
            raise RuntimeError(f"backend {name!r} was asked for but is not available: {entry.reason}")
        forced.update(dict.fromkeys(entry.devices, name))
    return forced


_forced: dict[str, str] | None = None
_resolved: dict[tuple[str, str], Any] = {}
_names: dict[tuple[str, str], str] = {}


def _current() -> dict[str, str]:
    global _forced
    if _forced is None:
        _forced = _parse(_environment.variable("FASTFER_BACKEND") or "auto")
    return _forced


def _set(forced: dict[str, str]) -> None:
    global _forced
    _forced = forced
    _resolved.clear()
    _names.clear()


class use:  # noqa: N801 - a function to its callers
    """Force a backend ("native", "numba", "reference", "cuda", "cupy"; "native,cupy" for both devices) or "auto".

    Takes effect at once, for the whole process; as a context manager the earlier choice comes back at exit.
    Raises ValueError for an unknown name and RuntimeError, with the reason, for one that cannot run here.
    """

    def __init__(self, name: str) -> None:
        self._before = dict(_current())
        _set(_parse(name))

    def __enter__(self) -> use:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _set(self._before)


def implementation(family: str, device: str) -> Any:
    """The functions that run ``family`` on ``device`` ("cpu" or "cuda") now."""
    try:
        return _resolved[family, device]
    except KeyError:
        return _resolve(family, device)


def half_storage(device: str) -> bool:
    """Whether the backend of ``device`` takes 16-bit activations: CUDA kernels and plain torch do, in every family."""
    if device not in _ORDER:
        return False
    functions = implementation(FAMILIES[0], device)
    if type(functions) is ModuleType:
        functions = sys.modules[str(functions.__package__)]
    return bool(getattr(functions, "half_storage", False))


def links(device: str) -> bool:
    """Whether the backend of ``device`` gains where an op leaves its normalisation to the next: the native ones do."""
    return device in _ORDER and bool(getattr(implementation("separable_conv", device), "links", False))


def _load(name: str, family: str) -> Any:
    """The family's functions on the backend; None where it has no module for it."""
    if name in _ORDER["cuda"] and name != "reference":
        return importlib.import_module("fastfer.backends.cuda.loader").implementation(name, family)
    module = f"fastfer.backends.{_PACKAGES[name]}.{family}"
    return importlib.import_module(module) if importlib.util.find_spec(module) is not None else None


def _resolve(family: str, device: str) -> Any:
    forced = _current().get(device)
    for name in (forced, "reference") if forced else _ORDER[device]:
        if not _backend(name).available:
            continue
        functions = _load(name, family)
        if functions is not None:
            _names[family, device] = name
            _resolved[family, device] = functions
            return functions
    raise RuntimeError(f"no backend runs {family} on {device}")


def plan(device: str = "cpu") -> dict[str, str]:
    """Backend that each op family runs on now."""
    for family in FAMILIES:
        implementation(family, device)
    return {family: _names[family, device] for family in FAMILIES}


_ENV_THREADS = _environment.num_threads()


def num_threads() -> int:
    """Threads that CPU kernels use: ``FASTFER_NUM_THREADS``, else ``torch.get_num_threads()``."""
    return _ENV_THREADS or torch.get_num_threads()


def release_memory() -> None:
    """Give the memory that native kernels keep for reuse, and do not use now, back to the system."""
    if _backend("native").available:
        importlib.import_module("fastfer._C").release_memory()
