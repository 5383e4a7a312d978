# SPDX-License-Identifier: Apache-2.0
"""ONNX nodes as a `Program` of torch calls, the same that a traced module gives: one road from there on.

A handler, registered with `onnx_op` under an operator's name, takes the `Tracer`, the node and its inputs, in which
what depends on the network's input is `Traced` and everything else a tensor; it returns the outputs. Calls of constants
alone are done at once, so that arithmetic with shapes disappears. Shapes come from torch's own rules, on tensors
without memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastfer.engine.convert import UncoveredError
from fastfer.engine.onnx_read import OnnxError, OnnxModel, OnnxNode, shortened
from fastfer.engine.outputs import Structure, usual
from fastfer.engine.program import Call, Program, Ref, mapped
from fastfer.engine.views import Uncovered

_MOST_ELEMENTS = 1 << 26
_MOST_BYTES = 1 << 31
_MOST_RESULTS = 1 << 32
_MOST_SIZES = 16
_AS_FLOAT32 = (torch.float16, torch.bfloat16, torch.float64)
"""What is computed in float32, as an engine computes."""

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
aten = torch.ops.aten


def onnx_op(*names: str) -> Callable[[Handler], Handler]:
    """Decorator: the handler of the operators ``names``."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


@dataclass(frozen=True, eq=False)
class Traced:
    """A tensor that depends on the network's input, with its shape and dtype alone."""

    ref: Ref
    meta: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.meta.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.meta.dtype

    def dim(self) -> int:
        return self.meta.dim()


class Quantized:
    """An activation between a QuantizeLinear and its DequantizeLinear: the numbers that its integers stand for, and the
    scale, zero point and bounds with which they were rounded."""

    def __init__(self, real: Traced, dtype: torch.dtype, rounding: tuple[Any, ...]) -> None:
        self.real, self.dtype, self.rounding = real, dtype, rounding

    @property
    def shape(self) -> tuple[int, ...]:
        return self.real.shape

    def dim(self) -> int:
        return self.real.dim()


Value = Traced | Tensor


