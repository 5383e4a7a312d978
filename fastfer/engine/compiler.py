# SPDX-License-Identifier: Apache-2.0
"""``fastfer.compile``: from a network to its engine."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastfer import weights
from fastfer.engine import (  # noqa: F401 - they register handlers
    convert_aten,
    convert_attention,
    convert_fastfer,
    convert_layers,
    convert_math,
    convert_products,
    convert_reduce,
    convert_sample,
    convert_shape,
    convert_tensor,
    convert_windows,
    packed,
)
from fastfer.engine import metadata as fields
from fastfer.engine.calibrate import check_rule
from fastfer.engine.choose import USUAL_AGREEMENT, check_agreement, fastest
from fastfer.engine.program import Program
from fastfer.engine.recipe import Recipe, Sizes
from fastfer.engine.record import recorded
from fastfer.engine.rules import USUAL
from fastfer.engine.subject import Subject
from fastfer.engine.trace import check_tensors, evaluating, traced
from fastfer.engine.trained import trained
from fastfer.models import FerModel
from fastfer.runtime import Engine

DTYPES = ("float32", "bfloat16", "int8")


def program_of(model: nn.Module, size: tuple[int, ...]) -> Program:
    """The calls of a model for images of (C, H, W) = ``size``."""
    program = recorded(model, size) if isinstance(model, FerModel) else None
    return traced(model, size) if program is None else program


def compile(
    model: nn.Module | str | os.PathLike[str],
    example: Tensor | Sequence[int] | None = None,
    threads: int | None = None,
    dtype: str | None = None,
    *,
    input_size: int | Sequence[int] | None = None,
    sizes: str | None = None,
    strict: bool = False,
    fallback: str = "error",
    calibration: Iterable[Any] | None = None,
    rule: str = USUAL,
    agreement: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine of a trained network: convolutions with their norms folded in, one native call for a batch.

    ``model`` is any fastfer model, or a torch module made of ops that a plan has (`convert_aten` and its neighbours),
    taken in evaluation mode, later changes of it do not reach the engine; or the path of an ONNX file (opset 7 or
    later), whose several outputs come as a dict by name; or a weight file of ours, or the name of one that ships, which
    brings its size and preprocessing along. ``example`` is an input or its shape, (N, C, H, W) or (C, H,
    W), or for several inputs a tuple of them or of their shapes (N, ...); by default the published size of a fastfer
    model and what an ONNX file fixes. Of a file, ``input_size`` (H, W) chooses another. With ``sizes="any"`` the
    engine takes images of every size that the network does: the first call with one makes a plan for it, of which
    `recipe.MOST_SIZES` are kept; of a module it keeps a copy for that, which a pickle holds, too, where it can. With
    "fixed", the default of fastfer's own models, it takes one size. ``threads`` defaults to `runtime.default_threads`.
    ``strict`` keeps to plain float32 sums: within 1e-5 of torch, relative to the largest output, otherwise within
    1e-4. ``dtype`` is float32, or int8 for a quantised ONNX file, which has ranges and scales of its own; any other
    "int8" takes the ranges of its tensors from ``calibration``: float32 batches as the network takes them, or pairs
    with such a batch first, as loaders give; or, without any, those that fine-tuning for int8 left with a fastfer
    model. ``rule`` is the one of `rules.RULES` by which ranges follow. With
    ``agreement`` it keeps those steps in bfloat16 that it takes to choose float32's class on that share of the images;
    ``engine.plan()`` has the table. "auto" takes the fastest precision on this CPU that chooses
    the same class as float32 on a share of at least ``agreement``, 0.99 by default, of these images, and says why.
    ``mean`` and ``std``, one number a channel on the scale 0
    to 1, allow uint8 images, which are normalised inside; not for a network whose pixels are equalised first, as a
    record in ``metadata["preprocess"]`` may say. ``fallback="torch"`` runs ops that no plan has in torch, between
    plans of the rest: the engine's ``islands`` names them, and it cannot be saved; "onnxruntime" leaves a file with
    such ops to ONNX Runtime as a whole. ``class_names`` default to those that a fastfer model, or its ONNX file,
    brings along; ``metadata`` are further JSON values to keep. Outputs come as the model gives them: tensors, numbers
    and None in tuples, lists and dicts.

    Raises TypeError or ValueError naming the argument, `UncoveredError` naming an op that no plan has.
    """
    file = None if isinstance(model, nn.Module) else _weight_file(model)
    if file is not None:
        model, own = trained(file)
        example = own["example"] if example is None else example
        metadata = {**own.get("metadata", {}), **(metadata or {})}
        if mean is None and std is None:
            mean, std = own.get("mean"), own.get("std")
    if dtype == "auto":
        return fastest(
            lambda dtype, calibration, choice=None: compile(
                model, example, threads, dtype, input_size=input_size, sizes=sizes, strict=strict, fallback=fallback,
                calibration=calibration, rule=rule, mean=mean, std=std, class_names=class_names,
                metadata=metadata if choice is None else {**(metadata or {}), "choice": choice},
            ),
            calibration, USUAL_AGREEMENT if agreement is None else agreement,
        )  # fmt: skip
    check_rule(rule)
    if agreement is not None:
        check_agreement(agreement)
        if calibration is None:
            raise ValueError(
                "compile: agreement: expected it with calibration images, which it is measured on, got none"
            )
    if dtype not in (None, *DTYPES):
        raise ValueError(f"compile: dtype: expected one of {', '.join(DTYPES)} or auto, got {dtype!r}")
    kinds = ("error", "torch") if isinstance(model, nn.Module) else ("error", "torch", "onnxruntime")
    if fallback not in kinds:
        *first, last = map(repr, kinds)
        raise ValueError(f"compile: fallback: expected {', '.join(first)} or {last}, got {fallback!r}")
    if sizes not in (None, "any", "fixed"):
        raise ValueError(f"compile: sizes: expected 'any' or 'fixed', got {sizes!r}")
    sizes = ("fixed" if isinstance(model, FerModel) else "any") if sizes is None else sizes
    if isinstance(model, nn.Module):
        check_tensors(model)
        twin = _twin(model) if sizes == "any" and packed.several(example) is None else None
        model, sizes = (model, "fixed") if twin is None else (twin, sizes)
    subject = _subject(model, example, input_size)
    by_file = subject.is_quantised and dtype in (None, "int8") and calibration is None
    dtype = "int8" if by_file else dtype or "float32"
    trained_ranges = model.int8_ranges if isinstance(model, FerModel) and calibration is None else None
    by_training = dtype == "int8" and trained_ranges is not None
    if not by_file and not by_training and (dtype == "int8") != (calibration is not None):
        raise ValueError(f"compile: calibration: expected images for dtype int8, and for no other, got dtype {dtype}")
    known = subject.known
    names = known.get("classes") if class_names is None else class_names
    if mean is None and std is None:
        mean, std = known.get("mean"), known.get("std")
    header: dict[str, Any] = {
        **known,
        **(metadata or {}),
        "model": subject.name,
        "options": known.get("options"),
        "classes": None if names is None else list(names),
        "mean": None if mean is None else [float(v) for v in mean],
        "std": None if std is None else [float(v) for v in std],
        "dtype": dtype,
        "strict": bool(strict),
    }
    header.pop("structure", None)
    if fields.equalises(header) and (mean is not None or std is not None):
        raise ValueError(
            "compile: mean and std: expected none for a network whose pixels are equalised first "
            "(metadata.preprocess.equalise), which an engine does not do"
        )
    fields.normalisation(header, subject.size[0])
    if calibration is not None and "inputs" in known:
        raise ValueError("compile: dtype: expected float32 or bfloat16 for a network of several inputs, got int8")
    recipe = Recipe(
        subject, header, threads, dtype, fallback, rule, agreement, by_file=by_file,
        trained=trained_ranges if by_training else None,
    )  # fmt: skip
    engine = recipe.engine(subject.size, calibration)
    if sizes == "any" and len(subject.size) == 3:
        engine.sizes = Sizes(recipe)
    return engine


