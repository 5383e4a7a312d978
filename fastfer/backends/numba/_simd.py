# SPDX-License-Identifier: Apache-2.0
"""Vector registers as Numba values: what ``csrc/simd/vec.h`` is for the C++ kernels.

LLVM's loop vectoriser gives up on these kernels (too many pointers to check for overlap, an index wrap-around in every
address), so they name their registers. A register holds ``lanes(a)`` elements of the dtype of ``a``, as the host CPU's
does. ``n`` is the number of lanes that take part; a caller passes ``lanes(a)`` for the body and the remainder for the
tail, and a full load or store is emitted when ``n`` is a constant.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numba
from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from fastfer.backends.numba._span import element_pointer, intrinsic


def _register_bytes() -> int:
    """Return the width of the host's vector register (64, 32 or 16 bytes)."""
    config: Any = numba.config
    features = config.CPU_FEATURES
    if features is None:
        enabled = {name for name, on in llvm.get_host_cpu_features().items() if on}
    else:
        enabled = {name[1:] for name in str(features).split(",") if name.startswith("+")}
    if "avx512f" in enabled:
        return 64
    return 32 if "avx" in enabled else 16


REGISTER_BYTES = _register_bytes()

Register = Any
"""Annotation of a `Vec` value in a kernel."""


class Vec(types.Type):
    """Numba type of a register of floating-point lanes."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.lanes = REGISTER_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vec({dtype} x {self.lanes})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        scalar = ir.FloatType() if fe_type.dtype == types.float32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(scalar, fe_type.lanes))  # type: ignore[no-untyped-call]


def _declare(module: Any, signature: Any, name: str) -> Any:
    return module.globals.get(name) or ir.Function(module, signature, name)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(one, one, zeros)


def _mask(builder: Any, n: Any, lanes: int) -> Any:
    index = ir.IntType(64)
    iota = ir.Constant(ir.VectorType(index, lanes), list(range(lanes)))
    return builder.icmp_signed("<", iota, _splat(builder, n, lanes))


def _mangled(vector: Any) -> str:
    if isinstance(vector.element, ir.IntType):
        return f"v{vector.count}i{vector.element.width}"
    return f"v{vector.count}f{32 if isinstance(vector.element, ir.FloatType) else 64}"


def _masked_load(builder: Any, pointer: Any, vector: Any, n: Any, align: int) -> Any:
    mask = _mask(builder, n, vector.count)
    name = f"llvm.masked.load.{_mangled(vector)}.p0"
    function = _declare(
        builder.module, ir.FunctionType(vector, [pointer.type, ir.IntType(32), mask.type, vector]), name
    )
    zero = ir.Constant(vector, [0 if isinstance(vector.element, ir.IntType) else 0.0] * vector.count)
    return builder.call(function, [pointer, ir.Constant(ir.IntType(32), align), mask, zero])


def _call(builder: Any, name: str, vector: Any, args: list[Any]) -> Any:
    """Call the LLVM intrinsic ``name`` from vectors to a vector of the same type."""
    signature = ir.FunctionType(vector, [vector] * len(args))
    return builder.call(_declare(builder.module, signature, f"{name}.{_mangled(vector)}"), args)


@intrinsic
def compact(typingctx: Any) -> Any:
    """Keep the calling function out of line and its loops as written.

    A function that Numba links into several others is optimised again in each; without this the depthwise backward
    took three times as long to compile and ran no faster.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        builder.function.attributes.add("optsize")
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def lanes(typingctx: Any, a: Any) -> Any:
    """``lanes(a)``: the number of elements of ``a``'s dtype in a register, a constant."""
    count = Vec(a.dtype).lanes
    return types.intp(a), lambda context, builder, sig, args: ir.Constant(ir.IntType(64), count)


@intrinsic
def lanes_f64(typingctx: Any, a: Any) -> Any:
    """The number of float64 elements in a register, a constant."""
    count = Vec(types.float64).lanes
    return types.intp(a), lambda context, builder, sig, args: ir.Constant(ir.IntType(64), count)


