# SPDX-License-Identifier: Apache-2.0
"""How much a pickle of ``torch.save`` would make, counted before torch reads it.

Torch's reader runs no code of the file, but a few bytes can still ask it for hours or for all memory: tuples that hold
one tuple twice, 60 deep, as the key of a dictionary; a million lists; bytearray(1 << 40). Here the instructions are
followed with sizes in place of values.
"""

from __future__ import annotations

import pickletools
from typing import Any

INSTRUCTIONS = 1 << 20
"""Of a file, at most; a checkpoint of 700 tensors with its optimizer has 40,000."""
PARTS = 1 << 12
"""Of a tuple with all tuples in it, at most: what a look at it as a key takes."""
DEPTH = 64
"""Of tuples in tuples, at most."""

_MARK = (-1, -1)
_PLAIN = (1, 1)
"""Parts and depth of what is no tuple. Lists and dictionaries cannot be keys, so nothing walks through them."""
_TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "REDUCE": 2, "NEWOBJ": 2, "BUILD": 1,
          "POP": 1, "BINPERSID": 1}  # fmt: skip
_TO_MARK = ("TUPLE", "APPENDS", "SETITEMS", "ADDITEMS", "POP_MARK")
_MAKES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ", "BINPERSID")
_PUSHES = (
    "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BININT", "BININT1",
    "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "GLOBAL",
)  # fmt: skip


class Budget:
    """What the pickles of one file may take together."""

    def __init__(self) -> None:
        self.left = INSTRUCTIONS

    def follow(self, file: Any) -> None:
        """Follow one pickle in ``file``, whatever has read() and readline(), to its end.

        ValueError for one that asks for too much, or that torch.save does not write.
        """
        stack: list[tuple[int, int]] = []
        memo: dict[Any, tuple[int, int]] = {}
        for instruction, argument, _ in pickletools.genops(file):
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"expected at most {INSTRUCTIONS:,} instructions in its pickles")
            name = instruction.name
            if name == "GLOBAL":
                _check_global(str(argument))
            if name in _PUSHES:
                stack.append(_PLAIN)
            elif name == "MARK":
                stack.append(_MARK)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in _TAKEN or name in _TO_MARK:
                taken = _taken(stack, name)
                if name in _MAKES:
                    stack.append(_around(taken))
            elif name not in ("PROTO", "STOP"):
                raise ValueError(f"the instruction {name}, which torch.save does not write")


def _taken(stack: list[tuple[int, int]], name: str) -> list[tuple[int, int]]:
    """Takes from the stack what an instruction does."""
    if name in _TAKEN:
        count = _TAKEN[name]
        if len(stack) < count:
            raise ValueError("an instruction without its values")
        start = len(stack) - count
        taken = stack[start:]
        del stack[start:]
        return taken
    taken = []
    while (top := stack.pop()) != _MARK:
        taken.append(top)
    return taken


def _around(parts: list[tuple[int, int]]) -> tuple[int, int]:
    size, depth = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
    if size > PARTS or depth > DEPTH:
        raise ValueError(f"expected tuples of at most {PARTS:,} parts and {DEPTH} deep")
    return size, depth


def _check_global(name: str) -> None:
    """ValueError for what makes as much memory as a number says."""
    module, _, last = name.partition(" ")
    if last == "bytearray" or (module.split(".")[0] == "torch" and last.endswith("Tensor")):
        raise ValueError(f"{module}.{last}, which a state dict does not hold")
