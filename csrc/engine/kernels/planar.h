// SPDX-License-Identifier: Apache-2.0
// Images of few channels (at most 8 of 48×48 pixels, where blocks of 16 channels would be half empty) as planes, with
// vectors along x: dense convolutions, the passes of CBAM, and the hand-over to the blocked layout.
#pragma once
#include "engine/kernels/stem.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::PlaneConv;
using engine::Planes;

// Output channels and vectors of a row that share a tile, at most.
constexpr int kPlaneOutputs = kRegisters == 32 ? 8 : 4, kPlaneVectors = kRegisters == 32 ? 3 : 2;
FF_INLINE int plane_outputs(idx left) { return left >= kPlaneOutputs ? kPlaneOutputs : left >= 4 ? 4 : 1; }

static size_t plane_conv_packed(int in_channels, int out_channels, const Window& w) {
  return static_cast<size_t>(in_channels * out_channels * taps_of(w));
}

// [group of outputs][channel][column of the window][row of the window][output]
static void pack_plane_conv(float* packed, const float* w, int in_channels, int out_channels, const Window& window) {
  for (idx o = 0; o < out_channels;) {
    const int outputs = plane_outputs(out_channels - o);
    for (idx c = 0; c < in_channels; ++c)
      for (idx l = 0; l < window.kw; ++l)
        for (idx k = 0; k < window.kh; ++k)
          for (int j = 0; j < outputs; ++j)
            *packed++ = w[((o + j) * in_channels + c) * taps_of(window) + k * window.kw + l];
    o += outputs;
  }
}

// A tile's place: x at the first tap of its first pixel, y at that pixel.
struct PlaneTile {
  const float* x;
  idx x_row, x_plane, channels, kh, kw;
  const float *weights, *bias;
  float* y;
  idx y_row, y_plane, width;  // pixels left in the row
  Activation act;
};

// What row i of a tile's input, at `line`, adds to the sums.
template <int OC, int RT, int XV, int KH>
FF_INLINE void plane_line(vecf (&acc)[OC * RT][XV], const float* line, const float* w, idx i) {
  vecf v[XV];
  FF_UNROLL(4)
  for (int j = 0; j < XV; ++j) v[j] = in_register<float>(load(line + j * L));
  FF_UNROLL(4)
  for (int r = 0; r < RT; ++r) {
    if (KH && (i < r || i - r >= KH)) continue;
    FF_UNROLL(8)
    for (int o = 0; o < OC; ++o) {
      const vecf w_v = splat(w[(i - r) * OC + o]);
      FF_UNROLL(4)
      for (int j = 0; j < XV; ++j) acc[o * RT + r][j] = fma(w_v, v[j], acc[o * RT + r][j]);
    }
  }
}

// OC outputs × RT rows × XV vectors. A row of the input serves all rows of the output that it reaches; KH 0: any
// height.
template <int OC, int RT, int XV, int KH>
FF_NOINLINE void plane_tile(const PlaneTile& t) {
  const idx kh = KH ? KH : t.kh;
  vecf acc[OC * RT][XV];
  FF_UNROLL(8)
  for (int o = 0; o < OC; ++o) {
    FF_UNROLL(16)
    for (int i = 0; i < RT * XV; ++i) acc[o * RT + i / XV][i % XV] = splat(t.bias[o]);
  }
  const float *column = t.x, *w = t.weights;
  for (idx c = 0; c < t.channels; ++c, column += t.x_plane - t.kw)
    for (idx l = 0; l < t.kw; ++l, ++column, w += kh * OC) {
      const float* line = column;
      if constexpr (KH == 0) {
        for (idx i = 0; i < kh; ++i, line += t.x_row) plane_line<OC, RT, XV, KH>(acc, line, w, i);
      } else {
        FF_UNROLL(16)
        for (int i = 0; i < KH + RT - 1; ++i, line += t.x_row) plane_line<OC, RT, XV, KH>(acc, line, w, i);
      }
    }
  activate_tile<OC * RT, XV>(acc, t.act);
  FF_UNROLL(32)
  for (int i = 0; i < OC * RT; ++i) {
    FF_UNROLL(4)
    for (int j = 0; j < XV; ++j) {
      const idx n = min_idx(L, t.width - j * L);
      if (n > 0) store_n<float>(t.y + i / RT * t.y_plane + i % RT * t.y_row + j * L, acc[i][j], n);
    }
  }
}

