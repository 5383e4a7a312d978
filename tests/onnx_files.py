# SPDX-License-Identifier: Apache-2.0
"""ONNX files written node by node, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
onnx: Any = __import__("pytest").importorskip("onnx")
helper = onnx.helper
FLOAT = onnx.TensorProto.FLOAT


def model(
    nodes: Sequence[Any],
    shape: Sequence[int | str] = ("n", 4, 8, 8),
    constants: Mapping[str, Any] | None = None,
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
    dtype: int = FLOAT,
) -> Any:
    """A model from the input "x" to the outputs."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    # The IR version that went with opset 17, so that older runtimes read it, too.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


def node(op: str, *inputs: str, out: str | Sequence[str] = "y", **attrs: Any) -> Any:
    return helper.make_node(
        op, list(inputs), [out] if isinstance(out, str) else list(out), name=f"{op}_of_{out}", **attrs
    )


def written(proto: Any, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def run(path: Path, x: Array) -> dict[str, Array]:
    """ONNX Runtime's outputs by name, unoptimised: each operator by itself."""
    runtime: Any = __import__("pytest").importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


def images(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantise(path: Path, to: Path, **options: Any) -> None:
    """ONNX Runtime's static quantisation of a file with the input "x" (n, 4, 16, 16)."""
    quantization: Any = __import__("pytest").importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.left = iter([{"x": images(4, 4, 16, 16, seed=seed)} for seed in range(4)])

        def get_next(self) -> Any:
            return next(self.left, None)

    quantization.quantize_static(str(path), str(to), Reader(), **options)


def error(y: Any, want: Array) -> float:
    """Root of the mean square."""
    return float(np.sqrt(((y - want) ** 2).mean()))


def by_name(result: Any, names: Sequence[str]) -> dict[str, Array]:
    """An engine's outputs by name."""
    return result if isinstance(result, dict) else {names[0]: result}
