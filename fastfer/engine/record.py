# SPDX-License-Identifier: Apache-2.0
"""The calls of fastfer's networks by running them once: the list that ``torch.export`` gives, a second sooner.

A network is run on zero images under a ``TorchFunctionMode``. That misses control flow that depends on values, so this
is for `FerModel` alone, and anything that is not in the table below, or that reads a tensor's values, leaves the model
to ``torch.export``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastfer import _library
from fastfer.engine.outputs import usual
from fastfer.engine.program import Call, Program, Ref, mapped
from fastfer.engine.trace import evaluating, example_batch
from fastfer.engine.views import Images

_aten = torch.ops.aten
_KNOWN: dict[str, Any] = {
    "add": _aten.add.Tensor,
    "avg_pool2d": _aten.avg_pool2d.default,
    "cat": _aten.cat.default,
    "dropout": _aten.dropout.default,
    "flatten": _aten.flatten.using_ints,
    "hardswish": _aten.hardswish.default,
    "linear": _aten.linear.default,
    "mean": _aten.mean.dim,
    "mul": _aten.mul.Tensor,
    "relu": _aten.relu.default,
    "transpose": _aten.transpose.int,
}
"""Functions that the networks call beside fastfer's ops, as ops of the same arguments."""
_READS = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__array__")


class _UnknownError(Exception):
    """Something that only torch.export can follow."""


class _Recorder(TorchFunctionMode):
    def __init__(self, x: Tensor, constants: dict[int, Tensor]) -> None:
        super().__init__()
        self.program = Program(Ref(0))
        self.constants = constants
        self.refs: dict[int, Ref] = {id(x): Ref(0)}
        self.alive: list[Tensor] = [x]
        self.describe(Ref(0), x)

    def ref(self, tensor: Tensor) -> Ref:
        """The number of a tensor that was seen before, or that is the model's."""
        if id(tensor) not in self.refs:
            if id(tensor) not in self.constants:
                raise _UnknownError("a tensor from elsewhere")
            self.program.constants[self.new(tensor, constant=True)] = tensor
        return self.refs[id(tensor)]

    def new(self, tensor: Tensor, constant: bool = False) -> Ref:
        self.alive.append(tensor)
        ref = self.refs[id(tensor)] = Ref(len(self.alive) - 1)
        self.describe(ref, tensor, constant)
        return ref

    def describe(self, ref: Ref, tensor: Tensor, constant: bool = False) -> None:
        """The networks' own tensors all begin with the batch."""
        sizes = tensor.shape if constant else (Images(1), *tensor.shape[1:])
        self.program.sizes[ref], self.program.dtypes[ref] = tuple(sizes), tensor.dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        target = func if isinstance(func, torch._ops.OpOverload) else _KNOWN.get(name)
        if target is None:
            if name in _READS or isinstance(result, Tensor):
                raise _UnknownError(f"{name} has no op in the table")
            return result
        results = result if isinstance(result, tuple) else (result,)
        own = {key: value for key, value in kwargs.items() if key in {a.name for a in target._schema.arguments}}
        arguments = mapped(args, Tensor, self.ref), mapped(own, Tensor, self.ref)
        self.program.calls.append(Call(target, *arguments, tuple(self.new(t) for t in results)))
        return result


def recorded(model: nn.Module, size: tuple[int, ...]) -> Program | None:
    """The calls of a model on the CPU, or None where it is left to ``torch.export``."""
    if any(type(module).__module__.partition(".")[0] not in ("fastfer", "torch") for module in model.modules()):
        return None  # a part of the user's own may use the number of images as a number
    x = example_batch(model, size)
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    if not x.is_cpu:
        return None
    recorder = _Recorder(x, held)
    try:
        with evaluating(model), torch.no_grad(), _library.dispatched(), recorder:
            result = model(x)
        recorder.program.outputs = (recorder.ref(result),)
        recorder.program.structure = usual(1)
    except _UnknownError:
        return None
    return recorder.program
