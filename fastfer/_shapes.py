# SPDX-License-Identifier: Apache-2.0
"""The shapes of an op's tensors in calls that have passed no check of ``fastfer.ops``.

Their language is that of `fastfer.signatures.shapes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from fastfer._signature import Signature
from fastfer.signatures.shapes import Index, Line, Rule, Shape, lines_of

_DERIVED = ("oh", "ow", "ph", "pw")
Sizes = dict[str, Any]
"""By letter; of ``*`` the whole shape."""


@dataclass(frozen=True)
class _Part:
    """One dimension: a letter, or else the code of its ``value``, which may be a plain ``number``."""

    text: str
    least: int
    value: Any
    number: int | None

    def size(self, sizes: Mapping[str, int]) -> int:
        return _evaluated(self.value, sizes)


def _evaluated(code: Any, sizes: Mapping[str, int]) -> int:
    found: int = eval(code, {"__builtins__": {}}, dict(sizes))
    return found


@cache
def _arithmetic(text: str) -> Any:
    return compile(text, text, "eval")


@cache
def _alternatives(line: str) -> tuple[tuple[_Part, ...], ...]:
    """The parts of a line's alternatives."""
    line = line.removeprefix("!")

    def part(text: str) -> _Part:
        bare = text.removesuffix("+")
        letter = bare.isidentifier() and bare not in _DERIVED
        number = int(bare) if bare.isdigit() else None
        return _Part(bare, int(bare != text), None if letter else _arithmetic(bare), number)

    return tuple(tuple(map(part, one.split())) for one in line.split("|")) if line != "*" else ()


def _given(line: str, sizes: Mapping[str, int]) -> str:
    """A line with the sizes that are known."""

    def part(part: _Part) -> str:
        known = sizes.get(part.text)
        return (
            f"{part.text} >= {part.least}" if part.least and not known else str(part.text if known is None else known)
        )

    return " or ".join(f"({', '.join(map(part, one))})" for one in _alternatives(line))


def _binds(shape: tuple[int, ...], parts: tuple[_Part, ...], sizes: Sizes) -> bool:
    """`_fits` for a line without alternatives; ``sizes`` may know more where it does not fit."""
    if len(parts) != len(shape):
        return False
    for part, size in zip(parts, shape, strict=True):
        expected = sizes.setdefault(part.text, size) if part.number is None else part.number
        if expected != size or size < part.least:
            return False
    return True


def _fits(shape: tuple[int, ...], parts: tuple[_Part, ...], sizes: Sizes) -> bool:
    if len(parts) != len(shape):
        return False
    known = dict(sizes)
    for part, size in zip(parts, shape, strict=True):
        expected = known.setdefault(part.text, size) if part.value is None else part.size(known)
        if expected != size or size < part.least:
            return False
    sizes.update(known)
    return True


@dataclass(frozen=True)
class _Tensor:
    """A tensor's name and place among torch's arguments, its line, and the way to the signature that the line asks."""

    name: str
    place: int
    line: Shape
    owner: tuple[str, ...]
    group: int | None
    """Of a group that may be None the place of its first tensor, which is None where there is no group."""
    may_be_none: bool
    """Where there is the group."""

    @property
    def letters(self) -> tuple[_Part, ...] | None:
        """The parts of a line of letters and numbers alone, of a tensor that belongs to no group; for a quick look."""
        if not isinstance(self.line, str) or self.group is not None or set(self.line) & set("!*|-"):
            return None
        return _alternatives(self.line)[0]

    @property
    def late(self) -> bool:
        """Whether its line builds on letters that others have to bind before."""
        text = self.line.shape if isinstance(self.line, Index) else self.line
        if callable(text):
            return True
        parts = (part for one in _alternatives(text) for part in one)
        return any(part.value is not None and part.number is None for part in parts)

    def line_in(self, fields: Any) -> Line:
        """Its line in a call; nothing where it belongs to a group that is not there."""
        if not callable(self.line):
            return self.line
        for name in self.owner:
            fields = getattr(fields, name)
        return "" if fields is None else self.line(fields)


@dataclass(frozen=True)
class _Given:
    """The line of a tensor, before its place is known."""

    line: Shape
    owner: tuple[str, ...]
    may_be_none: bool


