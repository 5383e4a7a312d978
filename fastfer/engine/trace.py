# SPDX-License-Identifier: Apache-2.0
"""A network as a `Program`, by ``torch.export``."""

from __future__ import annotations

import importlib
import operator
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from fastfer import _library, _memory
from fastfer.engine.outputs import Leaf, structured
from fastfer.engine.program import Call, Program, Ref, Scalar, mapped
from fastfer.engine.views import BATCH

OTHER_BATCH = 7
"""A second number of images, for a model that cannot be traced for any: sizes that follow it show in the difference."""
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


def check_tensors(model: nn.Module) -> None:
    """Raise where a parameter or buffer is not in memory; not while another thread has others in their place."""
    with _tracing:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            _memory.check("compile", name, tensor)


def example_batch(model: nn.Module, size: tuple[int, ...], images: int = BATCH) -> Tensor:
    """Zero images of (C, H, W) = ``size`` with the dtype and device of the model."""
    usual = torch.empty(0, dtype=torch.float32, device="cpu")
    with _tracing:
        like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), usual)
    return torch.zeros((images, *size), dtype=like.dtype, device=like.device)


def traced(model: nn.Module, size: tuple[int, ...]) -> Program:
    """The calls that the model makes for images of (C, H, W) = ``size``, any number of them, in evaluation mode.

    Raises ValueError, with torch's reason, for a model that cannot be traced (one whose control flow depends on the
    values of tensors, for one), and naming what is not the same for any number of images.
    """
    try:
        return _program(_exported(model, example_batch(model, size), ({0: torch.export.Dim("batch")},)))
    except _TraceError:  # a size of the batch was made a number, by len() for one
        programs = []
        for images in (BATCH, OTHER_BATCH):
            try:
                programs.append(_program(_exported(model, example_batch(model, size, images), None)))
            except _TraceError as error:
                also = "" if images == BATCH else f" for any number of images, with {images}"
                raise ValueError(f"compile: model: expected one that torch.export traces{also}, got {error}") from error
    return for_any_batch(*programs)


class _TraceError(Exception):
    """torch.export does not follow the model."""


class _WritesError(Exception):
    """Calls write into memory that others read; the functional form of the program has none of these."""


def _exported(model: nn.Module, x: Tensor, shapes: Any) -> Any:
    try:
        with evaluating(model), torch.no_grad(), _library.dispatched():
            return torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises many kinds
        raise _TraceError(str(error)) from error


def _program(exported: Any) -> Program:
    """The calls as they are written, or where these write into shared memory or open regions, in functional form."""
    try:
        return _Reader(exported).program()
    except _WritesError:
        with _tracing:
            functional = exported.run_decompositions({})
    try:
        return _Reader(functional).program()
    except _WritesError as error:
        raise ValueError(f"compile: model: {error}") from None