def _weight_file(model: Any) -> Path | None:
    """The file of a name of weights that ship, or of a path that ends as weights do; None for anything else."""
    if not isinstance(model, (str, os.PathLike)):
        return None
    file = weights.resolve(os.fspath(model))
    return file if file.suffix == ".safetensors" else None


def _twin(model: nn.Module) -> nn.Module | None:
    """A copy of a model, which later changes do not reach; None where it cannot be copied."""
    try:
        with evaluating(model):  # while no other thread has other tensors in it
            return copy.deepcopy(model)
    except Exception:  # a module's own, of any kind
        return None


def _subject(model: Any, example: Any, input_size: Any) -> Subject:
    """The network as a program."""
    known: dict[str, Any]
    is_path = isinstance(model, (str, os.PathLike))
    if is_path and (os.fspath(model).endswith(".onnx") or os.path.exists(model)):
        from fastfer.engine.onnx_source import opened

        return opened(model, example, input_size)
    if not isinstance(model, nn.Module):
        names = ", ".join(weights.list())
        also = f": {str(model)!r} is no file, does not end in .onnx, and is none of {names}" if is_path else ""
        raise TypeError(f"compile: model: expected a torch.nn.Module, got {type(model).__name__}{also}")
    if input_size is not None:
        raise ValueError(f"compile: input_size: expected None for a module, which takes an example, got {input_size!r}")
    shapes = packed.several(example)
    if shapes is not None:
        known = {"input_names": packed.names(model, len(shapes)), "inputs": [list(shape) for shape in shapes]}
        whole = packed.Packed(model, shapes)
        total = (sum(map(prod, shapes)),)
        name = type(model).__name__
        return Subject(name, total, partial(program_of, whole), known, partial(_in_float32, whole))
    size = _size(model, example)
    own = model if isinstance(model, FerModel) else None  # attributes of other models are their own matter
    known = {} if own is None else {"options": own.options, "classes": own.class_names}
    name = type(model).__name__ if own is None else own.name
    return Subject(name, size, partial(program_of, model), known, partial(_in_float32, model))


def _in_float32(model: nn.Module, program: Program, size: tuple[int, ...]) -> Program:
    """The program for torch on the CPU, where the model is in another precision or place that of a copy."""
    state = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    if (
        program.dtypes[program.input] == torch.float32
        and all(t.is_cpu for t in state)
        and not isinstance(model, FerModel)
    ):
        return program
    with evaluating(model):  # while no other thread has other tensors in it
        twin = copy.deepcopy(model)
    return traced(twin.float().cpu(), size)


def _size(model: nn.Module, example: Tensor | Sequence[int] | None) -> tuple[int, ...]:
    """(C, H, W) of an image."""
    if example is None:
        if not isinstance(model, FerModel):
            raise TypeError(
                "compile: example: expected an input or its shape for a model that is not fastfer's, got None"
            )
        return (model.in_chans, *model.input_size)
    shape = tuple(example.shape) if isinstance(example, Tensor) else tuple(example)
    if len(shape) not in (3, 4) or not all(isinstance(n, int) and n > 0 for n in shape[-3:]):
        raise ValueError(f"compile: example: expected a shape (N, C, H, W) or (C, H, W), got {shape}")
    return shape[-3:]
