# SPDX-License-Identifier: Apache-2.0
"""Spans of memory as Numba values: an address and a number of elements.

Indices are not checked and never wrapped. Unlike Numba's arrays a span is not counted by reference: the calls that
count, and the registers spilled around them, doubled the time of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import cgutils as _cgutils
from numba.extending import models, register_model

cgutils: Any = _cgutils


def intrinsic(function: Callable[..., Any]) -> Any:
    """Make an operation of kernels from ``function(typingctx, *types) -> (signature, codegen)``."""
    return extending.intrinsic(prefer_literal=True)(function)


class SpanType(types.Type):
    """Numba type of a contiguous run of elements."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Span({dtype})")


@register_model(SpanType)
class _SpanModel(models.StructModel):
    def __init__(self, dmm: Any, fe_type: SpanType) -> None:
        members = [("data", types.CPointer(fe_type.dtype)), ("size", types.intp)]  # type: ignore[no-untyped-call]
        super().__init__(dmm, fe_type, members)  # type: ignore[no-untyped-call]


extending.make_attribute_wrapper(SpanType, "size", "size")
Span = Any
"""Annotation of a `SpanType` value in a kernel; ``a.size`` is its number of elements."""


def make_span(context: Any, builder: Any, span_type: Any, address: Any, size: Any) -> Any:
    """The value of a span from an address as an integer."""
    span = cgutils.create_struct_proxy(span_type)(context, builder)
    span.data = builder.inttoptr(address, context.get_value_type(span_type.dtype).as_pointer())
    span.size = size
    return span._getvalue()


def element_pointer(context: Any, builder: Any, span_type: Any, span: Any, i: Any) -> Any:
    """Pointer to element ``i`` of a span."""
    return builder.gep(cgutils.create_struct_proxy(span_type)(context, builder, span).data, [i])


@intrinsic
def get(typingctx: Any, a: Any, i: Any) -> Any:
    """``a[i]``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(element_pointer(context, builder, a, args[0], args[1]))

    return a.dtype(a, types.intp), codegen


@intrinsic
def put(typingctx: Any, a: Any, i: Any, value: Any) -> Any:
    """``a[i] = value``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], element_pointer(context, builder, a, args[0], args[1]))
        return context.get_dummy_value()

    return types.none(a, types.intp, a.dtype), codegen


@intrinsic
def absent(typingctx: Any, a: Any) -> Any:
    """A span of no elements of the dtype of ``a``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(ir.IntType(64), 0)
        return make_span(context, builder, a, zero, zero)

    return a(a), codegen


@intrinsic
def no_offsets(typingctx: Any) -> Any:
    """A span of no int64 elements."""
    empty: Any = SpanType(types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(ir.IntType(64), 0)
        return make_span(context, builder, empty, zero, zero)

    return empty(), codegen


@intrinsic
def room(typingctx: Any, a: Any, n: Any) -> Any:
    """Bytes that `area` needs for ``n`` elements of the dtype of ``a``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(64)
        return builder.add(builder.mul(args[1], ir.Constant(word, a.dtype.bitwidth // 8)), ir.Constant(word, 64))

    return types.intp(a, types.intp), codegen


@intrinsic
def area(typingctx: Any, a: Any, memory: Any) -> Any:
    """A span of the dtype of ``a`` on an array of bytes, from its first multiple of 64; see `keep`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(64)
        array = context.make_array(memory)(context, builder, args[1])
        start = builder.add(builder.ptrtoint(array.data, word), ir.Constant(word, 63))
        size = builder.udiv(builder.sub(array.nitems, ir.Constant(word, 64)), ir.Constant(word, a.dtype.bitwidth // 8))
        return make_span(context, builder, a, builder.and_(start, ir.Constant(word, -64)), size)

    return a(a, memory), codegen


@intrinsic
def keep(typingctx: Any, memory: Any) -> Any:
    """A last use of an array of bytes: Numba frees it after this one, and spans on it end here."""
    return types.none(memory), lambda context, builder, sig, args: context.get_dummy_value()
