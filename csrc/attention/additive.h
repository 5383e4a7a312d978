// SPDX-License-Identifier: Apache-2.0
// Additive attention. Forward: blocks of tokens through the hidden layer, which leaves a score each; then the softmax
// and the weighted sum of each sequence. Backward: the same two steps in the other order. Tokens of all sequences count
// as one list of rows in the hidden layer, whatever their number in a sequence.
#pragma once
#include "attention/tiles.h"
#include "norm/stats.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kRows = 84;  // of a block: tiles of 14 and 6 rows fit
constexpr idx kChunks = 16;

FF_INLINE idx hidden_cost(const AdditiveParams& p, idx rows) { return rows * 2 * p.dim * p.hidden; }

// Threads for work of `cost` multiply-adds.
FF_INLINE int threads_for(const AdditiveParams& p, idx cost) { return cost < kGrain ? 1 : p.threads; }

// u = tanh(x·weightᵀ[:dim] + h·weightᵀ[dim:] + bias) of some rows. `packed` holds both halves of the weight by panels.
template <class T>
FF_INLINE void hidden_rows(const AdditiveParams& p, const T* packed, const T* bias, idx first, idx rows, T* u) {
  constexpr idx L = lanes<T>;
  const T *x = static_cast<const T*>(p.x) + first * p.dim, *h = static_cast<const T*>(p.h) + first * p.dim;
  for (idx col = 0; col < p.hidden;) {
    const idx width = panel_vectors<T>(ceil_div(p.hidden - col, L)) * L, columns = min_idx(width, p.hidden - col);
    const T* panel = packed + col * 2 * p.dim;
    gemm<T, false>({.a = x,
                    .lda = p.dim,
                    .b = panel,
                    .ldb = width,
                    .c = u + col,
                    .ldc = p.hidden,
                    .rows = rows,
                    .cols = columns,
                    .depth = p.dim,
                    .bias = bias + col});
    gemm<T, false>({.a = h,
                    .lda = p.dim,
                    .b = panel + p.dim * width,
                    .ldb = width,
                    .c = u + col,
                    .ldc = p.hidden,
                    .rows = rows,
                    .cols = columns,
                    .depth = p.dim,
                    .accumulate = true});
    col += width;
  }
}

// u = tanh(u), scores[r] = v·u[r] + v_bias.
template <class T>
FF_NOINLINE void score_rows(const AdditiveParams& p, T* u, idx rows, T* scores) {
  const T* v = static_cast<const T*>(p.v);
  for (idx r = 0; r < rows; ++r) {
    vec<T> sum = {};
    for_lanes<T>(p.hidden, [&](idx c, idx n) {
      const vec<T> unit = tanh<T>(load_n<T>(u + r * p.hidden + c, n));
      store_n<T>(u + r * p.hidden + c, unit, n);
      sum = fma(unit, load_n<T>(v + c, n), sum);
    });
    scores[r] = sum_lanes<T>(sum) + *static_cast<const T*>(p.v_bias);
  }
}

// Softmax of n scores in place; NaN where torch has it.
template <class T>
FF_INLINE void softmax(T* scores, idx count) {
  T most = -T(__builtin_inf());
  for (idx i = 0; i < count; ++i) most = scores[i] > most ? scores[i] : most;
  vec<T> sum = {};
  for_lanes<T>(count, [&](idx i, idx n) {
    store_n<T>(scores + i, exp<T>(load_n<T>(scores + i, n) - splat<T>(most)), n);
    sum = sum + load_n<T>(scores + i, n);
  });
  const vec<T> inverse = splat<T>(T(1) / sum_lanes<T>(sum));
  for_lanes<T>(count, [&](idx i, idx n) { store_n<T>(scores + i, load_n<T>(scores + i, n) * inverse, n); });
}

