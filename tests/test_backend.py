# SPDX-License-Identifier: Apache-2.0
"""Choice of backend: by function, context manager and environment; unknown, missing, and what runs where."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
import torch
from conftest import CPU_BACKENDS
from interpreter import python

import fastfer
from fastfer import backend


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with fastfer.use("auto"):
        yield


def best() -> str:
    return next(name for name in CPU_BACKENDS if backend.list_backends()[name].available)


def unavailable(monkeypatch: pytest.MonkeyPatch, name: str, reason: str = "not here") -> None:
    before = backend.list_backends()[name]
    monkeypatch.setitem(backend._probed, name, backend.Backend(name, before.devices, False, reason))


def test_every_backend_is_listed_with_a_reason() -> None:
    listed = fastfer.list_backends()
    assert set(listed) == {"native", "numba", "reference", "cuda", "cupy"}
    for name, entry in listed.items():
        assert entry.name == name
        assert entry.reason
        assert set(entry.devices) <= {"cpu", "cuda"}
    assert listed["reference"].available


def test_plan_is_the_best_available() -> None:
    plan = backend.plan()
    assert tuple(plan) == backend.FAMILIES
    assert plan["elementwise"] == plan["separable_conv"] == best()
    assert set(plan.values()) <= set(CPU_BACKENDS)


def test_use_as_function() -> None:
    fastfer.use("reference")
    assert set(backend.plan().values()) == {"reference"}
    fastfer.use("auto")
    assert backend.plan()["elementwise"] == best()


def test_use_as_context_manager() -> None:
    with fastfer.use("reference"):
        with fastfer.use("auto"):
            assert backend.plan()["elementwise"] == best()
        assert backend.plan()["elementwise"] == "reference"
    assert backend.plan()["elementwise"] == best()


def test_context_manager_restores_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), fastfer.use("reference"):
        raise ZeroDivisionError
    assert backend.plan()["elementwise"] == best()


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_forced_backend_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fastfer.list_backends()[name].available:
        pytest.skip(fastfer.list_backends()[name].reason)
    called = []
    with fastfer.use(name):
        for other in CPU_BACKENDS:
            if fastfer.list_backends()[other].available:
                with fastfer.use(other):
                    module = backend.implementation("elementwise", "cpu")
                original = module.activation
                monkeypatch.setattr(module, "activation", lambda *a, o=other, f=original: (called.append(o), f(*a))[1])
        fastfer.ops.relu(torch.ones(3))
    assert called == [name]


def test_family_without_module_runs_on_reference() -> None:
    for name in CPU_BACKENDS:
        if fastfer.list_backends()[name].available:
            with fastfer.use(name):
                assert backend.plan()["cbam"] in (name, "reference")


@pytest.mark.parametrize("name", ["openvino", "Native", "native,gpu"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"backend: expected one of auto, native, numba, cuda, cupy, reference, got '(openvino|Native|gpu)'",
    ):
        fastfer.use(name)
    assert backend.plan()["elementwise"] == best()


def test_missing_backend_raises_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable(monkeypatch, "numba", "numba is not installed: pip install 'fastfer[numba]'")
    with pytest.raises(
        RuntimeError, match=r"backend 'numba' was asked for but is not available: numba is not installed"
    ):
        fastfer.use("numba")
    assert backend.plan()["elementwise"] == best()


def test_automatic_choice_falls_back_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable(monkeypatch, "native")
    backend._set({})
    rest = next(name for name in ("numba", "reference") if backend.list_backends()[name].available)
    assert backend.plan()["elementwise"] == rest
    unavailable(monkeypatch, "numba")
    backend._set({})
    assert set(backend.plan().values()) == {"reference"}


def test_one_name_for_each_device() -> None:
    fastfer.use("reference,reference")
    assert set(backend.plan().values()) == {"reference"}


def test_environment() -> None:
    code = "import fastfer, json; from fastfer import backend; print(json.dumps(backend.plan()))"
    run = python(code, FASTFER_BACKEND="reference")
    assert set(json.loads(run.stdout).values()) == {"reference"}
    run = python(code)
    assert json.loads(run.stdout)["elementwise"] == best()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FASTFER_BACKEND": "fast"}, "ValueError: backend: expected one of auto, .* got 'fast'"),
        ({"FASTFER_NUM_THREADS": "0"}, "ValueError: FASTFER_NUM_THREADS: expected an integer of 1 to \\d+, got '0'"),
        (
            {"FASTFER_NUM_THREADS": "two"},
            "ValueError: FASTFER_NUM_THREADS: expected an integer of 1 to \\d+, got 'two'",
        ),
    ],
)
def test_bad_environment(environment: dict[str, str], message: str) -> None:
    import re

    run = python("import fastfer; fastfer.backend.plan()", **environment)
    assert run.returncode != 0
    assert re.search(message, run.stderr), run.stderr


@pytest.mark.parametrize(
    "code", ["import fastfer; from fastfer import runtime", "from fastfer import runtime; import fastfer"]
)
def test_an_empty_variable_counts_as_not_set(code: str) -> None:
    names = ("FASTFER_BACKEND", "FASTFER_ISA", "FASTFER_NUM_THREADS", "FASTFER_HUGE_PAGES")
    code += "; runtime.default_threads(); import torch; fastfer.ops.relu(torch.ones(3))"
    run = python(code, **dict.fromkeys(names, ""))
    assert run.returncode == 0, run.stderr


def test_missing_backend_in_the_environment_raises() -> None:
    """As on a machine without Numba: its import is blocked."""
    code = "import sys; sys.modules['numba'] = None\nimport importlib.util as u; f = u.find_spec\n"
    code += "u.find_spec = lambda n, *a: None if n == 'numba' else f(n, *a)\nimport fastfer; fastfer.backend.plan()"
    run = python(code, FASTFER_BACKEND="numba")
    assert run.returncode != 0
    assert "RuntimeError: backend 'numba' was asked for but is not available: numba is not installed" in run.stderr


def test_threads(threads: None) -> None:
    torch.set_num_threads(3)
    expected = int(os.environ.get("FASTFER_NUM_THREADS", "3"))
    assert backend.num_threads() == expected
    run = python("from fastfer import backend; print(backend.num_threads())", FASTFER_NUM_THREADS="5")
    assert run.stdout.strip() == "5"
