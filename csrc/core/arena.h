// SPDX-License-Identifier: Apache-2.0
// Arrays taken one after another from a thread's scratch memory; nobody has to know beforehand how much they are
// together.
#pragma once
#include "core/inline.h"
#include "core/scratch.h"

namespace ff {

class Arena {
 public:
  // Takes over the thread's scratch of this kind: what an earlier arena of the kind gave is no longer valid.
  FF_CLASS_INLINE explicit Arena(Scratch kind) : kind_(kind) { scratch_restart(kind); }

  // Room for n elements, on a cache line of its own, with slack so that a whole last vector may be read and written.
  template <class T>
  FF_CLASS_INLINE T* take(idx n) {
    constexpr size_t kLine = 64, kSlack = 64;  // the widest vector
    return static_cast<T*>(
        scratch_take(kind_, (static_cast<size_t>(n) * sizeof(T) + kSlack + kLine - 1) / kLine * kLine));
  }

 private:
  Scratch kind_;
};

template <class T>
FF_INLINE void fill_zero(T* p, idx n) {
  for (idx i = 0; i < n; ++i) p[i] = T(0);
}

}  // namespace ff
