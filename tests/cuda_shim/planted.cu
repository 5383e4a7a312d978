// SPDX-License-Identifier: Apache-2.0
// Kernels with planted errors, which the host machine must find, and the same kernels without. kError selects one; 0:
// none.
#include "cuda/mma.cuh"
#include "cuda/registry.h"

namespace ff::cuda {

// y[i] = x[i - 1] + x[i] + x[i + 1], x zero outside, by a tile with a halo of one element; n is a multiple of 64.
template <int kError>
__global__ void three_point(const float* x, float* y, index_t n) {
  FF_SHARED(float, tile, 66);
  const int t = thread_rank();
  const index_t at = block_x() * 64 + t;
  tile[t + 1] = x[at];
  if (t == 0) tile[0] = at > 0 ? x[at - 1] : 0.0f;
  if (t == 63 && kError != 1) tile[65] = at + 1 < n ? x[at + 1] : 0.0f;
  if constexpr (kError != 2) sync();
  y[at] = tile[kError == 3 ? t - 1 : t] + tile[t + 1] + tile[t + 2];
}

// y[block] = sum of x over blocks of 32 elements.
template <int kError>
__global__ void warp_total(const float* x, float* y) {
  float sum = x[block_x() * 32 + thread_rank()];
  for (int mask = 16; mask > (kError == 1 ? 1 : 0); mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_rank() == 0) y[block_x()] = sum;
}

// A barrier (1) or a collective (2) in one branch only; two barriers at once (3); a second tile over the first (4).
template <int kError>
__global__ void branches(float* y) {
  FF_SHARED(float, tile, 64);
  const int t = thread_rank();
  if (kError == 1 && t < 40) sync();
  float value = static_cast<float>(t);
  if (kError != 2 || t % 32 < 16) value = shuffle_xor(value, 1);
  if constexpr (kError == 3) {
    if (t < 32)
      sync();
    else
      sync();
  }
  tile[t] = value;
  sync();
  value = tile[63 - t];
  if constexpr (kError != 4) sync();
  tile[t] = value;
  sync();
  y[t] = tile[t];
}

// y (16 x 8) = a (16 x k) b (8 x k) transposed, k = 16 of S in 16 bits or 8 of tf32; an error takes another lane's
// words.
template <class S, int kError>
__global__ void product(const float* a, const float* b, float* y) {
  constexpr int k = 8 * kPerWord<S>;
  const auto word = [&](const float* row, int at) {
    return mma_word<S>(row[at * kPerWord<S>], row[at * kPerWord<S> + kPerWord<S> - 1]);
  };
  const int group = mma_group(), quad = mma_quad() ^ (kError == 1 ? 1 : 0);
  const float* const upper = a + group * k;
  const float* const lower = upper + 8 * k;
  const unsigned left[4] = {word(upper, quad), word(lower, quad), word(upper, quad + 4), word(lower, quad + 4)};
  const unsigned right[2] = {word(b + group * k, mma_quad()), word(b + group * k, mma_quad() + 4)};
  float sums[4] = {};
  mma<S>(sums, left, right);
  for (int i = 0; i < 4; ++i) y[(group + i / 2 * 8) * 8 + 2 * mma_quad() + i % 2] = sums[i];
}

FF_KERNELS_BEGIN(planted)
FF_KERNEL(product<bf16, 0>)
FF_KERNEL(product<bf16, 1>)
FF_KERNEL(product<f16, 0>)
FF_KERNEL(product<tf32, 0>)
FF_KERNEL(three_point<0>)
FF_KERNEL(three_point<1>)
FF_KERNEL(three_point<2>)
FF_KERNEL(three_point<3>)
FF_KERNEL(warp_total<0>)
FF_KERNEL(warp_total<1>)
FF_KERNEL(branches<0>)
FF_KERNEL(branches<1>)
FF_KERNEL(branches<2>)
FF_KERNEL(branches<3>)
FF_KERNEL(branches<4>)
FF_KERNELS_END

}  // namespace ff::cuda
