// SPDX-License-Identifier: Apache-2.0
// Matrix products of a block of rows with packed or row-major columns:
//   c[i][j] = clamp(sum_k a(i,k)·b[k][j] + bias[j] (+ c[i][j]), lo, hi)
// B is packed by panels: of two vectors of columns, the last of one, or of three where registers allow.
#pragma once
#include "core/inline.h"

namespace ff {

// What the caller reads next: fetched into L2 while the product runs, a line for each step of depth. Blocks that
// alternate between passes over memory and products would otherwise leave the memory idle for half of the time.
class Ahead {
 public:
  FF_CLASS_INLINE Ahead() {}
  FF_CLASS_INLINE void add(const void* p, idx bytes) {
    if (p && bytes > 0 && count_ < kMost)
      at_[count_] = static_cast<const char*>(p), end_[count_] = at_[count_] + bytes, ++count_;
  }
  // The next `lines` lines from the result on, *step bytes apart; `idle` again and again when there is nothing left.
  FF_CLASS_INLINE const char* take(idx lines, const void* idle, idx* step) {
    while (next_ < count_ && at_[next_] >= end_[next_]) ++next_;
    if (next_ == count_) return *step = 0, static_cast<const char*>(idle);
    const char* p = at_[next_];
    at_[next_] += lines * kLine;
    return *step = kLine, p;
  }

 private:
  static constexpr int kMost = 3;
  static constexpr idx kLine = 64;
  const char *at_[kMost] = {}, *end_[kMost] = {};
  int count_ = 0, next_ = 0;
};

template <class T>
struct Gemm {
  const T* a;             // [rows][lda], or for multiply_transposed [depth][lda]
  idx lda;
  const T* b;             // packed, or [depth][ldb] with ldb > 0 and room for a whole panel after the last column
  idx ldb = 0;            // 0: packed
  T* c;                   // [rows][ldc]
  idx ldc;
  idx rows, cols, depth;
  const T* bias = nullptr;  // [cols rounded up to lanes]
  T lo = -static_cast<T>(__builtin_inf()), hi = static_cast<T>(__builtin_inf());
  bool accumulate = false;
  Ahead* ahead = nullptr;
};

// One ISA's products.
template <class T>
struct GemmKernels {
  void (*multiply)(const Gemm<T>&);
  void (*multiply_transposed)(const Gemm<T>&);
  // Packs panel `panel` of B[k][j] = w[j·depth + k] · (scale ? scale[j] : 1), w row-major (cols, depth): a
  // convolution's weights.
  void (*pack_transposed)(T* packed, const T* w, const T* scale, idx cols, idx depth, idx panel);
  // Packs panel `panel` of B[k][j] = w[k·cols + j], w row-major (depth, cols): the same weights for the gradient of the
  // input.
  void (*pack_rows)(T* packed, const T* w, idx cols, idx depth, idx panel);
};

}  // namespace ff