@intrinsic
def load(typingctx: Any, a: Any, i: Any, n: Any) -> Any:
    """``load(a, i, n)``: elements ``i .. i+n``, the other lanes 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, a, args[0], args[1])
        return _masked_load(builder, pointer, context.get_value_type(sig.return_type), args[2], a.dtype.bitwidth // 8)

    return Vec(a.dtype)(a, types.intp, types.intp), codegen


@intrinsic
def load_f64(typingctx: Any, a: Any, i: Any, n: Any) -> Any:
    """``load_f64(a, i, n)``: as ``load`` with as many lanes as float64 has, widened to float64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = context.get_value_type(sig.return_type)
        pointer = element_pointer(context, builder, a, args[0], args[1])
        vector = ir.VectorType(context.get_value_type(a.dtype), wide.count)
        value = _masked_load(builder, pointer, vector, args[2], a.dtype.bitwidth // 8)
        return value if vector == wide else builder.fpext(value, wide)

    return Vec(types.float64)(a, types.intp, types.intp), codegen


@intrinsic
def splat(typingctx: Any, a: Any, i: Any) -> Any:
    """``splat(a, i)``: element ``i`` in every lane."""
    result = Vec(a.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, builder.load(element_pointer(context, builder, a, args[0], args[1])), result.lanes)

    return result(a, types.intp), codegen


@intrinsic
def fill(typingctx: Any, a: Any, value: Any) -> Any:
    """``fill(a, value)``: a scalar in every lane; ``a`` (a span or a register) gives the dtype."""
    result = Vec(a.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, context.cast(builder, args[1], value, a.dtype), result.lanes)

    return result(a, value), codegen


def _store_whole(builder: Any, value: Any, pointer: Any, align: int) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=align)


def _store_pieces(builder: Any, value: Any, pointer: Any, n: Any, align: int) -> None:
    """Store the first ``n`` < lanes elements as halves, quarters ...: a masked store takes some 20 cycles on AMD."""
    index, i32 = ir.IntType(64), ir.IntType(32)
    while value.type.count > 1:
        half = value.type.count // 2
        low, high = (
            builder.shuffle_vector(
                value, value, ir.Constant(ir.VectorType(i32, half), list(range(start, start + half)))
            )
            for start in (0, half)
        )
        taken = builder.icmp_signed("!=", builder.and_(n, ir.Constant(index, half)), ir.Constant(index, 0))
        with builder.if_then(taken):
            _store_whole(builder, low, pointer, align)
        value = builder.select(taken, high, low)
        pointer = builder.gep(pointer, [builder.select(taken, ir.Constant(index, half), ir.Constant(index, 0))])


def _store(builder: Any, value: Any, pointer: Any, n: Any, align: int) -> None:
    full = builder.icmp_signed(">=", n, ir.Constant(ir.IntType(64), value.type.count))
    with builder.if_else(full) as (whole, part):
        with whole:
            _store_whole(builder, value, pointer, align)
        with part:
            _store_pieces(builder, value, pointer, n, align)


@intrinsic
def store(typingctx: Any, a: Any, i: Any, v: Any, n: Any) -> Any:
    """``store(a, i, v, n)``: the first ``n`` lanes of ``v`` to ``a[i:i+n]``, converted to ``a``'s dtype."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        span, i_value, value, n_value = args
        pointer = element_pointer(context, builder, a, span, i_value)
        target = ir.VectorType(context.get_value_type(a.dtype), v.lanes)
        if a.dtype.bitwidth > v.dtype.bitwidth:
            value = builder.fpext(value, target)
        elif a.dtype.bitwidth < v.dtype.bitwidth:
            value = builder.fptrunc(value, target)
        _store(builder, value, pointer, n_value, a.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(a, types.intp, v, types.intp), codegen


@intrinsic
def add_to(typingctx: Any, a: Any, i: Any, v: Any, n: Any) -> Any:
    """``add_to(a, i, v, n)``: ``a[i:i+n] += v`` in the dtype of ``a``, which is not narrower than that of ``v``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, a, args[0], args[1])
        wide, align = ir.VectorType(context.get_value_type(a.dtype), v.lanes), a.dtype.bitwidth // 8
        value = args[2] if a.dtype == v.dtype else builder.fpext(args[2], wide)
        value = builder.fadd(_masked_load(builder, pointer, wide, args[3], align), value)
        _store(builder, value, pointer, args[3], align)
        return context.get_dummy_value()

    return types.none(a, types.intp, v, types.intp), codegen


