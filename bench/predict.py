# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.predict --detector FILE PHOTO...``: from a photo to labels, frames of a video, the first label.

On one thread. ``--peer opencv:PYTHON`` and ``--peer fer:PYTHON`` run beside it, in turn, in Pythons that have OpenCV 4
and ONNX Runtime, or the package fer, for which see `bench.predict_peer`. Frames are the first photo's, shrunk to
640x480, moved a little from one to the next, and decoded apart. A start is a process of its own, from ``python`` to the
printed label.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from bench.machine import cpu
from bench.measure import QuietCheck
from fastfer import Recognizer, weights
from fastfer.predict.resolve import resolved

_FIRST = (
    "import sys, fastfer; print(fastfer.Recognizer({0!r}, detector={1!r})({2!r}).faces[0].label); "
    "sys.exit('torch' in sys.modules)"
)
_FRAMES, _STARTS = 120, 9
_PARTS = ("photos", "video", "start")


class Peer:
    """Another way, in a process of its own."""

    def __init__(self, kind: str, python: str, photo: Path, files: list[str]) -> None:
        script = str(Path(__file__).with_name("predict_peer.py"))
        self._process = subprocess.Popen(
            [python, script, kind, str(photo), *(files if kind == "opencv" else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "PYTHONPATH": ""},
        )  # fmt: skip
        assert self._process.stdout is not None
        self.name = self._process.stdout.readline().strip()
        if not self.name:
            raise OSError(f"{kind}: {python} cannot run {script}: try it by hand")

    def __call__(self) -> float:
        """Seconds of one photo."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline().split()[0])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def timed(job: Callable[[], object]) -> Callable[[], float]:
    """The job as what gives its seconds."""

    def run() -> float:
        start = time.perf_counter()
        job()
        return time.perf_counter() - start

    return run


def in_turn(jobs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each job, round after round, after two rounds unmeasured."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 2):
        for name, job in jobs.items():
            seconds = job()
            if number > 1:
                times[name].append(1e3 * seconds)
    return times


def table(times: dict[str, list[float]], what: str) -> None:
    """Print the times; the last column is the median over that of the first."""
    first = statistics.median(next(iter(times.values())))
    print(f"\n| {what} | least ms | median ms | times the first |\n|---|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| {name} | {min(values):.2f} | {median:.2f} | {median / first:.2f} |")


def photos(options: argparse.Namespace, recognizers: dict[str, Recognizer], files: list[str]) -> None:
    """From each photo's file to its labels."""
    for photo in options.photos:
        peers = [Peer(*peer.split(":", 1), photo, files) for peer in options.peer]
        jobs = {name: timed(lambda r=r, photo=photo: r(photo)) for name, r in recognizers.items()}  # type: ignore[misc]
        jobs |= {peer.name: peer for peer in peers}
        with Image.open(photo) as image:
            size = f"{image.width}x{image.height}"
        found = len(recognizers["fastfer"](photo).faces)
        table(in_turn(jobs, options.rounds), f"{photo.name}, {size}, {found} faces")
        for peer in peers:
            peer.close()


def video(photo: Path, recognizers: dict[str, Recognizer], rounds: int) -> None:
    """Frames of one face through `Recognizer.stream`, decoded before."""
    with Image.open(photo) as image:
        still = np.asarray(image.convert("RGB").resize((640, 480)))
    frames = [np.roll(still, (index % 7, index % 5), (0, 1)) for index in range(_FRAMES)]

    def job(recognizer: Recognizer) -> float:
        start = time.perf_counter()
        assert sum(1 for _ in recognizer.stream(frames, smooth=0.5)) == _FRAMES
        return (time.perf_counter() - start) / _FRAMES

    times = in_turn({name: lambda r=r: job(r) for name, r in recognizers.items()}, max(3, rounds // 10))  # type: ignore[misc]
    table(times, f"a frame of 640x480, {len(recognizers['fastfer'](still).faces)} faces")
    for name, values in times.items():
        print(f"{name}: {1e3 / statistics.median(values):.0f} frames/s")


def start(options: argparse.Namespace) -> None:
    """From nothing to the first label, with what an earlier use has left in the cache."""
    code = _FIRST.format(options.weights, options.detector, str(options.photos[0]))

    def job() -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begin

    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL)  # compiles, with torch
    table(in_turn({"from python to the first label, torch not imported": job}, _STARTS), "start")


def network(name: str, folder: Path) -> list[str]:
    """The network as ONNX, and what the peer needs to know of its input, as JSON."""
    from fastfer import load
    from fastfer.export import to_onnx

    engine, spec = resolved(name, 1, None)
    preprocess = spec.preprocess
    if engine.input_shape[0] != 1 or preprocess.equalise:
        raise ValueError(f"--weights: expected a network of grey faces, not equalised, got {name}")
    to_onnx(load(name).eval(), folder / "network.onnx")
    margin = 0.1 if preprocess.crop is None else preprocess.crop.margin
    about = [engine.input_shape[1], preprocess.mean[0], preprocess.std[0], margin, 640]
    return [str(folder / "network.onnx"), json.dumps(about)]


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description=__doc__)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--detector", required=True, help="face_detection_yunet_2023mar.onnx")
    parser.add_argument("--weights", default="fgw_fer", choices=weights.list())
    parser.add_argument("--peer", action="append", default=[], metavar="KIND:PYTHON")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="what is measured (default: all)")
    options = parser.parse_args()
    quiet = QuietCheck()
    recognizers = {
        f"fastfer{'' if kind is None else ', ' + kind}": Recognizer(
            options.weights, detector=options.detector, threads=1, precision=kind
        )
        for kind in (None, "bfloat16")
    }
    print(f"{cpu()}, one thread, {options.weights}, {options.rounds} rounds in turn")
    if "photos" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            photos(options, recognizers, [options.detector, *network(options.weights, Path(folder))])
    if "video" in options.parts:
        video(options.photos[0], recognizers, options.rounds)
    if "start" in options.parts:
        start(options)
    cores, stolen = quiet.read()
    print(f"\nOther processes took {cores:.2f} cores meanwhile, the host {stolen:.1%}.")


if __name__ == "__main__":
    main()
