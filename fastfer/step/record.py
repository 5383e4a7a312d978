# SPDX-License-Identifier: Apache-2.0
"""What a step does, seen while it is done: kernel calls from the extension, torch's operators from its dispatcher.

A tensor is known by its memory. What lived before the step is `Memory.outside`, and so is what lives on after it, such
as gradients; the rest is scratch that a plan may put anywhere.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from fastfer import _C, _library
from fastfer.step.errors import StepError

_EMPTY = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})
_MOVES_MEMORY = frozenset({"resize_", "resize_as_", "set_", "record_stream", "_resize_output_"})
_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass(frozen=True)
class Ref:
    """A tensor by the number of its memory, and how it lies there."""

    memory: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Params:
    """A params struct of the extension: its type, and the values of its fields with `Ref` for tensors."""

    kind: type
    values: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A kernel of the extension by name with `Params`, or an operator of torch with its arguments and results."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    made: Any = None

    def touched(self) -> set[int]:
        """The numbers of the memories that the call reads or writes."""
        return {ref.memory for ref in self.refs()}

    def refs(self) -> Iterator[Ref]:
        """The tensors that the call reads or makes."""
        return refs((self.args, self.kwargs, self.made))


def refs(tree: Any) -> Iterator[Ref]:
    """All tensors in ``tree``."""
    for leaf in tree_flatten(tree)[0]:
        if isinstance(leaf, Ref):
            yield leaf
        elif isinstance(leaf, Params):
            yield from refs(leaf.values)


@dataclass
class Memory:
    """Bytes; ``outside`` is their storage where they live longer than the step."""

    size: int
    weak: StorageWeakRef
    outside: torch.UntypedStorage | None


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, `calls` grows by whatever this thread computes. ``refused`` is the first thing that a replay cannot do:
    the step goes on to its end, but is of no use as a recording."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.memories: list[Memory] = []
        self._numbers: dict[int, int] = {}
        self.refused: StepError | None = None
        self._made: set[int] = set()  # addresses of blocks that the extension gave out

    def run(self, function: Callable[[], Any]) -> Any:
        """What ``function`` returns; on the way everything is recorded."""
        try:
            with self, _library.recorded():
                _C.set_recorder(self)
                result = function()
        finally:
            _C.set_recorder(None)
        return result

    def settle(self) -> None:
        """Look which memories live on; call it when nothing but what shall stay holds tensors of the step."""
        gc.collect()  # autograd's functions may sit in circles
        for memory in self.memories:
            if memory.outside is None:
                memory.outside = torch.UntypedStorage._new_with_weak_ptr(memory.weak.cdata)

    def moved(self, t: Tensor, to: Tensor) -> bool:
        """Have replays use the memory of ``to`` for that of ``t``; False where the two do not lie alike."""
        storage, other = t.untyped_storage(), to.untyped_storage()
        if t.stride() != to.stride() or t.storage_offset() != to.storage_offset() or storage.nbytes() != other.nbytes():
            return False
        self.memories[self._numbers[storage._cdata]].outside = other
        return True

    def kernel(self, name: str, f64: bool, params: Any) -> None:
        """The extension ran a kernel."""
        self._note(lambda: self.calls.append(Call(name, (f64, self._params(params)))))

    def memory(self, address: int) -> None:
        """The extension gave out a block."""
        self._made.add(address)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._note(lambda: self._operator(func, args, kwargs, result))
        return result

    def _note(self, what: Callable[[], None]) -> None:
        try:
            if self.refused is None:
                what()
        except StepError as error:
            self.refused = error

    def _operator(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        _require_repeatable(func)
        taken = tree_map(self._ref, (args, kwargs))
        given = tree_map(lambda leaf: self._ref(leaf, fresh=True), result)
        known, made = {ref.memory for ref in refs(taken)}, {ref.memory for ref in refs(given)}
        if func._schema.name.partition("::")[2] in _EMPTY:
            return
        if not func._schema.is_mutable and made <= known:
            return  # views
        self.calls.append(Call(func, taken[0], taken[1], None if func._schema.is_mutable else given))

    def _ref(self, leaf: Any, fresh: bool = False) -> Any:
        """A `Ref` for a tensor; ``fresh`` where one that is not known was made just now."""
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.device.type != "cpu" or leaf.layout != torch.strided or type(leaf) not in (Tensor, torch.nn.Parameter):
            raise StepError(f"tensors: expected plain ones on the CPU, got {type(leaf).__name__} on {leaf.device}")
        storage = leaf.untyped_storage()
        number = self._numbers.get(storage._cdata)
        if number is None:
            number = self._numbers[storage._cdata] = len(self.memories)
            inside = fresh or storage.data_ptr() in self._made
            weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self.memories.append(Memory(storage.nbytes(), weak, None if inside else storage))
        return Ref(number, leaf.dtype, tuple(leaf.shape), leaf.stride(), int(leaf.storage_offset()))

    def _params(self, params: Any) -> Params:
        kind = type(params)
        values = {}
        for name in field_names(kind):
            value = getattr(params, name)
            if isinstance(value, Tensor):
                value = self._ref(value)
            elif is_params(type(value)):
                value = self._params(value)
            values[name] = value
        return Params(kind, values)


def is_params(kind: type) -> bool:
    """Whether ``kind`` is the type of a params struct."""
    return kind.__module__ == "fastfer._C" and (kind.__doc__ or "").startswith(f"{kind.__name__}(*")


_FIELDS: dict[type, tuple[str, ...]] = {}


def field_names(kind: type) -> tuple[str, ...]:
    """The fields of a params struct."""
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple(name for name in vars(kind) if not name.startswith("__"))
    return _FIELDS[kind]


def _require_repeatable(func: Any) -> None:
    """StepError for an operator that a replay could not do again."""
    name = func._schema.name
    if not name.startswith("aten::"):
        raise StepError(f"{name}: expected torch's own operators and fastfer's")
    if name.partition("::")[2] in _MOVES_MEMORY:
        raise StepError(f"{name}: expected tensors that keep their memory")
    if any(tag in func.tags for tag in _TAGS):
        raise StepError(f"{name}: expected a step that does not look at values, which this operator does")
