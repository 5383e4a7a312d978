# SPDX-License-Identifier: Apache-2.0
"""The kernels' object files: no symbol that a linker merges between ISAs, no accumulator on the stack in a hot loop."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import objdump
import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="no csrc beside the tests: not a checkout")
HOT = {
    "primitives/gemm": re.compile(r"::(gemm_tiles)<"),
    "primitives/depthwise": re.compile(r"::(forward|input_grad|weight_grad)(?=_row|_apart)(?!.*Part\)1)\w*<"),
    "engine/cpu": re.compile(r"::(conv_tiles|depthwise_rows|plane_tile)<"),
    "engine/cpu_bfloat16": re.compile(r"::(low_tile)<"),
    "engine/cpu_bytes": re.compile(r"::(low_tile)<"),
}
"""Functions whose innermost loops hold their accumulators in registers; the any_ forms, for any kernel size, do not,
and those for the rest of the channels (Part 1) have no loop."""

REGISTERS = {"avx2": "ymm", "avxvnni": "ymm", "avx512": "zmm", "avx512vnni": "zmm", "avx512bf16": "zmm"}


def tool(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no {names[0]} on this machine")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Compiler command of each file of kernels for each ISA, and of the passes, as CMake makes them."""
    cmake = tool("cmake")
    if "CXX" not in os.environ:
        tool("c++", "g++", "clang++")
    folder = tmp_path_factory.mktemp("configured")
    options = ["-DFASTFER_SELFTEST=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    run = subprocess.run([cmake, "-S", str(ROOT), "-B", str(folder), *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    entries = json.loads((folder / "compile_commands.json").read_text())
    return [entry for entry in entries if "-DFF_ISA=" in entry["command"]]


def symbols(path: Path) -> list[tuple[str, str]]:
    """Type letter and demangled name of each defined symbol."""
    listing = subprocess.run(
        [tool("nm"), "-C", "--defined-only", str(path)], check=True, capture_output=True, text=True
    ).stdout
    return [(line.split(maxsplit=2)[1], line.split(maxsplit=2)[2]) for line in listing.splitlines()]


def shared_symbols(path: Path, isa: str) -> list[str]:
    """Symbols that another object could define too: weak or unique ones, and global ones outside ff::<isa>.

    DW.ref.* is no code: the compiler's own pointer to the function that unwinds exceptions, the same in every object.
    """
    return sorted(
        f"{letter} {name}"
        for letter, name in symbols(path)
        if not name.startswith("DW.ref.")
        and (letter in "VvWwu" or (letter.isupper() and not name.startswith(f"ff::{isa}::")))
    )


def compile_unoptimised(entry: dict[str, str], target: Path) -> str:
    """Runs the command at -O0, where nothing that is inlined hides; returns its ISA."""
    command = shlex.split(entry["command"])
    isa = next(word for word in command if word.startswith("-DFF_ISA=")).removeprefix("-DFF_ISA=")
    command[command.index("-o") + 1] = str(target)
    subprocess.run([*command, "-O0", "-w"], check=True, cwd=entry["directory"])
    return isa


@pytest.mark.full  # it compiles every file again
def test_objects_share_no_symbol(commands: list[dict[str, str]], tmp_path: Path) -> None:
    seen = set()
    for number, entry in enumerate(commands):
        isa = compile_unoptimised(entry, tmp_path / f"{number}.o")
        seen.add((isa, str(Path(entry["file"]).relative_to(CSRC))))
        shared = shared_symbols(tmp_path / f"{number}.o", isa)
        assert not shared, f"{entry['file']} for {isa}: a linker may merge {shared[:8]}"
    assert {isa for isa, _ in seen} >= {"baseline", "passes"}
    sources = {*CSRC.glob("*/cpu*.cpp"), *CSRC.glob("*/passes.cpp"), *CSRC.glob("primitives/*.cpp")}
    assert {file for _, file in seen} == {str(path.relative_to(CSRC)) for path in sources} - {"primitives/table.cpp"}


def test_a_shared_symbol_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "shared.cpp"
    source.write_text(
        "template <class T> T twice(T x) { return x + x; }\n"
        "namespace ff { namespace avx2 { namespace { int hidden(int x) { return x; } }\n"
        "int kernel(int x) { return twice(hidden(x)); } } }\n"
        "int outside(int x) { return x; }\n"
    )
    subprocess.run(
        [tool("c++", "g++", "clang++"), "-O0", "-c", str(source), "-o", str(tmp_path / "shared.o")], check=True
    )
    assert shared_symbols(tmp_path / "shared.o", "avx2") == ["T outside(int)", "W int twice<int>(int)"]


def built_object(isa: str, source: str) -> Path:
    """Of FASTFER_BUILD_DIR, or of the editable install's build/; not older than the sources."""
    folders = (
        [Path(os.environ["FASTFER_BUILD_DIR"])] if "FASTFER_BUILD_DIR" in os.environ else sorted(ROOT.glob("build/*"))
    )
    paths = [folder / "CMakeFiles" / f"fastfer_{isa}.dir" / "csrc" / f"{source}.cpp.o" for folder in folders]
    built = max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
    if built is None:
        pytest.skip("no objects: set FASTFER_BUILD_DIR to a CMake build of this tree, or pip install -e .")
    changed = [path.name for path in CSRC.rglob("*.h") if path.stat().st_mtime > built.stat().st_mtime]
    if changed and "FASTFER_BUILD_DIR" not in os.environ:
        pytest.skip(f"{built} is older than {', '.join(changed)}")
    return built


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 code")
@pytest.mark.parametrize(
    ("isa", "source", "expected"),
    [
        ("avx2", "primitives/gemm", {"gemm_tiles"}),
        ("avx512", "primitives/gemm", {"gemm_tiles"}),
        ("avx2", "primitives/depthwise", {"forward", "input_grad", "weight_grad"}),
        ("avx512", "primitives/depthwise", {"forward", "input_grad", "weight_grad"}),
        ("avx2", "engine/cpu", {"conv_tiles", "depthwise_rows", "plane_tile"}),
        ("avx512", "engine/cpu", {"conv_tiles", "depthwise_rows", "plane_tile"}),
        ("avx2", "engine/cpu_bfloat16", {"low_tile"}),
        ("avx2", "engine/cpu_bytes", {"low_tile"}),
        ("avxvnni", "engine/cpu_bytes", {"low_tile"}),
        ("avx512", "engine/cpu_bfloat16", {"low_tile"}),
        ("avx512", "engine/cpu_bytes", {"low_tile"}),
        ("avx512vnni", "engine/cpu_bytes", {"low_tile"}),
        ("avx512bf16", "engine/cpu_bfloat16", {"low_tile"}),
    ],
)
def test_hot_loops_keep_their_accumulators_in_registers(isa: str, source: str, expected: set[str]) -> None:
    listing = objdump.disassemble(tool("objdump"), built_object(isa, source))
    found_names = [(HOT[source].search(name), name, body) for name, body in objdump.functions(listing)]
    hot = [(name, body) for match, name, body in found_names if match]
    assert {match[1] for match, _, _ in found_names if match} == expected
    for name, body in hot:
        loops = objdump.innermost_loops(body)
        assert any(i.name.startswith(("vfmadd", "vdp", "vpdp", "vpmadd")) for loop in loops for i in loop), (
            f"{name}: no loop that multiplies and adds"
        )
    found = [spill for name, body in hot for spill in objdump.spills(name, body, REGISTERS[isa])]
    lines = [f"{spill.register} at {spill.address:#x} in {spill.function.partition('(ff::')[0]}" for spill in found]
    assert not found, "spilled in an innermost loop:\n" + "\n".join(lines)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 code")
@pytest.mark.parametrize(("source", "product"), [("cpu_bfloat16", "tdpbf16ps"), ("cpu_bytes", "tdpbusd")])
def test_products_of_tiles_wait_for_nothing_else(source: str, product: str) -> None:
    """Two by two tiles: four loads and four products a round, and no more than the addresses and the count beside."""
    listing = objdump.disassemble(tool("objdump"), built_object("amx", f"engine/{source}"))
    rounds = [
        [i.name for i in loop]
        for name, body in objdump.functions(listing)
        if "::multiply<" in name
        for loop in objdump.innermost_loops(body)
    ]
    assert sorted(names.count(product) for names in rounds) == [1, 2, 2, 4]
    most = next(names for names in rounds if names.count(product) == 4)
    assert sum(name.startswith("tileload") for name in most) == 4
    assert len(most) <= 15


def accumulate(count: int) -> str:
    """A loop over ``count`` accumulators of 8 floats."""
    return f"""
#include <immintrin.h>
void accumulate(const float* a, const float* b, float* c, long depth) {{
  __m256 acc[{count}] = {{}};
  for (long k = 0; k < depth; ++k) {{
    const __m256 b_v = _mm256_loadu_ps(b + 8 * k);
#pragma GCC unroll {count}
    for (int i = 0; i < {count}; ++i) acc[i] = _mm256_fmadd_ps(_mm256_set1_ps(a[k * {count} + i]), b_v, acc[i]);
  }}
#pragma GCC unroll {count}
  for (int i = 0; i < {count}; ++i) _mm256_storeu_ps(c + 8 * i, acc[i]);
}}
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 code")
@pytest.mark.parametrize(("accumulators", "spilled"), [(12, False), (24, True)])
def test_a_spill_is_noticed(tmp_path: Path, accumulators: int, spilled: bool) -> None:
    """16 registers hold 12 accumulators, and not 24."""
    source, target = tmp_path / "loop.cpp", tmp_path / "loop.o"
    source.write_text(accumulate(accumulators))
    subprocess.run([tool("g++", "c++"), "-O3", "-mavx2", "-mfma", "-c", str(source), "-o", str(target)], check=True)
    ((name, body),) = objdump.functions(objdump.disassemble(tool("objdump"), target))
    assert objdump.innermost_loops(body)
    assert bool(objdump.spills(name, body, "ymm")) == spilled
