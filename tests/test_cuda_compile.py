# SPDX-License-Identifier: Apache-2.0
"""CUDA sources compile for every architecture, by nvcc and by NVRTC, where these are installed; no GPU is needed."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cuda_resources
import pytest
from cuda_host import HostLibrary
from cuda_resources import ARCHS, find_nvcc

from fastfer._checks import ACTIVATIONS
from fastfer.backends.cuda import jit

CSRC = Path(__file__).resolve().parent.parent / "csrc"
HEADERS = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.glob("*/*.cuh"))
SOURCES = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.glob("*/cuda.cu"))
pytestmark = pytest.mark.skipif(not HEADERS, reason="no csrc beside the tests")


def nvcc(arch: str, *args: str) -> str:
    """Output of nvcc for sm_<arch>; skips where there is no nvcc, or one that does not know the architecture."""
    compiler = find_nvcc()
    if compiler is None:
        pytest.skip("nvcc is not installed")
    known = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    if f"sm_{arch.rstrip('a')}" not in known:
        pytest.skip(f"this nvcc does not compile for sm_{arch}")
    command = [compiler, "-std=c++17", "-O3", f"-arch=sm_{arch}", f"-I{CSRC}", "-Werror=all-warnings", *args]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def instances(host_kernels: HostLibrary, source: str) -> list[str]:
    """The kernels of a source, as the host build lists them."""
    text = (CSRC / source).with_suffix(".cuh").read_text()
    own = set(re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", text))
    return [name for name in host_kernels.names() if name.partition("<")[0] in own]


@pytest.mark.full
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES)
def test_no_kernel_spills_or_grows(source: str, arch: str, tmp_path: Path, host_kernels: HostLibrary) -> None:
    """Nothing spills, by any nvcc; by the nvcc of the table, nothing takes more than the table says."""
    log = nvcc(arch, "-cubin", "-Xptxas", "-v", str(CSRC / source), "-o", str(tmp_path / "kernels.cubin"))
    kernels = cuda_resources.parse(log)
    assert set(kernels) == set(instances(host_kernels, source))
    assert {name: each.spills for name, each in kernels.items() if each.spills} == {}
    compiler, table = cuda_resources.read()
    if compiler != cuda_resources.version(find_nvcc() or ""):
        return
    remedy = "if it should, run: python tests/cuda_resources.py"
    for name, each in kernels.items():
        assert name in table, f"{name} is not in tests/cuda_resources.csv: {remedy}"
        if not table[name][arch]:  # not compiled for it yet
            continue
        registers, shared = map(int, table[name][arch].split("+"))
        grown = each.registers > registers or each.shared > shared
        assert not grown, f"{name} on sm_{arch} grew from {table[name][arch]} to {each} registers+bytes: {remedy}"


def test_resources_are_of_the_kernels_that_ship(host_kernels: HostLibrary) -> None:
    assert set(cuda_resources.read()[1]) == set(host_kernels.names()), "run: python tests/cuda_resources.py"


def test_resources_are_read_from_the_compiler() -> None:
    symbol = "_ZN2ff4cuda14activation_fwdINS0_4bf16ELNS0_3ActE5ELi8ELi256EEEvPKT_PS4_x"
    log = f"""ptxas info    : Compiling entry function '{symbol}' for 'sm_90a'
