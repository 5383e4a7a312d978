# SPDX-License-Identifier: Apache-2.0
"""What follows from an op's signature, a NamedTuple as `fastfer.signatures` has them.

Torch knows an op by a flat list of arguments. A group of fields lies there as ``norm1_weight, norm1_bias, ...``; where
the group may be None its tensors may be None, and a first one that is None says that there is no group. The fields of
an ``Annotated[Group, "inline"]`` keep their names. A NamedTuple of bools is one ``bool[n]``.

A backward op is described by names alone. Of its fields, ``d_y`` is the gradient of the output y; a name of an output
or an input of the forward op is that value, saved; any other is a property of the forward signature, evaluated in
forward; a NamedTuple of bools says which gradients are asked for. It returns ``d_x`` for the input x.

The functions that do this are generated once, as dataclasses are: a loop over the fields would cost more than a small
op itself.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.nn import Parameter

_SCALARS = {float: "float", int: "int", bool: "bool"}


@dataclass(frozen=True)
class Leaf:
    """One of an op's arguments as torch has them; ``read`` is source text, see `Signature.bind`."""

    name: str
    type: str
    stored: bool
    group: str
    read: str

    @property
    def tensor(self) -> bool:
        return self.type.startswith("Tensor")


@dataclass(frozen=True)
class Group:
    """A field ``name`` that is a NamedTuple itself, of ``owner``, the signature or another group."""

    name: str
    owner: str
    type: Any
    optional: bool
    inline: bool


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        (rest,) = [part for part in get_args(hint) if part is not type(None)]
        return rest, True
    return hint, False


def _leaf(cls: type, owner: Group, attribute: str, hint: Any) -> Leaf:
    inner, may_be_none = _without_none(hint)
    kind, extra = get_args(inner) if get_origin(inner) is Annotated else (inner, "")
    if kind is Tensor:
        text = "Tensor?" if owner.optional or may_be_none else "Tensor"
    else:
        text = extra if kind == list[int] else _SCALARS.get(kind, "")
    if not text:
        raise TypeError(f"{cls.__name__}: {attribute}: expected a field as fastfer.signatures.fields, got {hint}")
    name = attribute if owner.inline else f"{owner.name}_{attribute}"
    return Leaf(name, text, extra == "stored", owner.name, f"{owner.name}.{attribute}")


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in cls._fields}  # type: ignore[attr-defined]


def _missing(group: type) -> Any:
    """A group of Nones, zeros and False."""
    return group(*(None if _without_none(hint)[0] is Tensor else hint() for hint in _hints(group).values()))


def _is_flags(cls: Any) -> bool:
    return isinstance(cls, type) and all(_flag(hint) for hint in _hints(cls).values())


def _flag(hint: Any) -> bool:
    return (get_args(hint)[0] if get_origin(hint) is Annotated else hint) is bool


def compiled(name: str, parameters: str, lines: Iterable[str], values: dict[str, Any]) -> Callable[..., Any]:
    """The function ``name`` of these source lines over the global ``values``."""
    text = f"def {name}({parameters}):\n" + "".join(f"    {line}\n" for line in lines)
    exec(compile(text, f"{__file__}:{name}", "exec"), values)
    function: Callable[..., Any] = values[name]
    return function


