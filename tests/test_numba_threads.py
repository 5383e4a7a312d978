# SPDX-License-Identifier: Apache-2.0
"""The Numba kernels on several threads, in two Python threads, in a forked child, and where Numba is missing."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from flat import Flat
from torch import Tensor

pytest.importorskip("numba", reason="numba is not installed: pip install 'fastfer[numba]'")

from fastfer.backends import numba as fallback
from fastfer.backends.numba import elementwise, separable_conv

elementwise, separable_conv = Flat(elementwise), Flat(separable_conv)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(seed: int) -> list[Tensor]:
    """Results of every kernel on data large enough to be cut into several chunks."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 40, 20, 20, generator=g).contiguous(memory_format=torch.channels_last)
    dw, pw = torch.randn(40, 1, 3, 3, generator=g), torch.randn(40, 40, 1, 1, generator=g)
    n = tuple(torch.rand(40, generator=g) + 0.5 for _ in range(4))
    args = (x, dw, None, *n, 1e-5, 1, pw, None, *n, 1e-5, 3, [1, 1], [1, 1, 1, 1])
    out, y1, y2, s1, s2 = separable_conv.separable_conv2d_train(*args, True)
    grads = separable_conv.separable_conv2d_backward(
        out, x, y1, y2, dw, n[0], n[1], s1, 1, pw, n[0], n[1], s2, 3, [1, 1], [1, 1, 1, 1], True, [True] * 4
    )
    acts = [elementwise.activation(x, 5), elementwise.activation_backward(x, x, 5)]
    return [out, y1, y2, s1, s2, *grads, *acts, separable_conv.separable_conv2d(*args)]


def test_results_do_not_depend_on_the_number_of_threads(threads: Callable[[int], None]) -> None:
    runs = []
    for count in (1, 2, 3):
        threads(count)
        runs.append(everything(1))
        assert torch.get_num_threads() == count
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_calls_from_two_python_threads() -> None:
    want = [everything(seed) for seed in (1, 2)]
    failed: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            if not all(torch.equal(a, b) for a, b in zip(everything(index + 1), want[index], strict=True)):
                failed.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_computes_the_same(threads: Callable[[int], None]) -> None:
    x = torch.randn(2, 64, 24, 24, generator=torch.Generator().manual_seed(0))
    want = elementwise.activation(x, 1)
    child = os.fork()
    if child == 0:
        same = torch.equal(elementwise.activation(x, 1), want) if torch.set_num_threads(1) is None else False
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_import_without_numba_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"fastfer\[numba\]"):
        importlib.reload(fallback)
