# SPDX-License-Identifier: Apache-2.0
"""An engine of an ONNX file beside runtimes that take the file itself: outputs verified, then timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastfer.engine.compare import Comparison, images_for, timed
from fastfer.engine.graph import Array
from fastfer.engine.onnx_peer import session, sized
from fastfer.runtime import Engine

USUAL = ("onnxruntime", "openvino")
_SMALL = 1e-2
"""ONNX Runtime's sigmoid near 0 is right to about 1e-7, not to so much of its value."""
Run = Callable[[], list[Array]]


class Runtime(NamedTuple):
    """A runtime, and a call of it that gives the file's outputs in their order."""

    name: str
    version: str
    run: Run


def runners(path: str, images: Array, threads: int, others: Sequence[str] = USUAL) -> dict[str, tuple[str, Run]]:
    """Of each runtime its version and a call that returns the file's outputs for the images, in the file's order.

    Raises ImportError naming the extra for a package that is missing.
    """
    unknown = [name for name in others if name not in USUAL]
    if unknown:
        raise ValueError(f"compare: others: expected some of {', '.join(USUAL)}, got {unknown[0]!r}")
    data = sized(path, images.shape[1:], len(images))
    return {name: _MAKERS[name](data, images, threads) for name in others}


def _onnxruntime(data: bytes, images: Array, threads: int) -> tuple[str, Run]:
    import onnxruntime

    own = session(data, threads)
    feed = {own.get_inputs()[0].name: images}
    return onnxruntime.__version__, lambda: own.run(None, feed)


def _openvino(data: bytes, images: Array, threads: int) -> tuple[str, Run]:
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f"{error}; peers need more packages: pip install 'fastfer[engine-bench]'") from None
    core: Any = openvino.Core()
    model = core.read_model(data)
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", config).create_infer_request()

    def run() -> list[Array]:
        results = request.infer([images], share_inputs=True, share_outputs=True)
        return [results[i] for i in range(len(results))]

    return openvino.__version__.partition("-")[0], run


_MAKERS: dict[str, Callable[[bytes, Array, int], tuple[str, Run]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def outputs_of(result: Any) -> list[Array]:
    """An engine's outputs in the file's order."""
    parts = list(result.values()) if isinstance(result, dict) else [result]
    return [np.asarray(part) for part in parts]


def largest_error(got: Sequence[Array], want: Sequence[Array]) -> float:
    """The largest difference of an output over its largest element, or over `_SMALL` where that is less, of all.

    Element by element, as a file that fixes the number of images puts more of them into other dimensions.
    """
    errors = [
        float(np.abs(a.reshape(-1).astype(np.float64) - b.reshape(-1)).max() / max(float(np.abs(b).max()), _SMALL))
        for a, b in zip(got, want, strict=True)
    ]
    return max(errors)


def compare(
    path: str, engine: Engine, batch: int = 1, *, others: Sequence[str] | None = None, rounds: int = 8,
    seconds: float = 0.3, tolerance: float | None = None,
) -> Comparison:  # fmt: skip
    """Time ``engine`` and ``others`` on ``batch`` images, all with the engine's threads.

    Raises as `runners`, and RuntimeError, before anything is timed, where outputs differ from ONNX Runtime's by more
    than ``tolerance``, by default `compare.TOLERANCE`, relative to the largest element of each.
    """
    images = images_for(engine, batch)
    peers = runners(path, images, engine.threads, USUAL if others is None else others)
    reference = peers if "onnxruntime" in peers else runners(path, images, engine.threads, ("onnxruntime",))
    want = [np.array(part) for part in reference["onnxruntime"][1]()]
    runtimes = [Runtime("fastfer engine", engine.dtype, lambda: outputs_of(engine(images)))]
    runtimes += [Runtime(name, version, run) for name, (version, run) in peers.items()]
    return timed(engine, batch, runtimes, lambda got: largest_error(got, want), rounds, seconds, tolerance)
