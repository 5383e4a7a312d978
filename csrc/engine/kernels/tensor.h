// SPDX-License-Identifier: Apache-2.0
// What the kernels of tensors.h share.
#pragma once
#include "engine/kernels/types.h"
#include "engine/tensors.h"

namespace ff {
namespace FF_ISA {
namespace {

namespace tensors = engine::tensors;
using engine::Part;

FF_INLINE float* at(const Map& m, idx block, idx y, idx x = 0) { return m.data + block * m.block + y * m.row + x * L; }
FF_INLINE idx blocks_of(idx channels) { return ceil_div(channels, L); }

// The larger of each lane, and NaN where either is one; the smaller.
FF_INLINE vecf larger(vecf v, vecf most) { return most == most ? max_bound(v, most) : most; }
FF_INLINE vecf smaller(vecf v, vecf least) { return least == least ? min_bound(v, least) : least; }

template <auto Value>
struct Tag {
  static constexpr auto value = Value;
};

// Calls body(Tag<v>{}) for the v of an enumeration that `which` is: the switch stays outside the loops.
template <class E, int I = 0, class Body>
FF_INLINE void with_choice(E which, const Body& body) {
  if constexpr (I < static_cast<int>(E::count)) {
    if (static_cast<int>(which) == I) return body(Tag<static_cast<E>(I)>{});
    with_choice<E, I + 1>(which, body);
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
