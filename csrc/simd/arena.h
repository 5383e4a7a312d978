// SPDX-License-Identifier: Apache-2.0
// Arrays of whole vectors in scratch memory.
#pragma once
#include "core/arena.h"
#include "simd/vec.h"

namespace ff {
namespace FF_ISA {
namespace {

// dst = src, zeros up to a whole last vector; src null: zeros.
template <class T>
FF_INLINE void copy_padded(T* dst, const T* src, idx n) {
  for (idx i = 0; i < n; ++i) dst[i] = src ? src[i] : T(0);
  for (idx i = n; i < round_up_lanes<T>(n); ++i) dst[i] = T(0);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
