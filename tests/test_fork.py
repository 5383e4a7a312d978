# SPDX-License-Identifier: Apache-2.0
"""Forked children: data loader workers that call ops, and children made while a thread holds one of our locks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastfer import backend

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.skipif(not backend.list_backends()["native"].available, reason="no native kernels"),
]
ROOT = Path(__file__).resolve().parents[1]

WORKERS = """
import os, sys
import torch, fastfer
from torch.utils.data import DataLoader
x = torch.randn(2, 16, 64, 64, generator=torch.Generator().manual_seed(0))

def wanted(dtype):
    return fastfer.ops.batch_norm(x.to(dtype), fastfer.ops.Norm(*(torch.ones(16, dtype=dtype) for _ in range(4))))

class Ops(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return wanted((torch.float32, torch.float64)[i % 2]).float()

want = [wanted(torch.float32), wanted(torch.float64).float()]  # starts OpenMP's threads in this process
if sys.argv[1] == "loader":
    got = [batch[0] for batch in DataLoader(Ops(), num_workers=2, multiprocessing_context="fork")]
    assert len(got) == 4 and all(torch.equal(y, want[i % 2]) for i, y in enumerate(got))
else:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # torch's own ops would wait, too
        os._exit(0 if torch.equal(wanted(torch.float32), want[0]) else 1)
    assert os.waitpid(child, 0)[1] == 0
assert torch.equal(wanted(torch.float32), want[0])
print("right")
"""

LOCKS = """
import os, sys, threading
import torch, fastfer
from fastfer import runtime
module = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU()).eval()
x = torch.zeros(1, 1, 24, 24)
fastfer.compile(module, (1, 24, 24)).save(sys.argv[2])
file = open(sys.argv[2], "rb").read()
stop = threading.Event()

def load():
    while not stop.is_set():
        runtime.Engine(file, threads=1)

thread = threading.Thread(target=load)
thread.start()
try:
    for _ in range(int(sys.argv[1])):
        child = os.fork()
        if child == 0:
            runtime.Engine(file, threads=1)(x)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
finally:
    stop.set()
    thread.join()
print("right")
"""


def run(code: str, *arguments: str, seconds: float = 100, **environment: str) -> None:
    """Runs ``code`` in a process of its own, in which a hang is a failure."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=seconds
    )
    assert (result.returncode, result.stdout.strip()) == (0, "right"), result.stderr


@pytest.mark.parametrize("kind", ["child", "loader"])
def test_an_op_in_a_forked_child_runs_alone(kind: str) -> None:
    """With FASTFER_NUM_THREADS=2 it waited for the parent's OpenMP threads, which a child does not have."""
    run(WORKERS, kind, FASTFER_NUM_THREADS="2")


def test_children_forked_while_a_thread_loads_engines(tmp_path: Path) -> None:
    run(LOCKS, "30", str(tmp_path / "engine.ffe"))


@pytest.mark.full
def test_many_children_forked_while_a_thread_loads_engines(tmp_path: Path) -> None:
    run(LOCKS, "1000", str(tmp_path / "engine.ffe"), seconds=500)
