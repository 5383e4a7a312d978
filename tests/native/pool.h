// SPDX-License-Identifier: Apache-2.0
// The self-test of pooling: windows and whole images. Values repeat, so that maxima tie and their first place counts.
#pragma once
#include "pool/op.h"
#include "harness.h"

namespace {

// With `nan` every eleventh value is one.
Values coarse(Random& random, idx count, bool nan) {
  Values v = random.values(count);
  for (double& x : v) x = std::round(x * 4) / 4;
  for (idx i = 5; i < count && nan; i += 11) v[at(i)] = NAN;
  return v;
}

// NaN is the largest, the last of several.
bool larger(double x, double best) { return x > best || std::isnan(x); }

struct MaxPooled {
  Values y, places;           // places in the window
  std::vector<size_t> from;   // elements of x
};

MaxPooled max_pooled(const DepthwiseShape& s, const Values& x) {
  const size_t size = at(pixels(s) * s.c);
  MaxPooled p{Values(size, -INFINITY), Values(size), std::vector<size_t>(size)};
  naive::each_tap(s, [&](size_t xi, size_t wi, size_t yi) {
    if (larger(x[xi], p.y[yi]))
      p.y[yi] = x[xi], p.from[yi] = xi, p.places[yi] = static_cast<double>(wi % at(s.kh * s.kw));
  });
  return p;
}

MaxPoolParams max_pool_params(const DepthwiseShape& s, int threads) {
  MaxPoolParams p{};
  p.n = s.n, p.h = s.h, p.w = s.w, p.c = s.c, p.oh = s.oh, p.ow = s.ow, p.kh = s.kh, p.kw = s.kw, p.sh = s.sh,
  p.sw = s.sw;
  p.top = s.top, p.left = s.left, p.threads = threads;
  return p;
}

template <class T, class P>
void max_pool(const std::string& isa, const DepthwiseShape& s, bool nan = false) {
  Random random(static_cast<uint32_t>(s.c + s.kh));
  const idx size_x = s.n * s.h * s.w * s.c, size_y = pixels(s) * s.c;
  const Values x = coarse(random, size_x, nan), dy = random.values(size_y);
  const MaxPooled pooled = max_pooled(s, x);
  Values dx = naive::zeros(size_x);
  for (size_t i = 0; i < dy.size(); ++i) dx[pooled.from[i]] += dy[i];
  const In<T> in_x(x), in_dy(dy);
  const std::string name = isa + " max pooling" + text(s) + (nan ? " with NaN" : "");
  expect<T>(name, {{pooled.y}, {pooled.y}, {pooled.places}, {dx, 4}}, s.kh * s.kw, [&](int threads) {
    Out<T> y(size_y), trained(size_y), o_dx(size_x);
    Out<P> places(size_y);
    MaxPoolParams p = max_pool_params(s, threads);
    p.x = in_x.ptr(), p.y = y.ptr();
    call<T>(max_pool2d_fwd_f32, max_pool2d_fwd_f64, p);
    p.y = trained.ptr(), p.positions = places.ptr();
    call<T>(max_pool2d_train_f32, max_pool2d_train_f64, p);
    p.x = p.y = nullptr, p.dy = in_dy.ptr(), p.dx = o_dx.ptr();
    call<T>(max_pool2d_bwd_f32, max_pool2d_bwd_f64, p);
    return Results<T>{{"y", y.take(name)},
                      {"y of training", trained.take(name)},
                      {"places", numbers<T>(places.take(name))},
                      {"dx", o_dx.take(name)}};
  });
}

template <class T>
void global_pool(const std::string& isa, idx n, idx pixels, idx c, bool nan = false) {
  Random random(static_cast<uint32_t>(pixels + c));
  const Values x = coarse(random, n * pixels * c, nan), davg = random.values(n * c), dmax = random.values(n * c);
  Values avg = naive::zeros(n * c), max = avg, places = avg;
  Values dx_avg = naive::zeros(n * pixels * c), dx_max = dx_avg, dx_both = dx_avg;
  for (idx k = 0; k < n * c; ++k) {
    const idx first = k / c * pixels * c + k % c;
    idx best = 0;
    for (idx i = 0; i < pixels; ++i) {
      const size_t from = at(first + i * c);
      avg[at(k)] += x[from] / static_cast<double>(pixels), dx_avg[from] = davg[at(k)] / static_cast<double>(pixels);
      if (larger(x[from], x[at(first + best * c)])) best = i;
    }
    max[at(k)] = x[at(first + best * c)], places[at(k)] = static_cast<double>(best),
    dx_max[at(first + best * c)] = dmax[at(k)];
  }
  for (size_t i = 0; i < dx_both.size(); ++i) dx_both[i] = dx_avg[i] + dx_max[i];
  const In<T> in_x(x), in_davg(davg), in_dmax(dmax);
  const std::string name = isa + " global pooling " + std::to_string(n) + "x" + std::to_string(pixels) + "x" +
                           std::to_string(c) + (nan ? " with NaN" : "");
  const std::vector<Want> want{{avg, 2}, {max}, {places}, {avg, 2}, {max}, {places}, {dx_avg}, {dx_max}, {dx_both}};
  expect<T>(name, want, pixels, [&](int threads) {
    Out<T> avg1(n * c), max1(n * c), avg2(n * c), max2(n * c), dx1(n * pixels * c), dx2(n * pixels * c),
        dx3(n * pixels * c);
    Out<int32_t> places1(n * c), places2(n * c);
    GlobalPoolParams p{};
    p.n = n, p.pixels = pixels, p.c = c, p.x = in_x.ptr(), p.threads = threads;
    p.avg = avg1.ptr();
    call<T>(global_avg_pool_fwd_f32, global_avg_pool_fwd_f64, p);
    p.avg = nullptr, p.max = max1.ptr(), p.positions = places1.ptr();
    call<T>(global_max_pool_fwd_f32, global_max_pool_fwd_f64, p);
    p.avg = avg2.ptr(), p.max = max2.ptr(), p.positions = places2.ptr();
    call<T>(global_avg_max_pool_fwd_f32, global_avg_max_pool_fwd_f64, p);
    p.d_avg = in_davg.ptr(), p.dx = dx1.ptr();
    call<T>(global_avg_pool_bwd_f32, global_avg_pool_bwd_f64, p);
    p.d_avg = nullptr, p.d_max = in_dmax.ptr(), p.dx = dx2.ptr();
    call<T>(global_max_pool_bwd_f32, global_max_pool_bwd_f64, p);
    p.d_avg = in_davg.ptr(), p.dx = dx3.ptr();
    call<T>(global_avg_max_pool_bwd_f32, global_avg_max_pool_bwd_f64, p);
    return Results<T>{{"avg", avg1.take(name)},
                      {"max", max1.take(name)},
                      {"places", numbers<T>(places1.take(name))},
                      {"avg of both", avg2.take(name)},
                      {"max of both", max2.take(name)},
                      {"places of both", numbers<T>(places2.take(name))},
                      {"dx of avg", dx1.take(name)},
                      {"dx of max", dx2.take(name)},
                      {"dx of both", dx3.take(name)}};
  });
}

// Windows that are unrolled and not, with gaps and overlaps; of more than 256 elements places are wider.
template <class T>
void pools(const std::string& isa) {
  for (const DepthwiseShape& s :
       {shape(2, 8, 10, 17, 2, 2, 2, 2, 0, 0, 0, 0), shape(2, 9, 7, 8, 3, 3, 2, 2, 1, 1, 1, 1),
        shape(1, 7, 9, 5, 3, 3, 1, 1, 1, 1, 1, 1), shape(3, 6, 11, 33, 2, 3, 3, 2, 0, 1, 1, 1),
        shape(1, 9, 8, 1, 2, 2, 3, 4, 0, 0, 0, 0), shape(0, 4, 4, 8, 2, 2, 2, 2, 0, 0, 0, 0),
        shape(2, 40, 41, 16, 3, 3, 2, 2, 0, 1, 1, 0)})
    max_pool<T, uint8_t>(isa, s);
  max_pool<T, int32_t>(isa, shape(2, 20, 19, 9, 17, 16, 2, 1, 3, 2, 0, 1));
  max_pool<T, uint8_t>(isa, shape(2, 9, 7, 5, 3, 3, 2, 2, 1, 1, 1, 1), true);
  const idx sizes[][3] = {{2, 1, 1},   {3, 12, 3},   {2, 49, 8},  {1, 64, 16}, {9, 600, 2},
                          {2, 35, 17}, {1, 300, 33}, {2, 6, 131}, {0, 9, 4}};
  for (const auto& v : sizes) global_pool<T>(isa, v[0], v[1], v[2]);
  global_pool<T>(isa, 2, 24, 3, true), global_pool<T>(isa, 1, 25, 17, true);
}

}  // namespace
