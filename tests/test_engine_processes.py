# SPDX-License-Identifier: Apache-2.0
"""Engines in copies, other processes, forked children, and threads that the interpreter's exit finds inside one."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import close, logits, network
from torch import Tensor

import fastfer
from fastfer import runtime

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


def call(engine: runtime.Engine, x: Any) -> Any:
    return engine(x)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
def test_copies_answer_alike(way: Any) -> None:
    model, x = network("sepconv_attention")
    engine = fastfer.compile(model, x, threads=1, strict=True, class_names=list("abcdefg"))
    again = way(engine)
    assert (again.threads, again.dtype, again.strict) == (1, "float32", True)
    assert (again.class_names, again.metadata) == (engine.class_names, engine.metadata)
    torch.testing.assert_close(again(x), engine(x), rtol=0, atol=0)


def test_a_loaded_engine_keeps_what_it_was_loaded_as(tmp_path: Path) -> None:
    model, x = network()
    fastfer.compile(model, x, strict=True).save(tmp_path / "m.ffe")
    engine = copy.deepcopy(runtime.load(tmp_path / "m.ffe", strict=False))
    assert (engine.strict, engine.metadata["strict"]) == (False, True)
    close(engine(x), logits(model, x))
    assert engine._asked_threads is None


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.full)])
def test_engines_in_a_process_pool(method: str) -> None:
    model, x = network()
    engine = fastfer.compile(model, x, threads=2)
    want = engine(x)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        for got in pool.map(call, [engine] * 3, [x.numpy()] * 3, timeout=120):
            assert torch.equal(torch.from_numpy(got), want)


def answered(child: int) -> int:
    """The exit status of a child that has to end within a minute."""
    ended = threading.Event()

    def end() -> None:
        if not ended.wait(60):
            os.kill(child, 9)

    watch = threading.Thread(target=end)
    watch.start()
    status = os.waitpid(child, 0)[1]
    ended.set()
    watch.join()
    return os.waitstatus_to_exitcode(status)


def test_children_forked_while_threads_load_and_run_engines(tmp_path: Path) -> None:
    """Each child has a thread less than it knows of, which may have held any lock."""
    model, x = network()
    engine, path = fastfer.compile(model, x, threads=2), tmp_path / "m.ffe"
    engine.save(path)
    want, stop = engine(x), threading.Event()

    def work() -> None:
        while not stop.is_set():
            runtime.load(path, threads=2)(x)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(25):
            child = os.fork()
            if not child:
                same = torch.equal(runtime.load(path, threads=2)(x), want) and torch.equal(engine(x), want)
                os._exit(0 if same else 1)
            assert answered(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_exit_with_threads_inside_an_engine() -> None:
    """Python ends threads that want its lock back while it exits: that must not end in std::terminate."""
    code = """
import threading, time
import numpy as np
import fastfer, torch
layers = [torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(6)]
engine = fastfer.compile(torch.nn.Sequential(*layers).eval(), (32, 56, 56), threads=2)
started = threading.Barrier(4)
def loop():
    x = np.zeros((4, 32, 56, 56), np.float32)
    started.wait()
    while True:
        engine(x)
for _ in range(3):
    threading.Thread(target=loop, daemon=True).start()
started.wait()
time.sleep(0.1)
print("leaving")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(fastfer.__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")


def test_a_tensor_crosses_processes(tmp_path: Path) -> None:
    """What a worker gives back is an ordinary tensor."""
    model, x = network()
    engine = pickle.loads(pickle.dumps(fastfer.compile(model, x, threads=1)))
    y = engine(x)
    assert isinstance(y, Tensor)
    torch.save(y, tmp_path / "y.pt")
    assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), y)
