# SPDX-License-Identifier: Apache-2.0
"""ONNX files as plain nodes and arrays, every size checked against the bytes that are there; nothing is executed.

What a file claims is not believed: shapes of tensors must fit their data, external data must lie in the model's own
folder, nodes must form no circle, functions must not grow without bound. Every error names the file and the part.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fastfer.engine.graph import Array

OLDEST = 7
"""The first opset that is read; older ones broadcast by attributes."""
_LARGEST_FILE = 2**31 - 1
_MOST_NODES = 100_000
_MOST_RANK = 16
MOST_SIZE = 2**31 - 1
"""Of one dimension, and of what windows are described by."""
_DOMAINS = ("", "ai.onnx")
MICROSOFT = "com.microsoft"
"""The domain of what ONNX Runtime's quantiser and optimiser write; its name stands before that of the operator."""


class OnnxError(ValueError):
    """A file that is no model, or not one that is read here."""


@dataclass(frozen=True)
class OnnxNode:
    """``outputs`` = ``op`` of ``inputs``, by name; an empty name is a part that is left out."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]

    def __str__(self) -> str:
        return f"node {shortened(self.name or self.outputs[0])} ({self.op})"


@dataclass(frozen=True)
class OnnxInput:
    """``dims`` are numbers, names of free sizes, or None; ``dtype`` is numpy's name."""

    name: str
    dtype: str
    dims: tuple[int | str | None, ...]


@dataclass
class OnnxModel:
    """A file's graph, its nodes in an order in which they can run, without those that no output needs."""

    path: str
    opset: int
    producer: str
    inputs: list[OnnxInput]
    outputs: tuple[str, ...]
    nodes: list[OnnxNode]
    constants: dict[str, Array]
    metadata: dict[str, str] = field(default_factory=dict)


def shortened(text: str, most: int = 80) -> str:
    """A name from a file for a message: quoted, and of no absurd length."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


def read(path: str | os.PathLike[str]) -> OnnxModel:
    """The model in a file.

    Raises ImportError naming the extra, OSError for a file that cannot be read, `OnnxError` for what is wrong in it.
    """
    where = os.fspath(path)
    try:
        return _model(_parsed(where), where)
    except OnnxError as error:
        raise OnnxError(f"{where}: {error}") from None


def _parsed(path: str) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ImportError(f"{error}; ONNX files need more packages: pip install 'fastfer[onnx]'") from error
    size = _regular(Path(path))
    if size > _LARGEST_FILE:
        raise OnnxError(f"expected at most {_LARGEST_FILE} bytes, got {size}")
    proto = onnx.ModelProto()
    try:
        with open(path, "rb") as file:
            proto.ParseFromString(file.read(size + 1))
    except DecodeError:
        raise OnnxError(
            "expected an ONNX model, got bytes that are none: truncated, damaged or of another kind"
        ) from None
    return proto


def _regular(path: Path) -> int:
    """The size of a plain file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OnnxError(f"expected a file, got {'a folder' if stat.S_ISDIR(status.st_mode) else 'something else'}")
    return status.st_size


def _model(proto: Any, path: str) -> OnnxModel:
    opset = _opset(proto)
    if proto.functions:
        proto = _inlined(proto)
    graph = proto.graph
    if not graph.output:
        raise OnnxError("expected a graph with outputs, got none: truncated, or no model")
    if graph.sparse_initializer:
        raise OnnxError("expected dense initializers, got a sparse one")
    if len(graph.node) > _MOST_NODES:
        raise OnnxError(f"expected at most {_MOST_NODES} nodes, got {len(graph.node)}")
    outputs = tuple(value.name for value in graph.output)
    if len(set(outputs)) != len(outputs):
        raise OnnxError("expected outputs of different names")
    held = {tensor.name: tensor for tensor in graph.initializer}
    if len(held) != len(graph.initializer):
        raise OnnxError("expected initializers of different names")
    inputs = [value for value in graph.input if value.name not in held]
    if len({value.name for value in inputs}) != len(inputs):
        raise OnnxError("expected inputs of different names")
    chosen = _ordered(list(graph.node), {value.name for value in inputs} | held.keys(), outputs)
    folder = Path(path).resolve().parent
    nodes = [_node(node, folder) for node in chosen]
    read_names = {name for node in nodes for name in node.inputs} | set(outputs)
    constants = {
        name: tensor_array(tensor, f"initializer {shortened(name)}", folder)
        for name, tensor in held.items()
        if name in read_names
    }
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return OnnxModel(path, opset, proto.producer_name, [_input(v) for v in inputs], outputs, nodes, constants, metadata)


def _opset(proto: Any) -> int:
    """The version of ONNX's own operators."""
    import onnx

    if proto.ir_version > onnx.IR_VERSION:
        raise OnnxError(
            f"ir_version: expected at most {onnx.IR_VERSION}, as the onnx package has, got {proto.ir_version}"
        )
    versions = {entry.version for entry in proto.opset_import if entry.domain in _DOMAINS}
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1:
        raise OnnxError(f"opset: expected one version of ONNX's operators, got {sorted(versions) or 'none'}")
    (version,) = versions
    if not OLDEST <= version <= newest:
        raise OnnxError(f"opset: expected {OLDEST} to {newest}, as the onnx package has, got {version}")
    return int(version)


