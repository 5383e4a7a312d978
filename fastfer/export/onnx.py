# SPDX-License-Identifier: Apache-2.0
"""ONNX files of the networks: standard operators, any batch, class names and preprocessing in the metadata.

Input "images" (N, C, H, W), output "logits" (N, K). Metadata entries are JSON texts: "fastfer" (version of this layout,
1), "model", "options", "classes", "mean", "std", "input" (C, H, W of what the graph takes), "pixels" (true where that
is uint8), "before" (in words, what has to be done to an image before), and whatever else the weight file's header says.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastfer.data import InputSpec
from fastfer.data.files import replace_atomically
from fastfer.data.input_spec import input_size
from fastfer.export.program import example, pixel_shape, prepared, smallest_batch, to_program
from fastfer.export.simplify import simplify
from fastfer.models import FerModel

LAYOUT = 1
OPSET = 18
_LARGEST = 1 << 20  # pixels of an image; the networks are made for up to 224×224
_TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}


class ExportError(RuntimeError):
    """The exported file does not compute what the network computes; it was not written."""


def to_onnx(
    model: FerModel,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    pixels: bool = False,
) -> dict[str, Any]:
    """Write ``model`` to ``path`` in ONNX, checked against ONNX Runtime; the file appears whole or not at all.

    ``metadata`` are JSON values by name, as `read_metadata` gives them; its "input" ends in the images' (H, W), by
    default the network's published ones. With ``pixels`` the graph takes uint8 images in the form of the training
    images ("stored" in metadata, else "input") and does all of the preprocessing itself but the face crop; else float
    images that are preprocessed.
    Returns {"operators": names, "largest_error": of a logit, relative to the largest logit or 1, "batches": sizes
    compared, "bytes": of the file, "before": what has to be done to an image before, in words}.

    Raises ImportError naming the extra for missing packages, TypeError or ValueError for input that does not fit,
    ExportError where ONNX Runtime's logits differ.
    """
    _require_packages()
    spec = _spec(model, metadata or {})
    if pixels and spec is None:
        raise ValueError("to_onnx: pixels: expected metadata with 'mean' and 'std' to preprocess with, got none")
    header = _header(model, metadata or {}, spec, pixels)
    taken: tuple[int, int, int] = header["input"]
    inside = spec if pixels else None
    module = prepared(model, inside)
    with _quiet():
        program = to_program(model, inside, size=taken[1:])
        images = example(model, smallest_batch(model) + 1, taken, pixels)
        exported = torch.onnx.export(
            program,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
        )
    assert exported is not None
    proto = exported.model
    simplify(proto)
    _name(proto, header)
    with replace_atomically(path) as temporary:
        exported.save(temporary)
        error, batches = _compare(model, module, temporary, lambda n: example(model, n, taken, pixels, seed=n))
        written = temporary.stat().st_size
    operators = sorted({node.op_type for node in proto.graph})
    return {
        "operators": operators,
        "largest_error": error,
        "batches": batches,
        "bytes": written,
        "before": header["before"],
    }


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}; ONNX export needs more packages: pip install 'fastfer[onnx]'") from error


def _spec(model: FerModel, metadata: Mapping[str, Any]) -> InputSpec | None:
    """What ``metadata`` say of the images; None where they say nothing of their preprocessing."""
    if not isinstance(model, FerModel):
        raise TypeError(f"to_onnx: model: expected a fastfer model, got {type(model).__name__}")
    if not any(metadata.get(key) for key in ("preprocess", "mean", "std")):
        return None
    try:
        spec = InputSpec.from_metadata(metadata)
        spec.shape(model.in_chans, model.input_size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"to_onnx: metadata: {error}") from None
    return spec


def _header(model: FerModel, metadata: Mapping[str, Any], spec: InputSpec | None, pixels: bool) -> dict[str, Any]:
    if spec is None:
        shape = (model.in_chans, *(input_size(metadata) or model.input_size))
    else:
        shape = pixel_shape(model, spec) if pixels else spec.shape(model.in_chans, model.input_size)
    if shape[1] * shape[2] > _LARGEST:
        raise ValueError(f"to_onnx: input: expected at most {_LARGEST:,} pixels, got {shape[1]}×{shape[2]}")
    classes = model.class_names or metadata.get("classes")
    if classes is not None and len(classes) != model.num_classes:
        raise ValueError(f"to_onnx: classes: expected {model.num_classes} names, got {list(classes)!r}")
    own = {
        "fastfer": LAYOUT,
        "model": model.name,
        "options": model.options,
        "classes": None if classes is None else list(classes),
        "mean": None if spec is None else list(spec.preprocess.mean),
        "std": None if spec is None else list(spec.preprocess.std),
        "input": shape,
        "pixels": pixels,
        "before": [] if spec is None else list(spec.to_stored() if pixels else spec.before(pixels=False)),
    }
    return {**metadata, **own}


def _name(proto: Any, header: Mapping[str, Any]) -> None:
    """Names a user meets: of the batch axis, the graph, the producer; and the metadata."""
    import onnx_ir

    for value in (*proto.graph.inputs, *proto.graph.outputs):
        value.shape = onnx_ir.Shape(["batch", *value.shape[1:]])
    proto.graph.name = header["model"]
    proto.producer_name, proto.producer_version = "fastfer", str(LAYOUT)
    proto.metadata_props.clear()
    proto.metadata_props.update({key: json.dumps(value, ensure_ascii=False) for key, value in header.items()})
    for node in proto.graph:  # the exporter's records, stack traces with paths among them
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*proto.graph.inputs, *proto.graph.initializers.values()):
        value.metadata_props.clear()


def _compare(model: FerModel, module: nn.Module, path: Path, draw: Callable[[int], Tensor]) -> tuple[float, list[int]]:
    """Largest relative error of ONNX Runtime against the network, for two sizes of batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    dtype = next(model.parameters()).dtype
    batches, largest = [smallest_batch(model), smallest_batch(model) + 3], 0.0
    for batch in batches:
        images = draw(batch)
        with torch.no_grad():
            want = module(images)
        (got,) = session.run(None, {"images": images.numpy()})
        scale = max(1.0, float(want.abs().max()))
        largest = max(largest, float((torch.from_numpy(got) - want).abs().max()) / scale)
    if not largest <= _TOLERANCE[dtype]:
        raise ExportError(f"ONNX Runtime's logits: expected a relative error up to {_TOLERANCE[dtype]}, got {largest}")
    return largest, batches


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter tells of packages that it does not need and of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