class Signature:
    """Fields of the NamedTuple ``cls``, and functions between it and the flat arguments."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        self.groups: dict[str, Group] = {}
        self.flags: dict[str, Any] = {}
        self.leaves = tuple(self._read(Group("a", "", cls, False, True)))
        self.by_name = {leaf.name: leaf for leaf in self.leaves}
        self.tensor_leaves = tuple(leaf for leaf in self.leaves if leaf.tensor)
        self.tensor_places = tuple(i for i, leaf in enumerate(self.leaves) if leaf.tensor)
        self.values = {
            f"{name}_type": t for name, t in (*((g.name, g.type) for g in self.groups.values()), *self.flags.items())
        }
        self.values |= {f"no_{g.name}": _missing(g.type) for g in self.groups.values() if g.optional}
        read = (f"list({leaf.read})" if leaf.name in self.flags else leaf.read for leaf in self.leaves)
        self.flatten = self._compiled("flatten", "a", *self.bind(), f"return ({''.join(f'{text}, ' for text in read)})")
        """The signature's values as torch's arguments."""
        self.unflatten = self._compiled("unflatten", ", ".join(self.by_name), f"return {self.build()}")
        """The signature of torch's arguments."""
        read = (f"{leaf.read}, " for leaf in self.tensor_leaves)
        self.tensors = self._compiled("tensors", "a", *self.bind(), f"return ({''.join(read)})")
        """All tensors of the signature, with None for those that are missing."""
        self.ordinary = self._compiled("ordinary", "a", *self.bind(), *self._all_ordinary())
        """The first tensor; None where one is of a subclass other than Parameter, or has a sign still to be applied."""
        asked = (
            f"({leaf.read} is not None and {leaf.read}.requires_grad)"
            if leaf.type == "Tensor?"
            else f"{leaf.read}.requires_grad"
            for leaf in self.tensor_leaves
        )
        self.requires_grad = self._compiled("requires_grad", "a", *self.bind(), f"return {' or '.join(asked)}")
        """Whether one of the tensors requires a gradient."""

    def _all_ordinary(self) -> Iterator[str]:
        for leaf in self.tensor_leaves:
            yield f"t = {leaf.read}"
            yield f"{'if t is not None: ' if leaf.type == 'Tensor?' else ''}kind = type(t)"
            other = "(kind is not Tensor and kind is not Parameter) or t.is_neg()"
            yield f"if {f't is not None and ({other})' if leaf.type == 'Tensor?' else other}: return None"
        yield f"return {self.tensor_leaves[0].read}"

    def _read(self, owner: Group) -> Iterator[Leaf]:
        self.groups[owner.name] = owner
        for name, hint in _hints(owner.type).items():
            inner, optional = _without_none(hint)
            inline = get_origin(inner) is Annotated and get_args(inner)[1] == "inline"
            kind = get_args(inner)[0] if inline else inner
            if not hasattr(kind, "_fields"):
                yield _leaf(self.cls, owner, name, hint)
            elif _is_flags(kind):
                self.flags[name] = kind
                yield Leaf(name, f"bool[{len(kind._fields)}]", False, owner.name, f"{owner.name}.{name}")
            else:
                yield from self._read(Group(name, owner.name, kind, optional, inline))

    @property
    def schema(self) -> str:
        """The arguments as torch's schema writes them."""
        return ", ".join(f"{leaf.type} {leaf.name}" for leaf in self.leaves)

    def bind(self) -> list[str]:
        """Lines that bind each group of the signature ``a`` to a variable of its name."""
        return [
            f"{g.name} = {g.owner}.{g.name}" + (f" or no_{g.name}" if g.optional else "")
            for g in self.groups.values()
            if g.owner
        ]

    def build(self, group: str = "a") -> str:
        """Source text of the signature, or of a group, made of variables that are named as the leaves."""
        owner, parts = self.groups[group], []
        for field in owner.type._fields:
            name = field if owner.inline else f"{group}_{field}"
            if field in self.flags:
                parts.append(f"{field}_type(*{field})")
            else:
                parts.append(self.build(field) if field in self.groups and owner.inline else name)
        made = f"{group}_type({', '.join(parts)})"
        return f"(None if {parts[0]} is None else {made})" if owner.optional else made

    def _compiled(self, name: str, parameters: str, *lines: str) -> Callable[..., Any]:
        return compiled(name, parameters, lines, self.values | {"Tensor": Tensor, "Parameter": Parameter})


class Results:
    """Fields of what an op returns: a NamedTuple of tensors, or one tensor, which is then called ``out``."""

    def __init__(self, cls: Any) -> None:
        self.single = cls is Tensor
        self.cls = cls
        hints = {"out": cls} if self.single else _hints(cls)
        self.names = tuple(hints)
        self.stored = tuple(get_origin(_without_none(hint)[0]) is Annotated for hint in hints.values())

    @property
    def schema(self) -> str:
        return "Tensor" if self.single else f"({', '.join(['Tensor'] * len(self.names))})"

    def read(self, name: str) -> str:
        """Source text of one result ``name`` of the variable ``r``."""
        return "r" if self.single else f"r.{name}"


