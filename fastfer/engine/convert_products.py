# SPDX-License-Identifier: Apache-2.0
"""Handlers of products of matrices, attention and einsum, for tensors of any dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from fastfer.engine import strided, tensors
from fastfer.engine.convert import Conversion, generally
from fastfer.engine.convert_math import affine, binary, where
from fastfer.engine.convert_tensor import reshaped, tensor
from fastfer.engine.strided import Strided
from fastfer.engine.views import Uncovered, View

Any_ = View | Strided


@generally("aten.matmul", "aten.bmm", "aten.mm")
def _matmul(into: Conversion, self: Any, **rest: Any) -> Any_:
    (other,) = rest.values()
    return tensors.matmul(into.graph, tensor(into, self), tensor(into, other))


@generally("aten.baddbmm", "aten.addmm")
def _baddbmm(into: Conversion, self: Any, beta: float = 1, alpha: float = 1, **rest: Any) -> Any_:
    a, b = rest.values()
    product = affine(into, tensors.matmul(into.graph, tensor(into, a), tensor(into, b)), float(alpha), 0.0)
    return binary(into, "add", product, affine(into, tensor(into, self), float(beta), 0.0)) if beta else product


@generally("aten.scaled_dot_product_attention")
def _attention(
    into: Conversion, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Any_:  # fmt: skip
    if dropout_p or enable_gqa:
        raise Uncovered("attention with dropout or groups of queries")
    rank = len(query.sizes)
    keys = strided.permuted(strided.strided(tensor(into, key)), [*range(rank - 2), rank - 1, rank - 2])
    rate = query.sizes[-1] ** -0.5 if scale is None else float(scale)
    scores = tensors.matmul(into.graph, affine(into, tensor(into, query), rate, 0.0), keys)
    if is_causal:
        attn_mask = torch.ones(query.sizes[-2], key.sizes[-2], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = _masked(into, scores, attn_mask)
    return tensors.matmul(into.graph, tensors.softmax(into.graph, scores, -1), tensor(into, value))


def _masked(into: Conversion, scores: Any_, mask: Any) -> Any_:
    """Scores with a mask of booleans, or of what is added to them."""
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        return where(into, mask, scores, -inf)  # type: ignore[no-any-return]
    if isinstance(mask, Tensor):  # a file has no infinity
        hidden = mask == -inf
        scores = where(into, hidden, -inf, scores)
        mask = mask.masked_fill(hidden, 0.0)
    return binary(into, "add", scores, mask)


@generally("aten.einsum")
def _einsum(into: Conversion, equation: str, tensors_: Any = None, path: Any = None, **rest: Any) -> Any_:
    operands = [tensor(into, t) for t in (rest["tensors"] if tensors_ is None else tensors_)]
    left, _, right = equation.replace(" ", "").partition("->")
    labels = left.split(",")
    if "." in equation or "->" not in equation or any(len(set(own)) != len(own) for own in labels):
        raise Uncovered(f"einsum {equation!r}")
    while len(operands) > 1:
        (a, one), (b, two) = zip(operands[:2], labels[:2], strict=True)
        kept = set(right).union(*labels[2:])
        result, own = _contracted(into, a, one, b, two, kept)
        operands, labels = [result, *operands[2:]], [own, *labels[2:]]
    return _with_labels(into, operands[0], labels[0], right)


def _summed(into: Conversion, x: Any_, own: str, gone: Sequence[str]) -> tuple[Any_, str]:
    dims = [own.index(letter) for letter in gone]
    if dims:
        x = tensors.reduce(into.graph, x, "sum", dims)
    return x, "".join(letter for letter in own if letter not in gone)


def _with_labels(into: Conversion, x: Any_, own: str, wanted: str) -> Any_:
    x, own = _summed(into, x, own, [letter for letter in own if letter not in wanted])
    return strided.seen(strided.permuted(strided.strided(x), [own.index(letter) for letter in wanted]))


def _contracted(into: Conversion, a: Any_, one: str, b: Any_, two: str, kept: set[str]) -> tuple[Any_, str]:
    """Two operands as a product of stacks of matrices."""
    a, one = _summed(into, a, one, [c for c in one if c not in two and c not in kept])
    b, two = _summed(into, b, two, [c for c in two if c not in one and c not in kept])
    batch = [c for c in one if c in two and c in kept]
    inner = [c for c in one if c in two and c not in kept]
    rows, columns = [c for c in one if c not in two], [c for c in two if c not in one]
    size = dict(zip(one, a.sizes, strict=True)) | dict(zip(two, b.sizes, strict=True))

    def stacked(x: Any_, own: str, *groups: Sequence[str]) -> Strided:
        order = [own.index(c) for group in (batch, *groups) for c in group]
        form = strided.permuted(strided.strided(x), order)
        return reshaped(into, form, [*(size[c] for c in batch), *(prod(size[c] for c in g) for g in groups)])

    y = tensors.matmul(into.graph, stacked(a, one, rows, inner), stacked(b, two, inner, columns))
    own = [*batch, *rows, *columns]
    return strided.seen(reshaped(into, strided.strided(y), [size[c] for c in own])), "".join(own)