def _inlined(proto: Any) -> Any:
    """The model with its own functions written out, if they do not grow beyond the largest number of nodes."""
    import onnx
    from onnx import inliner

    bodies = {(f.domain, f.name): [(n.domain, n.op_type) for n in f.node] for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    open_now: set[tuple[str, str]] = set()

    def size(key: tuple[str, str]) -> int:
        if key not in bodies:
            return 1
        if key in open_now or len(open_now) > 100:
            raise OnnxError(f"function {shortened(key[1])}: expected one that does not call itself, or too deep")
        if key not in sizes:
            open_now.add(key)
            sizes[key] = sum(map(size, bodies[key]))
            open_now.discard(key)
        return sizes[key]

    total = sum(size((node.domain, node.op_type)) for node in proto.graph.node)
    if total > _MOST_NODES:
        raise OnnxError(f"functions: expected at most {_MOST_NODES} nodes when written out, got {total}")
    try:
        flat: onnx.ModelProto = inliner.inline_local_functions(proto)
    except Exception as error:  # the package raises kinds of its own
        raise OnnxError(f"functions: expected ones that can be written out, got {error}") from None
    return flat


def _ordered(nodes: Sequence[Any], known: set[str], outputs: Sequence[str]) -> list[Any]:
    """The nodes that the outputs need, in an order in which they can run. Raises for circles and missing values."""
    writer: dict[str, int] = {}
    for number, node in enumerate(nodes):
        for name in node.output:
            if name and (name in writer or name in known):
                raise OnnxError(f"value {shortened(name)}: expected it to be written once, got twice")
            if name:
                writer[name] = number
    order: list[int] = []
    state: dict[int, int] = {}  # 1 while what it needs is on the stack, 2 when it is in the order
    for output in outputs:
        _check_written(output, writer, known, "the outputs")
        stack = [writer[output]] if output in writer else []
        while stack:
            number = stack[-1]
            if state.get(number) == 2:
                stack.pop()
                continue
            if state.get(number) == 1:
                state[number] = 2
                order.append(stack.pop())
                continue
            state[number] = 1
            for name in nodes[number].input:
                if not name:
                    continue
                _check_written(name, writer, known, _label(nodes[number]))
                before = writer.get(name)
                if before is not None and state.get(before) == 1:
                    raise OnnxError(f"{_label(nodes[number])}: expected nodes without a circle, got one through it")
                if before is not None and before not in state:
                    stack.append(before)
    # In the file's own order where that is one, so that messages come in the order in which a reader meets the nodes.
    return [nodes[n] for n in (sorted(order) if _runs(sorted(order), nodes, writer) else order)]


def _runs(order: Iterable[int], nodes: Sequence[Any], writer: dict[str, int]) -> bool:
    return all(writer.get(name, -1) < number for number in order for name in nodes[number].input if name)


def _check_written(name: str, writer: dict[str, int], known: set[str], by: str) -> None:
    if name not in writer and name not in known:
        raise OnnxError(f"value {shortened(name)}, read by {by}: expected a node, an input or an initializer, got none")


def _label(node: Any) -> str:
    return f"node {shortened(node.name or (node.output[0] if node.output else ''))} ({node.op_type})"


def _node(proto: Any, folder: Path) -> OnnxNode:
    where = _label(proto)
    if proto.domain not in (*_DOMAINS, MICROSOFT):
        raise OnnxError(f"{where}: expected an operator of ONNX itself, got the domain {shortened(proto.domain)}")
    attrs = {attribute.name: _attribute(attribute, where, folder) for attribute in proto.attribute}
    op = f"{MICROSOFT}.{proto.op_type}" if proto.domain == MICROSOFT else proto.op_type
    return OnnxNode(op, proto.name, tuple(proto.input), tuple(proto.output), attrs)


def _attribute(attribute: Any, where: str, folder: Path) -> Any:
    """An attribute's value: a number, text, an array, or a list of these."""
    kinds = type(attribute)
    if attribute.type in (kinds.GRAPH, kinds.GRAPHS):
        raise OnnxError(f"{where}: expected no control flow, got a node with a graph inside ({attribute.name})")
    if attribute.ref_attr_name:
        raise OnnxError(f"{where}: attribute {attribute.name}: expected a value, got a reference outside a function")
    if attribute.type == kinds.TENSOR:
        return tensor_array(attribute.t, f"{where}: attribute {attribute.name}", folder)
    values: dict[int, Callable[[], Any]] = {
        kinds.FLOAT: lambda: float(attribute.f),
        kinds.INT: lambda: int(attribute.i),
        kinds.STRING: lambda: attribute.s.decode(errors="replace"),
        kinds.FLOATS: lambda: list(attribute.floats),
        kinds.INTS: lambda: list(attribute.ints),
        kinds.STRINGS: lambda: [text.decode(errors="replace") for text in attribute.strings],
    }
    if attribute.type not in values:
        raise OnnxError(f"{where}: attribute {attribute.name}: expected numbers, text or a tensor, got another kind")
    return values[attribute.type]()


def _input(value: Any) -> OnnxInput:
    import onnx

    where = f"input {shortened(value.name)}"
    if value.type.WhichOneof("value") != "tensor_type":
        raise OnnxError(f"{where}: expected a tensor, got {value.type.WhichOneof('value') or 'no type'}")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise OnnxError(f"{where}: expected a shape, got none")
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim:
        kind = dim.WhichOneof("value")
        if kind == "dim_value" and dim.dim_value < 0:
            raise OnnxError(f"{where}: expected sizes >= 0, got {dim.dim_value}")
        if kind == "dim_value" and dim.dim_value > MOST_SIZE:
            raise OnnxError(f"{where}: expected sizes of at most {MOST_SIZE}, got {dim.dim_value}")
        # Some writers say 0, or an empty name, for a free size.
        dims.append((dim.dim_value or None) if kind == "dim_value" else (dim.dim_param or None) if kind else None)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except (KeyError, ValueError):
        dtype = f"type {tensor.elem_type}"
    return OnnxInput(value.name, dtype, tuple(dims))


def tensor_array(tensor: Any, where: str, folder: Path) -> Array:
    """A tensor's elements; its shape must be that of the data which is there, before memory is taken for it."""
    import onnx
    from onnx import numpy_helper

    dims = tuple(tensor.dims)
    if any(n < 0 for n in dims) or len(dims) > _MOST_RANK:
        raise OnnxError(f"{where}: expected up to {_MOST_RANK} sizes >= 0, got {shortened(str(dims))}")
    count, kind = prod(dims), tensor.data_type
    if kind in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING) or tensor.HasField("segment"):
        raise OnnxError(f"{where}: expected numbers in one piece, got text, no type or a part")
    try:
        item = onnx.helper.tensor_dtype_to_np_dtype(kind)
    except (KeyError, ValueError):
        raise OnnxError(f"{where}: expected a known type of numbers, got type {kind}") from None
    if item.kind == "c":
        raise OnnxError(f"{where}: expected real numbers, got {item.name}")
    whole = onnx.TensorProto()
    whole.CopyFrom(tensor)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        del whole.external_data[:]
        whole.data_location = onnx.TensorProto.DEFAULT
        whole.raw_data = _external(tensor, where, folder, count * item.itemsize)
    _check_amount(whole, where, count, item)
    try:
        return np.asarray(numpy_helper.to_array(whole), order="C")
    except Exception as error:  # the package raises kinds of its own
        raise OnnxError(f"{where}: expected a tensor of {dims}, got {error}") from None