template <int OC, int RT, int KH>
FF_INLINE void plane_rows(PlaneTile t) {
  const float* x = t.x;
  float* y = t.y;
  const idx width = t.width;
  for (idx at = 0; at < width;) {
    t.x = x + at, t.y = y + at, t.width = width - at;
    const int vectors = static_cast<int>(min_idx(kPlaneVectors, ceil_div(t.width, L)));
    vectors == 3   ? plane_tile<OC, RT, kPlaneVectors, KH>(t)
    : vectors == 2 ? plane_tile<OC, RT, 2, KH>(t)
                   : plane_tile<OC, RT, 1, KH>(t);
    at += vectors * L;
  }
}

// Rows [y0, y1) of OC outputs.
template <int OC, int KH>
FF_INLINE void plane_group(const PlaneTile& t, idx y0, idx y1) {
  constexpr int kRows = OC == 1 && KH ? 4 : 1;
  for (idx y = y0; y < y1;) {
    PlaneTile at = t;
    at.x += y * t.x_row, at.y += y * t.y_row;
    if (y1 - y >= kRows)
      plane_rows<OC, kRows, KH>(at), y += kRows;
    else
      plane_rows<OC, 1, KH>(at), ++y;
  }
}

template <int OC>
FF_NOINLINE void plane_outputs_of(const PlaneTile& t, idx y0, idx y1) {
  if (t.kh == 3) return plane_group<OC, 3>(t, y0, y1);
  if (t.kh == 7 && OC == 1) return plane_group<OC, 7>(t, y0, y1);
  plane_group<OC, 0>(t, y0, y1);
}

static void plane_conv(const PlaneConv& p, int y0, int y1) {
  const Window& w = p.window;
  PlaneTile t{p.x.data - w.top * p.x.row - w.left,
              p.x.row,
              p.x.plane,
              p.x.channels,
              w.kh,
              w.kw,
              p.weights,
              p.bias,
              p.y.data,
              p.y.row,
              p.y.plane,
              p.y.width,
              activation_of(p.act)};
  for (idx o = 0; o < p.y.channels;) {
    const int outputs = plane_outputs(p.y.channels - o);
    outputs > 4    ? plane_outputs_of<kPlaneOutputs>(t, y0, y1)
    : outputs == 4 ? plane_outputs_of<4>(t, y0, y1)
                   : plane_outputs_of<1>(t, y0, y1);
    t.weights += outputs * p.x.channels * taps_of(w), t.bias += outputs, t.y += outputs * p.y.plane;
    o += outputs;
  }
  if (in_registers(p.act)) return;
  with_act(p.act, [&](auto tag) {
    for (idx c = 0; c < p.y.channels; ++c)
      for (idx y = y0; y < y1; ++y)
        for_lanes<float>(p.y.width, [&](idx x, idx n) {
          float* at = p.y.data + c * p.y.plane + y * p.y.row + x;
          store_n<float>(at, activate<decltype(tag)::value, float>(load_n<float>(at, n)), n);
        });
  });
}

template <class T>
FF_NOINLINE void read_planes(const Planes& y, const T* image, const float* scale, const float* shift, idx y0, idx y1) {
  for (idx c = 0; c < y.channels; ++c)
    for (idx i = y0; i < y1; ++i)
      stem_line(y.data + c * y.plane + i * y.row, image + (c * y.height + i) * y.width, 0, y.width, y.width,
                scale ? scale[c] : 1.f, shift ? shift[c] : 0.f);
}

static void planes_read(const Planes& y, const void* image, Pixels type, const float* scale, const float* shift, int y0,
                        int y1) {
  type == Pixels::uint8 ? read_planes(y, static_cast<const uint8_t*>(image), scale, shift, y0, y1)
                        : read_planes(y, static_cast<const float*>(image), scale, shift, y0, y1);
}

// Of vectors or of numbers.
template <class V>
FF_INLINE V larger_or_nan(V a, V b) {
  return ((a > b) | (a != a)) ? a : b;
}

template <bool Exact>
FF_INLINE Pooled<Exact> pool_plane(const Planes& x, idx c, idx y0, idx y1) {
  Pooled<Exact> all[2] = {{vecf{}, splat(-__builtin_inff())}, {vecf{}, splat(-__builtin_inff())}};
  for (idx y = y0; y < y1; ++y) {
    const float* at = x.data + c * x.plane + y * x.row;
    idx i = 0;
    for (; i + 2 * L <= x.width; i += 2 * L) {
      all[0].add(load(at + i), load(at + i));
      all[1].add(load(at + i + L), load(at + i + L));
    }
    if (i + L <= x.width) all[0].add(load(at + i), load(at + i));
  }
  all[0].add(all[1].sum, all[1].most);
  return all[0];
}

