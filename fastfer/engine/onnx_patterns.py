# SPDX-License-Identifier: Apache-2.0
"""What exporters wrote in many operators for want of one: activations and norms become one call again.

An activation is known by what it computes: calls of one tensor, element by element, are run in float64 on numbers of
all magnitudes, and where the results are those of a known function to 1e-6, it is that function, however it was
written. Norms over groups and over the last axis are known by their calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastfer.engine.onnx_trace import aten
from fastfer.engine.program import Call, Program, Ref

_ELEMENTWISE = {
    f"aten.{name}"
    for name in (
        "abs", "add", "clamp", "div", "elu", "erf", "exp", "gt", "hardsigmoid", "hardswish", "log", "lt", "maximum",
        "minimum", "mul", "neg", "pow", "reciprocal", "relu", "rsub", "sigmoid", "softplus", "sqrt", "sub", "tanh",
        "where",
    )
}  # fmt: skip
_MOST_CALLS = 12


class _Function(NamedTuple):
    """A target, and arguments behind the tensor."""

    target: Any
    rest: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()

    def __call__(self, x: Any) -> Any:
        return self.target(x, *self.rest, **dict(self.named))


_KNOWN = (
    _Function(aten.gelu.default),
    _Function(aten.gelu.default, named=(("approximate", "tanh"),)),
    _Function(aten.silu.default),
    _Function(aten.hardswish.default),
    _Function(aten.hardsigmoid.default),
    _Function(aten.mish.default),
    _Function(aten.softplus.default, (1, 20)),
    _Function(aten.clamp.default, (0.0, 6.0)),
    _Function(aten.relu.default),
    _Function(aten.log_sigmoid.default),
)


def _numbers() -> Tensor:
    """Numbers of both signs, closely about zero and far from it."""
    close = torch.linspace(-9, 9, 721, dtype=torch.float64)
    far = torch.tensor([12.0, 15.5, 19.0, 25.0, 40.0, 80.0, 250.0, 1e3, 1e6, 1e15], dtype=torch.float64)
    return torch.cat([close, far, -far])


def simplified(program: Program) -> Program:
    """The program with what is known in one call each."""
    program = _norms(program)
    with torch.no_grad():
        _activations(program)
    return program.only_needed()


def _activations(program: Program) -> None:
    """Replace calls that end an activation, in place."""
    numbers = _numbers()
    known = [(function, function(numbers)) for function in _KNOWN]
    writers = {ref: call for call in program.calls for ref in call.outputs if ref is not None}
    scalars = {ref: t.double() for ref, t in program.constants.items() if t.numel() == 1}
    for at, call in enumerate(program.calls):
        if call.name not in _ELEMENTWISE or len(call.outputs) != 1 or call.refs() & program.scalars.keys():
            continue
        for source, chain in _sources(call, writers, scalars):
            result = _run(chain, {**scalars, source: numbers})
            if result is None or result.shape != numbers.shape or not result.dtype.is_floating_point:
                continue
            # Where the calls overflow, as exponentials do, the known function does better.
            good = ~torch.isfinite(result) & (numbers.abs() > 80)
            near = 1e-6 * (1 + numbers.abs())
            found = next((f for f, want in known if bool((((result - want).abs() <= near) | good).all())), None)
            if found is not None:
                new = Call(found.target, (source, *found.rest), dict(found.named), call.outputs, call.where)
                program.calls[at] = new
                writers[new.outputs[0]] = new  # type: ignore[index]
                break


def _sources(call: Call, writers: dict[Any, Call], scalars: dict[Ref, Tensor]) -> list[tuple[Ref, list[Call]]]:
    """Tensors that ``call`` alone depends on through elementwise calls, with these in order, the farthest first."""
    found = []
    chain, open_now = [call], call.refs() - scalars.keys()
    while len(chain) <= _MOST_CALLS:
        if len(open_now) == 1 and len(chain) > 1:
            found.append((next(iter(open_now)), chain[::-1]))
        # The one written last must come next: what it needs may be open already.
        nexts = [writers[ref] for ref in open_now if ref in writers and writers[ref].name in _ELEMENTWISE]
        if not nexts or (len(nexts) < len(open_now) and len(open_now) > 2):
            break
        last = max(nexts, key=lambda one: min(ref.number for ref in one.outputs if ref is not None))
        chain = [*chain, last]
        open_now = (open_now - set(last.outputs)) | (last.refs() - scalars.keys())
    return found[::-1]


def _run(chain: Sequence[Call], values: dict[Ref, Any]) -> Tensor | None:
    """The last result of calls; None where they cannot run on these numbers."""
    try:
        for call in chain:
            values[call.outputs[0]] = call.run(values)[0]  # type: ignore[index]
    except (RuntimeError, KeyError, TypeError):
        return None
    result: Tensor = values[chain[-1].outputs[0]]  # type: ignore[index]
    return result


class _Uses:
    """Who writes and who reads the tensors of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.writers = {ref: call for call in program.calls for ref in call.outputs if ref is not None}
        self.counts = Counter([*(ref for call in program.calls for ref in call.refs()), *program.outputs])
        self.readers: dict[Ref, list[Call]] = {}
        for call in program.calls:
            for ref in call.refs():
                self.readers.setdefault(ref, []).append(call)

    def only_reader(self, ref: Ref, name: str) -> Call | None:
        """The one call that reads a tensor, if it is of the op ``name``."""
        readers = self.readers.get(ref, [])
        return readers[0] if self.counts[ref] == 1 and readers and readers[0].name == name else None

    def writer(self, ref: Any, name: str) -> Call | None:
        call = self.writers.get(ref)
        return call if call is not None and call.name == name else None

    def constant(self, call: Call, beside: Ref) -> Tensor | None:
        """The constant that a call of two takes beside a tensor."""
        rest = call.refs() - {beside}
        return self.program.constants.get(next(iter(rest))) if len(rest) == 1 else None


