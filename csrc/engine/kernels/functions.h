// SPDX-License-Identifier: Apache-2.0
// The functions of functions.h on vectors; NaN and infinities as torch.
#pragma once
#include "engine/kernels/logistic.h"
#include "engine/kernels/tensor.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::BinaryOp;
using engine::UnaryOp;
using veci = i32v;

FF_INLINE vecf number(veci mask) { return mask ? splat(1.f) : vecf{}; }
FF_INLINE vecf magnitude(vecf x) { return (vecf)((veci)x & 0x7fffffff); }
FF_INLINE vecf with_sign(vecf size, vecf x) { return (vecf)((veci)size | ((veci)x & static_cast<int>(0x80000000u))); }

FF_INLINE vecf square_root(vecf x) {
  alignas(64) float lane[L];
  store(lane, x);
  for (idx l = 0; l < L; ++l) lane[l] = __builtin_sqrtf(lane[l]);
  return load(lane);
}

// Cephes logf: x = m·2^e with sqrt(1/2) <= m < sqrt(2).
FF_INLINE vecf logarithm(vecf x) {
  constexpr float kInf = __builtin_inff();
  const vecf zero = {}, one = splat(1.f);
  const veci small = x < splat(1.17549435e-38f);
  const vecf scaled = small ? x * splat(8388608.f) : x;
  veci e = ((veci)scaled >> 23) - 126 - (small ? veci{} + 23 : veci{});
  vecf m = (vecf)(((veci)scaled & 0x007fffff) | 0x3f000000);
  const veci low = m < splat(0.707106781186547524f);
  e = low ? e - 1 : e;
  m = (low ? m + m : m) - one;
  const vecf z = m * m, n = __builtin_convertvector(e, vecf);
  constexpr float kTerms[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                              -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                              2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  vecf p = splat(kTerms[0]);
  FF_UNROLL(8)
  for (int i = 1; i < 9; ++i) p = fma(p, m, splat(kTerms[i]));
  vecf y = fma(n, splat(-2.12194440e-4f), p * m * z) - splat(0.5f) * z;
  y = fma(n, splat(0.693359375f), m + y);
  y = x == splat(kInf) ? x : y;
  y = x == zero ? splat(-kInf) : y;
  return x >= zero ? y : splat(__builtin_nanf(""));
}

// log(1 + e), e >= 0: the rounding of 1 + e is made up for.
FF_INLINE vecf log_of_more(vecf e) {
  const vecf one = splat(1.f), u = one + e, y = logarithm(u) * (e / (u - one));
  return u == one ? e : (u == splat(__builtin_inff()) ? u : y);
}

// Minimax rational function below 4, beyond which the result is 1.
FF_INLINE vecf error_function(vecf v) {
  constexpr float kP[] = {-2.72614225801306e-10f, 2.77068142495902e-08f,  -2.10102402082508e-06f,
                          -5.69250639462346e-05f, -7.34990630326855e-04f, -2.95459980854025e-03f,
                          -1.60960333262415e-02f};
  constexpr float kQ[] = {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f,
                          -7.37332916720468e-03f, -1.42647390514189e-02f};
  const vecf x = max_bound(min_bound(v, splat(4.f)), splat(-4.f)), square = x * x;
  vecf p = splat(kP[0]), q = splat(kQ[0]);
  FF_UNROLL(8)
  for (int i = 1; i < 7; ++i) p = fma(p, square, splat(kP[i]));
  FF_UNROLL(8)
  for (int i = 1; i < 5; ++i) q = fma(q, square, splat(kQ[i]));
  return magnitude(v) >= splat(4.f) ? with_sign(splat(1.f), v) : x * p * reciprocal(q);
}

// The whole number next to 0, which vectors convert to; those from 2^23 on are whole.
FF_INLINE vecf towards_zero(vecf x) {
  const veci fits = magnitude(x) < splat(8388608.f);
  const vecf safe = fits ? x : vecf{};
  return fits ? __builtin_convertvector(__builtin_convertvector(safe, veci), vecf) : x;
}
FF_INLINE vecf to_even(vecf x) {
  const vecf magic = splat(8388608.f), size = magnitude(x), whole = (size + magic) - magic;
  return size < magic ? with_sign(whole, x) : x;
}

FF_INLINE vecf power(vecf x, vecf a) {
  const vecf zero = {}, one = splat(1.f), size = magnitude(x), whole = towards_zero(a);
  const vecf y = exp<float>(a * logarithm(size));
  const veci odd = towards_zero(whole * splat(0.5f)) * splat(2.f) != whole;
  const vecf of_negative = whole == a ? (odd ? -y : y) : splat(__builtin_nanf(""));
  const veci at_the_ends = (x == zero) | (size == splat(__builtin_inff())), negates = odd & (whole == a);
  const vecf of_the_ends = negates ? -y : y;
  const vecf signed_y = (veci)x < veci{} ? (at_the_ends ? of_the_ends : of_negative) : y;
  return ((a == zero) | (x == one)) ? one : (x != x ? x : signed_y);
}

// Cephes sinf and cosf: x less n·pi/2 by three parts of pi/2, the first two of few bits. Beyond 8192 a lane at a time.
template <bool Cosine>
FF_INLINE vecf sine(vecf x) {
  constexpr float kMost = 8192.f, kHalfPi[] = {1.5703125f, 4.837512969970703e-4f, 7.549789948768648e-8f};
  const vecf size = magnitude(x), safe = size <= splat(kMost) ? x : vecf{};
  const vecf n = to_even(safe * splat(0.636619772367581343f));
  const veci quarter = __builtin_convertvector(n, veci) + (Cosine ? 1 : 0);
  vecf r = safe;
  FF_UNROLL(4)
  for (int i = 0; i < 3; ++i) r = fma(n, splat(-kHalfPi[i]), r);
  const vecf z = r * r;
  const vecf s =
      fma(fma(fma(splat(-1.9515295891e-4f), z, splat(8.3321608736e-3f)), z, splat(-1.6666654611e-1f)), z * r, r);
  const vecf c =
      fma(fma(fma(splat(2.443315711809948e-5f), z, splat(-1.388731625493765e-3f)), z, splat(4.166664568298827e-2f)),
          z * z, fma(splat(-0.5f), z, splat(1.f)));
  const vecf y = (quarter & 1) != 0 ? c : s, result = (quarter & 2) != 0 ? -y : y;
  alignas(64) float lane[L], far[L];
  store(lane, result), store(far, size <= splat(kMost) ? vecf{} : x);
  for (idx l = 0; l < L; ++l)
    if (far[l] != 0.f) lane[l] = Cosine ? __builtin_cosf(far[l]) : __builtin_sinf(far[l]);
  return load(lane);
}

template <UnaryOp F>
FF_INLINE vecf unary_value(vecf x, vecf a, vecf b) {
  const vecf zero = {}, one = splat(1.f);
  if constexpr (F == UnaryOp::abs) return magnitude(x);
  if constexpr (F == UnaryOp::sqrt) return square_root(x);
  if constexpr (F == UnaryOp::rsqrt) return one / square_root(x);
  if constexpr (F == UnaryOp::reciprocal) return one / x;
  if constexpr (F == UnaryOp::exp) return exp<float>(x);
  if constexpr (F == UnaryOp::log) return logarithm(x);
  if constexpr (F == UnaryOp::square) return x * x;
  if constexpr (F == UnaryOp::power) return power(x, a);
  if constexpr (F == UnaryOp::tanh) return tanh<float>(x);
  if constexpr (F == UnaryOp::erf) return error_function(x);
  if constexpr (F == UnaryOp::gelu) return splat(0.5f) * x * (one + error_function(x * splat(0.70710678118654752f)));
  if constexpr (F == UnaryOp::gelu_tanh) {
    const vecf inner = splat(0.79788456080286536f) * fma(splat(0.044715f) * x * x, x, x);
    return splat(0.5f) * x * (one + tanh<float>(inner));
  }
  if constexpr (F == UnaryOp::elu) return x > zero ? b * x : a * (exp<float>(x) - one);
  if constexpr (F == UnaryOp::leaky_relu) return x > zero ? x : a * x;
  if constexpr (F == UnaryOp::mish) {
    const vecf e = exp<float>(min_bound(x, splat(20.f))), n = e * (e + splat(2.f));
    return x * (x > splat(20.f) ? one : n * reciprocal(n + splat(2.f)));
  }
  if constexpr (F == UnaryOp::softplus) {
    const vecf scaled = a * x;
    return scaled > b ? x : log_of_more(exp<float>(scaled)) / a;
  }
  if constexpr (F == UnaryOp::softsign) return x / (one + magnitude(x));
  if constexpr (F == UnaryOp::log_sigmoid) return min_bound(x, zero) - log_of_more(exp<float>(-magnitude(x)));
  if constexpr (F == UnaryOp::clamp) return min_bound(max_bound(x, a), b);
  if constexpr (F == UnaryOp::at_least) return max_bound(x, a);
  if constexpr (F == UnaryOp::at_most) return min_bound(x, b);
  if constexpr (F == UnaryOp::threshold) return x <= a ? b : x;
  if constexpr (F == UnaryOp::hard_shrink) return magnitude(x) <= a ? zero : x;
  if constexpr (F == UnaryOp::soft_shrink) return x > a ? x - a : (x < -a ? x + a : x * zero);
  if constexpr (F == UnaryOp::sign) return x > zero ? one : (x < zero ? -one : zero);
  if constexpr (F == UnaryOp::floor) {
    const vecf y = towards_zero(x);
    return y > x ? y - one : y;
  }
  if constexpr (F == UnaryOp::ceil) {
    const vecf y = towards_zero(x);
    return y < x ? y + one : y;
  }
  if constexpr (F == UnaryOp::round) return to_even(x);
  if constexpr (F == UnaryOp::trunc) return towards_zero(x);
  if constexpr (F == UnaryOp::is_nan) return number(x != x);
  if constexpr (F == UnaryOp::equal) return number(x == a);
  if constexpr (F == UnaryOp::not_equal) return number(x != a);
  if constexpr (F == UnaryOp::less) return number(x < a);
  if constexpr (F == UnaryOp::less_equal) return number(x <= a);
  if constexpr (F == UnaryOp::greater) return number(x > a);
  if constexpr (F == UnaryOp::greater_equal) return number(x >= a);
  if constexpr (F == UnaryOp::sin) return sine<false>(x);
  if constexpr (F == UnaryOp::cos) return sine<true>(x);
  return x;
}

template <BinaryOp F>
FF_INLINE vecf binary_value(vecf x, vecf y) {
  if constexpr (F == BinaryOp::add) return x + y;
  if constexpr (F == BinaryOp::sub) return x - y;
  if constexpr (F == BinaryOp::mul) return x * y;
  if constexpr (F == BinaryOp::div) return x / y;
  if constexpr (F == BinaryOp::maximum) return larger(x, y);
  if constexpr (F == BinaryOp::minimum) return smaller(x, y);
  if constexpr (F == BinaryOp::power) return power(x, y);
  if constexpr (F == BinaryOp::equal) return number(x == y);
  if constexpr (F == BinaryOp::not_equal) return number(x != y);
  if constexpr (F == BinaryOp::less) return number(x < y);
  if constexpr (F == BinaryOp::less_equal) return number(x <= y);
  if constexpr (F == BinaryOp::greater) return number(x > y);
  if constexpr (F == BinaryOp::greater_equal) return number(x >= y);
  if constexpr (F == BinaryOp::leaky_relu) return x > vecf{} ? x : y * x;
  return x;
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
