# SPDX-License-Identifier: Apache-2.0
"""Instruction sets: detection, FASTFER_ISA, and the OpenMP runtime that the extension shares with torch."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OPS_OF, Variant, forced_backend
from interpreter import python

from fastfer import backend, ops

pytestmark = pytest.mark.skipif(
    not backend.list_backends()["native"].available, reason=f"native: {backend.list_backends()['native'].reason}"
)
ORDER = {
    "x86_64": [
        *("baseline", "amxemulated", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amxemulated512", "amx")
    ],
    "aarch64": ["baseline", "amxemulated", "neon", "neondot", "neoni8mm", "neonbf16"],
}
EMULATED = ("amxemulated", "amxemulated512")
"""Run when asked for by name, and never because they are the best."""
# As Linux names them in /proc/cpuinfo.
FLAGS = {
    "baseline": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avxvnni": {"avx2", "fma", "avx_vnni"},
    "avx512vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    "avx512bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni"},
    "amxemulated": set(),
}
FLAGS["amxemulated512"] = FLAGS["avx512bf16"]
FLAGS["amx"] = FLAGS["avx512bf16"] | {"amx_tile", "amx_bf16", "amx_int8"}


@pytest.fixture
def extension() -> Any:
    from fastfer import _C

    return _C


def test_compiled_isas(extension: Any) -> None:
    assert extension.isas() == ORDER.get(platform.machine(), ["baseline"])


def test_detection_agrees_with_linux(extension: Any) -> None:
    info = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.is_file():
        pytest.skip("no /proc/cpuinfo of an x86-64 processor")
    flags = next(set(line.split(":")[1].split()) for line in info.read_text().splitlines() if line.startswith("flags"))
    assert extension.isas(True) == [isa for isa in extension.isas() if FLAGS[isa] <= flags]


def best(extension: Any) -> str:
    return str([isa for isa in extension.isas(True) if isa not in EMULATED][-1])


def test_the_best_is_the_default(extension: Any) -> None:
    found = python("from fastfer import _C; print(_C.isa())")
    assert found.stdout.strip() == best(extension), found.stderr


def test_every_forced_isa_runs(extension: Any) -> None:
    """In a process of its own for each: the kernels that ran are those of the ISA asked for, and of no other."""
    code = """