def _norms(program: Program) -> Program:
    """Norms over groups of channels, which were written as norms of a reshaped tensor, and norms over the last axis."""
    uses = _Uses(program)
    replaced: dict[Ref, Call] = {}
    for call in program.calls:
        new = _group_norm(uses, call) if call.name == "aten.instance_norm" else None
        new = _layer_norm(uses, call) if call.name == "aten.div" else new
        if new is not None:
            replaced[new.outputs[0]] = new  # type: ignore[index]
    calls = [replaced.get(call.outputs[0], call) if call.outputs else call for call in program.calls]  # type: ignore[arg-type]
    return replace(program, calls=calls)


def _channelwise(tensor: Tensor | None, channels: int) -> Tensor | None:
    """A constant of one number a channel, or one for all, as a vector."""
    if tensor is None or not tensor.dtype.is_floating_point or tensor.numel() not in (1, channels):
        return None
    sizes = [1] * (4 - tensor.dim()) + list(tensor.shape)
    right = tensor.numel() == 1 or (len(sizes) == 4 and sizes[1] == channels)
    return tensor.reshape(-1).float().expand(channels) if right else None


def _scaled(uses: _Uses, output: Ref, as_vector: Any) -> tuple[Ref, Tensor | None, Tensor | None]:
    """A factor and a summand that follow as constants, and the tensor behind them."""
    weight = bias = None
    factor = uses.only_reader(output, "aten.mul")
    if factor is not None and (weight := as_vector(uses.constant(factor, output))) is not None:
        (output,) = factor.outputs  # type: ignore[assignment]
    summand = uses.only_reader(output, "aten.add")
    if summand is not None and (bias := as_vector(uses.constant(summand, output))) is not None:
        (output,) = summand.outputs  # type: ignore[assignment]
    return output, weight, bias


