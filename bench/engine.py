# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.engine``: the engine and its peers on the five networks, into ``results/engine.md`` and ``.json``.

Medians over interleaved rounds, on one and two threads and on one and 32 images; peak memory and the first call in
processes of their own. Every output is verified against a float64 build before anything is timed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastfer
from bench import layers, stock
from bench.contenders import Problem, tiled
from bench.layers import MACS
from bench.machine import cpu
from bench.measure import QuietCheck, Runner
from bench.networks import _TERMS, _status
from bench.report import refresh
from fastfer.engine.compare import Comparison, compare
from fastfer.engine.peers import PEERS, USUAL, Subject
from fastfer.models import create_model

FOLDER = Path(__file__).parent / "results"
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch_compile": "torch"}
"""Peers by their contender's name, and the package that each needs."""
TARGETS = {
    "fgw_fer": (4.0, 4.0),
    "sepconv_attention": (1.8, 1.6),
    "mobilenetv3_cpsca": (1.6, 1.9),
    "patt_lite": (1.12, 1.5),
    "vgg16_csa": (1.25, 1.8),
}
"""Least time of the fastest peer over the engine's in float32, for one image and for 32; else to be ahead is enough."""


def network(name: str) -> Any:
    """A network in evaluation mode whose running statistics are those of random images."""
    torch.manual_seed(0)
    model = create_model(name)
    with torch.no_grad():
        model.train()(torch.randn(4, model.in_chans, *model.input_size))
    return model.eval()


def _stock(name: str) -> nn.Module:
    twin = stock.BUILDERS[name]().eval()
    with torch.no_grad():
        stock.copy_weights(network(name), twin)
    return twin


def inference(name: str, batch: int) -> Problem:
    """One forward pass as a problem, checked against the stock build in float64."""
    model = network(name)
    image = torch.randn(min(batch, 2), model.in_chans, *model.input_size, generator=torch.Generator().manual_seed(1))

    def build(contender: str) -> Runner:
        images = tiled(image, batch)
        if contender == "engine_native":
            engine = fastfer.compile(model)
            return lambda slot: (engine(images),)
        subject = Subject(_stock(name), images.numpy(), torch.get_num_threads())
        peer = PEERS[contender.replace("_", ".")](subject)
        return lambda slot: (torch.from_numpy(peer.run()),)

    def oracle() -> list[Tensor]:
        with torch.no_grad():
            return [_stock(name).double()(image.double())]

    return Problem(
        macs=batch * MACS[name],
        traffic=4 * (batch * image[0].numel() + sum(p.numel() for p in model.parameters())),
        terms=_TERMS,
        slots=1,
        mode=torch.no_grad,
        oracle=oracle,
        build=build,
    )


def alone(name: str, contender: str, threads: int) -> dict[str, float]:
    """In this process: seconds until the first image is through, and growth of memory beyond torch and the model."""
    torch.set_num_threads(threads)
    model = network(name)
    images = np.zeros((1, model.in_chans, *model.input_size), np.float32)
    subject = None
    if contender != "engine":
        subject = Subject(_stock(name), images, threads)
        if contender != "torch.compile":
            _ = subject.onnx
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again from here
    before, start = _status("VmRSS"), time.perf_counter()
    if subject is None:
        fastfer.compile(model, threads=threads)(images)
    else:
        PEERS[contender](subject).run()
    return {"seconds": time.perf_counter() - start, "mib": (_status("VmHWM") - before) / 2**20}


def neighbours(name: str, threads: int, repeats: int = 200) -> dict[str, float]:
    """Microseconds of torch's convolution alone and straight after an engine; percent of a CPU while it sleeps."""
    torch.set_num_threads(threads)
    model = network(name)
    engine, x = fastfer.compile(model, threads=threads), torch.randn(1, 64, 56, 56)
    images, weight = torch.randn(1, model.in_chans, *model.input_size), torch.randn(64, 64, 3, 3)
    taken: dict[str, list[float]] = {"alone": [], "after": []}
    with torch.no_grad():
        for _ in range(repeats):
            for key in taken:
                torch.nn.functional.conv2d(x, weight, padding=1)
                if key == "after":
                    engine(images)
                start = time.perf_counter()
                torch.nn.functional.conv2d(x, weight, padding=1)
                taken[key].append(1e6 * (time.perf_counter() - start))
        time.sleep(0.3)  # torch's own threads spin for a while
        engine(images)
    time.sleep(0.01)
    wall, used = time.perf_counter(), time.process_time()
    time.sleep(0.5)
    idle = 100 * (time.process_time() - used) / (time.perf_counter() - wall)
    return {key: float(np.median(values)) for key, values in taken.items()} | {"idle": idle}