class Gradient:
    """How a backward signature is filled from a forward call, and its results returned, by names."""

    def __init__(self, forward: Signature, results: Results, backward: Signature, gradients: Results) -> None:
        self.forward, self.results, self.backward = forward, results, backward
        self.incoming = [leaf for leaf in backward.leaves if leaf.name[:2] == "d_" and leaf.name[2:] in results.names]
        rest = [leaf for leaf in backward.leaves if leaf not in self.incoming and leaf.name not in backward.flags]
        self.saved = [leaf for leaf in rest if leaf.tensor]
        self.options = [leaf for leaf in rest if not leaf.tensor]
        given = {} if gradients.single else {name.removeprefix("d_"): f"_g.{name}" for name in gradients.names}
        self.given = given or {forward.tensor_leaves[0].name: "_g"}
        unknown = self.given.keys() - {leaf.name for leaf in forward.tensor_leaves}
        if unknown:
            raise TypeError(f"{gradients.cls.__name__}: expected gradients d_<input>, got {sorted(unknown)}")
        required = [leaf for leaf in self.incoming if leaf.type == "Tensor"]
        self.filled = len(required) == len(self.incoming) != 1 or results.single
        """Whether torch puts zeros where gradients are missing. Else backward is not called where all are, and those
        ``required`` beside others are zeros."""
        self.required = [] if self.filled or len(self.incoming) == 1 else required

    def _value(self, leaf: Leaf) -> str:
        if leaf.name in self.results.names:
            return self.results.read(leaf.name)
        if leaf.name in self.forward.by_name:
            return self.forward.by_name[leaf.name].read
        if hasattr(self.forward.cls, leaf.name):
            return f"a.{leaf.name}"
        raise TypeError(
            f"{self.backward.cls.__name__}: {leaf.name}: expected an input, output or property of the forward op"
        )

    def save(self, kept: Callable[[Any, Any], tuple[Any, Any]] | None) -> Callable[[Any, Any, Any], None]:
        """A function of ctx, arguments a and results r that keeps what backward needs, after ``kept`` replaced them."""
        differentiable = {leaf.name[2:] for leaf in self.incoming}
        without = [self.results.read(name) for name in self.results.names if name not in differentiable]
        lines = [f"ctx.mark_non_differentiable({', '.join(without)})"] if without else []
        lines += [] if self.filled else ["ctx.set_materialize_grads(False)"]
        for leaf in self.required:
            y = self.results.read(leaf.name[2:])
            lines.append(f"ctx.like_{leaf.name} = {y}.shape, {y}.dtype, {y}.device")
        lines += [] if kept is None else ["a, r = kept(a, r)"]
        lines += self.forward.bind()
        lines.append(f"ctx.save_for_backward({', '.join(map(self._value, self.saved))})")
        if self.options:
            lines.append(f"ctx.options = ({''.join(f'{self._value(leaf)}, ' for leaf in self.options)})")
        return compiled("save", "ctx, a, r", lines, self.forward.values | {"kept": kept})

    def function(
        self, backward: Callable[[Any], Any], slots: dict[str, int], count: int
    ) -> Callable[..., tuple[Tensor | None, ...]]:
        """A function of ctx and the results' gradients that returns ``count`` gradients, an input's in its slot."""
        nothing = f"return {('None, ' * count)}"
        lines = []
        if not self.filled:
            lines.append(f"if {' and '.join(f'{leaf.name} is None' for leaf in self.incoming)}: {nothing}")
        for leaf in self.required:
            lines.append(f"if {leaf.name} is None: {leaf.name} = zeros(*ctx.like_{leaf.name})")
        for leaves, source in ((self.saved, "ctx.saved_tensors"), (self.options, "ctx.options")):
            if leaves:
                lines.append(f"{''.join(f'{leaf.name}, ' for leaf in leaves)} = {source}")
        lines.append("_needs = ctx.needs_input_grad")
        for name, flags in self.backward.flags.items():
            asked = (
                " or ".join(f"_needs[{slot}]" for slot in self._covered(flag, hint, slots))
                for flag, hint in _hints(flags).items()
            )
            lines.append(f"{name} = ({', '.join(asked)},)")
        lines.append(f"_g = backward({self.backward.build()})")
        placed = ["None"] * count
        for name, value in self.given.items():
            placed[slots[name]] = f"{value} if _needs[{slots[name]}] else None"
        lines.append(f"return {''.join(f'{text}, ' for text in placed)}")
        values = self.backward.values | {"zeros": _zeros, "backward": backward}
        return compiled("gradient", "ctx, " + ", ".join(f"d_{name}" for name in self.results.names), lines, values)

    def _covered(self, flag: str, hint: Any, slots: dict[str, int]) -> list[int]:
        names = get_args(hint)[1:] if get_origin(hint) is Annotated else (flag,)
        inputs = (leaf for name in names for leaf in self.forward.tensor_leaves if name in (leaf.name, leaf.group))
        covered = [slots[leaf.name] for leaf in inputs]
        if not covered:
            raise TypeError(f"{self.backward.cls.__name__}: {flag}: expected names of inputs, got {names}")
        return covered


def _zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)
