# SPDX-License-Identifier: Apache-2.0
"""Registers and shared memory of every CUDA kernel by architecture; run as a script, writes tests/cuda_resources.csv.

A cell is "registers+bytes of static shared memory", or empty where the kernel was not compiled for the architecture.
The table holds for the nvcc that its first line names. ``--arch 90a norm pool`` compiles these families for one
architecture alone, and empties the other cells of their kernels whose resources changed there.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fastfer._checks import ACTIVATIONS

CSRC = Path(__file__).resolve().parent.parent / "csrc"
TABLE = Path(__file__).with_suffix(".csv")
ARCHS = ("80", "86", "89", "90a", "100", "120")


class Resources(NamedTuple):
    """What a block of a kernel takes; spills are bytes of stack, stores and loads together."""

    registers: int
    shared: int
    spills: int = 0

    def __str__(self) -> str:
        return f"{self.registers}+{self.shared}"


def find_nvcc() -> str | None:
    folders = [os.environ.get("PATH", "")]
    folders += [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    return shutil.which("nvcc", path=os.pathsep.join([*folders, "/usr/local/cuda/bin"]))


def version(nvcc: str) -> str:
    """Such as "13.0.88"."""
    found = re.search(r"V(\d+(?:\.\d+)+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    return found.group(1) if found else "unknown"


def demangled(symbol: str) -> str:
    """A kernel's symbol as the name that it is launched by."""
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    address = library.__cxa_demangle(symbol.encode(), None, None, ctypes.byref(status))
    text = (ctypes.cast(address, ctypes.c_char_p).value or b"").decode()
    text = re.sub(r"\(ff::cuda::Act\)(\d)", lambda code: f"Act::{ACTIVATIONS[int(code.group(1))]}", text)
    return text.removeprefix("void ").partition(">(")[0].replace("ff::cuda::", "") + ">"


def parse(log: str) -> dict[str, Resources]:
    """What ``ptxas -v`` says of each kernel."""
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        spills = sum(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", part)))
        registers, shared = (re.search(p, part) for p in (r"Used (\d+) registers", r"(\d+) bytes smem"))
        symbol = re.match(r"'(\w+)'", part)
        if registers and symbol:
            name = demangled(symbol.group(1))
            found[name] = Resources(int(registers.group(1)), int(shared.group(1)) if shared else 0, spills)
    return found


def read() -> tuple[str, dict[str, dict[str, str]]]:
    """The nvcc that the table holds for, and cells by kernel and architecture."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        first = file.readline().removeprefix("# nvcc ").strip()
        return first, {row.pop("kernel"): row for row in csv.DictReader(file)}


def compiled(nvcc: str, source: Path, arch: str) -> dict[str, Resources]:
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", f"-I{CSRC}", "-cubin", "-Xptxas", "-v", str(source)]
        run = subprocess.run([*command, "-o", f"{folder}/kernels.cubin"], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stdout + run.stderr)
    return parse(run.stdout + run.stderr)


def rows(nvcc: str, archs: Sequence[str], families: Sequence[str]) -> Iterator[dict[str, str]]:
    """A row a kernel, from compiling all of them, or those of the families for ``archs``."""
    _, table = read()
    for source in sorted(CSRC.glob("*/cuda.cu")):
        if families and source.parent.name not in families:
            own = re.findall(
                r"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", source.with_suffix(".cuh").read_text()
            )
            yield from ({"kernel": name, **table[name]} for name in sorted(table) if name.partition("<")[0] in own)
            continue
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            by_arch = list(pool.map(lambda arch, source=source: compiled(nvcc, source, arch), archs))
        for name in sorted(by_arch[0]):
            for arch, kernels in zip(archs, by_arch, strict=True):
                if kernels[name].spills:
                    print(f"sm_{arch}: {name} spills {kernels[name].spills} bytes", file=sys.stderr)
            cells = {arch: str(kernels[name]) for arch, kernels in zip(archs, by_arch, strict=True)}
            before = table.get(name, {})
            same = all(before.get(arch) == cell for arch, cell in cells.items())
            yield {"kernel": name, **dict.fromkeys(ARCHS, ""), **(before if same else {}), **cells}


def main() -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("nvcc is not installed")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=ARCHS, action="append")
    parser.add_argument("families", nargs="*")
    options = parser.parse_args()
    scratch = TABLE.with_suffix(".csv.tmp")
    with scratch.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# nvcc {version(nvcc)}\n")
        writer = csv.DictWriter(file, ["kernel", *ARCHS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(nvcc, options.arch or ARCHS, options.families))
    scratch.replace(TABLE)


if __name__ == "__main__":
    main()
