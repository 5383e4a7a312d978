// SPDX-License-Identifier: Apache-2.0
// Every kernel's formula (see the families' op.h) as plain loops over float64: the self-test's oracle.
#pragma once
#include <cmath>
#include <vector>

#include "conv2d/op.h"
#include "separable_conv/op.h"

namespace naive {

using ff::ConvShape;
using ff::DepthwiseShape;
using ff::idx;
using Values = std::vector<double>;

inline size_t at(idx i) { return static_cast<size_t>(i); }
inline Values zeros(idx n) { return Values(at(n)); }

inline double activate(int act, double x) {
  const double relu6 = std::fmin(std::fmax(x + 3, 0), 6);
  switch (act) {
    case 1: return x > 0 ? x : 0;
    case 2: return std::fmin(std::fmax(x, 0), 6);
    case 3: return x * relu6 / 6;
    case 4: return relu6 / 6;
    case 5: return x / (1 + std::exp(-x));
    case 6: return 1 / (1 + std::exp(-x));
    default: return x;
  }
}

inline double slope(int act, double x) {
  const double s = 1 / (1 + std::exp(-x));
  switch (act) {
    case 1: return x > 0;
    case 2: return x > 0 && x < 6;
    case 3: return x <= -3 ? 0 : x >= 3 ? 1 : x / 3 + 0.5;
    case 4: return x > -3 && x < 3 ? 1. / 6 : 0;
    case 5: return s * (1 + x * (1 - s));
    case 6: return s * (1 - s);
    default: return 1;
  }
}

// Calls body(x index, w index, y index) for every product of the convolution.
template <class Body>
void each_tap(const DepthwiseShape& s, const Body& body) {
  for (idx n = 0; n < s.n; ++n)
    for (idx i = 0; i < s.oh; ++i)
      for (idx j = 0; j < s.ow; ++j)
        for (idx k = 0; k < s.kh; ++k)
          for (idx l = 0; l < s.kw; ++l) {
            const idx row = i * s.sh + k - s.top, column = j * s.sw + l - s.left;
            if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
            for (idx c = 0; c < s.c; ++c)
              body(at(((n * s.h + row) * s.w + column) * s.c + c), at((c * s.kh + k) * s.kw + l),
                   at(((n * s.oh + i) * s.ow + j) * s.c + c));
          }
}

// Sums over rows of [rows][channels].
inline Values column_sums(const Values& g, idx channels) {
  Values sums = zeros(channels);
  for (size_t i = 0; i < g.size(); ++i) sums[i % at(channels)] += g[i];
  return sums;
}

inline Values broadcast(const Values& bias, idx rows, idx channels) {
  Values y = zeros(rows * channels);
  for (size_t i = 0; i < y.size(); ++i) y[i] = bias.empty() ? 0 : bias[i % at(channels)];
  return y;
}

inline Values depthwise(const DepthwiseShape& s, const Values& x, const Values& w, const Values& bias) {
  Values y = broadcast(bias, s.n * s.oh * s.ow, s.c);
  each_tap(s, [&](size_t xi, size_t wi, size_t yi) { y[yi] += x[xi] * w[wi]; });
  return y;
}

// Largest element, by size.
inline double largest(const Values& v) {
  double most = 0;
  for (double value : v) most = std::fmax(most, std::fabs(value));
  return most;
}

inline double largest_sum(Values g, idx channels) {
  for (double& value : g) value = std::fabs(value);
  return largest(column_sums(g, channels));
}

// Gradients, and the largest sum of the sizes of the terms of dw and db: what rounding is measured by where terms
// cancel, as with batch statistics, where a bias has no gradient at all.
struct Grads {
  Values dx, dw, db;
  double dw_terms, db_terms;
};

inline Grads depthwise_grads(const DepthwiseShape& s, const Values& dy, const Values& x, const Values& w) {
  Grads g{zeros(s.n * s.h * s.w * s.c), zeros(s.c * s.kh * s.kw), column_sums(dy, s.c), 0, largest_sum(dy, s.c)};
  Values terms = g.dw;
  each_tap(s, [&](size_t xi, size_t wi, size_t yi) {
    g.dx[xi] += dy[yi] * w[wi];
    g.dw[wi] += dy[yi] * x[xi];
    terms[wi] += std::fabs(dy[yi] * x[xi]);
  });
  g.dw_terms = largest(terms);
  return g;
}

inline Values pointwise(idx rows, idx in, idx out, const Values& x, const Values& w, const Values& bias) {
  Values y = broadcast(bias, rows, out);
  for (idx m = 0; m < rows; ++m)
    for (idx o = 0; o < out; ++o)
      for (idx c = 0; c < in; ++c) y[at(m * out + o)] += x[at(m * in + c)] * w[at(o * in + c)];
  return y;
}

inline Grads pointwise_grads(idx rows, idx in, idx out, const Values& dy, const Values& x, const Values& w) {
  Grads g{zeros(rows * in), zeros(out * in), column_sums(dy, out), 0, largest_sum(dy, out)};
  Values terms = g.dw;
  for (idx m = 0; m < rows; ++m)
    for (idx o = 0; o < out; ++o)
      for (idx c = 0; c < in; ++c) {
        g.dx[at(m * in + c)] += dy[at(m * out + o)] * w[at(o * in + c)];
        g.dw[at(o * in + c)] += dy[at(m * out + o)] * x[at(m * in + c)];
        terms[at(o * in + c)] += std::fabs(dy[at(m * out + o)] * x[at(m * in + c)]);
      }
  g.dw_terms = largest(terms);
  return g;
}

// Calls body(x index, w index, y index) for every product of a dense convolution.
template <class Body>
void each_product(const ConvShape& s, const Body& body) {
  for (idx row = 0; row < s.n * s.oh; ++row)
    for (idx j = 0; j < s.ow; ++j)
      for (idx k = 0; k < s.kh; ++k)
        for (idx l = 0; l < s.kw; ++l) {
          const idx y = row % s.oh * s.sh + k - s.top, x = j * s.sw + l - s.left;
          if (y < 0 || y >= s.h || x < 0 || x >= s.w) continue;
          for (idx c = 0; c < s.c; ++c)
            for (idx o = 0; o < s.o; ++o)
              body(at(((row / s.oh * s.h + y) * s.w + x) * s.c + c), at(((o * s.c + c) * s.kh + k) * s.kw + l),
                   at((row * s.ow + j) * s.o + o));
        }
}

inline Values conv(const ConvShape& s, const Values& x, const Values& w, const Values& bias) {
  Values y = broadcast(bias, s.n * s.oh * s.ow, s.o);
  each_product(s, [&](size_t xi, size_t wi, size_t yi) { y[yi] += x[xi] * w[wi]; });
  return y;
}

inline Grads conv_grads(const ConvShape& s, const Values& dy, const Values& x, const Values& w) {
  Grads g{zeros(s.n * s.h * s.w * s.c), zeros(s.o * s.c * s.kh * s.kw), column_sums(dy, s.o), 0, largest_sum(dy, s.o)};
  Values terms = g.dw;
  each_product(s, [&](size_t xi, size_t wi, size_t yi) {
    g.dx[xi] += dy[yi] * w[wi];
    g.dw[wi] += dy[yi] * x[xi];
    terms[wi] += std::fabs(dy[yi] * x[xi]);
  });
  g.dw_terms = largest(terms);
  return g;
}

struct Norm {
  Values weight, bias, mean, var;  // empty: no normalisation
  double eps = 1e-3;
};

// [3][channels]: mean, 1/sqrt(var + eps), unbiased variance of y, or of the constants.
inline Values stats(const Norm& norm, const Values& y, idx channels, bool batch) {
  Values s = zeros(norm.weight.empty() ? 0 : 3 * channels);
  const double rows = static_cast<double>(y.size()) / static_cast<double>(channels);
  for (idx c = 0; c < channels && !s.empty(); ++c) {
    double mean = norm.mean[at(c)], var = norm.var[at(c)], unbiased = var;
    if (batch) {
      mean = var = 0;
      for (size_t i = at(c); i < y.size(); i += at(channels)) mean += y[i] / rows;
      for (size_t i = at(c); i < y.size(); i += at(channels)) var += (y[i] - mean) * (y[i] - mean) / rows;
      unbiased = var * rows / (rows - 1);
    }
    s[at(c)] = mean, s[at(channels + c)] = 1 / std::sqrt(var + norm.eps), s[at(2 * channels + c)] = unbiased;
  }
  return s;
}

// act(norm(y)).
inline Values norm_act(const Norm& norm, const Values& s, int act, const Values& y, idx channels) {
  Values z = y;
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t c = i % at(channels), n = at(channels);
    if (!norm.weight.empty()) z[i] = (y[i] - s[c]) * s[n + c] * norm.weight[c] + norm.bias[c];
    z[i] = activate(act, z[i]);
  }
  return z;
}