class _Reader:
    """Goes through the nodes of an exported graph."""

    def __init__(self, exported: Any) -> None:
        self.signature = signature = exported.graph_signature
        if len(signature.user_inputs) != 1:
            raise ValueError(f"compile: model: expected one input, got {len(signature.user_inputs)}")
        self.nodes = list(exported.graph.nodes)
        self.out_spec = exported.call_spec.out_spec
        self.state = {**exported.state_dict, **exported.constants}
        self.held = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.refs: dict[Any, Ref] = {}
        self.parts: dict[Any, dict[int, Ref]] = {}
        self.numbers: dict[Any, Any] = {}
        self.result = Program(Ref(0))
        self.symbols: Any = frozenset()

    def program(self) -> Program:
        for node in self.nodes:
            self._see(node)
        writes = _Writes({self.result.input, *self.result.constants})
        for node in self.nodes:
            if node.op == "call_function" and self._is_call(node):
                known = self.parts.get(node, {0: self.refs.get(node)})
                outputs = tuple(known.get(i) for i in range(max(known, default=-1) + 1))
                args, kwargs = (mapped(part, torch.fx.Node, self._argument) for part in (node.args, node.kwargs))
                call = Call(node.target, tuple(args), _settled(node, kwargs), outputs, _where(node))
                self.result.calls.append(writes.seen(call))
        self._outputs(writes)
        return self.result.only_needed()

    def _new(self, node: Any) -> Ref:
        ref = self.refs.setdefault(node, Ref(len(self.refs)))
        value = node.meta["val"]
        self.result.describe(ref, [self._number(n) for n in value.shape], value.dtype)
        return ref

    def _argument(self, node: Any) -> Any:
        return self.numbers[node] if node in self.numbers else self.refs[node]

    def _number(self, value: Any) -> Any:
        """A size of the trace: an int, or a Scalar of the batch."""
        if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return value
        expression = value.node.expr
        unknown = expression.free_symbols - self.symbols
        if unknown:
            raise ValueError("compile: model: expected no number that is read out of a tensor (item), got one")
        return Scalar(expression)

    def _see(self, node: Any) -> None:
        value = node.meta.get("val")
        if node.op == "placeholder":
            if node.name in self.held:
                name = self.held[node.name]
                _memory.check("compile", name, self.state[name])
                self.result.constants[self._new(node)] = self.state[name]
            elif isinstance(value, Tensor):
                if isinstance(value.shape[0], torch.SymInt):
                    self.symbols = value.shape[0].node.expr.free_symbols
                self.result.input = self._new(node)
        elif node.op == "get_attr":
            raise _WritesError(f"expected calls of ops alone, got {node.target}")  # the body of an autocast region
        elif node.op == "call_function":
            if node.target is operator.getitem and node.args[0] in self.parts:
                self.parts[node.args[0]][node.args[1]] = self._new(node)
            elif isinstance(value, Tensor):
                self._new(node)
            elif isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)):
                number = self.numbers[node] = self._number(value)
                if isinstance(number, Scalar):
                    self.numbers[node] = self.refs.setdefault(node, Ref(len(self.refs)))
                    self.result.scalars[self.numbers[node]] = number
            elif isinstance(value, (tuple, list)):
                self.parts[node] = {}

    def _is_call(self, node: Any) -> bool:
        if node.target is operator.getitem and node.args[0] in self.parts:
            return False
        return node in self.parts or isinstance(node.meta.get("val"), Tensor)

    def _outputs(self, writes: _Writes) -> None:
        """The user's outputs, and what holds them."""
        (results,) = self.nodes[-1].args
        kinds = [spec.kind.name for spec in self.signature.output_specs]
        own = [node for node, kind in zip(results, kinds, strict=True) if kind == "USER_OUTPUT"]
        leaves: list[Any] = []
        chosen: dict[Ref, int] = {}
        for value in own:
            value = self._argument(value) if isinstance(value, torch.fx.Node) else value
            if isinstance(value, Ref):
                ref = writes.current(value)
                leaves.append(Leaf(chosen.setdefault(ref, len(chosen))))
            else:
                leaves.append(value)
        try:
            tree = _pytree.tree_unflatten(leaves, self.out_spec)
            self.result.structure = structured(tree, self.result.classes)
        except TypeError as error:
            raise ValueError(f"compile: model: expected outputs of {error}") from None
        self.result.outputs = tuple(chosen)
        self._refuse_state(results, kinds)

    def _refuse_state(self, results: Any, kinds: list[str]) -> None:
        """A forward that reads a buffer that it writes gives another answer at each call."""
        changed = {s.target for s in self.signature.output_specs if s.kind.name == "BUFFER_MUTATION"}
        needed = {ref for call in self.result.only_needed().calls for ref in call.refs()} | set(self.result.outputs)
        for node, ref in self.refs.items():
            if self.held.get(node.name) in changed and ref in needed:
                raise ValueError(
                    f"compile: model: expected a forward whose outputs do not depend on what it writes to its buffers, "
                    f"got buffer {self.held[node.name]}"
                )


