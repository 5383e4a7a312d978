# SPDX-License-Identifier: Apache-2.0
"""`docs/promises.md`: each promise has a test, and the package needs what it says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "promises.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="no docs beside the tests: no checkout")


def test_each_promise_names_its_tests() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rsplit("|", 2)[1])
        assert named, row
        for file, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"{file}::{name}"


def test_what_is_needed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"\W", line)[0] for line in project["dependencies"]} == {"torch", "numpy", "safetensors", "pillow"}
    extras = {"the core": project["dependencies"], **project["optional-dependencies"]}
    del extras["docs"]  # which no user of the library installs
    for extra, needed in extras.items():
        assert not [line for line in needed if re.search(r"tensorflow|==|<|~=", line)], f"{extra}: {needed}"
