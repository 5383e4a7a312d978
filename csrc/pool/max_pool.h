// SPDX-License-Identifier: Apache-2.0
// Max pooling over windows, vectorised over channels, parallel over bands of rows. Training keeps each maximum's place
// in its window, one byte beside four; backward then gathers: every input element adds what the windows that cover it
// send to its place, in the order of the outputs, so that dx is written once and x is not read. Windows of 2×2 and 3×3
// with stride 2 are unrolled away from the edges.
#pragma once
#include "pool/best.h"
#include "pool/op.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kBandBytes = 64 << 10;

// Rows of `bytes` a task.
FF_INLINE idx band_rows(idx bytes) { return max_idx(1, kBandBytes / max_idx(bytes, 1)); }

// Taps [begin, end) of a window that starts at `start` which lie in [0, size).
struct Taps {
  idx begin, end;
};
FF_INLINE Taps taps_inside(idx start, idx size, idx kernel) {
  return {max_idx(0, -start), min_idx(kernel, size - start)};
}

// One output pixel. The window's first element would be at x[origin]; K > 0: all K×K taps are inside.
template <class T, class P, int K>
FF_INLINE void max_of_window(const MaxPoolParams& p, const T* x, idx origin, Taps rows, Taps columns, T* y,
                             P* positions) {
  const idx row_step = p.w * p.c, k0 = K ? 0 : rows.begin, l0 = K ? 0 : columns.begin;
  for_lanes<T>(p.c, [&](idx c, idx n) {
    const T* first = x + origin + k0 * row_step + l0 * p.c + c;
    Best<T> best{load_n<T>(first, n), splat_index<T>(k0 * p.kw + l0)};
    const auto take = [&](idx k, idx l) {
      const vec<T> v = load_n<T>(x + origin + k * row_step + l * p.c + c, n);
      if (positions)
        best.take(v, splat_index<T>(k * (K ? K : p.kw) + l));
      else
        best.take(v);
    };
    if constexpr (K > 0) {
      FF_UNROLL(4)
      for (int k = 0; k < K; ++k) {
        FF_UNROLL(4)
        for (int l = 0; l < K; ++l)
          if (k + l > 0) take(k, l);
      }
    } else {
      for (idx k = k0; k < rows.end; ++k)
        for (idx l = l0 + (k == k0); l < columns.end; ++l) take(k, l);
    }
    store_n<T>(y + c, best.value, n);
    if (positions) store_positions<T, P>(positions + c, best.position, n);
  });
}

// One row of outputs; `positions` null: not wanted.
template <class T, class P, int K, bool Track>
FF_NOINLINE void max_pool_row(const MaxPoolParams& p, const T* image, idx i, T* y, P* positions) {
  const idx top = i * p.sh - p.top;
  const Taps rows = taps_inside(top, p.h, p.kh);
  const bool whole = rows.end - rows.begin == p.kh;
  for (idx j = 0; j < p.ow; ++j) {
    const idx left = j * p.sw - p.left, origin = (top * p.w + left) * p.c;
    const Taps columns = taps_inside(left, p.w, p.kw);
    P* at = Track ? positions + j * p.c : nullptr;
    if (K > 0 && whole && columns.end - columns.begin == K)
      max_of_window<T, P, K>(p, image, origin, rows, columns, y + j * p.c, at);
    else
      max_of_window<T, P, 0>(p, image, origin, rows, columns, y + j * p.c, at);
  }
}

template <class T, class P, int K, bool Track>
FF_INLINE void max_pool_rows(const MaxPoolParams& p) {
  const idx rows = p.n * p.oh, band = band_rows(p.sh * p.w * p.c * static_cast<idx>(sizeof(T)));
  for_tasks(ceil_div(rows, band), p.threads, [&](idx task) {
    for (idx r = task * band; r < min_idx(rows, (task + 1) * band); ++r) {
      const T* image = static_cast<const T*>(p.x) + r / p.oh * p.h * p.w * p.c;
      const idx at = r * p.ow * p.c;
      max_pool_row<T, P, K, Track>(p, image, r % p.oh, static_cast<T*>(p.y) + at,
                                   Track ? static_cast<P*>(p.positions) + at : nullptr);
    }
  });
}

// Windows along an axis that cover position q (counted from the padding's edge): outputs [first, last], the tap of
// `first` is q - first·stride.
struct Covering {
  idx first, last;
};
FF_INLINE Covering windows_over(idx q, idx outputs, idx kernel, idx stride) {
  return {q < kernel ? 0 : (q - kernel) / stride + 1, min_idx(q / stride, outputs - 1)};
}

// What the windows of output row i, columns [first, last], send to input column q.
template <class T, class P>
FF_INLINE vec<T> gather(const MaxPoolParams& p, const T* dy, const P* positions, idx i, idx tap_row, Covering columns,
                        idx q, idx c, idx n, vec<T> sum) {
  for (idx j = columns.first; j <= columns.last; ++j) {
    const idx at = (i * p.ow + j) * p.c + c;
    const ivec<T> here = splat_index<T>(tap_row * p.kw + q - j * p.sw);
    sum = sum + (load_positions<T, P>(positions + at, n) == here ? load_n<T>(dy + at, n) : vec<T>{});
  }
  return sum;
}

