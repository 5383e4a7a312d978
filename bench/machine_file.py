# SPDX-License-Identifier: Apache-2.0
"""One JSON file a machine, ``results/<machine>.json``: what was measured there, each row with its date and its quiet.

``ratios`` are comparisons with peers, ``steps`` the steps of plans beside the ceilings of the same run, ``growth`` cost
as work grows. A later run replaces the rows that it measures anew and leaves the others.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import fastfer
from bench.machine import cpu, versions
from bench.measure import QuietCheck, cache_bytes

FOLDER = Path(__file__).parent / "results"
KEYS = {
    "ratios": ("network", "batch", "threads", "dtype"),
    "steps": ("network", "threads", "dtype"),
    "growth": ("axis", "network", "value", "batch", "threads"),
}
"""What tells the rows of a part apart."""
Row = dict[str, Any]
T = TypeVar("T")


def _model() -> str:
    """Family and model of an x86 processor: virtual machines name two generations alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family, model = found.get("cpu family"), found.get("model")
    return f"family {family} model {model}" if family and model else ""


def describe() -> dict[str, Any]:
    """The machine and the versions that were measured."""
    return {
        "cpu": cpu(),
        "model": _model(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "cache_mib": cache_bytes() >> 20,
        "isa": fastfer.runtime.native().isa(),
        "versions": versions("torch", "numpy", "onnxruntime", "openvino"),
    }


def name(machine: dict[str, Any]) -> str:
    """The stem of its file."""
    words = f"{machine['cpu']} {machine['model']} {machine['isa']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def identity(machine: dict[str, Any]) -> tuple[Any, ...]:
    """What two files must share for their times to be of the same machine."""
    return tuple(machine.get(key) for key in ("cpu", "model", "cores", "isa"))


def read(path: Path) -> dict[str, Any]:
    """A machine's file, or one of ``bench.engine`` and ``bench.engine_zoo`` as such; ValueError for another."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not ("machine" in content or "results" in content):
        raise ValueError(f"{path}: expected a file of bench.claims or bench.engine")
    if "machine" in content:
        return content
    quiet = {"others": content.get("others", 0.0), "stolen": content.get("stolen", 0.0)}
    rows = [{**row, **quiet} for row in content["results"]]
    return {"machine": {"cpu": content["cpu"], "versions": {}}, "ratios": rows}


def merged(old: Iterable[Row], new: Iterable[Row], keys: tuple[str, ...]) -> list[Row]:
    """The rows of both; a new one takes the place of an old one with the same keys."""
    rows = {tuple(row[key] for key in keys): row for row in (*old, *new)}
    return list(rows.values())


def highest(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Ceilings of both, the higher of each: other work can only lower what a run measures."""
    both = {count: {**old.get(count, {}), **new.get(count, {})} for count in (*old, *new)}
    return {
        count: {kind: max(found.get(count, {}).get(kind, 0.0) for found in (old, new)) for kind in kinds}
        for count, kinds in both.items()
    }


def update(path: Path, machine: dict[str, Any], ceilings: dict[str, Any], parts: dict[str, list[Row]]) -> None:
    """Merge rows into the file; ValueError where it is another machine's."""
    content: dict[str, Any] = {"machine": machine}
    if path.is_file():
        content = json.loads(path.read_text())
        if identity(content["machine"]) != identity(machine):
            raise ValueError(f"{path}: measured on {name(content['machine'])}, and this is {name(machine)}")
        content["machine"] = machine
    content["ceilings"] = highest(content.get("ceilings", {}), ceilings)
    for part, rows in parts.items():
        content[part] = merged(content.get(part, []), rows, KEYS[part])
    partial = path.with_name(path.name + ".partial")
    partial.write_text(_text(content))
    os.replace(partial, path)


def _text(content: dict[str, Any]) -> str:
    """JSON with one row a line, so that a diff shows which rows changed."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(_short(row))}" for row in value)
            lines.append(f' "{key}": [\n{rows}\n ]')
        else:
            lines.append(f' "{key}": {json.dumps(_short(value))}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _short(value: Any) -> Any:
    """Numbers to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, (list, tuple)) else value


def is_disturbed(row: Row) -> bool:
    """Whether others had a tenth of a core, or the host stole a tenth of the time, while it was measured."""
    return max(row.get("others", 0.0), row.get("stolen", 0.0)) > QuietCheck.LIMIT


def quietly(measure: Callable[[], T], attempts: int) -> tuple[T, Row]:
    """What ``measure`` gives, and how quiet the machine was; where it was not, again, and the quietest of all."""
    found: list[tuple[float, T, Row]] = []
    for number in range(1, attempts + 1):
        check = QuietCheck()
        value = measure()
        others, stolen = check.read()
        facts = {"others": others, "stolen": stolen, "attempts": number, "date": str(date.today())}
        found.append((max(others, stolen), value, facts))
        if not is_disturbed(facts):
            break
    _, value, facts = min(found, key=lambda one: one[0])
    return value, {**facts, "attempts": len(found)}