def _within(line: Shape, template: Shape) -> Shape:
    """The line of a tensor whose group has one, too."""

    def filled(text: Line, into: str) -> str:
        if isinstance(text, Index):
            raise TypeError(f"expected the shape of a group as text, got {text}")
        return text if text == "-" else "!" * text.startswith("!") + into.replace("_", text.removeprefix("!"))

    if not isinstance(template, str):
        raise TypeError(f"expected the shapes inside a group as text, got {template}")
    return (lambda a: filled(line(a), template)) if callable(line) else filled(line, template)


class Shapes:
    """The shapes of one op's tensors; TypeError where one of them has no line, or a line no tensor."""

    def __init__(self, op: str, signature: Signature) -> None:
        self.op, self.signature = op, signature
        self.slots = {name: place for place, name in enumerate(signature.by_name)}
        self.rules: list[tuple[tuple[str, ...], Rule]] = []
        lines = dict(self._lines("a", ()))
        missing = [leaf.name for leaf in signature.tensor_leaves if leaf.name not in lines]
        if missing:
            raise TypeError(
                f"{op}: expected a line of fastfer.signatures.shapes for every tensor, got none for {missing}"
            )
        tensors = [self._tensor(place, lines) for place in signature.tensor_places]
        self.tensors = tensors
        self.kept: frozenset[str] = frozenset()
        """Names of those that a forward op made for a backward one."""
        self.fixed_places: frozenset[str] | None = None
        if not any(callable(tensor.line) for tensor in tensors):
            self.fixed_places = self.places(None)
        self.early = [(tensor, tensor.letters) for tensor in tensors if not tensor.late]
        self.late = [tensor for tensor in tensors if tensor.late]
        self.late.sort(key=lambda tensor: tensor.name.startswith("d_"))  # so that errors name what is given wrong
        self.windows = [
            (before, of) for before, of in (("", ("h", "w", "oh", "ow")), ("pool_", ("oh", "ow", "ph", "pw")))
            if f"{before}padding" in self.slots
        ]  # fmt: skip

    def _lines(self, group: str, path: tuple[str, ...]) -> Iterator[tuple[str, _Given]]:
        """Lines of a group's tensors by the names that torch has for them; ``path`` is the way to the group."""
        owner = self.signature.groups[group]
        given, used = lines_of(owner.type), set()
        self.rules += ((path, rule) for rule in given.rules)
        hints = get_type_hints(owner.type)
        for field in owner.type._fields:
            line = given.tensors.get(field)
            inner = self.signature.groups.get(field)
            if inner is not None and inner.owner == group:
                found = dict(self._lines(field, (*path, field)))
                if line is not None:
                    for leaf in self._leaves(field):
                        base = found.get(leaf, _Given("_", path, False))
                        found[leaf] = replace(base, line=_within(line, base.line), owner=path)
                for leaf in given.tensors.keys() & found.keys():
                    found[leaf] = replace(found[leaf], line=given.tensors[leaf], owner=path)
                    used.add(leaf)
                yield from found.items()
            elif line is not None:
                name = field if owner.inline else f"{group}_{field}"
                yield name, _Given(line, path, type(None) in get_args(hints[field]))
            used.add(field)
        if given.tensors.keys() - used:
            raise TypeError(
                f"{owner.type.__name__}: expected shapes of its tensors, got {sorted(given.tensors.keys() - used)}"
            )

    def _leaves(self, group: str) -> list[str]:
        return [leaf.name for leaf in self.signature.tensor_leaves if leaf.group == group]

    def _tensor(self, place: int, lines: Mapping[str, _Given]) -> _Tensor:
        leaf = self.signature.leaves[place]
        given, group = lines[leaf.name], self.signature.groups[leaf.group]
        first = self.slots[self._leaves(leaf.group)[0]] if group.optional else None
        return _Tensor(leaf.name, place, given.line, given.owner, first, given.may_be_none)

    def check(self, args: Sequence[Any], fields: Any) -> None:
        """TypeError or ValueError naming the first tensor that does not fit, IndexError one of places out of range."""
        sizes: Sizes = {}
        if "size" in self.slots:
            sizes["h"], sizes["w"] = args[self.slots["size"]]
        places = []
        for tensor, parts in self.early:
            t = args[tensor.place]
            if t is None or parts is None or not _binds(t.shape, parts, sizes):
                places.append(self._look(tensor, args, fields, sizes))
        for before, of in self.windows:
            self._slide(before, of, args, sizes)
        places += [self._look(tensor, args, fields, sizes) for tensor in self.late]
        for path, rule in self.rules:
            owner = fields
            for name in path:
                owner = getattr(owner, name)
            expected = "" if owner is None else rule(owner, sizes)
            if expected:
                raise ValueError(f"{self.op}: {expected}, got sizes {sizes}")
        for place in places:
            if place is not None:
                self._in_range(*place, sizes)

    def _look(
        self, tensor: _Tensor, args: Sequence[Any], fields: Any, sizes: Sizes
    ) -> tuple[str, Tensor, Index] | None:  # fmt: skip
        """What is left to be done where its elements are places."""
        t, name, index = args[tensor.place], tensor.name, None
        absent = tensor.group is not None and args[tensor.group] is None
        line = "" if absent and tensor.place != tensor.group else tensor.line_in(fields)
        if isinstance(line, Index):
            index, line = line, line.shape
        must = line.startswith("!") or (tensor.group is not None and not tensor.may_be_none and not absent)
        line = line.removeprefix("!")
        if t is None or absent:
            if must and line != "-":
                raise ValueError(f"{self.op}: {name}: expected a tensor of shape {_given(line, sizes)}, got None")
            return None
        if line == "-":
            raise ValueError(f"{self.op}: {name}: expected None, got a tensor of shape {tuple(t.shape)}")
        if line == "*":
            if sizes.setdefault("*", t.shape) != t.shape:
                raise ValueError(f"{self.op}: {name}: expected shape {tuple(sizes['*'])}, got {tuple(t.shape)}")
        elif not any(_fits(t.shape, one, sizes) for one in _alternatives(line)):
            raise ValueError(f"{self.op}: {name}: expected shape {_given(line, sizes)}, got {tuple(t.shape)}")
        return None if index is None else (name, t, index)

    def _slide(self, before: str, of: tuple[str, ...], args: Sequence[Any], sizes: Sizes) -> None:
        """The sizes of a convolution's or pooling's output."""
        pools = f"{before}kernel" in self.slots
        kernel = args[self.slots[f"{before}kernel"]] if pools else (sizes["p"], sizes["q"])
        stride, sides = args[self.slots[f"{before}stride"]], args[self.slots[f"{before}padding"]]
        for axis in (0, 1):
            size, first, last = sizes[of[axis]], sides[axis], sides[axis + 2]
            if size + first + last < kernel[axis]:
                raise ValueError(
                    f"{self.op}: {before}padding: expected a padded image of at least the window {tuple(kernel)}, got "
                    f"{size} + {first} + {last}"
                )
            if pools and max(first, last) > kernel[axis] // 2:
                raise ValueError(
                    f"{self.op}: {before}padding: expected at most half the kernel {tuple(kernel)}, got {list(sides)}"
                )
            sizes[of[axis + 2]] = (size + first + last - kernel[axis]) // stride[axis] + 1

    def _in_range(self, name: str, t: Tensor, line: Index, sizes: Sizes) -> None:
        if line.dtype is not None and t.dtype != line.dtype:
            raise TypeError(f"{self.op}: {name}: expected dtype {line.dtype}, got {t.dtype}")
        if not line.below or not t.is_cpu:
            return
        if line.plane is not None:
            t = t[:, line.plane : line.plane + 1] if t.dim() > 1 else t[:0]
        if not t.numel():
            return
        below = _evaluated(_arithmetic(line.below), sizes)
        low, high = (end.item() for end in torch.aminmax(t))
        if not (line.least <= low and high < below):  # so that NaN, too, is refused
            raise IndexError(f"{self.op}: {name}: expected {line.least} to {below - 1}, got {low} to {high}")

    def places(self, fields: Any) -> frozenset[str]:
        """The tensors of places, whose dtypes are their own."""
        if self.fixed_places is not None:
            return self.fixed_places
        lines = ((tensor.name, tensor.line_in(fields)) for tensor in self.tensors)
        return frozenset(name for name, line in lines if isinstance(line, Index) and line.dtype is not None)

    def dense(self, args: Sequence[Any]) -> list[Any] | None:
        """The arguments with what a forward op kept dense, images channels_last; None where it is so already."""
        result: list[Any] | None = None
        for tensor in self.tensors:
            t, line = args[tensor.place], tensor.line
            if t is None or tensor.name not in self.kept:
                continue
            image = t.dim() == 4 and (
                self.signature.leaves[tensor.place].stored or (isinstance(line, Index) and line.plane is None)
            )
            made = t.contiguous(memory_format=torch.channels_last if image else torch.contiguous_format)
            if made is not t:
                result = list(args) if result is None else result
                result[tensor.place] = made
        return result
