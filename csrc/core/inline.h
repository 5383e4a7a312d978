// SPDX-License-Identifier: Apache-2.0
// How functions of the kernels are inlined, and small arithmetic on indices. FF_INLINE functions have internal linkage:
// nothing here is shared between the objects of two ISAs.
#pragma once
#include "core/types.h"

#define FF_INLINE static inline __attribute__((always_inline))
#define FF_CLASS_INLINE inline __attribute__((always_inline))
#define FF_NOINLINE static __attribute__((noinline))
#define FF_PRAGMA(text) _Pragma(#text)
// Full unrolling of a loop of at most n constant steps: arrays of vectors must become registers.
#if defined(__clang__)
#define FF_UNROLL(n) FF_PRAGMA(clang loop unroll(full))
#else
#define FF_UNROLL(n) FF_PRAGMA(GCC unroll n)
#endif

namespace ff {

FF_INLINE idx min_idx(idx a, idx b) { return a < b ? a : b; }
FF_INLINE idx max_idx(idx a, idx b) { return a > b ? a : b; }
FF_INLINE idx ceil_div(idx a, idx b) { return (a + b - 1) / b; }

}  // namespace ff