def _settled(node: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a call that makes a tensor of none, with the dtype that it had in the trace: torch's default."""
    arguments = node.target._schema.arguments
    kwargs = {key: value for key, value in kwargs.items() if key not in ("layout", "pin_memory")}
    made = {"dtype", "layout", "device"} <= {a.name for a in arguments} and str(arguments[0].type) != "Tensor"
    if not made or kwargs.get("dtype") is not None:
        return kwargs
    return {**kwargs, "dtype": node.meta["val"].dtype}


class _Writes:
    """Follows calls that write into an argument: what reads it later reads the call's output instead."""

    def __init__(self, lasting: set[Ref]) -> None:
        self.lasting = lasting
        self.written: dict[Ref, Ref] = {}
        self.shared: dict[Ref, set[Ref]] = {}
        self.stale: set[Ref] = set()

    def current(self, ref: Ref) -> Ref:
        while ref in self.written:
            ref = self.written[ref]
        if ref in self.stale:
            raise _WritesError("expected no use of a view whose tensor was changed in place after it")
        return ref

    def seen(self, call: Call) -> Call:
        """The call with its arguments as they are now."""
        call = replace(call, args=mapped(call.args, Ref, self.current), kwargs=mapped(call.kwargs, Ref, self.current))
        output = call.outputs[0] if call.outputs else None
        for argument, value in zip(call.target._schema.arguments, call.args, strict=False):
            if output is None or not isinstance(value, Ref):
                continue
            if argument.alias_info is not None and argument.alias_info.is_write:
                if not self.lasting.isdisjoint(self.shared.get(value, {value})):
                    raise _WritesError("expected no write into the input or a buffer")
                self.stale |= self.shared.get(value, set()) - {value}
                self.written[value] = output
            elif argument.alias_info is not None or call.name == "aten.dropout":  # which is the identity here
                group = self.shared.setdefault(value, {value})
                group.add(output)
                self.shared[output] = group
        return call


def for_any_batch(first: Program, second: Program) -> Program:
    """One program of two, for `BATCH` and for `OTHER_BATCH` images: numbers that differ are multiples of theirs.

    Raises ValueError where the two differ in another way.
    """
    symbol = _symbol()
    scalars: dict[int, Ref] = {}

    def refuse(what: str) -> ValueError:
        return ValueError(
            f"compile: model: expected a forward that is the same for any number of images, got {what} that depends "
            "on it"
        )

    def number(a: Any, b: Any, where: str) -> Any:
        if type(a) is not type(b) or (isinstance(a, (list, tuple)) and len(a) != len(b)):
            raise refuse(where)
        if isinstance(a, (list, tuple)):
            return type(a)(number(x, y, where) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict):
            return {key: number(value, b.get(key), where) for key, value in a.items()}
        if a == b:
            return a
        if type(a) is not int or a % BATCH or a * OTHER_BATCH != b * BATCH:
            raise refuse(where)
        each = a // BATCH
        if each not in scalars:
            ref = scalars[each] = Ref(-each)
            first.scalars[ref] = Scalar(each * symbol)
        return scalars[each]

    if [c.target for c in first.calls] != [c.target for c in second.calls]:
        raise refuse("the list of calls")
    for ref, constant in first.constants.items():
        other = second.constants.get(ref)
        if other is None or constant.shape != other.shape or not torch.equal(constant, other):
            raise refuse("a constant")
    calls = [
        replace(a, args=number(a.args, b.args, f"an argument of {a}"), kwargs=number(a.kwargs, b.kwargs, f"{a}"))
        for a, b in zip(first.calls, second.calls, strict=True)
    ]
    if first.structure != second.structure or first.outputs != second.outputs:
        raise refuse("an output")
    first.calls = calls
    for ref, sizes in first.sizes.items():
        pairs = zip(sizes, second.sizes[ref], strict=True)
        numbers = [
            a if a == b else Scalar(a // BATCH * symbol) if a and b and a * OTHER_BATCH == b * BATCH else None
            for a, b in pairs
        ]
        first.sizes[ref] = tuple(n.sample() if isinstance(n, Scalar) else n for n in numbers)
    return first


def _symbol() -> Any:
    sympy: Any = importlib.import_module("sympy")  # torch depends on it
    return sympy.Symbol("images", integer=True, positive=True)


def _where(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path: str = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("L['self'].")
