// SPDX-License-Identifier: Apache-2.0
// Channels in groups of vectors whose per-channel operands stay in registers while rows go by.
#pragma once
#include "simd/vec.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kGroup = kRegisters == 32 ? 4 : 2;

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls body(Count<vectors>, c, n) for groups of whole vectors of the channels, and for single ones at the end, where n
// lanes of the last vector are valid.
template <class T, class Body>
FF_INLINE void for_groups(idx channels, const Body& body) {
  constexpr idx L = lanes<T>;
  idx c = 0;
  for (; c + kGroup * L <= channels; c += kGroup * L) body(Count<kGroup>{}, c, L);
  for (; c < channels; c += L) body(Count<1>{}, c, min_idx(L, channels - c));
}

template <class T, int V>
struct Channels {
  vec<T> v[V];

  // Zero without a source.
  static FF_CLASS_INLINE Channels from(const T* p, idx c) {
    Channels channels;
    FF_UNROLL(4)
    for (int u = 0; u < V; ++u) channels.v[u] = p ? load(p + c + u * lanes<T>) : vec<T>{};
    return channels;
  }
  FF_CLASS_INLINE void to(T* p, idx c) const {
    FF_UNROLL(4)
    for (int u = 0; u < V; ++u) store(p + c + u * lanes<T>, v[u]);
  }
};

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
