# SPDX-License-Identifier: Apache-2.0
"""Params cross into the extension as structs with names: what op.h lists is what Python gives, and nothing else."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from fastfer import backend

if not backend.list_backends()["native"].available:
    pytest.skip(backend.list_backends()["native"].reason, allow_module_level=True)

from binding_stub import MARK, STUB, fields, generated, kernels, params_types

from fastfer import _C

CSRC = Path(__file__).resolve().parents[1] / "csrc"

BARE = {
    "check_labels": "LabelParams",
    "step_add": "AddParams",
    "step_copy": "CopyParams",
    "step_count": "CountParams",
    "step_fill": "FillParams",
    "step_scale": "ScaleParams",
    "step_strided_copy": "StridedCopyParams",
    "step_tick": "CountParams",
    "update_running": "RunningParams",
}
"""Compiled once, for any CPU, and in no list of kernels of ops."""


def pool(**changes: Any) -> Any:
    """Params of a global mean of one image of 2x2 pixels and 3 channels."""
    x, avg = torch.arange(12.0).view(1, 4, 3), torch.full((1, 3), -1.0)
    return _C.GlobalPoolParams(**{"n": 1, "pixels": 4, "c": 3, "x": x, "avg": avg, "threads": 1, **changes})


def test_the_stubs_are_what_the_extension_says() -> None:
    _, mark, text = STUB.read_text().partition(MARK)
    assert mark
    assert text == generated(), "run python tests/binding_stub.py"


@pytest.mark.skipif(not CSRC.is_dir(), reason="no csrc beside the tests: not a checkout")
def test_structs_are_those_of_the_headers() -> None:
    """Names, order and kinds of fields as the text of op.h has them, read without the compiler."""
    headers = "".join(path.read_text() for path in sorted(CSRC.glob("*/op.h")))
    structs = dict(re.findall(r"^struct (\w+) \{\n(.*?)^\};", headers, re.MULTILINE | re.DOTALL))
    assert set(structs) == {params.__name__ for params in params_types()}
    kinds = {"idx": "int", "int": "int", "bool": "bool", "double": "float", "Act": "int", "Pooling": "int"}
    for params in params_types():
        code = re.sub(r"//.*", "", structs[params.__name__])
        listed = re.findall(r"FF_(REQUIRED|OPTIONAL)\(([^)]*)\)", code)
        names = {name: word for word, text in listed for name in re.findall(r"\w+", text)}
        declared = {}
        for declaration in re.sub(r"FF_\w+\([^)]*\)", "", code).split(";"):
            for at, part in enumerate(filter(None, map(str.strip, declaration.split(",")))):
                if at == 0:
                    const = part.removeprefix("const ")
                    base = re.match(r"\w+", const)
                    assert base is not None
                    part, word = const[base.end() :], base[0]
                pointer = "*" in part
                declared[part.strip("* ")] = "Tensor | None" if pointer else kinds.get(word, f"{word} | None")
        wanted = [f"{name}: {declared[name]}{'' if word == 'REQUIRED' else ' = ...'}" for name, word in names.items()]
        assert sorted(names) == sorted(declared)
        assert fields(params) == wanted


def test_every_kernel_takes_its_struct() -> None:
    listed = re.findall(r"^FF_\w+\((\w+)_f32, (\w+)\)", (CSRC / "kernels.inc").read_text(), re.MULTILINE)
    given = dict(re.findall(r"(\w+)\(f64: bool, params: (\w+), /\) -> None", "\n".join(kernels())))
    assert {name: given.pop(name) for name in BARE} == BARE
    assert given == dict(listed)


def test_a_struct_holds_what_it_was_given() -> None:
    params = pool()
    assert (params.n, params.pixels, params.c, params.threads) == (1, 4, 3, 1)
    assert params.max is None
    _C.global_avg_pool_fwd(False, params)
    assert params.avg.tolist() == [[4.5, 5.5, 6.5]]
    x = torch.ones(2)
    alive, params = weakref.ref(x), pool(x=x)
    del x
    gc.collect()
    assert alive() is params.x
    del params
    assert alive() is None


def test_float64_runs_the_float64_kernel() -> None:
    params = pool(x=torch.arange(12.0, dtype=torch.float64), avg=torch.empty(3, dtype=torch.float64))
    _C.global_avg_pool_fwd(True, params)
    assert params.avg.tolist() == [4.5, 5.5, 6.5]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"averages": None},
            TypeError,
            r"^GlobalPoolParams: averages: expected a name of GlobalPoolParams\(\*, n: int",
        ),
        ({"n": None}, TypeError, "^GlobalPoolParams: n: expected an integer, got NoneType$"),
        ({"n": 1.0}, TypeError, "^GlobalPoolParams: n: expected an integer, got float$"),
        ({"n": 1 << 70}, OverflowError, "too big|too large"),
        ({"threads": 1 << 32}, ValueError, "^GlobalPoolParams: threads: expected 32 bits, got 4294967296$"),
        ({"x": 140}, TypeError, "^GlobalPoolParams: x: expected a tensor or None, got int$"),
        ({"x": "x"}, TypeError, "^GlobalPoolParams: x: expected a tensor or None, got str$"),
    ],
)
def test_wrong_fields_raise(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pool(**changes)


def test_missing_and_unnamed_fields_raise() -> None:
    with pytest.raises(TypeError, match=r"^GlobalPoolParams: c: expected a value, got none$"):
        _C.GlobalPoolParams(n=1, pixels=4, threads=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^GlobalPoolParams: expected names, got a value without$"):
        _C.GlobalPoolParams(1, 4, 3, 1)  # type: ignore[call-arg]


def test_wrong_kinds_raise() -> None:
    linked: Any = {"weight": None, "bias": None, "stats": None}
    assert _C.LinkedInputParams(**linked, act=6).act == 6
    with pytest.raises(TypeError, match=r"^GateParams: linear: expected a bool, got int$"):
        _C.GateParams(linear=1)  # type: ignore[call-arg, arg-type]
    with pytest.raises(TypeError, match=r"^NormParams: eps: expected a number, got str$"):
        _C.NormParams(eps="1e-5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^CoordinateParams: norm: expected NormParams, got LinkedInputParams$"):
        _C.CoordinateParams(norm=_C.LinkedInputParams(**linked, act=0))  # type: ignore[call-arg, arg-type]


def test_wrong_arguments_of_a_kernel_raise() -> None:
    with pytest.raises(TypeError, match=r"^global_avg_pool_fwd: params: expected GlobalPoolParams, got NormParams$"):
        _C.global_avg_pool_fwd(False, _C.NormParams())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^global_avg_pool_fwd: f64: expected a bool, got int$"):
        _C.global_avg_pool_fwd(1, pool())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^global_avg_pool_fwd: expected 2 arguments, got 1$"):
        _C.global_avg_pool_fwd(False)  # type: ignore[call-arg]


def test_names_that_are_not_interned() -> None:
    """Names made at run time are found by their text."""
    assert pool(**{"".join(["d_", "avg"]): None}).d_avg is None
    with pytest.raises(TypeError, match=r"^NormParams: weigth: expected a name of"):
        _C.NormParams(**{"".join(["wei", "gth"]): None})  # type: ignore[arg-type]
