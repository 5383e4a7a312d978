# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.detector MODEL PICTURE``: YuNet on the engine, in OpenCV and in ONNX Runtime, one thread.

MODEL is ``face_detection_yunet_2023mar.onnx``; OpenCV 5 does not take it and is left out. Boxes are those of OpenCV
before anything is timed; then all run in turn. "network" is without preparation and decoding. The times are of the
thread itself, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from bench.machine import cpu
from fastfer.predict import YuNet, yunet


def overlap(a: Any, b: Any) -> float:
    """Intersection over union of two boxes (left, top, width, height)."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return float(common / (a[2] * a[3] + b[2] * b[3] - common))


def contenders(model: str, picture: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name. ValueError where boxes are not OpenCV's."""
    detector = YuNet(model, threads=1, longest=max(picture.shape))
    found = detector(picture)
    size = yunet.input_size(*picture.shape[:2])
    x = np.empty((1, 3, *size), np.uint8)
    yunet.to_input(picture, x[0])
    engine = detector.engine(size)
    jobs: dict[str, Callable[[], Any]] = {
        "fastfer": lambda: detector(picture),
        "fastfer, network": lambda: engine(x),
    }
    try:
        import cv2
    except ImportError:
        cv2 = None
    if cv2 is not None and cv2.__version__ < "5":
        cv2.setNumThreads(1)
        other = cv2.FaceDetectorYN.create(model, "", picture.shape[1::-1], detector.score)
        bgr = np.ascontiguousarray(picture[..., ::-1])
        rows = other.detect(bgr)[1]
        rows = [] if rows is None else rows
        if len(rows) != len(found) or any(overlap(f.box, r) < 0.99 for f, r in zip(found, rows, strict=True)):
            raise ValueError(f"boxes: expected OpenCV's {rows}, got {found}")
        jobs[f"OpenCV {cv2.__version__}"] = lambda: other.detect(bgr)
    if size == (640, 640):  # the one that the file takes elsewhere
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        floats = x.astype(np.float32)
        jobs["ONNX Runtime, network"] = lambda: session.run(None, {"input": floats})
    return jobs


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.detector", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("picture")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    picture = np.asarray(Image.open(options.picture).convert("RGB").resize(tuple(options.size)))
    jobs = contenders(options.model, picture)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            start = time.thread_time()
            job()
            times[name].append(1e3 * (time.thread_time() - start))
    print(f"{cpu()}; {options.size[0]}x{options.size[1]}, one thread, {options.rounds} rounds\n")
    print("| | least ms | median ms |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {min(values):.2f} | {statistics.median(values):.2f} |")


if __name__ == "__main__":
    main()
