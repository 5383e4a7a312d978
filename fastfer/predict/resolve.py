# SPDX-License-Identifier: Apache-2.0
"""From what a user calls the weights to an engine with its preprocessing: the one place that does."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fastfer import _cache
from fastfer import weights as shipped
from fastfer._files import file_digest
from fastfer.data.files import printable
from fastfer.data.input_spec import InputSpec
from fastfer.runtime import Engine, load

Weights = str | Path | Engine


def resolved(weights: Weights, threads: int | None, precision: str | None) -> tuple[Engine, InputSpec]:
    """The engine, and how images come to it.

    ``weights``: an engine, the path of an engine file (.ffe, no torch needed) or of a weight file (.safetensors), or
    the name of weights that ship. Raises FileNotFoundError, TypeError, ValueError.
    """
    if isinstance(weights, Engine):
        if threads is not None or precision is not None:
            raise ValueError("threads, precision: expected none beside an engine, which has its own")
        return weights, _spec(weights, repr(weights))
    if not isinstance(weights, str | Path):
        raise TypeError(f"weights: expected a name, a path or an Engine, got {type(weights).__name__}")
    path = shipped.resolve(weights)
    if not path.is_file():
        names = ", ".join(shipped.list()) or "none in this version"
        raise FileNotFoundError(
            "weights: expected the file of an engine (.ffe) or of weights (.safetensors), got "
            f"{printable(str(weights))!r}, which is no file, nor the name of weights that ship ({names})"
        )
    if path.suffix == ".ffe":
        engine = load(path, threads=threads, dtype=precision)
    else:
        engine = _compiled(path, threads, precision)
    return engine, _spec(engine, printable(str(path)))


def _compiled(path: Path, threads: int | None, precision: str | None) -> Engine:
    """The engine of a weight file, compiled at its first use: torch alone takes a second to import."""
    if precision not in (None, "float32", "bfloat16"):
        raise ValueError(f"precision: expected float32 or bfloat16 for a weight file, got {precision!r}")
    precision = precision or "float32"
    kept = _cache.compiled("weights", file_digest(path), precision)
    with suppress(OSError, ValueError):  # not there yet, or damaged
        return load(kept, threads=threads)
    try:
        from fastfer.engine.compiler import compile
        from fastfer.engine.trained import trained
    except ImportError as error:
        raise ImportError(
            f"the first use of a weight file needs torch, an engine file (.ffe) does not: {error}"
        ) from error
    model, known = trained(path)
    engine = compile(model, threads=threads, dtype=precision, **known)
    _cache.keep(kept, engine._data)
    return engine


def _spec(engine: Engine, name: str) -> InputSpec:
    """The preprocessing of an engine; ValueError where it does not say, or is no classifier."""
    if len(engine.output_shapes) != 1 or len(engine.output_shapes[0]) != 1:
        raise ValueError(f"{name}: expected one output, the logits (K,), got shapes {engine.output_shapes}")
    try:
        return InputSpec.from_metadata({key: value for key, value in engine.metadata.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected its preprocessing, or mean and std, in the metadata, as training writes it: {error}"
        ) from None
