# SPDX-License-Identifier: Apache-2.0
"""A network as a list of calls of torch ops, by ``torch.export``."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastfer import _library, _memory
from fastfer.engine.views import BATCH


@dataclass(frozen=True)
class Ref:
    """A tensor of the program, by number."""

    number: int


@dataclass(frozen=True)
class Call:
    """``outputs`` = ``target`` of ``args`` and ``kwargs``, in which tensors are `Ref`; ``where`` is the module's path.

    Outputs that nothing reads may be None.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Ref | None, ...]
    where: str = ""

    @property
    def name(self) -> str:
        """Namespace and name, without the overload and the mark of one in place: "aten.conv2d"."""
        return str(self.target._schema.name).replace("::", ".").rstrip("_")

    def bound(self) -> dict[str, Any]:
        """The arguments by the names of the op's schema, defaults filled in."""
        values: dict[str, Any] = {}
        for index, argument in enumerate(self.target._schema.arguments):
            if index < len(self.args):
                values[argument.name] = self.args[index]
            else:
                values[argument.name] = self.kwargs.get(argument.name, argument.default_value)
        return values

    def __str__(self) -> str:
        return f"{self.name}" + (f" in {self.where}" if self.where else "")


@dataclass
class Program:
    """Calls in order; ``sizes`` are the shapes of all tensors for `BATCH` images.

    ``scalars`` are sizes that a program for any batch computes, as functions of the number of images.
    """

    input: Ref
    outputs: tuple[Ref, ...] = ()
    calls: list[Call] = field(default_factory=list)
    constants: dict[Ref, Tensor] = field(default_factory=dict)
    sizes: dict[Ref, tuple[int, ...]] = field(default_factory=dict)
    scalars: dict[Ref, Callable[[int], int]] = field(default_factory=dict)


_tracing = threading.RLock()
"""Held while a model is traced: ``torch.export`` keeps its state for the process, and the model's mode is changed."""


def _after_fork() -> None:
    """The child has none of the parent's threads, so nobody would ever release a lock that one of them holds."""
    global _tracing
    _tracing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and back to its own mode afterwards; one thread of the process at a time."""
    with _tracing:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def example_batch(model: nn.Module, size: tuple[int, ...]) -> Tensor:
    """`BATCH` zero images of (C, H, W) = ``size`` with the dtype and device of the model."""
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), torch.empty(0))
    return torch.zeros((BATCH, *size), dtype=like.dtype, device=like.device)


def traced(model: nn.Module, size: tuple[int, ...], any_batch: bool = False) -> Program:
    """The calls that the model makes for images of (C, H, W) = ``size``, in evaluation mode.

    With ``any_batch`` the arguments that depend on the number of images are `Program.scalars`, so that calls can be
    run again for another number; else they are those of `BATCH` images. Raises ValueError, with torch's reason, for a
    model that cannot be traced: one whose control flow depends on the values of tensors, for one.
    """
    x = example_batch(model, size)
    try:
        with evaluating(model), torch.no_grad(), _library.dispatched():
            shapes = ({0: torch.export.Dim("batch")},) if any_batch else None
            exported = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"compile: model: expected one that torch.export traces, got {error}") from error
    return _program(exported)


def _program(exported: Any) -> Program:
    signature = exported.graph_signature
    if len(signature.user_inputs) != 1:
        raise ValueError(f"compile: model: expected one input, got {len(signature.user_inputs)}")
    state = {**exported.state_dict, **exported.constants}
    held = {
        **signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants
    }  # fmt: skip
    refs: dict[Any, Ref] = {}
    parts: dict[Any, dict[int, Ref]] = {}
    program = Program(Ref(0))

    def new(node: Any) -> Ref:
        ref = refs.setdefault(node, Ref(len(refs)))
        program.sizes[ref] = tuple(_size_of(n)(BATCH) for n in node.meta["val"].shape)
        return ref

    nodes = list(exported.graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            ref = new(node)
            if node.name in held:
                program.constants[ref] = state[held[node.name]]
                _memory.check("compile", held[node.name], program.constants[ref])
            else:
                program.input = ref
        elif node.target is operator.getitem and node.args[0] in parts:
            parts[node.args[0]][node.args[1]] = new(node)
        elif node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            new(node)
        elif node.op == "call_function" and isinstance(node.meta.get("val"), (int, torch.SymInt)):
            program.scalars[refs.setdefault(node, Ref(len(refs)))] = _size_of(node.meta["val"])
        elif node.op == "call_function":
            parts[node] = {}
    writes = _Writes()
    for node in nodes:
        tensors = node in parts or isinstance(node.meta.get("val"), Tensor)
        if node.op == "call_function" and node.target is not operator.getitem and tensors:
            known = parts.get(node, {0: refs.get(node)})
            outputs = tuple(known.get(i) for i in range(max(known, default=-1) + 1))
            args, kwargs = (mapped(part, torch.fx.Node, refs.__getitem__) for part in (node.args, node.kwargs))
            kwargs = _settled(node, kwargs)
            program.calls.append(writes.seen(Call(node.target, args, kwargs, outputs, _where(node))))
    (results,) = nodes[-1].args
    program.outputs = tuple(writes.current(refs[result]) for result in results)
    return program


def _settled(node: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a call that makes a tensor of none, with the dtype that it had in the trace: torch's default."""
    arguments = node.target._schema.arguments
    made = {"dtype", "layout", "device"} <= {a.name for a in arguments} and str(arguments[0].type) != "Tensor"
    if not made or kwargs.get("dtype") is not None:
        return kwargs
    return {**kwargs, "dtype": node.meta["val"].dtype}


def _size_of(value: Any) -> Callable[[int], int]:
    """A size as a function of the number of images: torch writes it as an expression of one symbol."""
    if not isinstance(value, torch.SymInt):
        return lambda images: int(value)
    expression = value.node.expr
    symbols = list(expression.free_symbols)
    return lambda images: int(expression.subs(dict.fromkeys(symbols, images)))


class _Writes:
    """Follows calls that write into an argument: what reads it later reads the call's output instead."""

    def __init__(self) -> None:
        self.written: dict[Ref, Ref] = {}
        self.shared: dict[Ref, set[Ref]] = {}
        self.stale: set[Ref] = set()

    def current(self, ref: Ref) -> Ref:
        while ref in self.written:
            ref = self.written[ref]
        if ref in self.stale:
            raise ValueError("compile: model: expected no use of a view whose tensor was changed in place after it")
        return ref

    def seen(self, call: Call) -> Call:
        """The call with its arguments as they are now."""
        call = replace(call, args=mapped(call.args, Ref, self.current), kwargs=mapped(call.kwargs, Ref, self.current))
        output = call.outputs[0] if call.outputs else None
        for argument, value in zip(call.target._schema.arguments, call.args, strict=False):
            if output is None or not isinstance(value, Ref):
                continue
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.stale |= self.shared.get(value, set()) - {value}
                self.written[value] = output
            elif argument.alias_info is not None or call.name == "aten.dropout":  # which is the identity here
                group = self.shared.setdefault(value, {value})
                group.add(output)
                self.shared[output] = group
        return call


def mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Arguments, nested ones too, with those of ``kind`` replaced."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(v, kind, function) for v in value)
    if isinstance(value, dict):
        return {key: mapped(v, kind, function) for key, v in value.items()}
    return value


def _where(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path: str = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("L['self'].")