// Gradients of y (dx), of the norm's weight (dw) and bias (db) from that of norm_act's result.
inline Grads norm_act_grads(const Norm& norm, const Values& s, int act, const Values& y, const Values& dz, idx channels,
                            bool batch) {
  const size_t n = at(channels);
  Grads g{dz, {}, {}, 0, 0};
  Values scaled = dz;  // g · (y - mean) · invstd
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t c = i % n;
    const double unit = norm.weight.empty() ? y[i] : (y[i] - s[c]) * s[n + c];
    const double z = norm.weight.empty() ? y[i] : unit * norm.weight[c] + norm.bias[c];
    g.dx[i] = dz[i] * slope(act, z);
    scaled[i] = g.dx[i] * unit;
  }
  if (norm.weight.empty()) return g;
  g.dw = column_sums(scaled, channels), g.db = column_sums(g.dx, channels);
  g.dw_terms = largest_sum(scaled, channels), g.db_terms = largest_sum(g.dx, channels);
  const double rows = static_cast<double>(y.size() / n);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t c = i % n;
    const double unit = (y[i] - s[c]) * s[n + c];
    if (batch) g.dx[i] -= (g.db[c] + unit * g.dw[c]) / rows;
    g.dx[i] *= s[n + c] * norm.weight[c];
  }
  return g;
}

}  // namespace naive
