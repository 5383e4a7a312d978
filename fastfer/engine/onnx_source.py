# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as what `fastfer.compile` works on: its program at a size, its names, and the metadata in it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from fastfer.engine import (  # noqa: F401 - most of them register handlers
    onnx_layers,
    onnx_microsoft,
    onnx_pointwise,
    onnx_quant,
    onnx_resize,
    onnx_sample,
    onnx_shape,
)
from fastfer.engine.onnx_patterns import simplified
from fastfer.engine.onnx_read import OnnxError, OnnxInput, OnnxModel, read, shortened
from fastfer.engine.onnx_trace import Tracer
from fastfer.engine.program import Program
from fastfer.engine.subject import Subject
from fastfer.engine.trace import OTHER_BATCH, for_any_batch
from fastfer.engine.views import BATCH

_FLOATS = ("float32", "float16", "bfloat16", "float64")
_MOST_PIXELS = 1 << 26


def opened(path: str | os.PathLike[str], example: Any = None, input_size: int | Sequence[int] | None = None) -> Subject:
    """The network in a file, for images of the size of ``example`` (its shape, or an input), of ``input_size`` (H, W),
    or that the file fixes.

    Raises as `read` and `program_of`; ValueError for a size that is none, or missing.
    """
    model = read(path)
    shapes: list[tuple[int, ...]] | None = None
    try:
        inputs = _used_inputs(model)
        if len(inputs) == 1 and len(inputs[0].dims) in (2, 4):
            size = _size(inputs[0], example, input_size)
        else:
            shapes = _shapes(inputs, example, input_size)
            size = (sum(map(prod, shapes)),)
    except OnnxError as error:
        raise OnnxError(f"{model.path}: {error}") from None
    known = _known(model, size)
    if shapes is not None:
        known["inputs"] = [list(shape) for shape in shapes]
    name = str(known.pop("model", None) or Path(model.path).stem)
    traced, in_onnxruntime = partial(program_of, model, shapes=shapes), partial(_in_onnxruntime, model)
    quantised = any(node.op in ("QuantizeLinear", "QLinearConv") for node in model.nodes)
    return Subject(name, size, traced, known, None, in_onnxruntime, quantised)


def _in_onnxruntime(model: OnnxModel, header: dict[str, Any], size: tuple[int, ...], threads: int | None) -> Any:
    from fastfer.engine.onnx_peer import OnnxRuntimeEngine

    return OnnxRuntimeEngine(model, size, header, threads)


def program_of(model: OnnxModel, size: Sequence[int], shapes: Sequence[Sequence[int]] | None = None) -> Program:
    """The calls that a model makes for images of ``size``, any number of them; ``shapes`` are those of several inputs.

    Raises `OnnxError` naming the node whose inputs do not fit, UncoveredError for an operator that is not known here,
    ValueError for a file whose results would depend on the number of images.
    """
    batch = model.inputs[0].dims[0]
    declared = batch if isinstance(batch, int) else None
    made: dict[str, tuple[int, ...]] = {}
    if declared is not None:
        tracer = Tracer(model, size, declared, declared, shapes)
        once, made = tracer.traced(), tracer.noted()
    programs = [Tracer(model, size, images, declared, shapes, made).traced() for images in (BATCH, OTHER_BATCH)]
    program = for_any_batch(*programs)
    program.each = declared or 0
    if declared is not None:
        for of_any, of_one in zip(program.outputs, once.outputs, strict=True):
            shape = once.sizes[of_one]
            if program.sizes[of_any][1:] != shape[1:] or shape[:1] != (declared,):
                raise OnnxError(
                    f"{model.path}: outputs: expected one row for each of the {declared} images that the file fixes, "
                    f"got the shape {shape}"
                )
    return simplified(program)


def _used_inputs(model: OnnxModel) -> list[OnnxInput]:
    """The network's inputs, if they are such as an engine takes."""
    used = {name for node in model.nodes for name in node.inputs} | set(model.outputs)
    inputs = [value for value in model.inputs if value.name in used]
    if not inputs:
        raise OnnxError("inputs: expected one that is used, got none")
    model.inputs[:] = inputs
    for taken in inputs:
        where = f"input {shortened(taken.name)}"
        if taken.dtype not in (*_FLOATS, *(("uint8",) if len(inputs) == 1 else ())):
            raise OnnxError(f"{where}: expected floats{' or uint8' if len(inputs) == 1 else ''}, got {taken.dtype}")
        if len(taken.dims) < 2 or len(taken.dims) > 6:
            raise OnnxError(f"{where}: expected images (N, C, H, W) or other arrays (N, ...), got {taken.dims}")
        if not isinstance(taken.dims[1], int):
            raise OnnxError(f"{where}: expected a fixed number of channels, got {taken.dims[1] or 'a free one'}")
    batches = {taken.dims[0] if isinstance(taken.dims[0], int) else None for taken in inputs}
    if len(batches) != 1:
        raise OnnxError(f"inputs: expected one number of images for all of them, got {[i.dims[0] for i in inputs]}")
    return inputs


