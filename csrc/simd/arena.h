// SPDX-License-Identifier: Apache-2.0
// Lays several arrays out in one piece of scratch memory.
#pragma once
#include "simd/vec.h"

namespace ff {
namespace FF_ISA {
namespace {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  // Room for n elements, on a cache line of its own, with slack so that a whole last vector may be read and written.
  template <class T>
  T* take(idx n) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (static_cast<size_t>(n) * sizeof(T) + FF_VEC_BYTES + 63) / 64 * 64;
    return p;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// Runs plan(arena) to measure and then for real; plan assigns pointers from arena.take.
template <class Plan>
FF_INLINE void lay_out(Scratch kind, const Plan& plan) {
  Arena measure(nullptr);
  plan(measure);
  Arena real(scratch_reserve(kind, measure.used()));
  plan(real);
}

template <class T>
FF_INLINE void fill_zero(T* p, idx n) {
  for (idx i = 0; i < n; ++i) p[i] = T(0);
}

// dst = src, zeros up to a whole last vector; src null: zeros.
template <class T>
FF_INLINE void copy_padded(T* dst, const T* src, idx n) {
  for (idx i = 0; i < n; ++i) dst[i] = src ? src[i] : T(0);
  for (idx i = n; i < round_up_lanes<T>(n); ++i) dst[i] = T(0);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