// dx of one pixel, any window.
template <class T, class P>
FF_INLINE void gather_pixel(const MaxPoolParams& p, const T* dy, const P* positions, idx q_row, Covering rows, idx q,
                            T* dx) {
  const Covering columns = windows_over(q, p.ow, p.kw, p.sw);
  for_lanes<T>(p.c, [&](idx c, idx n) {
    vec<T> sum = {};
    for (idx i = rows.first; i <= rows.last; ++i)
      sum = gather<T, P>(p, dy, positions, i, q_row - i * p.sh, columns, q, c, n, sum);
    store_n<T>(dx + c, sum, n);
  });
}

// dx of the two pixels of columns 2j and 2j + 1 from the padding's edge, stride 2, all windows there.
template <class T, class P, int K>
FF_INLINE void gather_pair(const MaxPoolParams& p, const T* dy, const P* positions, idx q_row, Covering rows, idx j,
                           T* dx, idx dx_stride) {
  for_lanes<T>(p.c, [&](idx c, idx n) {
    vec<T> even = {}, odd = {};
    for (idx i = rows.first; i <= rows.last; ++i) {
      const idx tap = (q_row - 2 * i) * K, at = (i * p.ow + j) * p.c + c;
      if (K == 3) {
        const ivec<T> before = load_positions<T, P>(positions + at - p.c, n);
        even = even + (before == splat_index<T>(tap + 2) ? load_n<T>(dy + at - p.c, n) : vec<T>{});
      }
      const ivec<T> here = load_positions<T, P>(positions + at, n);
      const vec<T> grad = load_n<T>(dy + at, n);
      even = even + (here == splat_index<T>(tap) ? grad : vec<T>{});
      odd = odd + (here == splat_index<T>(tap + 1) ? grad : vec<T>{});
    }
    store_n<T>(dx + c, even, n);
    store_n<T>(dx + dx_stride + c, odd, n);
  });
}

// Columns [first, end) of a row of dx, the pixels `dx_stride` elements apart.
template <class T, class P, int K>
FF_NOINLINE void max_pool_row_backward(const MaxPoolParams& p, const T* dy, const P* positions, idx row, idx first,
                                       idx end, T* dx, idx dx_stride) {
  const idx q_row = row + p.top;
  const Covering rows = windows_over(q_row, p.oh, p.kh, p.sh);
  for (idx column = first; column < end;) {
    const idx q = column + p.left, j = q / 2;
    T* to = dx + (column - first) * dx_stride;
    if (K > 0 && q % 2 == 0 && j >= K - 2 && j < p.ow && column + 1 < end) {
      gather_pair<T, P, K>(p, dy, positions, q_row, rows, j, to, dx_stride);
      column += 2;
    } else {
      gather_pixel<T, P>(p, dy, positions, q_row, rows, q, to);
      ++column;
    }
  }
}

template <class T, class P, int K>
FF_INLINE void max_pool_rows_backward(const MaxPoolParams& p) {
  const idx rows = p.n * p.h, band = band_rows(p.w * p.c * static_cast<idx>(sizeof(T)));
  for_tasks(ceil_div(rows, band), p.threads, [&](idx task) {
    for (idx r = task * band; r < min_idx(rows, (task + 1) * band); ++r) {
      const idx image = r / p.h * p.oh * p.ow * p.c;
      max_pool_row_backward<T, P, K>(p, static_cast<const T*>(p.dy) + image, static_cast<const P*>(p.positions) + image,
                                     r % p.h, 0, p.w, static_cast<T*>(p.dx) + r * p.w * p.c, p.c);
    }
  });
}

// Calls body(P{}, Count<K>{}): the type of the positions, and K for an unrolled window, 0 for any.
template <int K>
struct Unrolled {
  static constexpr int value = K;
};
template <class Body>
FF_INLINE void with_window(const MaxPoolParams& p, const Body& body) {
  const bool square = p.kh == p.kw && p.sh == 2 && p.sw == 2;
  if (square && p.kh == 2) return body(uint8_t{}, Unrolled<2>{});
  if (square && p.kh == 3) return body(uint8_t{}, Unrolled<3>{});
  if (p.kh * p.kw <= 256) return body(uint8_t{}, Unrolled<0>{});
  body(int32_t{}, Unrolled<0>{});
}

template <class T, bool Track>
FF_INLINE void max_pool_forward(const MaxPoolParams& p) {
  with_window(
      p, [&](auto position, auto window) { max_pool_rows<T, decltype(position), decltype(window)::value, Track>(p); });
}

template <class T>
FF_INLINE void max_pool_backward(const MaxPoolParams& p) {
  with_window(p, [&](auto position, auto window) {
    max_pool_rows_backward<T, decltype(position), decltype(window)::value>(p);
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
