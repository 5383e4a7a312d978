// SPDX-License-Identifier: Apache-2.0
// exp, the logistic function, tanh, and the activations with their derivatives, on vectors.
#pragma once
#include "simd/vec.h"

namespace ff {
namespace FF_ISA {
namespace {

// exp(x) = 2^n · exp(r), n = round(x / ln 2), |r| <= ln(2)/2. ln 2 is split in two so that n·ln2 is exact in the first
// part; 2^n is applied in two halves so that results reach infinity and the denormals.
template <class T>
struct ExpTable;
template <>
struct ExpTable<float> {
  static constexpr float lo = -104.f, hi = 89.f, log2e = 1.44269504f, magic = 12582912.f;
  static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr int bias = 127, mantissa = 23, degree = 7;
  // Cephes expf: relative error 2e-7 over |r| <= ln(2)/2.
  static constexpr float coefficients[] = {1.9875691500e-4f,
                                           1.3981999507e-3f,
                                           8.3334519073e-3f,
                                           4.1665795894e-2f,
                                           1.6666665459e-1f,
                                           5.0000001201e-1f,
                                           1.f,
                                           1.f};
};
template <>
struct ExpTable<double> {
  static constexpr double lo = -746., hi = 710., log2e = 1.4426950408889634, magic = 6755399441055744.;
  static constexpr double ln2_hi = 0.693145751953125, ln2_lo = 1.42860682030941723212e-6;
  static constexpr int bias = 1023, mantissa = 52, degree = 13;
  // Taylor: the first term left out is below 4e-18.
  static constexpr double coefficients[] = {
      1. / 6227020800., 1. / 479001600., 1. / 39916800., 1. / 3628800., 1. / 362880., 1. / 40320., 1. / 5040.,
      1. / 720.,        1. / 120.,       1. / 24.,       1. / 6.,       1. / 2.,      1.,          1.};
};

template <class T>
FF_INLINE vec<T> exp(vec<T> x) {
  using E = ExpTable<T>;
  using I = typename Lane<T>::I;
  x = max_bound(min_bound(x, splat<T>(E::hi)), splat<T>(E::lo));
  const vec<T> shifted = fma(x, splat<T>(E::log2e), splat<T>(E::magic));
  const vec<T> n = shifted - splat<T>(E::magic);
  vec<T> r = fma(n, splat<T>(-E::ln2_hi), x);
  r = fma(n, splat<T>(-E::ln2_lo), r);
  vec<T> p = splat<T>(E::coefficients[0]);
  FF_UNROLL(16)
  for (int i = 1; i <= E::degree; ++i) p = fma(p, r, splat<T>(E::coefficients[i]));
  const I exponent = (I)shifted - (I)splat<T>(E::magic);
  const I half = exponent >> 1;
  const I rest = exponent - half;
  return p * (vec<T>)((half + E::bias) << E::mantissa) * (vec<T>)((rest + E::bias) << E::mantissa);
}

template <class T>
FF_INLINE vec<T> logistic(vec<T> x) {
  return splat<T>(1) / (splat<T>(1) + exp<T>(-x));
}

// Cephes tanhf and tanh: x + x³·P(x²)/Q(x²) below 0.625, where 1 - 2/(exp(2x) + 1) would cancel.
template <class T>
struct TanhTable;
template <>
struct TanhTable<float> {
  static constexpr int p_degree = 4, q_degree = 0;
  static constexpr float p[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                                -3.33332819422e-1f};
  static constexpr float q[] = {1.f};
};
template <>
struct TanhTable<double> {
  static constexpr int p_degree = 2, q_degree = 3;
  static constexpr double p[] = {-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3};
  static constexpr double q[] = {1., 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3};
};

template <class T>
FF_INLINE vec<T> tanh(vec<T> x) {
  using Table = TanhTable<T>;
  const vec<T> zero = {}, one = splat<T>(1), square = x * x, size = x < zero ? -x : x;
  vec<T> p = splat<T>(Table::p[0]), q = splat<T>(Table::q[0]);
  FF_UNROLL(4)
  for (int i = 1; i <= Table::p_degree; ++i) p = fma(p, square, splat<T>(Table::p[i]));
  FF_UNROLL(4)
  for (int i = 1; i <= Table::q_degree; ++i) q = fma(q, square, splat<T>(Table::q[i]));
  if constexpr (Table::q_degree > 0) p = p / q;
  const vec<T> near = fma(x * square, p, x);
  const vec<T> far = one - splat<T>(2) / (exp<T>(size + size) + one);
  return size < splat<T>(T(0.625)) ? near : (x < zero ? -far : far);
}

// act(x), NaN and infinities as torch. Divisions by constants are products: a division takes as long as the rest of a
// pass over data in cache, and 6·(1/6) rounds to 1 in both types.
template <Act A, class T>
FF_INLINE vec<T> activate(vec<T> x) {
  const vec<T> zero = {}, three = splat<T>(3), six = splat<T>(6), sixth = splat<T>(T(1) / T(6));
  if constexpr (A == Act::relu) return max_bound(x, zero);
  if constexpr (A == Act::relu6) return min_bound(max_bound(x, zero), six);
  if constexpr (A == Act::hardswish) return x * (min_bound(max_bound(x + three, zero), six) * sixth);
  if constexpr (A == Act::hardsigmoid) return min_bound(max_bound(x + three, zero), six) * sixth;
  if constexpr (A == Act::silu) return x / (splat<T>(1) + exp<T>(-x));
  if constexpr (A == Act::sigmoid) return logistic<T>(x);
  return x;
}

// dy · act'(x), with torch's choice at the kinks and for NaN.
template <Act A, class T>
FF_INLINE vec<T> activate_grad(vec<T> dy, vec<T> x) {
  const vec<T> zero = {}, one = splat<T>(1), three = splat<T>(3), six = splat<T>(6), sixth = splat<T>(T(1) / T(6));
  if constexpr (A == Act::relu) return x <= zero ? zero : dy;
  if constexpr (A == Act::relu6) return ((x <= zero) | (x >= six)) ? zero : dy;
  if constexpr (A == Act::hardswish) {
    const vec<T> inner = dy * fma(x, splat<T>(T(1) / T(3)), splat<T>(T(0.5)));
    return x <= -three ? zero : (x >= three ? dy : inner);
  }
  if constexpr (A == Act::hardsigmoid) return ((x > -three) & (x < three)) ? dy * sixth : zero;
  if constexpr (A == Act::silu) {
    const vec<T> s = logistic<T>(x);
    return dy * s * (one + x * (one - s));
  }
  if constexpr (A == Act::sigmoid) {
    const vec<T> s = logistic<T>(x);
    return dy * s * (one - s);
  }
  return dy;
}

template <Act A>
struct ActTag {
  static constexpr Act value = A;
};

// Calls body(ActTag<act>{}): the switch stays outside the loops.
template <class Body>
FF_INLINE void with_act(Act act, const Body& body) {
  switch (act) {
    case Act::none: body(ActTag<Act::none>{}); return;
    case Act::relu: body(ActTag<Act::relu>{}); return;
    case Act::relu6: body(ActTag<Act::relu6>{}); return;
    case Act::hardswish: body(ActTag<Act::hardswish>{}); return;
    case Act::hardsigmoid: body(ActTag<Act::hardsigmoid>{}); return;
    case Act::silu: body(ActTag<Act::silu>{}); return;
    case Act::sigmoid: body(ActTag<Act::sigmoid>{}); return;
  }
  FF_ASSERT(false);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
