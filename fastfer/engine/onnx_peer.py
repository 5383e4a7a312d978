# SPDX-License-Identifier: Apache-2.0
"""A file with operators that no plan has, run by ONNX Runtime as a whole behind the interface of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastfer.engine import metadata as fields
from fastfer.engine.graph import Array, Shape
from fastfer.engine.onnx_read import OnnxModel
from fastfer.engine.onnx_trace import structure_of
from fastfer.runtime import Engine, as_array, default_threads


def session(data: bytes, threads: int) -> Any:
    """A session of ONNX Runtime on the CPU. Raises ImportError naming the extra."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"{error}; fallback=\"onnxruntime\" needs more packages: pip install 'fastfer[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def sized(path: str, size: Sequence[int] | Mapping[str, Sequence[int]], images: int | None = None) -> bytes:
    """The file's model, its data inside, for images of ``size``, as many as ``images`` or as the file says; of several
    inputs their sizes by name."""
    import onnx

    proto = onnx.load(path)
    held = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name not in held:
            first, *rest = value.type.tensor_type.shape.dim
            own = size.get(value.name, ()) if isinstance(size, Mapping) else size
            for dim, number in zip(rest, own, strict=False):  # one that nothing reads is left
                dim.dim_value = number
            if images is not None:
                first.dim_value = images
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    data: bytes = proto.SerializeToString()
    return data


class OnnxRuntimeEngine(Engine):
    """As `Engine`, but that it cannot be saved or profiled, and needs ONNX Runtime."""

    def __init__(
        self,
        model: OnnxModel,
        size: Sequence[int],
        header: Mapping[str, Any],
        threads: int | None,
        data: bytes = b"",
    ) -> None:
        self.metadata, self.dtype, self.strict = dict(header), "float32", header.get("strict") is True
        self._asked_threads, self._count = threads, default_threads(threads)
        self.input_shape = Shape(*size, *(1,) * (3 - len(size)))
        shapes = [tuple(size)] if self.inputs is None else self.inputs[1]
        named = {value.name: shape for value, shape in zip(model.inputs, shapes, strict=True)}
        self._data = data or sized(model.path, named)
        self._session = session(self._data, self._count)
        self._inputs, self._names, self._size = model.inputs, model.outputs, tuple(size)
        self._taken = model.inputs[0]
        batch = self._taken.dims[0]
        self._each = batch if isinstance(batch, int) else 0
        self.output_shapes = tuple(y.shape[1:] for y in self._run(np.zeros((self._each or 2, *size), np.float32)))
        self.class_names = fields.class_names(self.metadata, self.output_shapes)
        self._normalisation = [
            np.array(v, np.float32).reshape(1, -1, 1, 1) for v in fields.normalisation(self.metadata)
        ]
        self._kinds = ("float32", "uint8") if self._normalisation[0].size else ("float32",)
        self._structure, self._classes = structure_of(self._names, range(len(self._names))), {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as the model's bytes, of which a session is made again."""
        model = OnnxModel("", 0, "", self._inputs, self._names, [], {})
        return OnnxRuntimeEngine, (model, self._size, self.metadata, self._asked_threads, self._data), self._state()

    @property
    def islands(self) -> tuple[str, ...]:
        """What other runtimes run."""
        return ("the whole network in ONNX Runtime",)

    @property
    def threads(self) -> int:
        """Threads of ONNX Runtime."""
        return self._count

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the model; what ONNX Runtime takes besides is not known."""
        return {"weights": len(self._data), "activations": 0}

    def _with_numpy(self, x: Any) -> Any:
        kind = self._kind(x.dtype.name, x.shape)
        images = as_array("engine", "x", x)
        if kind == "uint8":
            images = images.astype(np.float32) * self._normalisation[0] + self._normalisation[1]
        return self._answer(self._run(images), len(x))

    def _with_torch(self, torch: Any, x: Any) -> Any:
        self._kind(str(x.dtype)[6:], x.shape)
        array = as_array("engine", "x", x)
        if str(x.dtype) == "torch.uint8":
            array = array.astype(np.float32) * self._normalisation[0] + self._normalisation[1]
        return self._answer([torch.from_numpy(y) for y in self._run(array)], len(array))

    def _run(self, images: Array) -> list[Array]:
        """The outputs for float images, in as many calls as the file's fixed number of images asks for."""
        feeds = self._feeds(images)
        each = self._each or max(len(images), 1)
        if len(images) % each or not len(images):
            raise ValueError(f"engine: x: expected a multiple of {each} images, as the file fixes, got {len(images)}")
        calls = [
            self._session.run(list(self._names), {name: array[at : at + each] for name, array in feeds.items()})
            for at in range(0, len(images), each)
        ]
        outputs = [np.concatenate(parts) for parts in zip(*calls, strict=True)]
        if any(len(y) != len(images) for y in outputs):
            raise ValueError(
                f"engine: outputs: expected one row an image, got shapes {[y.shape for y in outputs]} of {len(images)}"
            )
        return outputs

    def _feeds(self, images: Array) -> dict[str, Array]:
        """The file's inputs by name; several of them stand behind one another."""
        shapes = [self._size] if self.inputs is None else self.inputs[1]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        parts = np.split(images.reshape(len(images), -1), ends, axis=1)
        return {
            taken.name: part.reshape(len(images), *shape).astype(taken.dtype)
            for taken, part, shape in zip(self._inputs, parts, shapes, strict=True)
        }

    def save(self, path: Any) -> None:
        """Raises ValueError: it is not an engine file."""
        raise ValueError("save: expected an engine without fallback, got one that ONNX Runtime runs")

    def profile(self, x: Any = None, repeats: int = 20) -> Any:
        """Raises ValueError: it has no steps of its own."""
        raise ValueError("profile: expected an engine without fallback, got one that ONNX Runtime runs")
