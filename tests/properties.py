# SPDX-License-Identifier: Apache-2.0
"""Random calls of public ops, run on the float64 reference backend and on another, and compared.

A row's ``draw`` makes the arguments of one call from a `Draw` and returns the call. Values are normalised (images from
N(0, 1), weights divided by the root of their fan-in), so that rounding stays near eps times the sizes that the
comparison allows for. Calls that come near a jump of a derivative, where rounding would decide, are drawn again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flat import Flat
from oracle import KINKS
from tolerance import tolerance
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastfer import _library, backend, ops
from fastfer._checks import ACTIVATIONS

CHANNELS = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 33)
LENGTH = 16
"""Terms of a sum whose rounding is allowed for, see `tolerance.tolerance`."""


class Values(dict[str, Tensor]):
    """A call's tensors by name; ``values.get(name)`` is None for those left out."""

    def norm(self, name: str) -> ops.Norm | None:
        if f"{name}.weight" not in self:
            return None
        tensors = (self[f"{name}.{field}"] for field in ("weight", "bias", "mean", "var"))
        return ops.Norm(*tensors, momentum=0.3, eps=1e-3)


Call = Callable[[Values], Any]


def _image_views(h: int, w: int) -> dict[str, tuple[tuple[int, int, int, int], Callable[[Tensor], Tensor]]]:
    """Layouts of an image: what is added to, or in place of, its sizes (n, c, h, w), and the view that undoes it."""
    return {
        "channels_last": ((0, 0, 0, 0), lambda t: t.contiguous(memory_format=torch.channels_last)),
        "contiguous": ((0, 0, 0, 0), lambda t: t.contiguous()),
        "slice": ((1, 2, 2, 3), lambda t: t[1:, 1:-1, 2:, 1 : w + 1]),
        "channels_last slice": (
            (0, 3, 1, w),
            lambda t: t.contiguous(memory_format=torch.channels_last)[:, 3:, :h, ::2],
        ),
        "flipped axes": ((0, 0, w - h, h - w), lambda t: t.transpose(2, 3)),
    }


