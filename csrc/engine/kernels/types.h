// SPDX-License-Identifier: Apache-2.0
// Vectors of float32, which kernels of one type compute in; low_types.h has what else maps may hold.
#pragma once
#include "engine/kernel_table.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::Map;

constexpr idx L = lanes<float>;
using vecf = vec<float>;

template <class P>
FF_INLINE P offset(P p, idx by) {
  return p ? p + by : nullptr;
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
