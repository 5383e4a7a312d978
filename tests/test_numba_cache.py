# SPDX-License-Identifier: Apache-2.0
"""Compiled Numba kernels on disk: a damaged file is compiled again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")
from numba.core.caching import IndexDataCacheFile

from fastfer.backends.numba._cache import SealedFile

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import torch, fastfer
fastfer.use("numba")
x = torch.linspace(-3, 3, 7)
assert torch.equal(fastfer.ops.relu(x), x.clamp(min=0))
print("right")
"""


def sealed(folder: Path, stamp: object = (1.0, 2)) -> Any:
    return SealedFile(IndexDataCacheFile(cache_path=str(folder), filename_base="kernel-1", source_stamp=stamp))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def turned(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, turned, lambda content: b"", lambda content: bytes(len(content))])
def test_a_damaged_file_is_missing(tmp_path: Path, damage: Any) -> None:
    file = sealed(tmp_path)
    assert file.load("key") is None
    file.save("key", ("machine code", 7))
    assert file.load("key") == ("machine code", 7)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert file.load("key") is None
    file.save("key", 8)
    assert file.load("key") == 8


def test_another_key_or_source_is_missing(tmp_path: Path) -> None:
    sealed(tmp_path).save("key", 1)
    assert sealed(tmp_path).load("key") == 1
    assert sealed(tmp_path).load("other") is None
    assert sealed(tmp_path, stamp=(1.0, 3)).load("key") is None
    sealed(tmp_path).flush()
    assert sealed(tmp_path).load("key") is None


@pytest.mark.full
def test_ops_run_with_a_damaged_cache(tmp_path: Path) -> None:
    def run() -> list[Path]:
        result = subprocess.run(
            [sys.executable, "-c", CODE],
            cwd=ROOT,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.stdout.strip() == "right", result.stderr
        return sorted(tmp_path.rglob("*.sealed"))

    files = run()
    assert len(files) >= 2  # the loop over chunks and the kernel
    good = [path.read_bytes() for path in files]
    for damage in (cut, turned):
        for path in files:
            path.write_bytes(damage(path.read_bytes()))
        assert run() == files
        assert [len(path.read_bytes()) for path in files] == [len(content) for content in good]
