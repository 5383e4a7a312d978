# SPDX-License-Identifier: Apache-2.0
"""Checks of module constructors; those of tensors are in ``fastfer._checks``."""

from __future__ import annotations

from collections.abc import Sequence


def positive(op: str, arg: str, value: object) -> int:
    """An int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{op}: {arg}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{op}: {arg}: expected an int >= 1, got {value}")
    return value


def one_of(op: str, arg: str, value: object, known: Sequence[str]) -> str:
    """One of the names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{op}: {arg}: expected one of {', '.join(known)}, got {value!r}")
    return value


def probability(op: str, arg: str, value: object) -> float:
    """A number from 0 to 1."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{op}: {arg}: expected a number, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{op}: {arg}: expected 0 <= {arg} <= 1, got {value}")
    return value


def flag(op: str, arg: str, value: object) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {arg}: expected a bool, got {type(value).__name__}")
    return value
