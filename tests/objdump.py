# SPDX-License-Identifier: Apache-2.0
"""Reads disassembly: the innermost loops of a function, and the vector registers that they store to the stack."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from operator import and_
from pathlib import Path
from typing import NamedTuple

_FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(?:\{\w+\} )?(\S+)\s*(.*)$")
_TARGET = re.compile(r"^[0-9a-f]+\b")
_JUMP = re.compile(r"^j\w+$")
_STOPS = re.compile(r"^(jmp|ret|ud2|hlt)")
_ENDS = re.compile(r"^(j\w+|ret|ud2|hlt)")
# A whole vector register to memory, AT&T syntax; a mask may follow the address.
_STORE = re.compile(r"^%([xyz]mm\d+),((?:-?0x[0-9a-f]+)?\(%(rsp|rbp)[,)][^ {]*)")
_STORES = re.compile(r"^v?mov(aps|apd|ups|upd|dqa\d*|dqu\d*)$")


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str


class Spill(NamedTuple):
    """A vector register stored to the stack and read back inside an innermost loop."""

    function: str
    register: str
    address: int


def functions(listing: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Name and instructions of each function in ``objdump -d`` output."""
    name, body = "", []
    for line in listing.splitlines():
        if head := _FUNCTION.match(line):
            if body:
                yield name, body
            name, body = head[1], []
        elif found := _INSTRUCTION.match(line):
            body.append(Instruction(int(found[1], 16), found[2], found[3]))
    if body:
        yield name, body


def _blocks(body: list[Instruction]) -> tuple[list[list[Instruction]], list[list[int]]]:
    """Basic blocks, and the successors of each by index; jumps out of the function have none."""
    inside = {instruction.address for instruction in body}
    targets = {
        i.address: int(i.operands.split()[0], 16) for i in body if _JUMP.match(i.name) and _TARGET.match(i.operands)
    }
    leaders = {body[0].address} | (set(targets.values()) & inside)
    leaders |= {after.address for before, after in pairwise(body) if _ENDS.match(before.name)}
    blocks: list[list[Instruction]] = []
    for instruction in body:
        if instruction.address in leaders:
            blocks.append([])
        blocks[-1].append(instruction)
    index = {block[0].address: number for number, block in enumerate(blocks)}
    successors = []
    for number, block in enumerate(blocks):
        last = block[-1]
        after = [index[targets[last.address]]] if targets.get(last.address) in index else []
        if not _STOPS.match(last.name) and number + 1 < len(blocks):
            after.append(number + 1)
        successors.append(after)
    return blocks, successors


def _dominators(successors: list[list[int]]) -> list[int]:
    """For each block the bit set of those on every path to it; 0 for a block that nothing reaches."""
    predecessors: list[list[int]] = [[] for _ in successors]
    for number, after in enumerate(successors):
        for other in after:
            predecessors[other].append(number)
    dominators, changed = [1] + [0] * (len(successors) - 1), True
    while changed:
        changed = False
        for number in range(1, len(successors)):
            known = [dominators[p] for p in predecessors[number] if dominators[p]]
            fresh = reduce(and_, known) | 1 << number if known else 0
            changed |= fresh != dominators[number]
            dominators[number] = fresh
    return dominators


def innermost_loops(body: list[Instruction]) -> list[list[Instruction]]:
    """The natural loops without another loop inside, each as its instructions."""
    blocks, successors = _blocks(body)
    dominators, loops = _dominators(successors), dict[int, set[int]]()
    for tail, after in enumerate(successors):
        for head in after:
            if dominators[tail] >> head & 1:
                members, waiting = loops.setdefault(head, {head}), [tail]
                while waiting:
                    number = waiting.pop()
                    if number not in members:
                        members.add(number)
                        waiting += [
                            p for p, following in enumerate(successors) if number in following and dominators[p]
                        ]
    inner = [
        members for head, members in loops.items() if not any(other != head and other in members for other in loops)
    ]
    return [[i for number in sorted(members) for i in blocks[number]] for members in inner]


def spills(name: str, body: list[Instruction], register: str) -> list[Spill]:
    """Whole ``register``s ("ymm", "zmm") that an innermost loop with multiply-adds stores to the stack and rereads.

    %rbp counts where it is the frame's pointer. A store that nothing rereads costs next to nothing, and is no spill,
    but for dot products: GCC may keep the sums in registers and store each of them all the same, at a third of the
    speed.
    """
    framed = any(i.name == "mov" and i.operands.startswith("%rsp,%rbp") for i in body)
    found = []
    for loop in innermost_loops(body):
        dots = any(instruction.name.startswith(("vdp", "vpdp")) for instruction in loop)
        if not dots and not any(instruction.name.startswith("vfmadd") for instruction in loop):
            continue
        for address, mnemonic, operands in loop:
            store = _STORE.match(operands) if _STORES.match(mnemonic) else None
            if not store or not store[1].startswith(register) or (store[3] == "rbp" and not framed):
                continue
            if dots or any(i.operands.startswith(f"{store[2]},") and f"%{register}" in i.operands for i in loop):
                found.append(Spill(name, store[1], address))
    return found


def disassemble(objdump: str, path: Path) -> str:
    """``objdump -d`` of an object, symbols demangled."""
    command = [objdump, "-d", "-C", "--no-show-raw-insn", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
