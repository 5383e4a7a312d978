# SPDX-License-Identifier: Apache-2.0
"""Handlers of reductions, norms, softmax, the largest and sorting, for tensors of any dimensions."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch

from fastfer.engine import strided, tensors
from fastfer.engine.convert import Conversion, generally
from fastfer.engine.convert_math import affine, binary, infinite, unary
from fastfer.engine.strided import Strided
from fastfer.engine.views import Uncovered, View

Any_ = View | Strided


def _dims(dim: Any) -> list[int]:
    return [] if dim is None else [dim] if isinstance(dim, int) else list(dim)


def _reduction(name: str) -> Callable[..., Any_]:
    def handler(into: Conversion, self: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any_:
        return _reduced(into, self, name, dim, keepdim)

    return handler


def _reduced(into: Conversion, x: Any, name: str, dim: Any, keepdim: bool, correction: float = 0.0) -> Any_:
    """Over all dimensions, where none is named, the images are among them."""
    form = strided.strided(x)
    dims = _dims(dim) or list(range(len(form.dims)))
    return tensors.reduce(into.graph, x, name, dims, keepdim, correction)


for _torch, _own in {
    "sum": "sum", "mean": "mean", "amax": "maximum", "amin": "minimum", "prod": "product", "logsumexp": "log_sum_exp",
}.items():  # fmt: skip
    generally(f"aten.{_torch}")(_reduction(_own))


def _extreme(name: str) -> Callable[..., Any]:
    def handler(into: Conversion, self: Any, dim: int | None = None, keepdim: bool = False, other: Any = None) -> Any:
        if other is not None:
            return binary(into, name, self, other)
        if dim is None:
            return _reduced(into, self, name, None, False)
        places = "argmax" if name == "maximum" else "argmin"
        return _reduced(into, self, name, dim, keepdim), _reduced(into, self, places, dim, keepdim)

    return handler


generally("aten.max")(_extreme("maximum"))
generally("aten.min")(_extreme("minimum"))


generally("aten.argmax")(lambda into, self, dim=None, keepdim=False: _reduced(into, self, "argmax", dim, keepdim))
generally("aten.argmin")(lambda into, self, dim=None, keepdim=False: _reduced(into, self, "argmin", dim, keepdim))


def _correction(unbiased: Any = None, correction: Any = None) -> float:
    if correction is not None:
        return float(correction)
    return 1.0 if unbiased is None or unbiased else 0.0


def _spread(name: str) -> Callable[..., Any_]:
    def handler(
        into: Conversion, self: Any, dim: Any = None, keepdim: bool = False, unbiased: Any = None,
        correction: Any = None,
    ) -> Any_:  # fmt: skip
        return _reduced(into, self, name, dim, keepdim, _correction(unbiased, correction))

    return handler


generally("aten.var")(_spread("variance"))
generally("aten.std")(_spread("deviation"))


@generally("aten.var_mean", "aten.std_mean")
def _var_mean(into: Conversion, self: Any, dim: Any = None, keepdim: bool = False, unbiased: Any = None,
              correction: Any = None) -> tuple[Any_, Any_]:  # fmt: skip
    spread = _reduced(into, self, "variance", dim, keepdim, _correction(unbiased, correction))
    return spread, _reduced(into, self, "mean", dim, keepdim)


@generally("aten.linalg_vector_norm", "aten.norm")
def _norm(into: Conversion, self: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None,
          p: Any = None) -> Any_:  # fmt: skip
    order = float(ord if p is None else p)
    names = {1.0: "norm1", 2.0: "norm2"}
    if order in names:
        return _reduced(into, self, names[order], dim, keepdim)
    size = unary(into, self, "abs")
    if abs(order) == inf:
        return _reduced(into, size, "maximum" if order > 0 else "minimum", dim, keepdim)
    if order == 0:
        return _reduced(into, unary(into, self, "not_equal", 0.0), "sum", dim, keepdim)
    return unary(into, _reduced(into, unary(into, size, "power", order), "sum", dim, keepdim), "power", 1 / order)


@generally("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax")
def _softmax(into: Conversion, self: Any, dim: int, **rest: Any) -> Any_:
    return tensors.softmax(into.graph, self, dim)


for _name in ("log_softmax", "_log_softmax"):
    generally(f"aten.{_name}")(lambda into, self, dim, **rest: tensors.softmax(into.graph, self, dim, log=True))


@generally("aten.softmin")
def _softmin(into: Conversion, self: Any, dim: int, **rest: Any) -> Any_:
    return tensors.softmax(into.graph, affine(into, self, -1.0, 0.0), dim)


_MOST_PLACES = 16


@generally("aten.topk")
def _topk(
    into: Conversion, self: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Any_, Any_]:
    """The largest, then the largest of the others, and so on."""
    at = self.dim(dim)
    if k > _MOST_PLACES:
        raise Uncovered(f"more than the {_MOST_PLACES} largest of a dimension")
    names = ("maximum", "argmax", -inf) if largest else ("minimum", "argmin", inf)
    shape = [self.sizes[at] if i == at else 1 for i in range(len(self.sizes))]
    numbered = tensors.constant(into.graph, torch.arange(self.sizes[at]).reshape(shape).numpy())
    gone = infinite(into, float(names[2]))
    values, places, left = [], [], self
    for _ in range(k):
        values.append(tensors.reduce(into.graph, left, str(names[0]), [at], keepdim=True))
        places.append(tensors.reduce(into.graph, left, str(names[1]), [at], keepdim=True))
        left = tensors.select(into.graph, tensors.binary(into.graph, "equal", numbered, places[-1]), gone, left)
    return tensors.joined(into.graph, values, at), tensors.joined(into.graph, places, at)


@generally("aten.sort")
def _sort(into: Conversion, self: Any, dim: int = -1, descending: bool = False, stable: Any = None) -> Any:
    return _topk(into, self, self.sizes[self.dim(dim)], dim, descending)