import json, torch
from fastfer import _C, ops
x = torch.randn(2, 8, 9, 9, requires_grad=True)
y = ops.separable_conv2d(ops.relu(x), torch.randn(8, 1, 3, 3), torch.randn(4, 8, 1, 1), act2="relu", padding=1)
y.sum().backward()
print(json.dumps({"isa": _C.isa(), "ran": {k: v for k, v in _C.kernels().items() if v}}))
"""
    for isa in extension.isas(True):
        if isa in OPS_OF:  # its kernels are the engine's, which needs no torch
            run = python("from fastfer import runtime; print(runtime.native().isa())", FASTFER_ISA=isa)
            assert run.stdout.strip() == isa, run.stderr
            continue
        run = python(code, FASTFER_ISA=isa, FASTFER_BACKEND="native")
        assert run.returncode == 0, run.stderr
        report = json.loads(run.stdout)
        assert report["isa"] == isa
        families = ("activation_fwd", "activation_bwd", "separable_conv2d_train", "separable_conv2d_bwd")
        assert report["ran"] == {f"{kernel}_f32": {isa: 1} for kernel in families}


@pytest.mark.parametrize("name", ["sse9", "AVX2"])
def test_unknown_isa_is_an_error_at_import(name: str) -> None:
    run = python("import fastfer.ops", FASTFER_ISA=name)
    assert run.returncode != 0
    assert re.search(rf"ValueError: FASTFER_ISA: .*expected auto, baseline.*, got '{name}'", run.stderr), run.stderr


def test_an_empty_isa_counts_as_unset(extension: Any) -> None:
    found = python("from fastfer import _C; import fastfer.ops; print(_C.isa())", FASTFER_ISA="")
    assert found.stdout.strip() == best(extension), found.stderr


def test_the_runtime_without_torch_heeds_the_isa(extension: Any) -> None:
    code = "import sys; from fastfer import runtime; print(runtime.native().isa()); assert 'torch' not in sys.modules"
    isa = extension.isas(True)[0]
    assert python(code, FASTFER_ISA=isa).stdout.strip() == isa
    assert "ValueError: FASTFER_ISA: expected auto" in python(code, FASTFER_ISA="sse9").stderr


def test_isa_of_another_cpu_is_an_error(extension: Any) -> None:
    missing = [isa for isas in ORDER.values() for isa in isas if isa not in extension.isas(True)]
    for isa in missing:
        run = python("from fastfer import runtime; runtime.native()", FASTFER_ISA=isa)
        assert re.search(rf"ValueError: FASTFER_ISA: expected auto, .*, got '{isa}'", run.stderr), run.stderr
        with pytest.raises(ValueError, match=f"got '{isa}'"):
            extension.set_isa(isa)


def test_a_refused_isa_says_what_is_missing(extension: Any) -> None:
    refused = [isa for isa in extension.isas() if isa not in extension.isas(True)]
    if not refused:
        pytest.skip("this CPU runs every ISA of this build")
    for isa in refused:
        with pytest.raises(ValueError, match=r"lacks [a-z0-9]+") as error:
            extension.set_isa(isa)
        lacks = str(error.value).rpartition("lacks ")[2]
        flags = {flag.replace("_", "") for flag in FLAGS.get(isa, set())}
        assert lacks.replace("_", "") in flags or "tile registers" in lacks


def test_a_refused_isa_changes_nothing(extension: Any) -> None:
    before = extension.isa()
    with pytest.raises(ValueError, match=r"ISA: expected auto, baseline.*, got 'unknown'"):
        extension.set_isa("unknown")
    assert extension.isa() == before


def test_forced_backend_and_isa_are_what_the_suite_runs(variant: Variant) -> None:
    """Guards the other files: under FASTFER_ISA or FASTFER_BACKEND every variant is the forced one."""
    forced, isa = forced_backend(), os.environ.get("FASTFER_ISA", "auto")
    assert forced is None or variant.backend == forced
    assert isa == "auto" or variant.isa in (isa, None)
    with variant.runs("activation_fwd_f32"):
        ops.relu(torch.ones(3))


RUNTIMES = """
def runtimes():
    names = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
    return sorted(n for n in names if n.rpartition("/")[2].startswith(("libgomp", "libiomp5", "libomp.", "libomp-")))
"""
RUN = """
x = torch.randn(64, 16, 32, 32)
ops.silu(x), ops.depthwise_conv2d(x, torch.randn(16, 1, 3, 3))
found = runtimes()
assert len(found) == 1, found
assert os.path.realpath(_C.openmp_runtime()) == os.path.realpath(found[0]), (_C.openmp_runtime(), found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("order", ["torch first", "extension first", "used before torch"])
def test_one_openmp_runtime_in_any_order_of_import(order: str) -> None:
    load = {
        "torch first": "import torch; from fastfer import _C, ops",
        # The package imports torch: the extension is loaded from its file.
        "extension first": "_C = load(); import torch; from fastfer import ops",
        "used before torch": "_C = load(); assert _C.openmp_runtime() == 'none'; import torch; from fastfer import ops",
    }[order]
    extension = str(importlib.import_module("fastfer._C").__file__)
    code = f"""
import importlib.util, os, sys
{RUNTIMES}
def load():
    file = {extension!r}
    spec = importlib.util.spec_from_file_location("fastfer._C", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["fastfer._C"] = module
    assert "torch" not in sys.modules
    return module
{load}
import fastfer
fastfer._C = _C
{RUN}
"""
    run = python(code, FASTFER_BACKEND="native")
    assert run.returncode == 0, run.stderr
