// SPDX-License-Identifier: Apache-2.0
// Tensor cores by mma.sync (sm_80 and later): a warp adds to a 16 x 8 tile of float sums the product of 16 rows and 8
// columns of bf16 or f16, k = 16 at a time, or of float rounded to tf32, k = 8. Operands are 32-bit words along k: two
// 16-bit elements or one tf32. Before sm_80 kTensorCores is false, and products are those of gemm.cuh.
#pragma once

#include "cuda/device.cuh"

namespace ff::cuda {

// float multiplied with a significand of 11 bits: what float operands become where torch allows it.
struct tf32 {};
template <>
struct Compute<tf32> {
  using type = float;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kTensorCores = true;
#else
constexpr bool kTensorCores = false;
#endif

// Operands of type S in one word; 0: no tensor core takes S.
template <class S>
constexpr int kPerWord = 0;
template <>
constexpr int kPerWord<bf16> = 2;
template <>
constexpr int kPerWord<f16> = 2;
template <>
constexpr int kPerWord<tf32> = 1;

template <class S>
constexpr bool kIsBf16 = false;
template <>
constexpr bool kIsBf16<bf16> = true;

// The word of element 0 and, above it, element 1; tf32 has no element 1.
template <class S>
__device__ __forceinline__ unsigned mma_word(float first, float second) {
  if constexpr (kPerWord<S> == 1)
    return float_to_tf32_bits(first);
  else
    return static_cast<unsigned>(narrow<S>(first).bits) | static_cast<unsigned>(narrow<S>(second).bits) << 16;
}

// A lane's place in the tile: it has words quad and quad + 4 of rows group and group + 8 of a (in the order (group,
// quad), (group + 8, quad), (group, quad + 4), (group + 8, quad + 4)), words quad and quad + 4 of column group of b,
// and sums (group, 2·quad), (group, 2·quad + 1), and the same of row group + 8.
__device__ __forceinline__ int mma_group() { return lane_rank() / 4; }
__device__ __forceinline__ int mma_quad() { return lane_rank() % 4; }

#ifdef __CUDACC__
#define FF_MMA(shape, type)                                        \
  asm("mma.sync.aligned." shape ".row.col.f32." type "." type      \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "        \
      "{%0, %1, %2, %3};"                                          \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <class S>
__device__ __forceinline__ void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (kPerWord<S> == 1)
    FF_MMA("m16n8k8", "tf32");
  else if constexpr (kIsBf16<S>)
    FF_MMA("m16n8k16", "bf16");
  else
    FF_MMA("m16n8k16", "f16");
#endif
}
#undef FF_MMA
#else
template <class S>
void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], FF_HERE) {
  host_mma<kPerWord<S> >(
      sums, a, b,
      [](unsigned word, int part) {
        if constexpr (kPerWord<S> == 1)
          return __uint_as_float(word);
        else
          return widen(S{static_cast<unsigned short>(word >> 16 * part)});
      },
      here);
}
#endif

}  // namespace ff::cuda