class Draw:
    """Random arguments from a seed. Leaves are float64, their values exact in float32."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = torch.float32 if self.random.random() < 0.7 else torch.float64
        self.leaves: dict[str, Tensor] = {}
        self.stored: set[str] = set()
        """Leaves that are activations."""
        self.views: dict[str, Callable[[Tensor], Tensor]] = {}
        self.constants: dict[str, Tensor] = {}
        self.state: dict[str, Tensor] = {}
        self.options: dict[str, Any] = {"dtype": self.dtype}

    def note(self, name: str, value: Any) -> Any:
        """``value``, named in the message of a failure."""
        self.options[name] = value
        return value

    def option(self, name: str, choices: Sequence[Any]) -> Any:
        return self.note(name, self.random.choice(choices))

    def flag(self, name: str, chance: float = 0.5) -> bool:
        return bool(self.note(name, self.random.random() < chance))

    def act(self, name: str = "act") -> str | None:
        return self.option(name, (None, None, *ACTIVATIONS[1:]))  # type: ignore[no-any-return]

    def size(self, most: int = 9) -> int:
        return self.random.randint(1, most)

    def channels(self) -> int:
        return self.random.choice(CHANNELS)

    def batch(self) -> int:
        return self.random.choice((0, 1, 1, 2, 2, 3)) if self.random.random() < 0.3 else self.random.randint(1, 3)

    def pair(self, name: str, choices: Sequence[int]) -> tuple[int, int]:
        return self.note(name, (self.random.choice(choices), self.random.choice(choices)))  # type: ignore[no-any-return]

    def padding(self, most: Sequence[int]) -> int | tuple[int, ...]:
        """One of the three forms of padding, at most ``most`` (vertical, horizontal)."""
        form, limits = self.random.randint(1, 3), (most[0], most[1], most[0], most[1])
        if form == 1:
            return self.note("padding", self.random.randint(0, min(most)))  # type: ignore[no-any-return]
        sides = tuple(self.random.randint(0, limit) for limit in limits)
        return self.note("padding", sides[:2] if form == 2 else sides)  # type: ignore[no-any-return]

    def values(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator)).double()

    def image(self, name: str, n: int, c: int, h: int, w: int) -> None:
        layout, (extra, view) = self.random.choice(list(_image_views(h, w).items()))
        self.note(name, (layout, (n, c, h, w)))
        self.leaves[name] = self.values(*(size + more for size, more in zip((n, c, h, w), extra, strict=True)))
        self.views[name] = view
        self.stored.add(name)

    def tensor(self, name: str, *shape: int) -> None:
        """An activation of any rank, dense or with its last two axes swapped in memory."""
        self.note(name, shape)
        if len(shape) > 1 and self.random.random() < 0.3:
            shape, self.views[name] = (*shape[:-2], shape[-1], shape[-2]), lambda t: t.transpose(-1, -2)
        self.leaves[name] = self.values(*shape)
        self.stored.add(name)

    def weight(self, name: str, *shape: int) -> None:
        self.note(name, shape)
        self.leaves[name] = self.values(*shape, scale=max(math.prod(shape[1:]), 1) ** -0.5)

    def maybe_weight(self, name: str, *shape: int) -> None:
        if self.random.random() < 0.5:
            self.weight(name, *shape)

    def norm(self, name: str, channels: int) -> None:
        self.note(name, channels)
        self.leaves[f"{name}.weight"], self.leaves[f"{name}.bias"] = self.values(channels), self.values(channels)
        self.state[f"{name}.mean"] = self.values(channels)
        self.state[f"{name}.var"] = (torch.rand(channels, generator=self.generator) + 0.5).double()

    def maybe_norm(self, name: str, channels: int) -> None:
        if self.random.random() < 0.6:
            self.norm(name, channels)

    def labels(self, name: str, count: int, classes: int) -> None:
        self.constants[name] = torch.randint(classes, (count,), generator=self.generator)


@dataclass(frozen=True)
class Row:
    """A public op: its name, its share of the cases, how a call is drawn."""

    name: str
    weight: int
    draw: Callable[[Draw], Call]


@dataclass
class Result:
    """Outputs, gradients by leaf, running statistics afterwards."""

    outputs: list[Tensor]
    grads: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


def _gap(values: Tensor, dim: int) -> Tensor:
    """Distances of the two largest values along ``dim``, without those of equal values, which no rounding parts."""
    if values.shape[dim] < 2 or not values.numel():
        return values.new_empty(0)
    first, second = values.topk(2, dim).values.unbind(dim)
    gap = (first - second)[first != second]
    return gap[gap.isfinite()]


def _pool_windows(x: Tensor, kernel: list[int], stride: list[int], padding: Sequence[int] = (0, 0)) -> Tensor:
    padded = F.pad(x, (padding[-1], padding[-1], padding[0], padding[0]), value=-math.inf)
    return padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[-1], stride[-1]).flatten(4)


_KINKED = {
    "relu": "relu",
    "relu6": "relu6",
    "hardtanh": "relu6",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
}


class Margin(TorchDispatchMode):
    """The smallest distance to a jump of a derivative, relative to the values around it, of everything run inside.

    Also how much the normalisations enlarge gradients, at most: the product of their largest 1/sqrt(var + eps).
    fastfer's own ops are taken apart into their reference function.
    """

    def __init__(self) -> None:
        super().__init__()
        self.smallest, self.gain = math.inf, 1.0

    def _record(self, distances: Tensor, values: Tensor) -> None:
        if distances.numel():
            self.smallest = min(self.smallest, float(distances.min()) / max(1.0, float(values.abs().max())))

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().partition("::")[2].partition(".")[0].rstrip("_")
        if func.namespace == "fastfer":
            module = backend.implementation(_library.registered()[name], "cpu")
            with self:
                return getattr(Flat(module), name)(*args)
        if name in _KINKED and args[0].numel():
            for kink in KINKS[_KINKED[name]]:
                self._record((args[0] - kink).abs(), args[0])
        elif name in ("max", "min", "amax") and len(args) > 1:
            dim = args[1][0] if isinstance(args[1], list) else args[1]
            self._record(_gap(-args[0] if name == "min" else args[0], dim), args[0])
        elif name == "max_pool2d_with_indices":
            kernel, stride = args[1], args[2] if len(args) > 2 and args[2] else args[1]
            self._record(_gap(_pool_windows(args[0], kernel, stride, *args[3:4]), 4), args[0])
        elif name == "adaptive_max_pool2d":
            self._record(_gap(args[0].flatten(2), 2), args[0])
        result = func(*args, **(kwargs or {}))
        if name in ("rsqrt", "native_batch_norm", "_native_batch_norm_legit"):
            invstd = result if name == "rsqrt" else result[2]
            self.gain *= max(1.0, float(invstd.max())) if invstd.numel() else 1.0
        return result


@dataclass
class Case:
    """A drawn call, which of its leaves need gradients, and the upstream gradients."""

    draw: Draw
    call: Call
    wanted: list[str]
    gain: float = 1.0
    upstream: list[Tensor] = field(default_factory=list)

    def run(self, dtype: torch.dtype, stored: torch.dtype | None = None, device: str = "cpu") -> Result:
        """With activations in ``stored``, by default as all others in ``dtype``; results are on the CPU."""
        types = dict.fromkeys(self.draw.stored, stored or dtype)
        leaves = {name: t.to(device, types.get(name, dtype), copy=True) for name, t in self.draw.leaves.items()}
        for name in self.wanted:
            leaves[name].requires_grad_()
        state = {name: t.to(device, dtype, copy=True) for name, t in self.draw.state.items()}
        views = {name: self.draw.views.get(name, lambda t: t)(leaf) for name, leaf in leaves.items()}
        constants = {name: t.to(device) for name, t in self.draw.constants.items()}
        outputs = self.call(Values({**views, **state, **constants}))
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        result = Result([t.detach().cpu() for t in outputs])
        outputs = [t for t in outputs if t.requires_grad]
        if outputs:
            if not self.upstream:
                self.upstream = [self.draw.values(*t.shape) for t in outputs]
            grads = torch.autograd.grad(
                outputs,
                [leaves[name] for name in self.wanted],
                [t.to(output) for t, output in zip(self.upstream, outputs, strict=True)],
                allow_unused=True,
            )
            result.grads = {
                name: (torch.zeros_like(leaves[name]) if grad is None else grad).cpu()
                for name, grad in zip(self.wanted, grads, strict=True)
            }
        result.state = {name: t.cpu() for name, t in state.items()}
        return result


def draw_case(row: Row, seed: int) -> tuple[Case, Result]:
    """The call of a seed that keeps away from jumps, and its result on the float64 reference."""
    for attempt in range(100):
        draw = Draw(seed + (attempt << 32))
        call = row.draw(draw)
        chance = draw.random.choice((0.0, 0.7, 1.0, 1.0))
        case = Case(draw, call, [name for name in draw.leaves if draw.random.random() < chance])
        with backend.use("reference"), Margin() as margin:
            want = case.run(torch.float64)
        case.gain = margin.gain
        if margin.smallest > 200 * torch.finfo(draw.dtype).eps:
            return case, want
    raise AssertionError(f"every draw of seed {seed} comes near a jump")


def _assert_near(name: str, got: Tensor, want: Tensor, scale: float, dtype: torch.dtype) -> None:
    assert got.dtype == dtype, f"{name}: {got.dtype}"
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if not want.numel():
        return
    same = torch.equal(got.isnan(), want.isnan())
    assert same, f"{name}: NaN in other places"
    finite = ~want.isnan()
    error = torch.where(finite, (got.double() - want).abs(), torch.zeros_like(want))
    size = float(want[finite].abs().max()) + scale if bool(finite.any()) else scale
    worst, allowed = int(error.argmax()), tolerance(dtype, "chain", LENGTH) * size
    assert float(error.flatten()[worst]) <= allowed, (
        f"{name}: element {worst} of {tuple(want.shape)}: got {float(got.flatten()[worst])!r}, expected "
        f"{float(want.flatten()[worst])!r}, allowed error {allowed:.2e}"
    )


def compare(case: Case, got: Result, want: Result) -> None:
    """Outputs, gradients and running statistics of the active backend against those of the reference."""
    dtype = case.draw.dtype
    assert len(got.outputs) == len(want.outputs)
    assert got.grads.keys() == want.grads.keys(), f"gradients of {sorted(got.grads)}, expected {sorted(want.grads)}"
    for index, (a, b) in enumerate(zip(got.outputs, want.outputs, strict=True)):
        _assert_near(f"output {index}", a, b, 1.0, dtype)
    # Normalised values: but for the norms, no term of a gradient's sum is much larger than the upstream gradient.
    terms = case.gain * math.sqrt(sum(float(t.square().sum()) for t in case.upstream))
    for name, grad in got.grads.items():
        _assert_near(f"gradient of {name}", grad, want.grads[name], terms, dtype)
    for name, tensor in got.state.items():
        _assert_near(name, tensor, want.state[name], 1.0, dtype)


def check(row: Row, seed: int) -> None:
    """One case of ``row`` on the active backend; a failure names the seed and the drawn arguments."""
    try:
        case, want = draw_case(row, seed)
    except Exception as error:
        raise AssertionError(f"{row.name}: reference, FASTFER_SEED={seed}: {error}") from error
    try:
        compare(case, case.run(case.draw.dtype), want)
    except Exception as error:
        drawn = ", ".join(f"{name}={value}" for name, value in case.draw.options.items())
        raise AssertionError(
            f"{row.name}: FASTFER_SEED={seed}: {drawn}, gradients of {case.wanted}: {type(error).__name__}: {error}"
        ) from error