ptxas info    : Function properties for {symbol}
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8704 bytes smem, 380 bytes cmem[0]
"""
    assert cuda_resources.parse(log) == {"activation_fwd<bf16, Act::silu, 8, 256>": (40, 8704, 24)}


@pytest.mark.full
@pytest.mark.parametrize("header", HEADERS)
def test_header_stands_alone(header: str, tmp_path: Path) -> None:
    source = tmp_path / "header.cu"
    source.write_text(f'#include "{header}"\n')
    nvcc("80", "-ptx", str(source), "-o", str(tmp_path / "header.ptx"))


def test_packs_move_16_bytes_at_once(tmp_path: Path, host_kernels: HostLibrary) -> None:
    target = tmp_path / "elementwise.ptx"
    nvcc("80", "-ptx", str(CSRC / "elementwise/cuda.cu"), "-o", str(target))
    kernels = re.findall(r"\.entry (\w+)\((.*?)(?=\.visible|\Z)", target.read_text(), re.DOTALL)
    packs = [body for name, body in kernels if not re.search(r"Li1ELi256", name)]
    assert len(packs) == len(instances(host_kernels, "elementwise/cuda.cu")) // 2
    for body in packs:
        assert re.search(r"ld\.global(\.nc)?\.(v4\.[ufb]32|v2\.[ufb]64)", body)
        assert re.search(r"st\.global\.(v4\.[ufb]32|v2\.[ufb]64)", body)


@pytest.mark.full
@pytest.mark.parametrize("header", HEADERS)
def test_headers_are_nvrtc_clean(header: str) -> None:
    """A header includes only headers of csrc/cuda: NVRTC finds no system header."""
    text = (CSRC / header).read_text()
    included = re.findall(r"^\s*#\s*include\s*(\S+)", text, re.MULTILINE)
    assert all(re.fullmatch(r'"\w+/\w+\.cuh"', name) for name in included), included
    assert not re.search(r"<<<|std::", text)


def test_activation_codes_are_those_of_python() -> None:
    listed = re.search(r"enum class Act : int \{([^}]*)\}", (CSRC / "cuda/math.cuh").read_text())
    assert listed is not None
    assert tuple(name.strip() for name in listed.group(1).split(",")) == ACTIVATIONS


class Nvrtc:
    """NVRTC's C interface."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def compile(self, code: str, options: Sequence[str], names: Sequence[str]) -> dict[str, str]:
        """Mangled name of each name expression; AssertionError with the compiler's log."""
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None)
        for name in names:
            self._call("AddNameExpression", program, name.encode())
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self._library.nvrtcCompileProgram(program, len(options), arguments)
        size = ctypes.c_size_t()
        self._call("GetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._call("GetProgramLog", program, log)
        assert failed == 0, log.value.decode()
        self._call("GetCUBINSize", program, ctypes.byref(size))
        assert size.value > 0
        mangled = {}
        for name in names:
            lowered = ctypes.c_char_p()
            self._call("GetLoweredName", program, name.encode(), ctypes.byref(lowered))
            mangled[name] = (lowered.value or b"").decode()
        self._call("DestroyProgram", ctypes.byref(program))
        return mangled

    def supported(self) -> set[int]:
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        archs = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", archs)
        return set(archs)

    def _call(self, name: str, *args: object) -> None:
        assert getattr(self._library, f"nvrtc{name}")(*args) == 0, name


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    installed = [path for folder in sys.path for path in Path(folder).glob("nvidia/*/lib/libnvrtc.so.*")]
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")).glob("lib64/libnvrtc.so.*")
    for candidate in (*installed, *toolkit, "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            return Nvrtc(ctypes.CDLL(str(candidate)))
        except OSError:
            continue
    pytest.skip("libnvrtc is not installed")


@pytest.mark.full
@pytest.mark.parametrize("arch", ["80", "90a"])  # the front end is what differs from nvcc
@pytest.mark.parametrize("source", SOURCES)
def test_every_instance_compiles_with_nvrtc(nvrtc: Nvrtc, source: str, arch: str, host_kernels: HostLibrary) -> None:
    """With the source text, the options and the names backends.cuda.jit gives CuPy, and the option CuPy adds."""
    if int(arch.rstrip("a")) not in nvrtc.supported():
        pytest.skip(f"this NVRTC does not compile for sm_{arch}")
    names = instances(host_kernels, source)
    code = jit.source(source.replace(".cu", ".cuh"))
    mangled = nvrtc.compile(code, [*jit.options(), f"-arch=sm_{arch}", "-ftz=true"], names)
    assert len(set(mangled.values())) == len(names)
