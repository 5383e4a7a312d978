# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: a lower room never imports a higher one, and no circle of imports is left."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fastfer

ROOT = Path(fastfer.__file__).resolve().parent
BASE = {
    "fastfer",
    "_cache",
    "_environment",
    "_files",
    "_isa",
    "_lawful_use",
    "_memory",
    "_messages",
    "_types",
    "_version",
}
"""Modules that any room may import; ``fastfer`` itself loads what it offers at the first use of it."""
PLUGINS = {"backends.cuda", "backends.native", "backends.numba", "backends.reference"}

# A room and the rooms below it that it imports. Backends are found by name (``backend.py``), never imported.
ROOMS: dict[str, set[str]] = {
    "signatures": set(),
    "_signature": {"signatures"},
    "_transforms": set(),
    "_processes": set(),
    "backend": set(),
    "_checks": {"backend"},
    "backends.reference": {"_processes", "signatures"},
    "backends.composed": {"backends.reference", "signatures"},
    "backends.native": {"backend", "signatures"},
    "backends.numba": {"backend", "backends.composed", "backends.reference", "signatures"},
    "backends.cuda": {"backends.composed", "backends.reference", "signatures"},
    "_shapes": {"_signature", "signatures"},
    "_raw": {"_checks", "_shapes", "_signature", "backend"},
    "_library": {"_checks", "_raw", "_shapes", "_signature", "_transforms", "backend", "signatures"},
    "ops": {"_checks", "_library", "backend", "signatures"},
    "nn": {"_checks", "backend", "ops"},
    "step": {"_library", "backend"},
    "arrays": {"ops"},
    "weights": set(),
    "models": {"_library", "nn", "weights"},
    "runtime": set(),
    "engine": {"_library", "_signature", "models", "runtime", "signatures", "weights"},
    "_resample": {"runtime"},
    "faces": {"_resample", "runtime"},
    "data": {"_resample", "faces"},
    "predict": {"_resample", "data", "faces", "runtime", "weights"},
    "web": {"data", "faces", "predict", "runtime", "weights"},
    "info": {"backend"},
    "evaluate": {"data", "info", "models", "weights"},
    "explain": {"_checks", "backends.reference", "data", "evaluate", "models", "nn", "signatures"},
    "export": {"data", "models", "weights"},
    "recipes": {"data"},
    "train": {
        "_library",
        "_processes",
        "backend",
        "data",
        "engine",
        "evaluate",
        "faces",
        "models",
        "nn",
        "ops",
        "recipes",
        "step",
        "weights",
    },
    "tables": {"data", "evaluate", "models", "train"},
    "figures": {"data", "evaluate", "tables"},
    "publish": {"data", "engine", "evaluate", "figures", "models", "weights"},
}


@cache
def modules() -> dict[str, Path]:
    """Modules of the package by their name without ``fastfer.``; the package itself is ``fastfer``."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "fastfer"] = path
    return found


def at_import(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run when the module is imported: none inside of a function or of ``TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import(node)


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of the package that ``module`` imports."""
    found = set()
    for node in at_import(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            own = name.removeprefix("fastfer.") if name.startswith("fastfer.") else name
            if own != "fastfer" and not name.startswith("fastfer."):
                continue
            while own not in modules() and "." in own:
                own = own.rpartition(".")[0]
            found.add(own if own in modules() else "fastfer")
    return frozenset(found - {module})


def room(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "backends" else parts[0]


def circle(graph: dict[str, frozenset[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := search(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := search(name, []))), [])


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_lower_rooms_only(module: str) -> None:
    own = room(module)
    if own in BASE or own == "backends":
        allowed: set[str] = set()
    else:
        assert own in ROOMS, f"{module}: a new room: say in ROOMS what it may import"
        allowed = ROOMS[own] | {own}
    wrong = sorted(name for name in imports(module) if room(name) not in allowed | BASE)
    assert not wrong, f"{module} imports {', '.join(wrong)}"


def test_rooms_are_ordered() -> None:
    """Each room stands after those that it imports."""
    order = list(ROOMS)
    for name, lower in ROOMS.items():
        late = {other for other in lower if order.index(other) > order.index(name)}
        assert not late, f"{name}: {sorted(late)}"


def test_nothing_imports_a_backend_but_the_backends_and_explanations() -> None:
    importers = {room(m) for m in modules() for name in imports(m) if room(name) in PLUGINS and room(m) != room(name)}
    assert importers <= {"backends.composed", "backends.cuda", "backends.numba", "backends.reference", "explain"}


def test_no_circle_is_left() -> None:
    assert not circle({module: imports(module) for module in modules()})


def test_circles_are_found() -> None:
    graph = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"b"}), "d": frozenset()}
    assert circle(graph) == ["b", "c", "b"]


def test_imports_are_read() -> None:
    assert "signatures.fields" in imports("signatures.norm")
    assert "backend" in imports("_library")
    assert not {name for name in imports("backend") if name.startswith("backends")}
