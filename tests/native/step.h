// SPDX-License-Identifier: Apache-2.0
// What stands between the kernels of a recorded step, and a small step in one arena whose memories share bytes.
#pragma once
#include "harness.h"
#include "step/between.h"

namespace {

template <class T>
void step_sums(idx count) {
  Random random(static_cast<uint32_t>(count) + 5);
  const Values a = random.values(count), b = random.values(count);
  Values sum = a, product = a;
  for (idx i = 0; i < count; ++i) sum[at(i)] += b[at(i)], product[at(i)] *= 0.75;
  const In<T> in_a(a), in_b(b);
  const T factor = T(0.75);
  const std::string name = "step of " + std::to_string(count);
  expect<T>(name, {{sum}, {sum}, {product}, {a}, {Values(at(count), 2.5)}}, 1, [&](int threads) {
    Out<T> out(count), inplace(count), scaled(count), copied(count), filled(count);
    const idx bytes = count * static_cast<idx>(sizeof(T));
    step::add<T>({count, in_a.ptr(), in_b.ptr(), out.ptr(), threads});
    step::copy({bytes, in_a.ptr(), inplace.ptr(), threads});
    step::add<T>({count, inplace.ptr(), in_b.ptr(), inplace.ptr(), threads});
    step::scale<T>({count, in_a.ptr(), &factor, scaled.ptr()});
    step::copy({bytes, in_a.ptr(), copied.ptr(), threads});
    step::fill<T>({count, 2.5, filled.ptr()});
    return Results<T>{{"sum", out.take(name)},
                      {"sum in place", inplace.take(name)},
                      {"product", scaled.take(name)},
                      {"copy", copied.take(name)},
                      {"fill", filled.take(name)}};
  });
}

// NCHW to NHWC, of 4 or 8 bytes an element.
template <class T, class Word>
void step_layouts(idx n, idx c, idx h, idx w) {
  const Values x = Random(3).values(n * c * h * w);
  Values want = x;
  for (idx i = 0; i < n * c * h * w; ++i) {
    const idx image = i / (c * h * w), channel = i / (h * w) % c, pixel = i % (h * w);
    want[at((image * h * w + pixel) * c + channel)] = x[at(i)];
  }
  const In<T> in(x);
  expect<T>("step, layout", {{want}}, 1, [&](int) {
    Out<T> out(n * c * h * w);
    step::strided_copy<Word>({n, c, h, w, c * h * w, h * w, w, 1, c * h * w, 1, w * c, c, in.ptr(), out.ptr()});
    return Results<T>{{"y", out.take("step, layout")}};
  });
}

void step_counters() {
  idx whole = 41;
  float single = 7;
  double twofold = 9;
  step::count_up({1, &whole}), step::tick<float>({2, &single}), step::tick<double>({3, &twofold});
  check(whole == 42 && single == 9 && twofold == 12, "step: counters");
}

// Forward, a gradient made of its result, backward: in memories of their own, which a sanitizer tells apart, and in one
// arena where the gradient lies over the result; three times, as replays are.
template <class T>
void step_in_an_arena(idx rows, idx in, idx out) {
  Random random(11);
  const In<T> x(random.values(rows * in)), weight(random.values(out * in)), factor({0.5});
  const auto computed = [&](T* taken, T* y, T* gradient, T* dx, T* dw, int threads) {
    PointwiseParams p{};
    p.rows = rows, p.in_channels = in, p.out_channels = out, p.threads = threads;
    p.x = taken, p.weight = weight.ptr(), p.y = y;
    PointwiseParams back = p;
    back.dy = gradient, back.dx = dx, back.d_weight = dw;
    for (int i = 0; i < 3; ++i) {
      step::copy({rows * in * static_cast<idx>(sizeof(T)), x.ptr(), taken, threads});
      call<T>(pointwise_conv2d_fwd_f32, pointwise_conv2d_fwd_f64, p);
      step::scale<T>({rows * out, y, factor.ptr(), gradient});
      step::add<T>({rows * out, gradient, gradient, gradient, threads});
      call<T>(pointwise_conv2d_bwd_f32, pointwise_conv2d_bwd_f64, back);
    }
  };
  std::vector<T> taken(at(rows * in)), y(at(rows * out)), gradient(at(rows * out)), dx(at(rows * in)), dw(at(out * in));
  computed(taken.data(), y.data(), gradient.data(), dx.data(), dw.data(), 1);
  const std::string name = "step in an arena";
  expect<T>(name, {{{dx.begin(), dx.end()}}, {{dw.begin(), dw.end()}}}, 1, [&](int threads) {
    Out<T> arena(rows * (2 * in + out)), d_weight(out * in);
    T *const result = arena.ptr() + rows * in, *const d_input = result + rows * out;
    computed(arena.ptr(), result, result, d_input, d_weight.ptr(), threads);
    const std::vector<T> whole = arena.take(name);
    return Results<T>{{"dx", {whole.end() - rows * in, whole.end()}}, {"dw", d_weight.take(name)}};
  });
}

template <class T, class Word>
void steps() {
  for (idx count : {0, 1, 7, 8, 15, 16, 17, 33, 16384, 40001}) step_sums<T>(count);
  step_layouts<T, Word>(2, 3, 5, 7);
  step_in_an_arena<T>(1300, 24, 40);
}

}  // namespace
