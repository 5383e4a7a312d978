// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution of maps of any type by float32 weights: tiles of TX pixels of a row and one channel block,
// whose sums go to what follows those of dense ones. Inputs of the usual windows are numbers as stored: weights and
// bias take what bytes stand for.
#pragma once
#include "engine/kernels/low_conv.h"

namespace ff {
namespace FF_ISA {
namespace {

// Rows of one channel block.
struct DeepRun {
  const char* x;  // first tap of the first output
  idx x_row, y_row, residual_row;  // bytes
  idx kh, kw, sh, sw, dh, dw, rows;
  const float* weights;
  Quant x_quant;
};

FF_INLINE vecf load_raw(const float* p) { return load(p); }
FF_INLINE vecf load_raw(const bf16* p) { return load_as(p, {}); }
FF_INLINE vecf load_raw(const uint8_t* p) { return __builtin_convertvector((i32v)widen32(p, L), vecf); }

// What row k of the window adds to the sums of TX pixels with stride S; x and w: of the row's first tap.
template <class X, int K, int S, int TX>
FF_INLINE void deep_row(const X* x, const float* w, vecf (&acc)[TX]) {
  vecf tap[K];
  FF_UNROLL(5)
  for (int l = 0; l < K; ++l) tap[l] = in_register<float>(load(w + l * L));
  FF_UNROLL(32)
  for (int q = 0; q < (TX - 1) * S + K; ++q) {
    const vecf v = in_register<float>(load_raw(x + q * L));
    FF_UNROLL(5)
    for (int l = 0; l < K; ++l)
      if (q >= l && (q - l) % S == 0 && (q - l) / S < TX) acc[(q - l) / S] = fma(v, tap[l], acc[(q - l) / S]);
  }
}

// The same of any window.
template <class X, int TX>
FF_INLINE void deep_row_any(const DeepRun& d, const X* x, const float* w, vecf (&acc)[TX]) {
  for (idx l = 0; l < d.kw; ++l, w += L) {
    const vecf tap = load(w);
    FF_UNROLL(16)
    for (int i = 0; i < TX; ++i) acc[i] = fma(load_as(x + (i * d.sw + l * d.dw) * L, d.x_quant), tap, acc[i]);
  }
}

// Columns [x0, x0 + tiles·TX) of a K×K filter with stride S; K 0: any window.
template <class X, int K, int S, int TX>
static void deep_tiles(const DeepRun& d, LowRun run, LowFinish f, idx x0, idx tiles) {
  const idx step = K ? S * L : d.sw * L;
  run.context = &f;
  alignas(64) vecf sums[TX];
  const char* row = d.x;
  for (idx y = 0; y < d.rows; ++y, row += d.sh * d.x_row) {
    for (idx at = x0; at < x0 + tiles * TX; at += TX) {
      vecf acc[TX] = {};
      const auto line = [&](idx k) { return reinterpret_cast<const X*>(row + k * d.x_row) + at * step; };
      if constexpr (K == 0) {
        for (idx k = 0; k < d.kh; ++k) deep_row_any<X, TX>(d, line(k * d.dh), d.weights + k * d.kw * L, acc);
      } else {
        FF_UNROLL(5)
        for (int k = 0; k < K; ++k) deep_row<X, K, S, TX>(line(k), d.weights + k * K * L, acc);
      }
      FF_UNROLL(16)
      for (int i = 0; i < TX; ++i) sums[i] = acc[i];
      run.finish(run, sums, TX * L, TX, 1, at * L);
    }
    f.y += d.y_row, f.residual = offset(f.residual, d.residual_row);
  }
}

struct DeepSizes {
  bool raw;  // reads numbers as stored
  int pixels[4];
  void (*run[4])(const DeepRun&, LowRun, LowFinish, idx, idx);
};

template <class X, int K, int S, int... TX>
constexpr DeepSizes deep_sizes() {
  return {K > 0, {TX...}, {deep_tiles<X, K, S, TX>...}};
}

template <class X>
FF_INLINE DeepSizes deep_sizes_of(const Window& w) {
  constexpr bool wide = kRegisters == 32;
  constexpr int kMost = wide ? 14 : 8, kNext = wide ? 7 : 6;
  if (w.kh == w.kw && w.sh == w.sw && w.dh == 1 && w.dw == 1) {
    if (w.kh == 3 && w.sh == 1) return deep_sizes<X, 3, 1, kMost, kNext, 4, 1>();
    if (w.kh == 3 && w.sh == 2) return deep_sizes<X, 3, 2, kMost, kNext, 4, 1>();
    if (w.kh == 5 && w.sh == 1) return deep_sizes<X, 5, 1, kMost, kNext, 4, 1>();
    if (w.kh == 5 && w.sh == 2) return deep_sizes<X, 5, 2, kMost, kNext, 4, 1>();
  }
  return deep_sizes<X, 0, 1, 4, 1>();
}

// Weights of a block for bytes as stored, and the bias.
constexpr idx kDeepTaps = 25;
FF_INLINE void scale_taps(const Conv& c, idx taps, const float* w, float* own, float* bias) {
  vecf sum = load(bias);
  for (idx t = 0; t < taps; ++t) {
    const vecf scaled = load(w + t * L) * splat(c.x_quant.scale);
    store(own + t * L, scaled), sum = fma(scaled, splat(-c.x_quant.zero), sum);
  }
  store(bias, sum);
}

template <class X>
FF_NOINLINE void deep_part(const Conv& c, Part part) {
  const Window& w = c.window;
  const Epilogue& e = c.epilogue;
  const idx taps = static_cast<idx>(w.kh) * w.kw, x_size = size_of(c.x_type), y_size = size_of(c.y_type);
  const bool here = in_registers(e);
  const DeepSizes sizes = deep_sizes_of<X>(w);
  DeepRun d{nullptr,
            c.x.row * x_size,
            c.y.row * y_size,
            e.residual.row * y_size,
            w.kh,
            w.kw,
            w.sh,
            w.sw,
            w.dh,
            w.dw,
            part.y1 - part.y0,
            nullptr,
            c.x_quant};
  LowFinish f = low_finish(c);
  LowRun run{};
  run.finish = finisher<float>(c.y_type, clamps(e));
  alignas(64) float own[kDeepTaps * L], bias[L];
  f.bias = bias;
  for (idx b = part.b0; b < part.b1; ++b) {
    d.x = place(c.x, c.x_type, b, static_cast<idx>(part.y0) * w.sh - w.top) - w.left * L * x_size;
    d.weights = c.weights + b * taps * L;
    store(bias, load(e.bias + b * L));
    if (sizeof(X) == 1 && sizes.raw) scale_taps(c, taps, d.weights, own, bias), d.weights = own;
    f.y = place(c.y, c.y_type, b, part.y0);
    f.residual = e.residual.data && here ? place(e.residual, c.y_type, b, part.y0) : nullptr;
    idx x = 0;
    for (int i = 0; x < c.y.width; ++i) {
      const idx count = (c.y.width - x) / sizes.pixels[i];
      if (count) sizes.run[i](d, run, f, x, count);
      x += count * sizes.pixels[i];
    }
    finish_rows(e, c.y, part.y0, part.y1, b, b + 1);
    pool_part(e.pools, c.y, c.y_type, c.y_quant, part, b, b + 1);
  }
}

static void depthwise(const Conv& c, Part part) {
  if (c.x_type == Type::float32 && c.y_type == Type::float32) return FF_FLOATS::engine_floats().depthwise(c, part);
  FF_ASSERT(in_registers(c.epilogue) || c.y_type == Type::float32);
  with_type(c.x_type, [&](auto tag) { deep_part<typename decltype(tag)::type>(c, part); });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