template <class T>
FF_INLINE void additive_forward(const AdditiveParams& p) {
  const idx rows = p.batch * p.tokens, panels = panel_count<T>(ceil_div(p.hidden, lanes<T>));
  T *packed = nullptr, *bias = nullptr, *scratch = nullptr;
  Arena a(Scratch::shared);
  packed = a.take<T>(packed_size<T>(p.hidden, 2 * p.dim));
  bias = a.take<T>(p.hidden);
  scratch = a.take<T>(p.weights ? 0 : rows);
  T* weights = p.weights ? static_cast<T*>(p.weights) : scratch;
  for_tasks(panels, threads_for(p, 2 * hidden_cost(p, 1)), [&](idx panel) {
    pack_transposed<T>(packed, static_cast<const T*>(p.weight), static_cast<const T*>(nullptr), p.hidden, 2 * p.dim,
                       panel);
  });
  copy_padded(bias, static_cast<const T*>(p.bias), p.hidden);
  const int threads = threads_for(p, hidden_cost(p, rows));
  for_tasks(ceil_div(rows, kRows), threads, [&](idx block) {
    const idx first = block * kRows, count = min_idx(kRows, rows - first);
    T* u = static_cast<T*>(p.u) + first * p.hidden;
    if (!p.u) {
      Arena a(Scratch::task);
      u = a.take<T>(kRows * p.hidden);
    }
    hidden_rows(p, packed, bias, first, count, u);
    score_rows(p, u, count, weights + first);
  });
  for_tasks(p.batch, threads, [&](idx b) {
    const T* x = static_cast<const T*>(p.x) + b * p.tokens * p.dim;
    T *out = static_cast<T*>(p.out) + b * p.dim, *a = weights + b * p.tokens;
    softmax(a, p.tokens);
    for_lanes<T>(p.dim, [&](idx c, idx n) {
      vec<T> sum = {};
      for (idx t = 0; t < p.tokens; ++t) sum = fma(splat<T>(a[t]), load_n<T>(x + t * p.dim + c, n), sum);
      store_n<T>(out + c, sum, n);
    });
  });
}

// The part of backward before the hidden layer: de[t] = a[t]·(dout·x[t] - sum a·dout·x), dx[t] = a[t]·dout.
template <class T>
FF_INLINE void weight_grads(const AdditiveParams& p, idx b, T* de) {
  const T *x = static_cast<const T*>(p.x) + b * p.tokens * p.dim, *dout = static_cast<const T*>(p.dout) + b * p.dim;
  const T* a = static_cast<const T*>(p.weights) + b * p.tokens;
  T mean = 0;
  for (idx t = 0; t < p.tokens; ++t) {
    de[t] = inner_product<T>(dout, x + t * p.dim, p.dim);
    mean += a[t] * de[t];
  }
  for (idx t = 0; t < p.tokens; ++t) de[t] = a[t] * (de[t] - mean);
  if (!p.dx) return;
  T* dx = static_cast<T*>(p.dx) + b * p.tokens * p.dim;
  for (idx t = 0; t < p.tokens; ++t)
    for_lanes<T>(p.dim,
                 [&](idx c, idx n) { store_n<T>(dx + t * p.dim + c, splat<T>(a[t]) * load_n<T>(dout + c, n), n); });
}

// dz = de·v·(1 - u²) of some rows, at the hidden layer's tanh; adds de·u to sum_v.
template <class T>
FF_NOINLINE void tanh_grads(const AdditiveParams& p, const T* de, const T* u, idx rows, T* dz, idx stride, T* sum_v) {
  const T* v = static_cast<const T*>(p.v);
  for_lanes<T>(p.hidden, [&](idx c, idx n) {
    const vec<T> v_c = load_n<T>(v + c, n);
    vec<T> sum = load(sum_v + c);
    for (idx r = 0; r < rows; ++r) {
      const vec<T> unit = load_n<T>(u + r * p.hidden + c, n), grad = splat<T>(de[r]);
      sum = fma(grad, unit, sum);
      store(dz + r * stride + c, grad * v_c * (splat<T>(1) - unit * unit));
    }
    store(sum_v + c, sum);
  });
}

template <class T>
struct AdditiveBackward {
  idx rows, chunks, stride, columns, part;  // stride: hidden rounded up; columns: dim rounded up, twice that in a part
  T *de, *half, *packed_x, *packed_h, *parts;
  double *d_bias, *d_v;  // [chunks][stride]

  FF_CLASS_INLINE void plan(const AdditiveParams& p) {
    rows = p.batch * p.tokens, stride = round_up_lanes<T>(p.hidden), columns = round_up_lanes<T>(p.dim);
    part = p.d_weight ? p.hidden * 2 * columns : 0;
    chunks = max_idx(1, min_idx(kChunks, rows / (2 * kRows)));
  }
  FF_CLASS_INLINE void take(Arena& a, const AdditiveParams& p) {
    de = a.take<T>(rows), half = a.take<T>(p.hidden * p.dim);
    packed_x = a.take<T>(packed_size<T>(p.dim, p.hidden)), packed_h = a.take<T>(packed_size<T>(p.dim, p.hidden));
    parts = a.take<T>(chunks * part);
    d_bias = a.take<double>(chunks * stride), d_v = a.take<double>(chunks * stride);
  }
};

// packed[k][j] = weight[k][offset + j]: one half of the weight, for the gradient of its input.
template <class T>
FF_INLINE void pack_half(const AdditiveParams& p, idx offset, T* half, T* packed) {
  const T* weight = static_cast<const T*>(p.weight) + offset;
  for (idx k = 0; k < p.hidden; ++k)
    for (idx j = 0; j < p.dim; ++j) half[k * p.dim + j] = weight[k * 2 * p.dim + j];
  const idx panels = panel_count<T>(ceil_div(p.dim, lanes<T>));
  for (idx panel = 0; panel < panels; ++panel) pack_rows<T>(packed, half, p.dim, p.hidden, panel);
}

