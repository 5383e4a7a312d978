# SPDX-License-Identifier: Apache-2.0
"""Run compiled networks: ``fastfer.runtime.load("model.ffe")`` gives an `Engine`; needs numpy, and no torch."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from fastfer import _memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fastfer.engine.profile import Profile


def load(
    path: str | Path, *, threads: int | None = None, dtype: str | None = None, strict: bool | None = None
) -> Engine:
    """The engine that `Engine.save` wrote; arguments as in `fastfer.compile`, dtype and strict None: as compiled.

    Nothing in the file is executed. Raises FileNotFoundError, or ValueError saying what is wrong with the file.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return Engine(data, threads=threads, dtype=dtype, strict=strict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class Engine:
    """A network as one native call: images (N, C, H, W) -> outputs (N, ...) for any N.

    float32 images are what the network takes; uint8 images are pixels 0 to 255, normalised inside with the mean and the
    standard deviation that the network was compiled with. numpy arrays give numpy arrays, torch tensors on the CPU
    torch tensors, without gradients. Calls from several threads run side by side, each with memory of its own.
    """

    input_shape: tuple[int, int, int]
    """(C, H, W) of an image."""
    output_shapes: tuple[tuple[int, ...], ...]
    """Of each output, without N: ((num_classes,),) for a classifier."""
    class_names: tuple[str, ...] | None
    """Of the logits, in order, where known."""
    metadata: Mapping[str, Any]
    """What was saved with the network: "model", "options", "classes", "mean", "std", and what `compile` was given."""
    dtype: str
    """Precision of the arithmetic: "float32", "bfloat16" or "int8"; images and outputs are float32 in all."""

    strict: bool
    """Whether convolutions are sums in float32 alone, without Winograd's and Strassen's algorithms."""

    def __init__(
        self,
        data: bytes | bytearray | memoryview,
        *,
        threads: int | None = None,
        dtype: str | None = None,
        strict: bool | None = None,
        classes: Mapping[str, type] | None = None,
    ) -> None:
        """``data`` are the bytes of an engine file, of which a copy is kept; ``classes`` named tuples for its outputs.

        Raises ValueError for other bytes.
        """
        from fastfer.engine import metadata as fields
        from fastfer.engine.inputs import shapes_of

        extension = native()
        if not isinstance(data, bytes):
            data = memoryview(data).tobytes()
        early = fields.peeked(data)
        self.dtype = str(early.get("dtype", "float32")) if dtype is None else dtype
        self.strict = early.get("strict") is True if strict is None else strict
        scale, shift = fields.normalisation(early)
        self._plan = extension.EnginePlan(
            data, default_threads(threads), self.dtype, scale=scale, shift=shift, strict=self.strict
        )
        self._data, self._asked_threads = data, threads
        self.metadata = known = fields.parsed(self._plan.metadata)
        self.input_shape = self._plan.input
        self.output_shapes = fields.output_shapes(known, self._plan.outputs)
        self.class_names = fields.class_names(known, self.output_shapes)
        self._structure = fields.structure(known, self.output_shapes)
        self._classes = dict(classes or {})
        self._dtypes = fields.output_dtypes(known, len(self.output_shapes))
        self._kinds = ("float32", "uint8") if scale else ("float32",)
        shapes_of(known, self.input_shape[0])  # a file's list that is none is refused here

    @property
    def threads(self) -> int:
        """Threads that work on a batch; on one image as many of them as pay."""
        return int(self._plan.threads)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the packed weights and of what one caller's activations take."""
        return {"weights": self._plan.weight_bytes, "activations": self._plan.arena_bytes}

    @property
    def inputs(self) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]] | None:
        """Names and shapes, without N, of several inputs; None where there is one, an image.

        No cached property: one of Python 3.11 holds a lock, and a child forked meanwhile would wait for it for ever.
        """
        if self.metadata.get("inputs") is None:
            return None
        from fastfer.engine.inputs import shapes_of

        return shapes_of(self.metadata, self.input_shape[0])

    sizes: Any = None
    """What makes plans of other sizes (`fastfer.engine.recipe.Sizes`); None where images have one size."""

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Outputs for the images ``x``, an array (N, C, H, W) of float32 or uint8, put together as the network does it.

        A network of several inputs, or of one that is no image, takes float32 arrays (N, ...), in order or by name.
        Raises TypeError or ValueError naming what was expected.
        """
        several = self.inputs
        if several is None and len(inputs) == 1 and not named:
            return self._called(inputs[0])
        if several is not None:
            from fastfer.engine.inputs import packed

            x = packed(*several, inputs, named)
        else:
            given = [*inputs, *([named.pop("x")] if "x" in named else [])]
            if named or len(given) != 1:
                raise TypeError(f"engine: inputs: expected one, x, got {len(given)} and {sorted(named)} by name")
            (x,) = given
        return self._called(x)

    def _called(self, x: Any) -> Any:
        """For images or vectors, an array or a tensor."""
        torch = sys.modules.get("torch")
        is_tensor = torch is not None and isinstance(x, torch.Tensor)
        if self.sizes is not None and (not x.is_nested if is_tensor else _is_array(x)):
            size = tuple(x.shape)[1:]
            if len(size) == 3 and size[0] == self.input_shape[0] and size != self.input_shape and min(size) > 0:
                return self.sizes.at(size)(x)
        if is_tensor:
            return self._with_torch(torch, x)
        if _is_array(x):
            return self._with_numpy(x)
        raise TypeError(f"engine: x: expected a numpy.ndarray or a torch.Tensor, got {type(x).__name__}")

    def _with_numpy(self, x: Any) -> Any:
        import numpy as np

        kind, images = self._kind(x.dtype.name, x.shape), _memory.dense_array(x)
        outputs = [np.empty((len(x), *shape), np.float32) for shape in self.output_shapes]
        self._plan.run(images.ctypes.data, kind, len(x), [output.ctypes.data for output in outputs])
        if self._dtypes:
            outputs = [y.astype(dtype, copy=False) for y, dtype in zip(outputs, self._dtypes, strict=True)]
        return self._answer(outputs, len(x))

    def _with_torch(self, torch: Any, x: Any) -> Any:
        images = _memory.dense("engine", "x", x)
        kind, count = self._kind(str(x.dtype)[6:], x.shape), x.shape[0]
        outputs = [_memory.empty(torch, "engine", (count, *shape)) for shape in self.output_shapes]
        self._plan.run(images.data_ptr(), kind, count, [output.data_ptr() for output in outputs])
        if self._dtypes:
            outputs = [y.to(getattr(torch, dtype)) for y, dtype in zip(outputs, self._dtypes, strict=True)]
        return self._answer(outputs, count)

    def _answer(self, outputs: Sequence[Any], count: int) -> Any:
        """The outputs put together as the network does it."""
        if self._structure is None:
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        from fastfer.engine.outputs import put_together

        return put_together(self._structure, outputs, count, self._classes)

    def _kind(self, dtype: str, shape: Any) -> str:
        """The images' dtype, if they fit."""
        if dtype not in self._kinds:
            known = " or ".join(self._kinds)
            raise TypeError(f"engine: x: expected dtype {known}, got {dtype}{self._hint() if dtype == 'uint8' else ''}")
        if tuple(shape)[1:] not in (self.input_shape, self._as_vector()):
            raise ValueError(
                f"engine: x: expected shape (N, {', '.join(map(str, self.input_shape))}), got {tuple(shape)}"
            )
        return dtype

    def _as_vector(self) -> tuple[int, ...]:
        """The other shape of an image of one pixel: a vector."""
        return self.input_shape[:1] if self.input_shape[1:] == (1, 1) else self.input_shape

    def _hint(self) -> str:
        """Why pixels are refused."""
        from fastfer.engine import metadata as fields

        if fields.equalises(dict(self.metadata)):
            return " (pixels of this network are equalised first, which an engine does not do: prepare float32 images)"
        return ' (uint8 needs "mean" and "std": compile(model, mean=, std=))'

    def warmup(self, batch: int = 1) -> Engine:
        """Run zero images once, so that memory, threads and caches are ready; returns the engine."""
        import numpy as np

        self._called(np.zeros((batch, *self.input_shape), np.float32))
        return self

    def plan(self) -> str:
        """The steps of the plan in order as a table: what each makes, and what it takes on one image; what dense
        convolutions multiply with; and why its precision was chosen, where `compile` did that."""
        import numpy as np

        from fastfer.engine.choose import reason
        from fastfer.engine.profile import steps_table
        from fastfer.engine.sensitivity import table

        image = np.zeros((1, *self.input_shape), np.float32)
        rows = self._plan.profile(image.ctypes.data, "float32", 1)
        why = reason(self.metadata.get("choice"), self.dtype)
        costs = table(self.metadata.get("sensitivity"))
        return "\n".join(filter(None, (steps_table(rows, repr(self), self.memory), self._products(), why, costs)))

    def _products(self) -> str:
        """What dense convolutions multiply with, and why with that."""
        best = [isa for isa in native().isas(True) if "emulated" not in isa][-1]
        reason = "the best that this CPU has" if self._plan.isa == best else "which was asked for"
        return f"Dense convolutions of {self.dtype} multiply by {self._plan.way}, on {self._plan.isa}, {reason}."

    def profile(self, x: Any = None, repeats: int = 20) -> Profile:
        """The time of each step on one image: ``x`` (1, C, H, W), by default zeros; medians of ``repeats`` runs.

        ``print`` shows a table, its ``plot`` writes a figure.
        """
        import numpy as np

        from fastfer.engine.profile import Profile

        if not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"engine: profile: repeats: expected an int >= 1, got {repeats!r}")
        image = np.zeros((1, *self.input_shape), np.float32) if x is None else as_array("engine: profile", "x", x)
        kind = self._kind(image.dtype.name, image.shape)
        if len(image) != 1:
            raise ValueError(f"engine: profile: x: expected one image (1, C, H, W), got shape {image.shape}")
        rows = self._plan.profile(image.ctypes.data, kind, repeats)
        return Profile.of(rows, self.metadata.get("model"), self._plan.image_threads)

    def save(self, path: str | Path) -> None:
        """Write the engine to a file for `load`, which appears whole or not at all."""
        from fastfer._files import replace_atomically

        with replace_atomically(path) as temporary, open(temporary, "wb") as file:
            file.write(self._data)
            file.flush()
            os.fsync(file.fileno())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as the bytes of its file; threads as asked for, else those of the new process."""
        classes = {name: kind for name, kind in self._classes.items() if is_importable(kind)}
        return _restored, (self._data, self._asked_threads, self.dtype, self.strict, classes), self._state()

    def _state(self) -> dict[str, Any]:
        """What a pickle holds beside the arguments."""
        return {"sizes": self.sizes} if self.sizes is not None and self.sizes.is_picklable() else {}

    def __repr__(self) -> str:
        name = self.metadata.get("model") or "network"
        return f"Engine({name}: {self.input_shape} -> {self.output_shapes}, {self.dtype}, threads={self.threads})"


def _restored(data: bytes, threads: int | None, dtype: str, strict: bool, classes: dict[str, type]) -> Engine:
    """A pickled engine."""
    return Engine(data, threads=threads, dtype=dtype, strict=strict, classes=classes)


def is_importable(kind: type) -> bool:
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind


def _is_array(x: Any) -> bool:
    """Whether it is a numpy array, of which a mask would be lost."""
    numpy = sys.modules.get("numpy")
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())
    return numpy is not None and isinstance(x, numpy.ndarray) and not isinstance(x, masked)


def as_array(op: str, arg: str, x: Any) -> Any:
    """A numpy array or a torch tensor on the CPU as a numpy array of dense memory. Raises as `Engine.__call__`."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        t = _memory.dense(op, arg, x.detach())
        if t.dtype in (torch.bfloat16, torch.float16) or t.dtype.is_complex:
            raise TypeError(f"{op}: {arg}: expected dtype float32 or uint8, got {str(t.dtype)[6:]}")
        return t.numpy()
    if not _is_array(x):
        raise TypeError(f"{op}: {arg}: expected a numpy.ndarray or a torch.Tensor, got {type(x).__name__}")
    return _memory.dense_array(x)


