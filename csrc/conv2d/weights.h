// SPDX-License-Identifier: Apache-2.0
// A convolution's weights [o][c][kh][kw] in the order of the windows' values, packed for products. Between them and the
// network lies a transposition of [c][kh·kw] for each output.
#pragma once
#include "conv2d/windows.h"
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
    const idx L = lanes<T>, first = panel * 2 * L, width = panel_vectors(ceil_div(s.o, L) - 2 * panel) * L;
    const T* from = room + first * depth;
    for (idx tap = 0; tap < taps; ++tap)
      for (idx c = 0; c < s.c; ++c)
        copy_whole(packed + first * depth + (tap * s.c + c) * width, 0, from + (c * taps + tap) * width, 0, width, 1);
  });
}

// B[o][k] = w[o][k], packed; `room` is of o·depth.
template <class T>
FF_INLINE void pack_outputs(T* packed, T* room, const T* w, const ConvShape& s, int threads) {
  const idx taps = s.kh * s.kw, depth = taps * s.c;
  const int team = s.o * depth < kPackParallel ? 1 : threads;
  for_tasks(s.o, team, [&](idx o) {
    for (idx tap = 0; tap < taps; ++tap)
      for (idx c = 0; c < s.c; ++c) room[o * depth + tap * s.c + c] = w[o * depth + c * taps + tap];
  });
  for_panels<T>(depth, s.o, threads, [&](idx panel) { pack_rows<T>(packed, room, depth, s.o, panel); });
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
