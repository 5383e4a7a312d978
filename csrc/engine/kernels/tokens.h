// SPDX-License-Identifier: Apache-2.0
// Attention over the pixels of a map.
#pragma once
#include "engine/kernels/pixels.h"
#include "simd/horizontal.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE const float* token(const Map& m, idx i) { return m.data + i / m.width * m.row + i % m.width * L; }

FF_INLINE float token_product(const float* a, ptrdiff_t a_block, const float* b, ptrdiff_t b_block, idx channels) {
  vecf sum = {};
  for_lanes<float>(channels, [&](idx c, idx n) {
    sum = fma(load_n<float>(a + c / L * a_block, n), load_n<float>(b + c / L * b_block, n), sum);
  });
  return sum_lanes<float>(sum);
}

// In place; a vector behind the last value may be overwritten within a whole vector.
FF_INLINE void softmax(float* values, idx count) {
  float most = values[0], total = 0;
  for (idx i = 1; i < count; ++i) most = values[i] > most ? values[i] : most;
  for_lanes<float>(count, [&](idx i, idx n) { store_n<float>(values + i, exp<float>(load_n<float>(values + i, n) - splat(most)), n); });
  for (idx i = 0; i < count; ++i) total += values[i];
  for_lanes<float>(count, [&](idx i, idx n) { store_n<float>(values + i, load_n<float>(values + i, n) / splat(total), n); });
}

// out[block] += weight · sum over tokens of weights · x
FF_INLINE void weigh(const Map& x, const float* weights, idx tokens, float weight, float* out, ptrdiff_t out_block, idx blocks, bool add) {
  for (idx block = 0; block < blocks; ++block) {
    vecf sum = {};
    for (idx i = 0; i < tokens; ++i) sum = fma(splat(weights[i]), load(token(x, i) + block * x.block), sum);
    sum = sum * splat(weight);
    store(out + block * out_block, add ? load(out + block * out_block) + sum : sum);
  }
}

FF_NOINLINE void dot_attention(const engine::DotAttention& p, Part part) {
  const idx keys = idx{p.kv.height} * p.kv.width, queries = idx{p.q.height} * p.q.width, blocks = ceil_div(p.q.channels, L);
  for (idx i = part.y0 * p.q.width; i < part.y1 * p.q.width; ++i) {
    for (idx k = 0; k < keys; ++k) p.scratch[k] = p.scale * token_product(token(p.q, i), p.q.block, token(p.kv, k), p.kv.block, p.q.channels);
    softmax(p.scratch, keys);
    if (p.mean)
      weigh(p.kv, p.scratch, keys, 1.f / static_cast<float>(queries), p.y.data, p.y.block, blocks, i > 0);
    else
      weigh(p.kv, p.scratch, keys, 1.f, p.y.data + i / p.y.width * p.y.row + i % p.y.width * L, p.y.block, blocks, false);
  }
}

FF_NOINLINE void additive_attention(const engine::AdditiveAttention& p) {
  const idx tokens = idx{p.x.height} * p.x.width;
  for (idx i = 0; i < tokens; ++i) {
    vecf sum = {};
    for (idx block = 0; block < ceil_div(p.hidden.channels, L); ++block)
      sum = fma(tanh<float>(load(token(p.hidden, i) + block * p.hidden.block)), load(p.v + block * L), sum);
    p.scratch[i] = sum_lanes<float>(sum);
  }
  softmax(p.scratch, tokens);
  weigh(p.x, p.scratch, tokens, 1.f, p.y.data, p.y.block, ceil_div(p.x.channels, L), false);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