def _check_amount(tensor: Any, where: str, count: int, item: Any) -> None:
    """Raise where a tensor's shape needs another amount of data than it has."""
    packed = item.itemsize == 1 and item.name not in ("int8", "uint8", "bool") and "float8" not in item.name
    if tensor.HasField("raw_data"):
        have, want = len(tensor.raw_data), (count + 1) // 2 if packed else count * item.itemsize
        if packed and have == (count + 3) // 4:  # two bits a number
            return
        unit = "bytes"
    else:
        have = max(
            len(tensor.float_data),
            len(tensor.int32_data),
            len(tensor.int64_data),
            len(tensor.double_data),
            len(tensor.uint64_data),
        )
        want, unit = count, "numbers"
        if packed and have < count <= 8 * have:
            return
    if have != want:
        raise OnnxError(f"{where}: expected {want} {unit} for the shape {tuple(tensor.dims)}, got {have}")


def _external(tensor: Any, where: str, folder: Path, count: int) -> bytes:
    """The bytes of a tensor that lies in a file beside the model, and nowhere else."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location or os.path.isabs(location) or "\0" in location or "\\" in location:
        raise OnnxError(f"{where}: external data: expected a file in the model's folder, got {shortened(location)}")
    target = Path(os.path.realpath(folder / location))
    if folder not in target.parents:
        raise OnnxError(f"{where}: external data: expected a file in the model's folder, got {shortened(location)}")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(count)))
    except ValueError:
        raise OnnxError(f"{where}: external data: expected numbers as offset and length, got others") from None
    try:
        size = _regular(target)
    except OSError:
        raise OnnxError(f"{where}: external data: expected the file {shortened(location)}, got none") from None
    if length > count:
        raise OnnxError(f"{where}: external data: expected {count} bytes for its shape, got {length}")
    if offset < 0 or length < 0 or offset + length > size:
        raise OnnxError(
            f"{where}: external data: expected bytes {offset} to {offset + length} of {shortened(location)}, got "
            f"a file of {size}"
        )
    with open(target, "rb") as file:
        file.seek(offset)
        return file.read(length)
