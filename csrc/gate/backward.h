// SPDX-License-Identifier: Apache-2.0
// Gates, backward: a read of x and dout for the sums of their product by channel and by pixel; the gates' gradients; a
// read of dout that writes dx. With `pool` both compute the products of a 2×2 window again, and its first largest takes
// the gradient.
#pragma once
#include "gate/forward.h"

namespace ff {
namespace FF_ISA {
namespace {

// Pixels of an image handled together: `Count` that adjoin, each with its gradient, or the four of a window with one.
template <class T>
struct Quad {
  const T *x, *dout;  // dout null: no gradient reaches these pixels
  idx steps[kQuad];  // of the pixels
  const T* pixel;  // gates of the image's pixels from x on
};

// Gradients at the products of a quad's channels: dout, or in a window that of its first largest product.
template <class T, bool Window, int Count>
FF_INLINE void product_grads(const Quad<T>& q, const vec<T>* v, vec<T> gate, idx c, idx n, idx channels, vec<T>* d) {
  const vec<T> zero = {};
  if constexpr (!Window) {
    FF_UNROLL(4)
    for (int u = 0; u < Count; ++u) d[u] = q.dout ? load_n<T>(q.dout + u * channels + c, n) : zero;
  } else {
    vec<T> most = v[0] * (gate + splat<T>(q.pixel[q.steps[0]])), winner = zero;
    FF_UNROLL(4)
    for (int u = 1; u < Count; ++u) {
      const vec<T> y = v[u] * (gate + splat<T>(q.pixel[q.steps[u]]));
      // Two selections of one comparison each: GCC 12 fails on their union at -O1 (internal compiler error).
      const vec<T> place = splat<T>(T(u)), kept = y == y ? most : y, kept_place = y == y ? winner : place;
      winner = y > most ? place : kept_place;
      most = y > most ? y : kept;
    }
    const vec<T> dout = load_n<T>(q.dout + c, n);
    FF_UNROLL(4)
    for (int u = 0; u < Count; ++u) d[u] = winner == splat<T>(T(u)) ? dout : zero;
  }
}

// Adds dout · x of a quad to the channels' sums, and leaves that of its pixels by lanes.
template <class T, bool Window, int Count>
FF_INLINE void read_quad(const Quad<T>& q, const T* gates, idx channels, T* channel_sums, T* pixel_sums) {
  vec<T> sum[Count] = {};
  for_lanes<T>(channels, [&](idx c, idx n) {
    vec<T> v[Count], d[Count], channel = load(channel_sums + c);
    FF_UNROLL(4)
    for (int u = 0; u < Count; ++u) v[u] = load_n<T>(q.x + q.steps[u] * channels + c, n);
    product_grads<T, Window, Count>(q, v, load(gates + c), c, n, channels, d);
    FF_UNROLL(4)
    for (int u = 0; u < Count; ++u) {
      channel = fma(v[u], d[u], channel);
      sum[u] = fma(v[u], d[u], sum[u]);
    }
    store(channel_sums + c, channel);
  });
  FF_UNROLL(4)
  for (int u = 0; u < Count; ++u) store(pixel_sums + u * lanes<T>, sum[u]);
}

// What a pixel's and a channel's means and maxima hand to dx.
template <class T>
struct Shares {
  const T *gates, *channel;  // of channels, padded: gate, gradient of each element through the mean
  const T *pixel, *d_logits, *at;  // of pixels from x on: gate, gradient of the logit; channel of the maximum or null
  const T* weights;  // linear: of channels, padded
  T of_max, of_mean;  // sw[0], sw[1] / c
};

template <class T, bool Window, int Count>
FF_INLINE void write_quad(T* dx, const Quad<T>& q, idx channels, const Shares<T>& s) {
  vec<T> gate[Count], each[Count];
  FF_UNROLL(4)
  for (int u = 0; u < Count; ++u) {
    const T d = s.d_logits[q.steps[u]];
    gate[u] = splat<T>(s.pixel[q.steps[u]]);
    each[u] = splat<T>(s.weights ? d : d * s.of_mean);
  }
  for_lanes<T>(channels, [&](idx c, idx n) {
    const vec<T> g = load(s.gates + c), share = load(s.channel + c), one = splat<T>(1);
    const vec<T> weight = s.weights ? load(s.weights + c) : one;
    vec<T> v[Count], d[Count];
    if (Window) {
      FF_UNROLL(4)
      for (int u = 0; u < Count; ++u) v[u] = load_n<T>(q.x + q.steps[u] * channels + c, n);
    }
    product_grads<T, Window, Count>(q, v, g, c, n, channels, d);
    FF_UNROLL(4)
    for (int u = 0; u < Count; ++u)
      store_n<T>(dx + q.steps[u] * channels + c, fma(d[u], g + gate[u], fma(each[u], weight, share)), n);
  });
  if (!s.at) return;
  for (int u = 0; u < Count; ++u)
    dx[q.steps[u] * channels + static_cast<idx>(s.at[q.steps[u]])] += s.d_logits[q.steps[u]] * s.of_max;
}

// Calls body(Count<pixels>, Window?, quad) for the pixels of rows [row, row + rows) of an image, `x` and `pixel` from
// the first of these on.
template <class T, class Body>
FF_INLINE void for_quads(const GateParams& p, const T* x, const T* pixel, const T* dout, idx row, idx rows,
                         const Body& body) {
  if (!p.pool) {
    const idx count = rows * p.w;
    const T* d = dout + row * p.w * p.c;
    idx at = 0;
    for (; at + kQuad <= count; at += kQuad)
      body(Count<kQuad>{}, Count<0>{}, Quad<T>{x + at * p.c, d + at * p.c, {0, 1, 2, 3}, pixel + at}, at);
    for (; at < count; ++at) body(Count<1>{}, Count<0>{}, Quad<T>{x + at * p.c, d + at * p.c, {}, pixel + at}, at);
    return;
  }
  const auto alone = [&](idx at) { body(Count<1>{}, Count<0>{}, Quad<T>{x + at * p.c, nullptr, {}, pixel + at}, at); };
  idx i = 0;
  for (; i + 1 < rows; i += 2) {
    const T* d = dout + (row + i) / 2 * (p.w / 2) * p.c;
    for (idx j = 0; j + 1 < p.w; j += 2, d += p.c) {
      const idx at = i * p.w + j;
      body(Count<kQuad>{}, Count<1>{}, Quad<T>{x + at * p.c, d, {0, 1, p.w, p.w + 1}, pixel + at}, at);
    }
    if (p.w % 2) alone(i * p.w + p.w - 1), alone((i + 1) * p.w + p.w - 1);
  }
  for (idx j = 0; i < rows && j < p.w; ++j) alone(i * p.w + j);
}

// Sums of dout · x over a band: by channel, and by pixel into `pixel_sums` [count].
template <class T>
FF_NOINLINE void measure_products(const GateParams& p, const T* x, const T* pixel, const T* dout, idx row, idx rows,
                                  const T* gates, T* channel_sums, T* pixel_sums, T* partial) {
  constexpr idx L = lanes<T>;
  idx filled = 0, place[L];
  const auto flush = [&] {
    T results[L];
    store(results, reduce_lanes_of<T>(partial, Add{}));
    for (idx u = 0; u < filled; ++u) pixel_sums[place[u]] = results[u];
    filled = 0;
  };
  for_quads<T>(p, x, pixel, dout, row, rows, [&](auto count, auto window, const Quad<T>& q, idx at) {
    constexpr int N = decltype(count)::value;
    if (filled + N > L) flush();
    if constexpr (N <= L) {
      read_quad<T, decltype(window)::value != 0, N>(q, gates, p.c, channel_sums, partial + filled * L);
      for (int u = 0; u < N; ++u) place[filled++] = at + q.steps[u];
    } else {  // vectors of two lanes: a quad is two of them
      T quad_sums[N * L];
      read_quad<T, decltype(window)::value != 0, N>(q, gates, p.c, channel_sums, quad_sums);
      for (int u = 0; u < N; ++u) {
        T sum = 0;
        for (idx lane = 0; lane < L; ++lane) sum += quad_sums[u * L + lane];
        pixel_sums[at + q.steps[u]] = sum;
      }
    }
  });
  flush();
}

// A band's logit gradients from its pixels' sums, in place, and the sums that d_sw and d_sb are made of: [0] bias, then
// [1] maximum and [2] mean, or, linear, d_weights [c] += logit gradient · x.
template <class T>
FF_NOINLINE void pixel_backward(const GateParams& p, const T* x, const T* values, idx plane, const T* gates, idx count,
                                T* d, double* sums, T* d_weights) {
  sums[0] = sums[1] = sums[2] = 0;
  for (idx i = 0; i < count; ++i) {
    d[i] *= gates[i] * (T(1) - gates[i]);
    sums[0] += static_cast<double>(d[i]);
    if (p.linear) continue;
    sums[1] += static_cast<double>(d[i]) * static_cast<double>(values[i]);
    sums[2] += static_cast<double>(d[i]) * static_cast<double>(values[plane + i]);
  }
  if (!p.linear || !p.d_sw) return;
  for_groups<T>(p.c, [&](auto group, idx c, idx n) {
    constexpr int V = decltype(group)::value;
    auto sum = Channels<T, V>::from(nullptr, c);
    for (idx i = 0; i < count; ++i) {
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u)
        sum.v[u] = fma(splat<T>(d[i]), load_n<T>(x + i * p.c + c + u * lanes<T>, n), sum.v[u]);
    }
    sum.to(d_weights, c);
  });
}

template <class T>
struct GateBackward {
  T *gates, *sums, *d_channel, *channel, *active, *d_hidden, *means;  // of images; rows of stride or hidden_stride
  T *pixel, *d_logits, *weights, *d_weights;  // of pixels [n][plane]; of channels
  double* pixel_sums;  // [n][bands][3]
  idx stride, hidden_stride;