static void planes_pool(const Planes& x, float* sum, float* most, int y0, int y1) {
  for (idx c = 0; c < x.channels; ++c) {
    const Pooled<false> fast = pool_plane<false>(x, c, y0, y1);
    float total = sum_lanes<float>(fast.sum), best = 0.f;
    if (total == total)
      best = max_lanes<float>(fast.most);
    else
      best = fold_lanes<float>(pool_plane<true>(x, c, y0, y1).most, [](auto a, auto b) { return larger_or_nan(a, b); });
    for (idx y = y0; y < y1; ++y)
      for (idx i = x.width / L * L; i < x.width; ++i) {
        const float v = x.data[c * x.plane + y * x.row + i];
        total += v, best = larger_or_nan(v, best);
      }
    sum[c] = total, most[c] = best;
  }
}

// One row of planes_gate, L or fewer pixels at a time; returns the sum of everything.
template <bool Exact>
FF_NOINLINE vecf gate_row(const Planes& x, const float* gate, const Planes& y, const Planes& pixels, idx row) {
  const vecf share = splat(1.f / static_cast<float>(x.channels));
  vecf total = {};
  for_lanes<float>(x.width, [&](idx at, idx n) {
    Pooled<Exact> all = {vecf{}, splat(-__builtin_inff())};
    const float* from = x.data + row * x.row + at;
    float* to = y.data + row * y.row + at;
    for (idx c = 0; c < x.channels; ++c, from += x.plane, to += y.plane) {
      const vecf v = load_n<float>(from, n) * splat(gate ? gate[c] : 1.f);
      if (!Exact) store_n<float>(to, v, n);
      all.add(v, v);
    }
    float* pixel = pixels.data + row * pixels.row + at;
    store_n<float>(pixel, all.most, n), store_n<float>(pixel + pixels.plane, all.sum * share, n);
    total = total + all.sum;
  });
  return total;
}

static void planes_gate(const Planes& x, const float* gate, const Planes& y, const Planes& pixels, int y0, int y1) {
  for (idx row = y0; row < y1; ++row) {
    const float total = sum_lanes<float>(gate_row<false>(x, gate, y, pixels, row));
    if (total != total) gate_row<true>(y, nullptr, y, pixels, row);
  }
}

typedef float f32x4 __attribute__((vector_size(16)));

FF_INLINE void transpose(f32x4 (&r)[4]) {
  const f32x4 a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const f32x4 c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5), r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5), r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// Pixels [0, pixels), at most 4, of 4 channels of which the first `channels` exist.
FF_INLINE void move_quad(float* to, const float* from, idx plane, const float* gate, idx channels, idx pixels) {
  f32x4 r[4] = {}, g = {1.f, 1.f, 1.f, 1.f};
  const size_t bytes = static_cast<size_t>(pixels) * sizeof(float);
  if (gate) __builtin_memcpy(&g, gate, bytes);
  FF_UNROLL(4)
  for (idx c = 0; c < 4; ++c) {
    if (c < channels) __builtin_memcpy(&r[c], from + c * plane, bytes);
    r[c] = r[c] * g;
  }
  transpose(r);
  for (idx j = 0; j < pixels; ++j) __builtin_memcpy(to + j * L, &r[j], sizeof r[j]);
}

static void planes_to_map(const Planes& x, const Planes& gate, const Map& y, int y0, int y1) {
  for (idx i = y0; i < y1; ++i) {
    const float* factor = gate.data ? gate.data + i * gate.row : nullptr;
    for (idx c = 0; c < blocks_of(x.channels) * L; c += 4) {
      const float* from = x.data + c * x.plane + i * x.row;
      float* to = y.data + c / L * y.block + i * y.row + c % L;
      const idx channels = x.channels - c;
      idx j = 0;
      for (; j + 4 <= x.width; j += 4) {
        if (channels >= 4)
          move_quad(to + j * L, from + j, x.plane, offset(factor, j), 4, 4);
        else
          move_quad(to + j * L, from + j, x.plane, offset(factor, j), channels, 4);
      }
      if (j < x.width) move_quad(to + j * L, from + j, x.plane, offset(factor, j), channels, x.width - j);
    }
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
