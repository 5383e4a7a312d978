# SPDX-License-Identifier: Apache-2.0
"""Random calls of the registered ops by hand, most with arguments that do not fit: ``raw_calls.py SEED COUNT``.

Right calls of every op, forward and backward, are recorded from the random cases of `test_properties`; then tensors,
numbers and flags of them are altered. A crash of this process is the failure that its caller looks for; errors are what
the calls are meant to raise. Inputs end where memory ends, so that a kernel that reads on crashes, too.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import random
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from guard import EMPTY
from properties import draw_case
from property_rows import ROWS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastfer import _library, _raw, ops
from fastfer.ops import _linked

Call = tuple[Any, tuple[Any, ...]]

ROOM = 1 << 29
"""Bytes of address space beyond what is used at the start: sizes that ask for more are an error of the allocator."""

NUMBERS = (-(1 << 62), -1, 0, 1, 2, 3, 4, 7, 50, 255, 1 << 16, (1 << 31) - 1, 1 << 33, 1 << 62)
EXPECTED = (TypeError, ValueError, IndexError, RuntimeError, MemoryError, OverflowError, NotImplementedError)


class Recorded(TorchDispatchMode):
    """Right calls of fastfer's ops, those that autograd makes, too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[Call]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastfer":
            name = func._schema.name.partition("::")[2]
            given = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
            self.calls.setdefault(name, []).append((func, given))
        return func(*args, **(kwargs or {}))


