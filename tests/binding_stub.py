# SPDX-License-Identifier: Apache-2.0
"""The generated part of fastfer/_C.pyi: the params structs and kernels as the extension describes them.

``python tests/binding_stub.py`` writes it; tests/test_binding.py compares the two.
"""

from __future__ import annotations

import re
from pathlib import Path

import fastfer
from fastfer import _C

STUB = Path(fastfer.__file__).resolve().parent / "_C.pyi"
MARK = "# From here on written by tests/binding_stub.py, from csrc/*/op.h and csrc/kernels.inc.\n"


def params_types() -> list[type]:
    """The types of params structs, by name."""
    return [value for _, value in sorted(vars(_C).items()) if isinstance(value, type) and is_params(value)]


def is_params(value: type) -> bool:
    """Whether a type of the extension is that of a params struct: its docstring is its signature."""
    return (value.__doc__ or "").startswith(f"{value.__name__}(*")


def fields(params: type) -> list[str]:
    """ "x: Tensor | None", "dy: Tensor | None = ..." and so on, those without a default first."""
    match = re.fullmatch(r"\w+\(\*, (.*)\)", params.__doc__ or "")
    assert match is not None, params.__doc__
    return match[1].split(", ")


def kernels() -> list[str]:
    """ "batch_norm_fwd(f64: bool, params: BatchNormParams, /) -> None" and so on."""
    docs = (value.__doc__ or "" for _, value in sorted(vars(_C).items()) if not isinstance(value, type))
    return [doc for doc in docs if "(f64: bool, params: " in doc]


def generated() -> str:
    """What follows the mark in the stubs."""
    classes = "".join(
        f"\nclass {params.__name__}(_Params):\n" + "".join(f"    {field}\n" for field in fields(params))
        for params in params_types()
    )
    return classes + "\n" + "".join(f"def {kernel}: ...\n" for kernel in kernels())


if __name__ == "__main__":
    head, _, _ = STUB.read_text().partition(MARK)
    STUB.write_text(head + MARK + generated())