def _shapes(inputs: Sequence[OnnxInput], example: Any, input_size: Any) -> list[tuple[int, ...]]:
    """The shapes of several inputs, without N: from ``example``, inputs or their shapes in order, or by the file."""
    if input_size is not None:
        raise ValueError("compile: input_size: expected None for a network that does not take one image; use example")
    parts: list[Any] = [None] * len(inputs)
    if example is not None:
        alone = len(inputs) == 1 and (hasattr(example, "shape") or all(isinstance(n, int) for n in example))
        parts = [example] if alone else list(example)
    if len(parts) != len(inputs):
        raise ValueError(f"compile: example: expected {len(inputs)} inputs or their shapes, got {len(parts)}")
    shapes = []
    for taken, part in zip(inputs, parts, strict=True):
        given = taken.dims if part is None else tuple(part.shape) if hasattr(part, "shape") else tuple(part)
        right = len(given) == len(taken.dims) and all(map(_is_size, given[1:]))
        if not right or any(isinstance(d, int) and d != n for d, n in zip(taken.dims[1:], given[1:], strict=True)):
            raise ValueError(
                f"compile: example: expected a shape of input {shortened(taken.name)}, {taken.dims}, got {given}"
            )
        shapes.append(tuple(int(n) for n in given[1:]))  # type: ignore[arg-type]
    if sum(map(prod, shapes)) > _MOST_PIXELS:
        raise ValueError(f"compile: example: expected at most {_MOST_PIXELS} numbers an image, got {shapes}")
    return shapes


def _size(taken: OnnxInput, example: Any, input_size: int | Sequence[int] | None) -> tuple[int, ...]:
    """(C, H, W) or (C,) of one image."""
    sizes: list[Any] = list(taken.dims[1:])
    where = f"input {shortened(taken.name)}"
    if example is not None and input_size is not None:
        raise ValueError("compile: input_size: expected none beside an example, got both")
    if example is not None:
        shape = tuple(example.shape) if hasattr(example, "shape") else tuple(example)
        if len(shape) not in (len(sizes), len(sizes) + 1) or not all(_is_size(n) for n in shape[-len(sizes) :]):
            raise ValueError(f"compile: example: expected a shape (N, C, H, W) or (C, H, W), got {shape}")
        sizes = [int(n) for n in shape[-len(sizes) :]]
    if input_size is not None:
        both = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        if len(sizes) != 3 or len(both) != 2 or not all(map(_is_size, both)):
            raise ValueError(f"compile: input_size: expected the height and width of images, got {input_size!r}")
        sizes = [sizes[0], *both]
    if not all(isinstance(n, int) for n in sizes):
        raise ValueError(f"compile: input_size: expected (height, width), as {where} has {tuple(taken.dims)}, got None")
    if sizes[0] != taken.dims[1]:
        raise ValueError(f"compile: example: expected {taken.dims[1]} channels, as {where} has, got {sizes[0]}")
    pixels = sizes[1] * sizes[2] if len(sizes) == 3 else 1
    if pixels > _MOST_PIXELS or sizes[0] * pixels > 4 * _MOST_PIXELS:
        raise ValueError(f"compile: input_size: expected at most {_MOST_PIXELS} pixels, got {tuple(sizes)}")
    return tuple(sizes)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _known(model: OnnxModel, size: tuple[int, ...]) -> dict[str, Any]:
    """Metadata of the engine: the names, and all that `fastfer.export` writes into a file."""
    known: dict[str, Any] = {}
    if "fastfer" in model.metadata:
        for key, text in model.metadata.items():
            try:
                known[key] = json.loads(text)
            except ValueError:
                raise OnnxError(
                    f"{model.path}: metadata {shortened(key)}: expected JSON, got {shortened(text)}"
                ) from None
        known.pop("fastfer")
    known["input_names"], known["output_names"] = [value.name for value in model.inputs], list(model.outputs)
    if known.get("pixels") is True or (model.inputs[0].dtype == "uint8" and "mean" not in known):
        # The graph takes pixels 0 to 255 as they are.
        known["mean"], known["std"] = [0.0] * size[0], [1 / 255] * size[0]
    return known
