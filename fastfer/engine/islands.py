# SPDX-License-Identifier: Apache-2.0
"""Networks of which a plan covers a part: plans where it does, torch between them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastfer import _memory
from fastfer.engine import metadata as fields
from fastfer.engine.convert import Conversion
from fastfer.engine.file import to_bytes
from fastfer.engine.fuse import fused
from fastfer.engine.graph import Shape
from fastfer.engine.outputs import usual
from fastfer.engine.program import Call, Program, Ref, of_batch
from fastfer.engine.strided import IMAGES, Strided
from fastfer.engine.tensors import output
from fastfer.engine.views import Uncovered, View
from fastfer.runtime import Engine, default_threads, is_importable


@dataclass
class Segment:
    """Calls of one plan, from a single tensor; ``results`` are what later segments, or the outputs, need of it."""

    source: Ref
    conversion: Conversion
    calls: list[Call] = field(default_factory=list)
    results: dict[Ref, View | Strided] = field(default_factory=dict)
    engine: Engine | None = None


def _reads(call: Call, program: Program) -> set[Ref]:
    """Tensors that a call takes and that depend on the input."""
    return call.refs() - program.constants.keys() - program.scalars.keys()


def _started(program: Program, source: Ref) -> Segment | None:
    """A segment that begins with a float32 image or vector of each image; None for a tensor of another form."""
    sizes = program.sizes[source]
    if len(sizes) not in (2, 4) or not of_batch(sizes) or program.dtypes[source] != torch.float32:
        return None
    return Segment(source, Conversion(program, source))


def _settle_constants(program: Program) -> None:
    """What depends on constants alone is computed once."""
    calls = []
    for call in program.calls:
        if call.is_random or not call.refs() <= program.constants.keys():
            calls.append(call)
            continue
        results = call.run(dict(program.constants))
        program.constants.update(
            {ref: y.clone() for ref, y in zip(call.outputs, results, strict=False) if ref is not None}
        )
    program.calls = calls


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
        known = segment.conversion.known
        if leaving and all(_leaves(known[ref]) for ref in leaving):
            best, nodes = count, len(segment.conversion.graph.nodes)
            segment.results = {ref: known[ref] for ref in sorted(leaving, key=lambda r: r.number)}
    del segment.calls[best:]
    return segment if best and nodes else None


def _leaves(result: Any) -> bool:
    """Whether a plan can give it."""
    if isinstance(result, Strided):
        return result.dims[:1] == ((IMAGES,),) and not any(result.of_batch(i) for i in range(1, len(result.dims)))
    return isinstance(result, View)


def _shown(view: View | Strided, y: Tensor) -> Tensor:
    """A plan's output (N, C, H, W) as the tensor that it stands for."""
    if isinstance(view, Strided):
        return y.reshape(len(y), *view.sizes[1:])
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
        self.metadata, self.dtype, self.strict = dict(header), dtype, header.get("strict") is True
        self._asked_threads, self._count = threads, default_threads(threads)
        size = program.image_size()
        self.input_shape = Shape(*size, *(1,) * (3 - len(size)))
        tensors = [ref for ref in program.outputs if ref not in program.scalars]
        # A size that depends on the number of images in another way is 0 here.
        self.output_shapes = tuple(tuple(size or 0 for size in program.sizes[ref][1:]) for ref in tensors)
        self.class_names = fields.class_names(self.metadata, self.output_shapes)
        normalisation = fields.normalisation(self.metadata)
        scale, shift = (torch.tensor(v, dtype=torch.float32, device="cpu").view(1, -1, 1, 1) for v in normalisation)
        self._scale, self._shift = scale, shift
        self._kinds = ("float32", "uint8") if scale.numel() else ("float32",)
        self._dtypes = ()
        self._structure, self._classes = program.structure or usual(len(program.outputs)), program.classes
        constants = {ref: t.detach().cpu().clone() for ref, t in program.constants.items()}
        self._program = program = replace(program, constants=constants)
        with self._torch():
            _settle_constants(program)
        self._scalars = functools.lru_cache(64)(
            lambda images: {ref: scalar(images) for ref, scalar in program.scalars.items()}
        )
        self.parts = partition(program)
        for part in self.parts:
            if isinstance(part, Segment):
                part.engine = self._built(part)

    def _built(self, segment: Segment) -> Engine:
        graph = segment.conversion.graph
        graph.outputs = tuple(
            view.value if isinstance(view, View) else output(graph, view) for view in segment.results.values()
        )
        shapes = [list(graph.values[value]) for value in graph.outputs]
        header = {"outputs": shapes, "dtype": self.dtype, "strict": self.strict}
        return Engine(to_bytes(fused(graph), header), threads=self._count)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as the program, from which the plans are built again."""
        classes = {name: kind for name, kind in self._classes.items() if is_importable(kind)}
        program = replace(self._program, classes=classes)
        return Islands, (program, self.metadata, self._asked_threads, self.dtype), self._state()

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

    @staticmethod
    @contextmanager
    def _torch() -> Iterator[None]:
        """Torch as it was for the trace: on the CPU, without gradients and autocast."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield

    def _with_numpy(self, x: Any) -> Any:
        self._kind(x.dtype.name, x.shape)
        outputs = self._run(torch.from_numpy(_memory.dense_array(x).copy()))
        return self._answer([y.numpy() if isinstance(y, Tensor) else y for y in outputs], len(x))

    def _with_torch(self, torch: Any, x: Any) -> Any:
        _memory.empty(torch, "engine", (0,))  # raises inside a mode whose tensors have no memory
        return self._answer(self._run(_memory.dense("engine", "x", x).detach()), len(x))

    def _run(self, x: Tensor) -> list[Any]:
        """The outputs, tensors and numbers."""
        kind, program = self._kind(str(x.dtype).removeprefix("torch."), x.shape), self._program
        with self._torch():
            images = x.float() * self._scale + self._shift if kind == "uint8" else x
            images = images.reshape(len(x), *program.image_size())  # a vector may come as an image of one pixel
            # What torch runs may go over the images that a file fixes: then it gets no more of them at once.
            each = program.each or max(len(x), 1)
            if len(x) % each:
                raise ValueError(f"engine: x: expected a multiple of {each} images, as the file fixes, got {len(x)}")
            done = [self._outputs(images[at : at + each]) for at in range(0, max(len(x), 1), each)]
        return done[0] if len(done) == 1 else [torch.cat(parts) for parts in zip(*done, strict=True)]

    def _outputs(self, images: Tensor) -> list[Any]:
        """Of as many images as there may be at once."""
        program = self._program
        values: dict[Ref, Any] = {program.input: images, **program.constants, **self._scalars(len(images))}
        for part in self.parts:
            if isinstance(part, Segment):
                _run_plan(part, values, program)
            else:
                _run_call(part, values, program)
        kept = program.constants.keys() | {program.input}
        return [values[ref].clone() if ref in kept else values[ref] for ref in program.outputs]

    def plan(self) -> str:
        """The plans and the calls of torch between them, in order."""
        return "\n\n".join(
            f"torch: {part}" if isinstance(part, Call) else part.engine.plan() if part.engine is not None else ""
            for part in self.parts
        )

    def save(self, path: Any) -> None:
        """Raises ValueError: the calls of torch have no place in a file."""
        raise ValueError(f"save: expected an engine without torch islands, got {', '.join(self.islands)}")

    def profile(self, x: Any = None, repeats: int = 20) -> Any:
        """Raises ValueError: profile the plans of `parts` one by one."""
        raise ValueError(f"profile: expected an engine without torch islands, got {', '.join(self.islands)}")


def _run_plan(segment: Segment, values: dict[Ref, Any], program: Program) -> None:
    assert segment.engine is not None
    source = values[segment.source]
    image = source if source.dim() == 4 else source[:, :, None, None]
    outputs = segment.engine(image)
    results = outputs if isinstance(outputs, tuple) else (outputs,)
    for (ref, view), y in zip(segment.results.items(), results, strict=True):
        values[ref] = _shown(view, y).to(program.dtypes[ref])


def _run_call(call: Call, values: dict[Ref, Any], program: Program) -> None:
    """One call of torch; its results have the dtypes of the trace, which torch's default dtype may have changed."""
    for ref, y in zip(call.outputs, call.run(values), strict=False):
        if ref is not None:
            values[ref] = y.to(program.dtypes[ref]) if y.dtype != program.dtypes[ref] else y