def _child(name: str, contender: str, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.engine", "--alone", name, contender, "--threads", str(threads)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr.strip()[-500:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _rows(results: Sequence[Comparison], dtype: str) -> str:
    names = [timing.name for timing in results[0].timings]
    head = ["network, images", "threads", *(f"{name} ms (p10)" for name in names), "ratio to the fastest", "target"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for result in results:
        target = 1.0
        if dtype == "float32":
            target = TARGETS[result.network][result.batch > 1] * (1.0 if result.threads > 1 else 0.9)
        cells = [f"{1e3 * t.median:.3f} ({1e3 * t.p10:.3f})" for t in result.timings]
        label = f"{result.network}, {result.batch}"
        lines.append([label, str(result.threads), *cells, f"**{result.ratio:.2f}×**", f"{target:.2f}×"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _first_calls(found: dict[str, dict[str, dict[str, float]]]) -> str:
    names = list(next(iter(found.values())))
    lines = [["network", *(f"{name}: s, MiB" for name in names)], ["---", *["---:"] * len(names)]]
    for label, by_name in found.items():
        lines.append([label, *(f"{by_name[n]['seconds']:.2f}, {by_name[n]['mib']:.0f}" for n in names)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def precision(model: Any, dtype: str) -> dict[str, Any]:
    """Arguments of ``compile``; int8 is calibrated on random images, which is enough for times."""
    images = [torch.randn(4, model.in_chans, *model.input_size)] if dtype == "int8" else None
    return {"dtype": dtype, "calibration": images}


def measure(options: argparse.Namespace) -> str:
    """All comparisons, as Markdown; their numbers also go to a JSON file beside it."""
    quiet, results = QuietCheck(), []
    others = list(USUAL[options.dtype]) if options.others is None else options.others
    for name in options.networks:
        model = network(name)
        for threads in options.threads:
            engine = fastfer.compile(model, threads=threads, **precision(model, options.dtype))
            for batch in options.batches:
                result = compare(
                    model,
                    engine,
                    batch,
                    twin=_stock(name),
                    others=others,
                    rounds=options.rounds,
                    seconds=options.seconds,
                )
                print(f"{result}\n", flush=True)
                results.append(result)
    names = ("engine", *others)
    first = (
        {}
        if options.quick or options.dtype != "float32"
        else {name: {other: _child(name, other, max(options.threads)) for other in names} for name in options.networks}
    )
    beside = {name: neighbours(name, max(options.threads)) for name in options.networks}
    busy, stolen = quiet.read()
    numbers = {
        "cpu": cpu(),
        "others": busy,
        "stolen": stolen,
        "first": first,
        "neighbours": beside,
        "results": [asdict(r) for r in results],
    }
    options.out.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    versions = ", ".join(f"{t.name} {t.version}" for t in results[0].timings[1:])
    text = f"{numbers['cpu']}, {os.cpu_count()} cores, {fastfer.runtime.native().isa()}; {versions}; {options.dtype}; "
    text += f"medians of {options.rounds} interleaved rounds; {date.today()}.\n"
    if max(busy, stolen) > QuietCheck.LIMIT:
        text += f"\n**The machine was not quiet: {busy:.1f} cores at other work, {stolen:.0%} stolen.**\n"
    text += f"\n{_rows(results, options.dtype)}"
    if first:
        text += "\nUntil the first image is through (compile and run, torch loaded), and memory for it:\n\n"
        text += _first_calls(first)
    text += "\ntorch's 3×3 convolution of 64 channels at 56×56, in µs, alone and straight after an engine; "
    text += "and the CPU that an idle engine uses:\n\n"
    text += "| network | alone | after | idle |\n| --- | ---: | ---: | ---: |\n"
    for label in beside:
        before, after, idle = (beside[label][key] for key in ("alone", "after", "idle"))
        text += f"| {label} | {before:.0f} | {after:.0f} | {idle:.1f} % |\n"
    return text


def readme_block(text: str) -> str:
    """What README.md shows of ``text``: what was measured where, and the first table."""
    head, _, rest = text.partition("\n| ")
    table = rest.partition("\n\n")[0].rstrip()
    return f"\n{head}\n| {table}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(layers.NETWORKS), choices=list(stock.BUILDERS))
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--others", nargs="*", choices=list(PEERS), help="default: those of the precision")
    parser.add_argument("--dtype", default="float32", choices=list(USUAL))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.3, help="of calls, a round and contender (default: 0.3)")
    parser.add_argument("--quick", action="store_true", help="without memory and first calls")
    parser.add_argument("--out", type=Path, default=FOLDER / "engine.md")
    parser.add_argument("--readme", action="store_true", help="refresh the engine's table in README.md")
    parser.add_argument("--alone", nargs=2, metavar=("NETWORK", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone is not None:
        print(json.dumps(alone(*options.alone, threads=options.threads[0])))
        return
    text = measure(options)
    options.out.write_text(text)
    if options.readme:
        refresh(FOLDER.parents[1] / "README.md", readme_block(text), "engine")


if __name__ == "__main__":
    main()
