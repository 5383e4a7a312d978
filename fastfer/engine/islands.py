# SPDX-License-Identifier: Apache-2.0
"""Networks of which a plan covers a part: plans where it does, torch between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastfer import _memory
from fastfer.engine import metadata as fields
from fastfer.engine import views
from fastfer.engine.convert import Conversion
from fastfer.engine.file import to_bytes
from fastfer.engine.fuse import fused
from fastfer.engine.graph import Shape
from fastfer.engine.trace import Call, Program, Ref, mapped
from fastfer.engine.views import Uncovered, View
from fastfer.runtime import Engine, default_threads


@dataclass
class Segment:
    """Calls of one plan, from a single tensor; ``results`` are what later segments, or the outputs, need of it."""

    source: Ref
    conversion: Conversion
    calls: list[Call] = field(default_factory=list)
    results: dict[Ref, View] = field(default_factory=dict)
    engine: Engine | None = None


def _reads(call: Call, program: Program) -> set[Ref]:
    """Tensors that a call takes and that depend on the input."""
    found: set[Ref] = set()
    mapped((call.args, call.kwargs), Ref, found.add)
    return found - program.constants.keys() - program.scalars.keys()


def _started(program: Program, source: Ref) -> Segment | None:
    """A segment that begins with an image or a vector of each image; None for a tensor of another form."""
    sizes = program.sizes[source]
    if len(sizes) not in (2, 4) or sizes[0] != views.BATCH:
        return None
    conversion = Conversion((sizes[0], *sizes[1:], *(1,) * (4 - len(sizes))))
    form = views.image if len(sizes) == 4 else views.vector
    conversion.known.update(program.constants)
    conversion.known.update({ref: size(views.BATCH) for ref, size in program.scalars.items()})
    conversion.known[source] = form(0, conversion.graph.values[0])
    return Segment(source, conversion)


def partition(program: Program) -> list[Segment | Call]:
    """Plans and single calls of torch, in order."""
    needed_after: list[set[Ref]] = [set(program.outputs)]
    for call in reversed(program.calls):
        needed_after.append(needed_after[-1] | _reads(call, program))
    needed_after.reverse()  # [i]: before call i
    parts: list[Segment | Call] = []
    at = 0
    while at < len(program.calls):
        segment = _grown(program, at, needed_after)
        if segment is None:
            parts.append(program.calls[at])
            at += 1
        else:
            parts.append(segment)
            at += len(segment.calls)
    return parts


def _grown(program: Program, at: int, needed_after: list[set[Ref]]) -> Segment | None:
    """The longest plan of the calls from ``at`` on whose results can leave it; None where torch has to go on."""
    sources = _reads(program.calls[at], program)
    segment = _started(program, next(iter(sources))) if len(sources) == 1 else None
    if segment is None:
        return None
    own: set[Ref] = {segment.source}
    best, nodes = 0, 0
    for count, call in enumerate(program.calls[at:], 1):
        if not _reads(call, program) <= own:
            break
        try:
            segment.conversion.call(call)
        except Uncovered:
            break
        own.update(ref for ref in call.outputs if ref is not None)
        segment.calls.append(call)
        leaving = (own - {segment.source}) & needed_after[at + count]
        if all(isinstance(segment.conversion.known[ref], View) for ref in leaving) and leaving:
            best, nodes = count, len(segment.conversion.graph.nodes)
            segment.results = {ref: segment.conversion.known[ref] for ref in sorted(leaving, key=lambda r: r.number)}
    del segment.calls[best:]
    return segment if best and nodes else None


def _shown(view: View, y: Tensor) -> Tensor:
    """A plan's output (N, C, H, W) as the tensor that it stands for."""
    letters = "".join(view.axes)
    order = ["NCHW".index(letter) for letter in letters]
    order += [i for i in range(4) if i not in order]
    sizes, shape = [], dict(zip("NCHW", y.shape, strict=True))
    for axis in view.axes:
        size = 1
        for letter in axis:
            size *= shape[letter]
        sizes.append(size)
    return y.permute(order).reshape(sizes)


