# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.engine_zoo``: ordinary networks as ONNX files, in the engine, ONNX Runtime and OpenVINO.

Each network of `bench.zoo` is exported once, read by all three; files of others may stand beside them (``--files``).
Outputs are within 1e-4 of ONNX Runtime's, relative to the largest of each, before anything is timed; then all run in
turn, float32, on one and two threads and on one and eight images. The table goes to ``results/engine-zoo.md``.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import tempfile
import warnings
from contextlib import redirect_stdout
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

import fastfer
from bench import zoo
from bench.cases import SMOKE
from bench.machine import cpu
from bench.measure import QuietCheck
from fastfer.engine import onnx_compare
from fastfer.engine.compare import Comparison, Timing

FOLDER = Path(__file__).parent / "results"
FACES = Path(__file__).parents[2] / "shared" / "models" / "face_detection_yunet_2023mar.onnx"
TOLERANCE = 1e-4
_SMALL = (64, 64)


def exported(name: str, folder: Path, size: tuple[int, int, int]) -> Path:
    """A network of the zoo as an ONNX file for any number of images."""
    path = folder / f"{name}.onnx"
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            zoo.network(name, size),
            (torch.zeros(2, *size),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        )
    return path


def _subjects(options: argparse.Namespace, folder: Path) -> list[tuple[str, Path, tuple[int, int]]]:
    """Name, file and size of all that is measured."""
    subjects = []
    for name in options.networks:
        _, usual = zoo.NETWORKS[name]
        size = (usual[0], *_SMALL) if options.smoke else usual
        subjects.append((name, exported(name, folder, size), size[1:]))
    for file in options.files:
        sizes = [_SMALL] if options.smoke else [(side, side) for side in options.sizes]
        subjects += [(f"{file.stem} {size[0]}×{size[1]}", file, size) for size in sizes]
    return subjects


def measure(options: argparse.Namespace) -> tuple[list[Comparison], dict[str, str]]:
    """All comparisons, and why a network has none."""
    results: list[Comparison] = []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path, size in _subjects(options, Path(folder)):
            for threads in options.threads:
                try:
                    engine = fastfer.compile(path, input_size=size, threads=threads)
                except fastfer.engine.UncoveredError as reason:
                    missing[name] = str(reason)
                    print(f"{name}: {reason}\n", flush=True)
                    break
                engine.metadata["model"] = name  # type: ignore[index]
                for batch in options.batches:
                    result = onnx_compare.compare(
                        str(path),
                        engine,
                        batch,
                        others=options.others,
                        rounds=options.rounds,
                        seconds=options.seconds,
                        tolerance=TOLERANCE,
                    )
                    print(f"{result}\n", flush=True)
                    results.append(result)
    return results, missing


def kept(path: Path, measured: list[Comparison]) -> tuple[list[Comparison], tuple[float, float]]:
    """What an earlier run wrote and this one did not measure, and how quiet the machine was then."""
    if not path.is_file():
        return [], (0.0, 0.0)
    numbers = json.loads(path.read_text())
    if numbers["cpu"] != cpu():
        raise SystemExit(f"engine_zoo: --add: expected results of {cpu()}, got those of {numbers['cpu']} in {path}")
    again = {(one.network, one.threads, one.batch) for one in measured}
    rows = [row | {"timings": tuple(Timing(**t) for t in row["timings"])} for row in numbers["results"]]
    earlier = [Comparison(**row) for row in rows]
    left = [one for one in earlier if (one.network, one.threads, one.batch) not in again]
    return left, (numbers["others"], numbers["stolen"])


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def _place(one: Comparison) -> tuple[int, str, int, int]:
    """The zoo's networks first, in its order."""
    known = list(zoo.NETWORKS)
    return (
        known.index(one.network) if one.network in known else len(known),
        one.network,
        one.threads,
        one.batch,
    )


def report(results: list[Comparison], missing: dict[str, str], quiet: tuple[float, float]) -> str:
    """The table as Markdown."""
    rounds = min(len(timing.rounds) for one in results for timing in one.timings)
    names = [timing.name for timing in results[0].timings]
    versions = ", ".join(f"{t.name} {t.version}" for t in results[0].timings[1:])
    text = (
        f"{cpu()}, {os.cpu_count()} cores, {fastfer.runtime.native().isa()}; {versions}; float32; medians of {rounds} "
    )
    text += f"interleaved rounds, ms a call; {date.today()}.\n"
    if max(quiet) > QuietCheck.LIMIT:
        text += f"\n**The machine was not quiet: {quiet[0]:.1f} cores at other work, {quiet[1]:.0%} stolen.**\n"
    head = ["network, images", "threads", *(f"{name} (p10)" for name in names), "ratio to the fastest"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for one in results:
        cells = [f"{1e3 * t.median:.3f} ({1e3 * t.p10:.3f})" for t in one.timings]
        lines.append([f"{one.network}, {one.batch}", str(one.threads), *cells, f"**{one.ratio:.2f}×**"])
    text += "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    ratios = [one.ratio for one in results]
    mobile = [one.ratio for one in results if one.network in zoo.MOBILE]
    text += f"\nGeometric mean {geometric_mean(ratios):.2f}× (to reach: 1.2×), of the networks with depthwise "
    text += f"convolutions {geometric_mean(mobile):.2f}× (1.4×), the least {min(ratios):.2f}× (0.9×).\n"
    for name, reason in missing.items():
        text += f"\nNot covered: {name}: {reason}\n"
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.engine_zoo", description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(zoo.NETWORKS), choices=list(zoo.NETWORKS))
    parser.add_argument("--files", nargs="*", type=Path, default=[FACES] if FACES.is_file() else [], help="ONNX files")
    parser.add_argument("--sizes", nargs="+", type=int, default=[320, 640], help="of the files' images")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--others", nargs="+", default=list(onnx_compare.USUAL), choices=onnx_compare.USUAL)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.3, help="of calls, a round and contender (default: 0.3)")
    parser.add_argument("--add", action="store_true", help="keep rows of the results file that are not measured now")
    parser.add_argument("--smoke", action="store_true", default=SMOKE, help="small images, one short round, no file")
    parser.add_argument("--out", type=Path, default=FOLDER / "engine-zoo.md")
    options = parser.parse_args(argv)
    if options.smoke:
        options.rounds, options.seconds, options.threads, options.batches = 1, 0.002, [1], [2]
    quiet = QuietCheck()
    results, missing = measure(options)
    if not results:
        return 1
    busy, stolen = quiet.read()
    if options.add:
        earlier, (busy_then, stolen_then) = kept(options.out.with_suffix(".json"), results)
        results, busy, stolen = earlier + results, max(busy, busy_then), max(stolen, stolen_then)
    results.sort(key=_place)
    text = report(results, missing, (busy, stolen))
    if options.smoke:
        print(text)
        return 0
    numbers: dict[str, Any] = {
        "cpu": cpu(),
        "others": busy,
        "stolen": stolen,
        "missing": missing,
        "results": [asdict(r) for r in results],
    }
    options.out.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    options.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