def _binary(method: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        return a(a, a), lambda context, builder, sig, args: getattr(builder, method)(*args)

    return operation


@intrinsic
def is_float32(typingctx: Any, a: Any) -> Any:
    """Whether ``a`` (a span or a register) has float32 elements, a constant."""
    value = int(a.dtype == types.float32)
    return types.boolean(a), lambda context, builder, sig, args: ir.Constant(ir.IntType(1), value)


add, sub, mul, div = _binary("fadd"), _binary("fsub"), _binary("fmul"), _binary("fdiv")


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where the CPU can."""
    return a(a, a, a), lambda context, builder, sig, args: _call(builder, "llvm.fmuladd", args[0].type, list(args))


def _where(comparison: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, args[0], args[1]), args[2], args[3])

        return a(a, a, a, a), codegen

    return operation


# where_lt(a, b, x, y): x if a < b else y, lane by lane; y where a or b is NaN.
where_lt, where_le, where_eq = _where("<"), _where("<="), _where("==")


@intrinsic
def rint(typingctx: Any, a: Any) -> Any:
    """Nearest integer, ties to even."""
    return a(a), lambda context, builder, sig, args: _call(builder, "llvm.rint", args[0].type, list(args))


@intrinsic
def exp2_int(typingctx: Any, a: Any) -> Any:
    """``2 ** a`` for integer ``a`` from the exponent range of the dtype's normal numbers up to infinity."""
    bits = a.dtype.bitwidth
    fraction, bias = (23, 127) if bits == 32 else (52, 1023)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = ir.VectorType(ir.IntType(bits), a.lanes)

        def constant(value: int) -> Any:
            return ir.Constant(whole, [value] * a.lanes)

        exponent = builder.add(builder.fptosi(args[0], whole), constant(bias))
        return builder.bitcast(builder.shl(exponent, constant(fraction)), args[0].type)

    return a(a), codegen


@intrinsic
def lane_numbers(typingctx: Any, a: Any) -> Any:
    """0, 1, 2 ... in the lanes of the dtype of ``a`` (a span or a register)."""
    result = Vec(a.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(result), [float(lane) for lane in range(result.lanes)])

    return result(a), codegen


@intrinsic
def load_index(typingctx: Any, a: Any, i: Any, n: Any, like: Any) -> Any:
    """``load_index(a, i, n, like)``: as `load` from a span of integers, as lanes of the dtype of ``like``."""
    result = Vec(like.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(context, builder, a, args[0], args[1])
        whole = ir.VectorType(context.get_value_type(a.dtype), result.lanes)
        loaded = _masked_load(builder, pointer, whole, args[2], a.dtype.bitwidth // 8)
        return builder.uitofp(loaded, context.get_value_type(result))

    return result(a, types.intp, types.intp, like), codegen


@intrinsic
def store_index(typingctx: Any, a: Any, i: Any, v: Any, n: Any) -> Any:
    """``store_index(a, i, v, n)``: the first ``n`` lanes, whole numbers, to a span of integers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        span, i_value, value, n_value = args
        pointer = element_pointer(context, builder, a, span, i_value)
        whole = builder.fptosi(value, ir.VectorType(ir.IntType(32), v.lanes))
        if a.dtype.bitwidth < 32:
            whole = builder.trunc(whole, ir.VectorType(context.get_value_type(a.dtype), v.lanes))
        _store(builder, whole, pointer, n_value, a.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(a, types.intp, v, types.intp), codegen


def _reduction(combine: Any) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value, i32 = args[0], ir.IntType(32)
            while value.type.count > 1:
                half = value.type.count // 2
                low, high = (
                    builder.shuffle_vector(
                        value, value, ir.Constant(ir.VectorType(i32, half), list(range(start, start + half)))
                    )
                    for start in (0, half)
                )
                value = combine(builder, low, high)
            return builder.extract_element(value, ir.Constant(i32, 0))

        return a.dtype(a), codegen

    return operation


# The sum, the largest and the smallest of a register's lanes; the last two of numbers only.
total = _reduction(lambda builder, a, b: builder.fadd(a, b))
largest = _reduction(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), b, a))
smallest = _reduction(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