def native() -> Any:
    """The extension, on FASTFER_ISA; ImportError where it was not built, ValueError for an impossible ISA."""
    try:
        from fastfer import _C
    except ImportError as error:
        raise ImportError(f"the engine needs fastfer's native extension, which was not built: {error}") from error
    from fastfer import _environment

    isa = _environment.variable("FASTFER_ISA")
    if isa and "fastfer.backend" not in sys.modules:  # which has set it already
        _environment.force_isa(_C, isa)
    return _C


def own_precisions() -> tuple[str, ...]:
    """Of float32 and bfloat16 what the ISA in use has instructions for: the other one runs, and slower."""
    return ("float32",) if native().engine_way("bfloat16") == "float32" else ("float32", "bfloat16")


def default_threads(threads: int | None = None) -> int:
    """``threads``, else ``FASTFER_NUM_THREADS``, else torch's number where torch is loaded, else the process's CPUs.

    Raises ValueError above `_environment.most_threads`: threads that wait for each other on few CPUs take minutes for
    an image.
    """
    from fastfer import _environment

    most = _environment.most_threads()
    if threads is not None:
        if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= most:
            raise ValueError(f"engine: threads: expected an int of 1 to {most}, got {threads!r}")
        return threads
    asked = _environment.num_threads()
    if asked is not None:
        return asked
    torch = sys.modules.get("torch")
    return min(int(torch.get_num_threads()) if torch is not None else _environment.cpus(), most)