class Islands(Engine):
    """An engine with islands of torch: as `Engine`, but that it cannot be saved and needs torch."""

    def __init__(self, program: Program, header: Mapping[str, Any], threads: int | None, dtype: str) -> None:
        self.metadata, self.dtype, self._count = dict(header), dtype, default_threads(threads)
        self.input_shape = Shape(*program.sizes[program.input][1:])
        self.output_shapes = tuple(program.sizes[ref][1:] for ref in program.outputs)
        self.class_names = fields.class_names(self.metadata, self.output_shapes)
        scale, shift = (
            torch.tensor(v, dtype=torch.float32, device="cpu").view(1, -1, 1, 1)
            for v in fields.normalisation(self.metadata)
        )
        self._scale, self._shift = scale, shift
        self._kinds = ("float32", "uint8") if scale.numel() else ("float32",)
        self._program = program
        self._constants = {ref: t.detach().float().cpu().clone() for ref, t in program.constants.items()}
        self.parts = partition(program)
        for part in self.parts:
            if isinstance(part, Segment):
                part.engine = self._built(part)

    def _built(self, segment: Segment) -> Engine:
        graph = segment.conversion.graph
        graph.outputs = tuple(view.value for view in segment.results.values())
        shapes = [list(graph.values[value]) for value in graph.outputs]
        return Engine(to_bytes(fused(graph), {"outputs": shapes, "dtype": self.dtype}), threads=self._count)

    @property
    def islands(self) -> tuple[str, ...]:
        """The calls that run in torch: "aten.gelu in layer3.act"."""
        return tuple(str(part) for part in self.parts if isinstance(part, Call))

    @property
    def threads(self) -> int:
        """Threads of the plans; torch has its own."""
        return self._count

    @property
    def memory(self) -> dict[str, int]:
        """As `Engine.memory`, of the plans."""
        engines = [part.engine for part in self.parts if isinstance(part, Segment) and part.engine is not None]
        return {key: sum(engine.memory[key] for engine in engines) for key in ("weights", "activations")}

    def _with_numpy(self, x: Any) -> Any:
        self._kind(x.dtype.name, x.shape)
        y = self._with_torch(torch, torch.from_numpy(_memory.dense_array(x).copy()))
        return tuple(t.numpy() for t in y) if isinstance(y, tuple) else y.numpy()

    def _with_torch(self, torch: Any, x: Any) -> Any:
        x = _memory.dense("engine", "x", x)
        _memory.empty(torch, "engine", (0,))  # raises inside a mode whose tensors have no memory
        kind = self._kind(str(x.dtype).removeprefix("torch."), x.shape)
        images = x.float() * self._scale + self._shift if kind == "uint8" else x.detach()
        program, count = self._program, len(x)
        values: dict[Ref, Any] = {program.input: images, **self._constants}
        values.update({ref: size(count) for ref, size in program.scalars.items()})
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for part in self.parts:
                _run(part, values)
        outputs = tuple(values[ref] for ref in program.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def save(self, path: Any) -> None:
        """Raises ValueError: the calls of torch have no place in a file."""
        raise ValueError(f"save: expected an engine without torch islands, got {', '.join(self.islands)}")

    def profile(self, x: Any = None, repeats: int = 20) -> Any:
        """Raises ValueError: profile the plans of `parts` one by one."""
        raise ValueError(f"profile: expected an engine without torch islands, got {', '.join(self.islands)}")


def _run(part: Segment | Call, values: dict[Ref, Any]) -> None:
    """One plan, or one call of torch."""
    if isinstance(part, Segment):
        assert part.engine is not None
        source = values[part.source]
        image = source if source.dim() == 4 else source[:, :, None, None]
        outputs = part.engine(image)
        for (ref, view), y in zip(
            part.results.items(), outputs if isinstance(outputs, tuple) else (outputs,), strict=True
        ):
            values[ref] = _shown(view, y)
        return
    args, kwargs = (mapped(arguments, Ref, values.__getitem__) for arguments in (part.args, part.kwargs))
    result = part.target(*args, **kwargs)
    results = result if isinstance(result, (tuple, list)) else (result,)
    values.update({ref: y for ref, y in zip(part.outputs, results, strict=False) if ref is not None})