class Tracer:
    """Runs a model's nodes for a number of images.

    ``shapes`` are those of several inputs that stand in one vector. ``declared`` is the number of images that the file
    fixes, and ``once`` what `noted` gives for so many: sizes that the file gives as numbers are for these.
    """

    def __init__(
        self,
        model: OnnxModel,
        size: Sequence[int],
        images: int,
        declared: int | None,
        shapes: Sequence[Sequence[int]] | None = None,
        once: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.model, self.images, self.declared, self.once = model, images, declared, once or {}
        self.leads: dict[str, int] = {}
        self.lead = 1
        self.node = model.nodes[0] if model.nodes else OnnxNode("", "", (), ("",), {})
        self.count, self.bytes = 0, 0
        self.held: dict[int, Ref] = {}
        self.alive: list[Tensor] = []
        self.program = Program(self._ref())
        taken = torch.empty((images, *size), dtype=torch.float32, device="meta")
        self.program.describe(self.program.input, taken.shape, taken.dtype)
        self.values: dict[str, Any] = {name: _tensor(array) for name, array in model.constants.items()}
        self.shapes = shapes
        self.values[model.inputs[0].name] = Traced(self.program.input, taken)

    @property
    def opset(self) -> int:
        return self.model.opset

    def _ref(self) -> Ref:
        self.count += 1
        return Ref(self.count - 1)

    def traced(self) -> Program:
        """The whole program. Raises `OnnxError` or UncoveredError naming the node."""
        with torch.no_grad():
            if self.shapes is not None:
                self._take_apart(self.shapes)
            for node in self.model.nodes:
                self.node = node
                self._run(node)
        chosen: dict[Ref, int] = {}
        for name in self.model.outputs:
            value = self.values[name]
            if not isinstance(value, Traced):
                raise UncoveredError(
                    f"compile: {self.model.path}: output {shortened(name)}: expected a tensor that depends on the "
                    "input, got a constant"
                )
            chosen.setdefault(value.ref, len(chosen))
        self.program.outputs = tuple(chosen)
        self.program.structure = structure_of(
            self.model.outputs, [chosen[self.values[n].ref] for n in self.model.outputs]
        )
        return self.program.only_needed()

    def _take_apart(self, shapes: Sequence[Sequence[int]]) -> None:
        """Several inputs out of the vector in which they stand."""
        whole, at = self.values[self.model.inputs[0].name], 0
        for value, shape in zip(self.model.inputs, shapes, strict=True):
            part = self.call(aten.slice.Tensor, whole, 1, at, at + prod(shape), 1)
            self.values[value.name] = self.call(aten.reshape.default, part, [self.images, *shape])
            at += prod(shape)

    def _run(self, node: OnnxNode) -> None:
        handler = HANDLERS.get(node.op)
        try:
            if handler is None:
                raise Uncovered(f"no such operator of opset {self.opset} here")
            inputs = [self.values[name] if name else None for name in node.inputs]
            results = handler(self, node, *inputs)
        except Uncovered as reason:
            raise UncoveredError(f"compile: {self.model.path}: {node}: {reason}") from None
        except OnnxError as error:
            raise OnnxError(f"{self.model.path}: {node}: {error}") from None
        except (
            RuntimeError,
            TypeError,
            ValueError,
            IndexError,
            KeyError,
            AttributeError,
            NotImplementedError,
        ) as error:
            shapes = [None if v is None else tuple(v.shape) for v in (self.values.get(n) for n in node.inputs)]
            raise OnnxError(
                f"{self.model.path}: {node}: expected inputs and attributes that fit, got shapes {shapes}: {error}"
            ) from error
        results = results if isinstance(results, (tuple, list)) else (results,)
        for number, name in enumerate(node.outputs):
            if name and number >= len(results):
                raise UncoveredError(f"compile: {self.model.path}: {node}: its output {number}")
            if name:
                self.values[name] = results[number]
                if self.once:
                    self.leads[name] = self.lead if node.op == "Reshape" else self._lead_of(name, node)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """What a torch op makes of its arguments: a `Traced`, or a tensor where all of them are constants."""
        given: list[Traced] = []
        mapped((args, kwargs), Traced, given.append)
        if not given:
            return self._constant(target, args, kwargs)
        args, kwargs = (mapped(part, Tensor, _like_traced) for part in (args, kwargs))
        shown = [mapped(mapped(part, Tensor, _meta), Traced, _its_meta) for part in (args, kwargs)]
        result = target(*shown[0], **shown[1])
        results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        made = tuple(self._made(t) for t in results)
        own = [mapped(mapped(part, Tensor, self._held), Traced, _its_ref) for part in (args, kwargs)]
        self.program.calls.append(Call(target, own[0], own[1], tuple(t.ref for t in made), str(self.node)))
        return made if isinstance(result, (tuple, list)) else made[0]

    def noted(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what depends on the input, and the numbers that may be sizes, by name."""
        made = {}
        for name, value in self.values.items():
            if isinstance(value, (Traced, Quantized)):
                made[name] = value.shape
            elif isinstance(value, Tensor) and not value.dtype.is_floating_point and value.numel() <= _MOST_SIZES:
                made[name] = tuple(int(v) for v in value.reshape(-1).tolist())
        return made

    def _lead_of(self, name: str, node: OnnxNode) -> int:
        """How many elements stand before the images in the size of a result that grows with them: as in the input
        whose own grows alike."""
        sizes = self._growing(name)
        alike = [other for other in node.inputs if other in self.leads and self._growing(other) == sizes]
        return self.leads[alike[0]] if sizes and alike else 1

    def _growing(self, name: str) -> list[int]:
        value, own = self.values.get(name), self.once.get(name)
        if not isinstance(value, (Traced, Quantized)) or own is None or len(own) != value.dim():
            return []
        return [a for a, b in zip(own, value.shape, strict=True) if a != b]

    def repeated(self, constant: Tensor) -> Traced:
        """A constant (1, ...) for each of the images, however many there are."""
        sizes = [self.images, *(-1 for _ in constant.shape[1:])]
        meta = torch.empty(self.images, *constant.shape[1:], dtype=constant.dtype, device="meta")
        return self._noted(aten.expand.default, (self._held(constant), sizes), meta)

    def beside_images(self, values: Sequence[Value]) -> list[Value]:
        """Values of which some are of the images: constants that are the same for each of them (class tokens,
        coordinates), as many as the file fixes or as a shape of the input said, for however many there are."""
        if not any(isinstance(v, Traced) and v.shape[:1] == (self.images,) for v in values):
            return list(values)
        same = [
            isinstance(v, Tensor)
            and v.dim() > 0
            and len(v) in (1, self.declared, self.images)
            and bool((v == v[:1]).all())
            for v in values
        ]
        return [self.repeated(v[:1]) if fits else v for v, fits in zip(values, same, strict=True)]  # type: ignore[index]

    def like(self, target: Any, x: Traced, *rest: Any) -> Traced:
        """A call of an op that torch has no shape rule for: its result is as ``x``."""
        return self._noted(target, (x.ref, *rest), x.meta)

    def _noted(self, target: Any, args: tuple[Any, ...], meta: Tensor) -> Traced:
        made = self._made(meta)
        self.program.calls.append(Call(target, args, {}, (made.ref,), str(self.node)))
        return made

    def _made(self, meta: Tensor) -> Traced:
        if meta.numel() > _MOST_RESULTS:
            raise OnnxError(f"expected results of at most {_MOST_RESULTS} elements, got the shape {tuple(meta.shape)}")
        ref = self._ref()
        self.program.describe(ref, meta.shape, meta.dtype)
        return Traced(ref, meta)

    def _held(self, tensor: Tensor) -> Ref:
        """The number of a constant."""
        if id(tensor) not in self.held:
            ref = self.held[id(tensor)] = self._ref()
            self.alive.append(tensor)
            self.program.constants[ref] = tensor
            self.program.describe(ref, tensor.shape, tensor.dtype)
        return self.held[id(tensor)]

    def _constant(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Done now, if the result is of a sane size."""
        kwargs_meta = {**kwargs, "device": "meta"} if "device" in kwargs else kwargs
        shown = [mapped(part, Tensor, _meta) for part in (args, kwargs_meta)]
        result = target(*shown[0], **shown[1])
        for t in result if isinstance(result, (tuple, list)) else (result,):
            self.spend(t.numel(), t.element_size())
        return target(*args, **kwargs)

    def spend(self, elements: int, size: int) -> None:
        """Note memory for constants. Raises `OnnxError` where a file makes absurdly large ones."""
        self.bytes += elements * size
        if elements > _MOST_ELEMENTS or self.bytes > _MOST_BYTES:
            raise OnnxError(
                f"expected constants of at most {_MOST_ELEMENTS} elements and {_MOST_BYTES} bytes in all, got "
                f"{elements} more elements"
            )


def _tensor(array: Any) -> Tensor:
    """An initializer as torch has it: 16-bit floats as float32, small integers as int8 or uint8."""
    name = array.dtype.name
    if name in ("int4", "int2"):
        array = array.astype("int8")
    elif name in ("uint4", "uint2"):
        array = array.astype("uint8")
    elif name in ("uint16", "uint32", "uint64"):
        array = array.astype("int64")
    elif (array.dtype.kind == "f" and array.dtype.itemsize < 4) or name.startswith(("bfloat", "float8", "float4")):
        array = array.astype("float32")
    return torch.from_numpy(array.copy() if not array.flags.writeable else array)


def constant(array: Any) -> Tensor:
    """An array of a file as a tensor."""
    return _tensor(array)


def _meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")


def _its_meta(value: Traced) -> Tensor:
    return value.meta


def _its_ref(value: Traced) -> Ref:
    return value.ref


def _like_traced(tensor: Tensor) -> Tensor:
    """A constant beside something traced, which is float32 for all floats."""
    return tensor.float() if tensor.dtype in _AS_FLOAT32 else tensor


def structure_of(names: Sequence[str], numbers: Sequence[int]) -> Structure:
    """One output alone, several as a dict by name."""
    if len(names) == 1:
        return usual(1)
    return ["dict", [[name, ["tensor", number]] for name, number in zip(names, numbers, strict=True)]]
