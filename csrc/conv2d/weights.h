// SPDX-License-Identifier: Apache-2.0
// A convolution's weights [o][c][kh][kw] in the order of the windows' values, packed for products. Between them and the
// network lies a transposition of [c][kh·kw] for each output.
#pragma once
#include "conv2d/windows.h"
#include "norm/passes.h"
#include "separable_conv/pointwise_pass.h"

namespace ff {
namespace FF_ISA {
namespace {

// B[k][o] = w[o][k]·(scale ? scale[o] : 1), packed; `room` is of packed_size too.
template <class T>
FF_INLINE void pack_windows(T* packed, T* room, const T* w, const T* scale, const ConvShape& s, int threads) {
  const idx taps = s.kh * s.kw, depth = taps * s.c;
  const bool same = taps == 1 || s.c == 1;
  for_panels<T>(s.o, depth, threads, [&](idx panel) {
    pack_transposed<T>(same ? packed : room, w, scale, s.o, depth, panel);
    if (same) return;
    const idx L = lanes<T>, first = panel * 2 * L, width = panel_vectors<T>(ceil_div(s.o, L) - 2 * panel) * L;
    const T* from = room + first * depth;
    for (idx tap = 0; tap < taps; ++tap)
      for (idx c = 0; c < s.c; ++c)
        copy_whole(packed + first * depth + (tap * s.c + c) * width, 0, from + (c * taps + tap) * width, 0, width, 1);
  });
}

// Neighbours in a row whose outputs share a vector, where a pixel's do not fill one: their windows overlap, and are
// gathered and multiplied as one, with zeros for what a pixel does not see.
template <class T>
FF_INLINE idx pixel_group(const ConvShape& s) {
  idx best = 1, best_cost = 0;
  for (idx group = 1; group == 1 || group * s.o <= lanes<T>; ++group) {
    if (s.ow % group) continue;
    const idx run = (s.kw + (group - 1) * s.sw) * s.c, cost = run + 2 * ceil_div(run, lanes<T>);
    if (group == 1 || cost * best < best_cost * group) best = group, best_cost = cost;
  }
  return best;
}

// B[k][p·o + j] for pixel p and output j of a group, k in the group's window; one vector wide.
template <class T>
FF_INLINE void pack_group(T* packed, const T* w, const T* scale, const ConvShape& s, idx group) {
  const idx L = lanes<T>;
  const Windows windows(s, group);
  fill_zero(packed, windows.depth() * L);
  for (idx p = 0; p < group; ++p)
    for (idx o = 0; o < s.o; ++o)
      for (idx c = 0; c < s.c; ++c)
        for (idx k = 0; k < s.kh; ++k)
          for (idx l = 0; l < s.kw; ++l) {
            const T value = w[((o * s.c + c) * s.kh + k) * s.kw + l];
            packed[((k * windows.kw + p * s.sw + l) * s.c + c) * L + p * s.o + o] = scale ? value * scale[o] : value;
          }
}

// Weights and bias for the forward products.
template <class T>
struct ForwardWeights {
  idx group;
  T *single, *room, *grouped, *bias;

  void take(Arena& a, const ConvShape& s, idx pixels) {
    const idx size = packed_size<T>(s.o, Windows(s).depth());
    group = pixels;
    single = a.take<T>(size), room = a.take<T>(size), bias = a.take<T>(s.o);
    grouped = a.take<T>(group > 1 ? Windows(s, group).depth() * lanes<T> : 0);
  }
  // bias has been filled.
  void pack(const T* w, const T* scale, const ConvShape& s, int threads) {
    pack_windows<T>(single, room, w, scale, s, threads);
    if (group == 1) return;
    pack_group<T>(grouped, w, scale, s, group);
    repeat(bias, s.o, group);
  }
};

// room [o][kh·kw][c] = w.
template <class T>
FF_INLINE void order_taps(T* room, const T* w, const ConvShape& s, int threads) {
  const idx taps = s.kh * s.kw, depth = taps * s.c;
  for_tasks(s.o, s.o * depth < kPackParallel ? 1 : threads, [&](idx o) {
    for (idx tap = 0; tap < taps; ++tap)
      for (idx c = 0; c < s.c; ++c) room[o * depth + tap * s.c + c] = w[o * depth + c * taps + tap];
  });
}

// B[o][k] = w[o][k], packed; `room` is of o·depth.
template <class T>
FF_INLINE void pack_outputs(T* packed, T* room, const T* w, const ConvShape& s, int threads) {
  const idx depth = s.kh * s.kw * s.c;
  order_taps(room, w, s, threads);
  for_panels<T>(depth, s.o, threads, [&](idx panel) { pack_rows<T>(packed, room, depth, s.o, panel); });
}

// Adds partial gradients [parts][lines][ld] in order into the first one.
template <class T>
FF_INLINE void fold_lines(T* values, idx parts, idx lines, idx ld, int threads) {
  for_tasks(lines, lines * ld * parts < kPackParallel ? 1 : threads, [&](idx line) {
    for (idx k = 0; k < ld; k += lanes<T>) {
      T* at = values + line * ld + k;
      vec<T> total = load(at);
      for (idx part = 1; part < parts; ++part) total = total + load(at + part * lines * ld);
      store(at, total);
    }
  });
}

// The other way: dw [o][c][kh·kw] from g[o·step_o + k·step_k].
template <class T>
FF_INLINE void unpack_gradient(T* dw, const T* g, idx step_o, idx step_k, const ConvShape& s, int threads) {
  const idx taps = s.kh * s.kw, depth = taps * s.c;
  for_tasks(s.o, s.o * depth < kPackParallel ? 1 : threads, [&](idx o) {
    for (idx c = 0; c < s.c; ++c)
      for (idx tap = 0; tap < taps; ++tap) dw[o * depth + c * taps + tap] = g[o * step_o + (tap * s.c + c) * step_k];
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
