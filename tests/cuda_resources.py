# SPDX-License-Identifier: Apache-2.0
"""Registers and shared memory of every CUDA kernel by architecture; run as a script, writes tests/cuda_resources.csv.

A cell is "registers+bytes of static shared memory". The table holds for the nvcc that its first line names.
"""

from __future__ import annotations

import csv
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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


def rows(nvcc: str) -> Iterator[list[str]]:
    """A row a kernel, from compiling all of them."""
    for source in sorted(CSRC.glob("*/cuda.cu")):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            by_arch = list(pool.map(lambda arch, source=source: compiled(nvcc, source, arch), ARCHS))
        for name in sorted(by_arch[0]):
            for arch, kernels in zip(ARCHS, by_arch, strict=True):
                if kernels[name].spills:
                    print(f"sm_{arch}: {name} spills {kernels[name].spills} bytes", file=sys.stderr)
            yield [name, *(str(kernels[name]) for kernels in by_arch)]


def main() -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("nvcc is not installed")
    scratch = TABLE.with_suffix(".csv.tmp")
    with scratch.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# nvcc {version(nvcc)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kernel", *ARCHS])
        writer.writerows(rows(nvcc))
    scratch.replace(TABLE)


if __name__ == "__main__":
    main()
