// SPDX-License-Identifier: Apache-2.0
// Attention over the pixels of a map.
#pragma once
#include "engine/kernels/pixels.h"
#include "simd/lanes.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE const float* token(const Map& m, idx i) { return m.data + i / m.width * m.row + i % m.width * L; }

// In place, of values that are followed by whatever fills the last vector.
FF_INLINE void softmax(float* values, idx count) {
  float most = values[0], total = 0;
  for (idx i = 1; i < count; ++i) most = values[i] > most ? values[i] : most;
  for_lanes<float>(count, [&](idx i, idx n) {
    const vecf v = masked(exp<float>(load(values + i) - splat(most)), n);
    store(values + i, v);
    total += sum_lanes<float>(v);
  });
  const vecf scale = splat(1.f / total);
  for (idx i = 0; i < count; i += L) store(values + i, load(values + i) * scale);
}

// y's pixel at `out`: the sum over tokens of weights · x.
FF_INLINE void weigh(const Map& x, const float* weights, float* out, ptrdiff_t out_block) {
  const idx tokens = idx{x.height} * x.width;
  for (idx block = 0; block < blocks_of(x.channels); ++block) {
    vecf sum[2] = {};
    for (idx i = 0; i < tokens; ++i)
      sum[i % 2] = fma(splat(weights[i]), load(token(x, i) + block * x.block), sum[i % 2]);
    store(out + block * out_block, sum[0] + sum[1]);
  }
}

// Keys as columns, then the scores of a group of queries, then the mean of their weights; rows of whole vectors.
constexpr idx kQueries = 4;

static size_t dot_scratch(int channels, int keys) {
  return static_cast<size_t>(round_up_lanes<float>(keys) * (channels + kQueries + 1));
}

// Scores of kQueries queries (addresses at q) and one or two vectors of keys.
template <int V>
FF_INLINE void scores(const float* const* q, ptrdiff_t q_block, const float* columns, idx keys, idx channels,
                      vecf scale, float* to) {
  vecf sum[kQueries][V] = {};
  for (idx c = 0; c < channels; ++c) {
    vecf k[V];
    FF_UNROLL(2)
    for (int j = 0; j < V; ++j) k[j] = load(columns + c * keys + j * L);
    FF_UNROLL(4)
    for (int i = 0; i < kQueries; ++i) {
      const vecf value = splat(q[i][c / L * q_block + c % L]);
      FF_UNROLL(2)
      for (int j = 0; j < V; ++j) sum[i][j] = fma(value, k[j], sum[i][j]);
    }
  }
  FF_UNROLL(4)
  for (int i = 0; i < kQueries; ++i) {
    FF_UNROLL(2)
    for (int j = 0; j < V; ++j) store(to + i * keys + j * L, sum[i][j] * scale);
  }
}

// Rows of queries in the part; all of them for the mean.
FF_NOINLINE void dot_attention(const engine::DotAttention& p, Part part) {
  const idx tokens = idx{p.kv.height} * p.kv.width, keys = round_up_lanes<float>(tokens), channels = p.q.channels;
  float *columns = p.scratch, *weights = columns + channels * keys, *mean = weights + kQueries * keys;
  for (idx i = 0; i < keys; ++i)
    for (idx c = 0; c < channels; ++c)
      columns[c * keys + i] = i < tokens ? token(p.kv, i)[c / L * p.kv.block + c % L] : 0.f;
  for (idx i = 0; i < keys; ++i) mean[i] = 0.f;
  const idx first = idx{part.y0} * p.q.width, last = idx{part.y1} * p.q.width;
  for (idx i = first; i < last; i += kQueries) {
    const idx n = min_idx(kQueries, last - i);
    const float* q[kQueries];
    for (idx j = 0; j < kQueries; ++j) q[j] = token(p.q, min_idx(i + j, last - 1));
    idx k = 0;
    for (; k + 2 * L <= keys; k += 2 * L)
      scores<2>(q, p.q.block, columns + k, keys, channels, splat(p.scale), weights + k);
    if (k < keys) scores<1>(q, p.q.block, columns + k, keys, channels, splat(p.scale), weights + k);
    for (idx j = 0; j < n; ++j) {
      softmax(weights + j * keys, tokens);
      if (p.mean)
        for (idx c = 0; c < keys; c += L) store(mean + c, load(mean + c) + load(weights + j * keys + c));
      else
        weigh(p.kv, weights + j * keys, p.y.data + (i + j) / p.y.width * p.y.row + (i + j) % p.y.width * L, p.y.block);
    }
  }
  if (!p.mean) return;
  const vecf share = splat(1.f / static_cast<float>(last - first));
  for (idx c = 0; c < keys; c += L) store(mean + c, load(mean + c) * share);
  weigh(p.kv, mean, p.y.data, p.y.block);
}

FF_NOINLINE void additive_attention(const engine::AdditiveAttention& p) {
  const idx tokens = idx{p.x.height} * p.x.width;
  for (idx i = 0; i < tokens; ++i) {
    vecf sum = {};
    for (idx block = 0; block < blocks_of(p.hidden.channels); ++block)
      sum = fma(tanh<float>(load(token(p.hidden, i) + block * p.hidden.block)), load(p.v + block * L), sum);
    p.scratch[i] = sum_lanes<float>(sum);
  }
  softmax(p.scratch, tokens);
  weigh(p.x, p.scratch, p.y.data, p.y.block);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