class Fence(TorchDispatchMode):
    """Memory that ends at a page which nobody may touch, in a ring of slots.

    Inside of it torch.empty and its kin, and so the results of fastfer's ops, lie there, too.
    """

    def __init__(self, slots: int = 128, pages: int = 16) -> None:
        super().__init__()
        page = mmap.PAGESIZE
        self._size, self._step, self._next = pages * page, (pages + 1) * page, 0
        self._memory = mmap.mmap(-1, slots * self._step)
        self._whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._slots = slots
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for slot in range(slots):
            if protect(self._whole.data_ptr() + slot * self._step + self._size, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")

        ops = map(_library.op_of, _library.registered())
        self._checks = {op.name: _raw.checker(op.name, op.signature, op.shapes) for op in ops}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastfer":  # below torch's own call of its body the mode would not be seen
            name = func._schema.name.partition("::")[2]
            with self:
                return _library.op_of(name).run(args[0], self._checks[name](args))
        result = func(*args, **(kwargs or {}))
        return self.inside(result) if func.name().partition(".")[0] in EMPTY else result

    def inside(self, t: Tensor) -> Tensor:
        """The tensor with its last element at the end of a slot; itself where it is too large."""
        if not t.numel() or t.storage_offset() or t.is_neg():
            return t
        elements = 1 + sum((count - 1) * step for count, step in zip(t.shape, t.stride(), strict=True))
        size = elements * t.element_size()
        if size > self._size or size > t.untyped_storage().nbytes():
            return t
        self._next = (self._next + 1) % self._slots
        end = self._next * self._step + self._size
        made = (
            self._whole[end - size : end]
            .view(t.dtype)
            .as_strided(t.shape, t.stride(), (end - size) // t.element_size())
        )
        made.as_strided((elements,), (1,)).copy_(t.as_strided((elements,), (1,)))
        return made


def rare_calls() -> None:
    """Ops that few random cases come to: those that take or leave a norm to another, and pooled convolutions."""
    norm = ops.Norm(torch.ones(5), torch.zeros(5), torch.zeros(5), torch.ones(5))
    x, grad = torch.randn(2, 3, 9, 7), {"requires_grad": True}
    w, dw, pw = torch.randn(5, 3, 3, 3, **grad), torch.randn(5, 1, 3, 3, **grad), torch.randn(5, 5, 1, 1, **grad)
    y = _linked.linked_conv2d(x, w, torch.zeros(5, **grad), norm, "relu", 1, 1)
    for norm1 in (norm, None):
        y = _linked.linked_separable_conv2d(
            y, dw, pw, norm1=norm1, act1=None, norm2=norm, act2="relu", stride=1, padding=1, dw_bias=None, pw_bias=None,
            leaves=True,
        )  # fmt: skip
    last = _linked.linked_depthwise_conv2d(y, dw, None, norm, "silu", 2, 1)
    for pool in (False, True):
        gated = _linked.linked_csa(
            y, torch.randn(1, 1, 3, **grad), torch.randn(1, 2, 1, 1, **grad), torch.randn(1, **grad), pool=pool
        )
        last = last + gated.sum()
    pooled = ops.conv2d(x, w, norm=norm, act="relu", padding=1, pool=ops.Pool(3, 2, 1), training=True)
    (last.sum() + pooled.sum()).backward()


def record(seed: int) -> dict[str, list[Call]]:
    """Calls of all registered ops by name."""
    recorded = Recorded()
    with recorded:
        rare_calls()
    for again in range(20):
        if again > 2 and _library.registered().keys() == recorded.calls.keys():
            return recorded.calls
        for row in ROWS:
            case, _ = draw_case(row, seed + again)
            for wanted in ([], list(case.draw.leaves), case.wanted):
                case.wanted = wanted
                with recorded:
                    case.run(case.draw.dtype)
    raise AssertionError(f"seed {seed}: no calls of {sorted(_library.registered().keys() - recorded.calls.keys())}")


def altered_tensor(r: random.Random, t: Tensor, others: list[Tensor]) -> Any:
    """``t`` cut, doubled, flattened, empty, in another dtype, layout or rank, with other numbers, or another tensor."""
    how, axis = r.randrange(11), r.randrange(max(t.dim(), 1))
    if how == 0 and t.dim():
        return t.narrow(axis, 0, r.randrange(t.shape[axis] + 1)).contiguous()
    if how == 1 and t.dim() and t.shape[axis]:
        return torch.cat([t, t], axis)
    if how == 2:
        return t.flatten()[: r.randrange(t.numel() + 1)].clone()
    if how == 3:
        return r.choice(others)
    if how == 4:
        return t.to(r.choice((torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8)))
    if how == 5:
        return r.choice((t[None], t.unsqueeze(-1), None))
    if how == 6 and t.dim() > 1:
        other = r.randrange(t.dim())
        return t.transpose(axis, other).contiguous().transpose(axis, other)  # the same, in another layout
    if how == 7 and t.dim():
        return t.narrow(axis, 0, min(1, t.shape[axis])).expand(t.shape) if t.shape[axis] else t
    if how == 8 and t.dim() > 1:
        return t.transpose(axis, r.randrange(t.dim()))
    if how == 9:
        wide = t.dtype in (torch.int32, torch.int64)
        return t.new_full(t.shape, r.choice((-(1 << 31), -1, 9, (1 << 31) - 1) if wide else (0, 1, 2, 100)))
    return t.new_empty(0)


def altered_number(r: random.Random, value: Any) -> Any:
    """Another number, list or flag."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return r.choice(NUMBERS)
    if isinstance(value, float):
        return r.choice((0.0, -1.0, 1e-300, 1e300, float("inf"), float("nan")))
    if isinstance(value, (list, tuple)) and value:
        if r.random() < 0.1:
            return list(value)[: r.randrange(len(value))]
        if r.random() < 0.2:
            return [altered_number(r, each) for each in value]
        place = r.randrange(len(value))
        return [altered_number(r, each) if i == place else each for i, each in enumerate(value)]
    return value


def altered(r: random.Random, args: tuple[Any, ...]) -> list[Any]:
    """The arguments with one or two of them altered."""
    given = list(args)
    tensors = [a for a in args if isinstance(a, Tensor)]
    for i in r.choices(range(len(args)), k=r.choice((1, 1, 2))):
        a = given[i]
        if isinstance(a, Tensor):
            given[i] = altered_tensor(r, a, tensors)
        elif a is None:
            given[i] = r.choice(tensors)
        else:
            given[i] = altered_number(r, a)
    return given


def main(seed: int, count: int) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    r, fence = random.Random(seed), Fence()
    calls = record(seed)
    for each in calls.values():
        for func, args in each:
            func(*(fence.inside(a) if isinstance(a, Tensor) else a for a in args))  # as they came they are right
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    names, outcome = sorted(calls), Counter[str]()
    verbose = os.environ.get("RAW_CALLS_VERBOSE")
    for number in range(count):
        func, args = r.choice(calls[r.choice(names)])
        given = [fence.inside(a) if isinstance(a, Tensor) else a for a in altered(r, args)]
        if verbose:
            said = [f"{tuple(a.shape)}{a.dtype}" if isinstance(a, Tensor) else a for a in given]
            print(number, func._schema.name, said, file=sys.stderr, flush=True)
        try:
            if number % 2:
                func(*given)
            else:
                with fence:
                    func(*given)
            outcome["ran"] += 1
        except EXPECTED as error:
            outcome[type(error).__name__] += 1
    print(dict(outcome), file=sys.stderr)
    print("alive")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