// One chunk of the rows through the hidden layer: dx, dh, and the chunk's part of the parameters' gradients.
template <class T>
FF_INLINE void hidden_grads(const AdditiveParams& p, const AdditiveBackward<T>& s, idx chunk) {
  const idx blocks = ceil_div(s.rows, kRows), begin = blocks * chunk / s.chunks, end = blocks * (chunk + 1) / s.chunks;
  T *dz = nullptr, *space = nullptr, *sums = nullptr;
  Arena a(Scratch::task);
  dz = a.take<T>(kRows * s.stride), space = a.take<T>(room<T>(kRows, p.dim)), sums = a.take<T>(s.stride);
  T* dw = s.parts + chunk * s.part;
  double *d_bias = s.d_bias + chunk * s.stride, *d_v = s.d_v + chunk * s.stride;
  fill_zero(d_bias, s.stride), fill_zero(d_v, s.stride);
  if (begin == end) fill_zero(dw, s.part);
  for (idx block = begin; block < end; ++block) {
    const idx first = block * kRows, rows = min_idx(kRows, s.rows - first);
    fill_zero(sums, s.stride);
    tanh_grads<T>(p, s.de + first, static_cast<const T*>(p.u) + first * p.hidden, rows, dz, s.stride, sums);
    add_to(d_v, sums, p.hidden);
    if (p.dx)
      product<T, false>(dz, s.stride, {s.packed_x, 0}, static_cast<T*>(p.dx) + first * p.dim, p.dim, rows, p.dim,
                        p.hidden, true);
    if (p.dh)
      product<T, false>(dz, s.stride, {s.packed_h, 0}, static_cast<T*>(p.dh) + first * p.dim, p.dim, rows, p.dim,
                        p.hidden, false);
    if (!p.d_weight) continue;
    fill_zero(sums, s.stride);
    sums_rows<T>(dz, s.stride, rows, p.hidden, sums);
    add_to(d_bias, sums, p.hidden);
    const Rows<T> x = with_room<T>(static_cast<const T*>(p.x) + first * p.dim, rows, p.dim, space);
    product<T, true>(dz, s.stride, x, dw, 2 * s.columns, p.hidden, p.dim, rows, block > begin);
    const Rows<T> h = with_room<T>(static_cast<const T*>(p.h) + first * p.dim, rows, p.dim, space);
    product<T, true>(dz, s.stride, h, dw + s.columns, 2 * s.columns, p.hidden, p.dim, rows, block > begin);
  }
}

template <class T>
FF_INLINE void parameter_grads(const AdditiveParams& p, const AdditiveBackward<T>& s) {
  fold_parts(s.d_bias, s.chunks, s.stride, p.hidden), fold_parts(s.d_v, s.chunks, s.stride, p.hidden);
  double total = 0;
  for (idx r = 0; r < s.rows; ++r) total += static_cast<double>(s.de[r]);
  *static_cast<T*>(p.d_v_bias) = static_cast<T>(total);
  for (idx i = 0; i < p.hidden; ++i) {
    static_cast<T*>(p.d_bias)[i] = static_cast<T>(s.d_bias[i]);
    static_cast<T*>(p.d_v)[i] = static_cast<T>(s.d_v[i]);
  }
  for_tasks(p.hidden, threads_for(p, s.part * s.chunks), [&](idx i) {
    for (idx side = 0; side < 2; ++side) {
      T* row = static_cast<T*>(p.d_weight) + (2 * i + side) * p.dim;
      const T* part = s.parts + (2 * i + side) * s.columns;
      for_lanes<T>(p.dim, [&](idx c, idx n) {
        vec<T> sum = {};
        for (idx chunk = 0; chunk < s.chunks; ++chunk) sum = sum + load(part + chunk * s.part + c);
        store_n<T>(row + c, sum, n);
      });
    }
  });
}

template <class T>
FF_INLINE void additive_backward(const AdditiveParams& p) {
  AdditiveBackward<T> s{};
  s.plan(p);
  Arena a(Scratch::shared);
  s.take(a, p);
  if (p.dx) pack_half<T>(p, 0, s.half, s.packed_x);
  if (p.dh) pack_half<T>(p, p.dim, s.half, s.packed_h);
  const int threads = threads_for(p, hidden_cost(p, s.rows));
  for_tasks(p.batch, threads, [&](idx b) { weight_grads<T>(p, b, s.de + b * p.tokens); });
  for_tasks(s.chunks, threads, [&](idx chunk) { hidden_grads<T>(p, s, chunk); });
  if (p.d_weight) parameter_grads(p, s);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