def _group_norm(uses: _Uses, call: Call) -> Call | None:
    """reshape(x, (N, G, -1)), instance_norm, reshape back, · weight, + bias."""
    program, bound = uses.program, call.bound()
    inner = uses.writer(bound["input"], "aten.reshape")
    (output,) = call.outputs
    outer = None if output is None else uses.only_reader(output, "aten.reshape")
    if inner is None or outer is None or uses.counts[bound["input"]] != 1:
        return None
    source, (result,) = inner.args[0], outer.outputs
    sizes, groups = program.sizes[source], program.sizes[bound["input"]][1]
    flat = program.sizes[bound["input"]]
    if result is None or len(sizes) != 4 or program.sizes[result] != sizes or len(flat) != 3 or flat[0] != sizes[0]:
        return None
    channels = int(sizes[1] or 0)
    if not groups or channels % groups:
        return None
    last, weight, bias = _scaled(uses, result, lambda t: _channelwise(t, channels))
    own = [program.constants.get(bound[name]) if bound[name] is not None else None for name in ("weight", "bias")]
    each = channels // groups
    first, second = (None if t is None else t.float().repeat_interleave(each) for t in own)
    first = torch.ones(channels) if first is None else first
    second = torch.zeros(channels) if second is None else second
    scale = first if weight is None else first * weight
    shift = (second if weight is None else second * weight) + (0 if bias is None else bias)
    held = _hold(program, scale, shift)
    return Call(aten.group_norm.default, (source, groups, *held, bound["eps"], False), {}, (last,), call.where)


def _layer_norm(uses: _Uses, call: Call) -> Call | None:
    """(x - mean(x)) / sqrt(mean((x - mean(x))²) + eps), · weight, + bias, over the last axis."""
    program = uses.program
    centred, root = call.args[0], uses.writer(call.args[1], "aten.sqrt")
    minus = uses.writer(centred, "aten.sub")
    added = uses.writer(root.args[0], "aten.add") if root is not None else None
    if minus is None or added is None:
        return None
    source, (mean, variance) = minus.args[0], (uses.writer(minus.args[1], "aten.mean"), None)
    variance = next((uses.writer(ref, "aten.mean") for ref in added.refs() if uses.writer(ref, "aten.mean")), None)
    if mean is None or variance is None or mean.args[0] != source:
        return None
    eps = uses.constant(added, variance.outputs[0])  # type: ignore[arg-type]
    square = uses.writers.get(variance.args[0])
    is_square = square is not None and (
        (square.name == "aten.pow" and square.args[0] == centred and square.args[1] == 2)
        or (square.name == "aten.mul" and square.args[0] == square.args[1] == centred)
    )
    sizes = program.sizes[source]
    last = [len(sizes) - 1]
    if eps is None or eps.numel() != 1 or not is_square or list(mean.args[1]) != last or list(variance.args[1]) != last:
        return None
    count = int(sizes[-1] or 0)

    def vector(t: Tensor | None) -> Tensor | None:
        good = t is not None and t.dtype.is_floating_point and t.numel() == count and t.shape[-1:] == (count,)
        return t.reshape(-1).float() if good and t is not None else None

    output, weight, bias = _scaled(uses, call.outputs[0], vector)  # type: ignore[arg-type]
    held = _hold(program, torch.ones(count) if weight is None else weight, torch.zeros(count) if bias is None else bias)
    arguments = (source, [count], *held, float(eps.item()), False)
    return Call(aten.layer_norm.default, arguments, {}, (output,), call.where)


def _hold(program: Program, *tensors: Tensor) -> list[Ref]:
    """Numbers for new constants."""
    refs = []
    for tensor in tensors:
        known = [*program.sizes, *program.constants, *program.scalars]
        ref = Ref(max(r.number for r in known) + 1)
        program.constants[ref] = tensor.contiguous()
        program.describe(ref, tensor.shape, tensor.dtype)
        refs.append(ref)
    return refs
