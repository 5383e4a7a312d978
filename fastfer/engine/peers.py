# SPDX-License-Identifier: Apache-2.0
"""Other runtimes on the same network: ONNX Runtime, OpenVINO, ``torch.compile``; each forced to a precision and a
number of threads.

They get the network in torch's own ops: a module of torch alone as it is, one of fastfer's as it is exported.
"""

from __future__ import annotations

import copy
import importlib
import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastfer.engine.graph import Array
from fastfer.models import FerModel

Run = Callable[[], Array]


@dataclass(frozen=True)
class Peer:
    """A runtime by name, its version, and a call that returns the outputs for the images that it was made for."""

    name: str
    version: str
    run: Run


def stock(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The model in torch's own ops, in evaluation mode on the CPU, for images of (H, W) = ``size``.

    Of a fastfer network that is its export, whose ops are those of the plain formulas.
    """
    if not isinstance(model, FerModel):
        return copy.deepcopy(model).cpu().eval()
    from fastfer.export.program import to_program

    exported: nn.Module = to_program(model, size=size).module()
    return exported


def _required(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{error}; peers need more packages: pip install 'fastfer[engine-bench]'") from None


_SDPA = torch.ops.aten.scaled_dot_product_attention.default


def _attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, scale: float | None = None, **named: Any) -> Tensor:
    """Attention over tokens in ops that the ONNX exporter knows for three dimensions."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax((q @ k.transpose(-2, -1)) * factor, -1) @ v


@dataclass(frozen=True)
class Subject:
    """What is compared: a model in stock torch ops, the images of every call, and a number of threads."""

    model: nn.Module
    images: Array
    threads: int

    @cached_property
    def onnx(self) -> bytes:
        """The model in ONNX, for images of exactly this shape."""
        for package in ("onnx", "onnxscript"):
            _required(package)
        logger = logging.getLogger("torch.onnx")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it names every operator of packages that are not installed
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
                warnings.simplefilter("ignore")
                exported = torch.export.export(self.model, (torch.from_numpy(self.images),), strict=False)
                exported = exported.run_decompositions({_SDPA: _attention})
                program = torch.onnx.export(exported, dynamo=True, verbose=False)
        finally:
            logger.setLevel(level)
        assert program is not None
        data: bytes = program.model_proto.SerializeToString()
        return data


def onnxruntime(subject: Subject) -> Peer:
    """ONNX Runtime's CPU provider, all graph optimisations."""
    package = _required("onnxruntime")
    options = package.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = subject.threads, 1
    options.graph_optimization_level = package.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = package.InferenceSession(subject.onnx, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: subject.images}

    def run() -> Array:
        result: Array = session.run(None, feed)[0]
        return result

    return Peer("onnxruntime", package.__version__, run)


def openvino(subject: Subject, precision: str = "f32") -> Peer:
    """OpenVINO on the CPU, tuned for latency.

    ``precision`` is "f32", "bf16" (its own choice where the CPU has it) or "int8": NNCF's quantisation after training,
    calibrated on the subject's images.
    """
    package = _required("openvino")
    core = package.Core()
    model = core.read_model(subject.onnx)
    if precision == "int8":
        nncf = _required("nncf")
        logging.getLogger("nncf").setLevel(logging.ERROR)
        with redirect_stdout(io.StringIO()):
            model = nncf.quantize(model, nncf.Dataset([subject.images]))
    config = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "int8" else precision,
        "INFERENCE_NUM_THREADS": subject.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()

    def run() -> Array:
        result: Array = request.infer([subject.images], share_inputs=True, share_outputs=True)[0]
        return result

    name = "openvino" if precision == "f32" else f"openvino {precision}"
    return Peer(name, package.__version__.partition("-")[0], run)


def torch_compile(subject: Subject) -> Peer:
    """``torch.compile`` with freezing: norms folded, weights packed; fixed shapes, no graph breaks."""
    torch.set_num_threads(subject.threads)
    options: dict[str, Any] = {"freezing": True}
    call: Any = torch.compile(subject.model, fullgraph=True, dynamic=False, options=options)
    x = torch.from_numpy(subject.images)

    def run() -> Array:
        with torch.no_grad():
            result: Array = call(x).numpy()
        return result

    return Peer("torch.compile", torch.__version__.partition("+")[0], run)


PEERS: dict[str, Callable[[Subject], Peer]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torch.compile": torch_compile,
    "openvino bf16": partial(openvino, precision="bf16"),
    "openvino int8": partial(openvino, precision="int8"),
}
USUAL = {
    "float32": ("onnxruntime", "openvino", "torch.compile"),
    "bfloat16": ("openvino bf16",),
    "int8": ("openvino int8",),
}
"""What an engine of a precision is compared with."""


def largest_error(got: Array, want: Array) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())