  void take(Arena& a, const GateParams& p, const Bands& bands) {
    const idx pixels = p.sw ? p.n * p.h * p.w : 0;
    stride = round_up_lanes<T>(p.c), hidden_stride = round_up_lanes<T>(p.hidden);
    gates = a.take<T>(p.n * stride), sums = a.take<T>(p.n * bands.count * stride);
    d_channel = a.take<T>(p.n * stride), channel = a.take<T>(p.n * stride), means = a.take<T>(p.w2 ? p.n * stride : 0);
    active = a.take<T>(p.w2 ? p.n * hidden_stride : 0), d_hidden = a.take<T>(p.w2 ? p.n * hidden_stride : 0);
    pixel = a.take<T>(pixels), d_logits = a.take<T>(p.n * p.h * p.w), weights = a.take<T>(p.c);
    d_weights = a.take<T>(p.linear ? p.n * bands.count * stride : 0);
    pixel_sums = a.take<double>(p.n * bands.count * 3);
  }
};

// Channel gates and pixel gates of an image, from what training kept.
template <class T>
FF_INLINE void gates_again(const GateParams& p, const GateBackward<T>& b, idx image) {
  const idx plane = p.h * p.w, planes = p.linear ? 1 : 3;
  T* gates = b.gates + image * b.stride;
  fill_zero(gates, b.stride);
  if (p.w1) {
    ChannelValues<T> v{};
    Arena a(Scratch::task);
    v.take(a, p);
    channel_logits<T>(p, static_cast<const T*>(p.means) + image * p.c, v);
    act_vector<T>(gates, v.logits, p.c, p.gate_act);
  }
  if (p.sw)
    pixel_gates<T>(p, static_cast<const T*>(p.pixels) + image * planes * plane, plane, plane, b.pixel + image * plane);
}

// An image's channel side: what each element gets through the mean, and what the parameters' gradients are made of.
template <class T>
FF_INLINE void channel_side(const GateParams& p, const GateBackward<T>& b, const Bands& bands, idx image) {
  T *d = b.d_channel + image * b.stride, *share = b.channel + image * b.stride;
  fill_zero(share, b.stride);
  if (!p.w1) return;
  ChannelValues<T> v{};
  Arena a(Scratch::task);
  v.take(a, p);
  T* sums = b.sums + image * bands.count * b.stride;
  fold_parts(sums, bands.count, b.stride, p.c);
  copy_padded(d, sums, p.c);
  const T* means = static_cast<const T*>(p.means) + image * p.c;
  channel_logits<T>(p, means, v);
  channel_backward<T>(p, v, d, p.w2 ? b.d_hidden + image * b.hidden_stride : nullptr, share);
  const T pixels = static_cast<T>(p.h * p.w);
  for (idx c = 0; c < p.c; ++c) share[c] /= pixels;
  if (!p.w2) return;
  copy_padded(b.active + image * b.hidden_stride, v.active, p.hidden);
  copy_padded(b.means + image * b.stride, means, p.c);
}

template <class T>
FF_INLINE void parameter_gradients(const GateParams& p, const GateBackward<T>& b, const Bands& bands) {
  if (p.d_w1 && !p.w2) conv_gradient<T>(p, b.d_channel, b.stride, static_cast<const T*>(p.means));
  if (p.d_w1 && p.w2) {
    outer_sums<T>(static_cast<T*>(p.d_w1), static_cast<T*>(p.d_b1), b.d_hidden, b.hidden_stride, b.means, b.stride, p.n,
                  p.hidden, p.c);
    outer_sums<T>(static_cast<T*>(p.d_w2), static_cast<T*>(p.d_b2), b.d_channel, b.stride, b.active, b.hidden_stride,
                  p.n, p.c, p.hidden);
  }
  if (!p.d_sw) return;
  double total[3] = {};
  for (idx part = 0; part < p.n * bands.count; ++part)
    for (int k = 0; k < 3; ++k) total[k] += b.pixel_sums[part * 3 + k];
  T *d_sw = static_cast<T*>(p.d_sw), *d_sb = static_cast<T*>(p.d_sb);
  d_sb[0] = static_cast<T>(total[0]);
  if (!p.linear) {
    d_sw[0] = static_cast<T>(total[1]), d_sw[1] = static_cast<T>(total[2]);
    return;
  }
  for (idx c = 0; c < p.c; ++c) {
    double sum = 0;
    for (idx part = 0; part < p.n * bands.count; ++part) sum += static_cast<double>(b.d_weights[part * b.stride + c]);
    d_sw[c] = static_cast<T>(sum);
  }
}

template <class T>
FF_INLINE void gate_backward(const GateParams& p) {
  const Bands bands = Bands::of<T>(p);
  const idx plane = p.h * p.w, planes = p.linear ? 1 : 3, size = plane * p.c;
  const idx dout_size = p.pool ? p.h / 2 * (p.w / 2) * p.c : size;
  const T *x = static_cast<const T*>(p.x), *dout = static_cast<const T*>(p.dout),
          *values = static_cast<const T*>(p.pixels);
  const T* sw = static_cast<const T*>(p.sw);
  GateBackward<T> b{};
  LinkedInput<T> linked_input;
  const idx parts = p.n * bands.count;
  Arena a(Scratch::shared);
  b.take(a, p, bands), linked_input.take(a, p.linked_input, p.c, parts);
  linked_input.fill(p.linked_input, p.c);
  const idx room_size = linked_input ? bands.rows * p.w * p.c : 0;
  const bool streamed = linked_input && streamable(static_cast<T*>(p.dx), p.n * size, p.c);
  if (p.linear) copy_padded(b.weights, sw, p.c);
  for_tasks(p.n, p.threads, [&](idx image) { gates_again<T>(p, b, image); });
  for_images(
      p, bands,
      [&](idx image, idx band) {
        const idx row = band * bands.rows, rows = min_idx(bands.rows, p.h - row), first = row * p.w, count = rows * p.w;
        const idx part = image * bands.count + band;
        T *sums = b.sums + part * b.stride, *d = b.d_logits + image * plane + first, *partial = nullptr,
          *room = nullptr;
        Arena a(Scratch::task);
        partial = a.take<T>(lanes<T> * lanes<T>), room = a.take<T>(room_size);
        fill_zero(sums, b.stride);
        const T* from = normalised(linked_input, x + image * size + first * p.c, count, p.c, room);
        const T* pixel = sw ? b.pixel + image * plane + first : nullptr;
        if (!sw) {
          sum_pixels<T, true>(from, dout + image * dout_size + first * p.c, count, p.c, sums);
          return;
        }
        measure_products<T>(p, from, pixel, dout + image * dout_size, row, rows, b.gates + image * b.stride, sums, d,
                            partial);
        pixel_backward<T>(p, from, values + image * planes * plane + first, plane, pixel, count, d,
                          b.pixel_sums + part * 3, b.d_weights + part * b.stride);
      },
      [&](idx image) { channel_side<T>(p, b, bands, image); },
      [&](idx image, idx band) {
        if (!p.dx) return;
        const idx row = band * bands.rows, rows = min_idx(bands.rows, p.h - row), first = row * p.w;
        const bool pooled = !p.linear;
        const idx at = image * plane + first;
        T *dx = static_cast<T*>(p.dx) + image * size + first * p.c, *room = nullptr, *dz = dx, *linked_sums = nullptr;
        if (linked_input) {
          Arena a(Scratch::task);
          room = a.take<T>(room_size), dz = a.take<T>(room_size), linked_sums = a.take<T>(2 * b.stride);
        }
        const T *raw = x + image * size + first * p.c, *from = normalised(linked_input, raw, rows * p.w, p.c, room);
        const auto finish = [&] {
          if (!linked_input) return;
          const idx part = image * bands.count + band;
          linked_input.zero(part);
          linked_input.gradient(dx, dz, raw, rows * p.w, p.c, part, linked_sums, streamed);
          if (streamed) stream_fence();
        };
        if (!sw) {
          affine_act_rows<T>(dz, p.c, dout + image * dout_size + first * p.c, p.c, rows * p.w, p.c,
                             b.gates + image * b.stride, b.channel + image * b.stride, Act::none);
          finish();
          return;
        }
        const T* pixel = b.pixel + at;
        const T* places = pooled ? values + (image * 3 + 2) * plane + first : nullptr;
        for_quads<T>(
            p, from, pixel, dout + image * dout_size, row, rows, [&](auto count, auto window, const Quad<T>& q, idx i) {
              const Shares<T> shares{
                  b.gates + image * b.stride, b.channel + image * b.stride,  pixel + i,
                  b.d_logits + at + i,        places ? places + i : nullptr, p.linear ? b.weights : nullptr,
                  pooled ? sw[0] : T(0),      pooled ? sw[1] / T(p.c) : T(0)};
              write_quad<T, decltype(window)::value != 0, decltype(count)::value>(dz + i * p.c, q, p.c, shares);
            });
        finish();
      });
  linked_input.finish(p.linked_input, p.c, parts);
  parameter_gradients<T>(p, b, bands);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
