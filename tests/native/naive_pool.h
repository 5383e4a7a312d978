// SPDX-License-Identifier: Apache-2.0
// Formulas of the families pool and cbam as plain loops over float64.
#pragma once
#include <limits>

#include "cbam/op.h"
#include "naive.h"
#include "pool/op.h"

namespace naive {

struct Pooled {
  Values y, dx;
};

inline Pooled max_pool(const ff::MaxPoolParams& s, const Values& x, const Values& dy) {
  Pooled result{zeros(s.n * s.oh * s.ow * s.c), zeros(s.n * s.h * s.w * s.c)};
  for (idx o = 0; o < s.n * s.oh * s.ow * s.c; ++o) {
    const idx c = o % s.c, j = o / s.c % s.ow, i = o / s.c / s.ow % s.oh, n = o / s.c / s.ow / s.oh;
    double best = -std::numeric_limits<double>::infinity();
    idx place = -1;
    for (idx k = 0; k < s.kh; ++k)
      for (idx l = 0; l < s.kw; ++l) {
        const idx row = i * s.sh + k - s.top, column = j * s.sw + l - s.left;
        if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
        const idx from = ((n * s.h + row) * s.w + column) * s.c + c;
        if (place < 0 || x[at(from)] > best) best = x[at(from)], place = from;
      }
    result.y[at(o)] = best, result.dx[at(place)] += dy[at(o)];
  }
  return result;
}

struct Global {
  Values avg, max, place, dx;
};

inline Global global_pool(idx n, idx pixels, idx c, const Values& x, const Values& davg, const Values& dmax) {
  Global g{zeros(n * c), zeros(n * c), zeros(n * c), zeros(n * pixels * c)};
  for (idx o = 0; o < n * c; ++o) {
    idx best = o / c * pixels * c + o % c, first = best;
    for (idx p = 0; p < pixels; ++p) {
      g.avg[at(o)] += x[at(first + p * c)] / static_cast<double>(pixels);
      if (x[at(first + p * c)] > x[at(best)]) best = first + p * c;
      g.dx[at(first + p * c)] += davg[at(o)] / static_cast<double>(pixels);
    }
    g.max[at(o)] = x[at(best)], g.place[at(o)] = static_cast<double>((best - first) / c), g.dx[at(best)] += dmax[at(o)];
  }
  return g;
}

struct CbamIn {
  idx n, h, w, c, hidden, k;
  Values x, w1, b1, w2, b2, weight, norm_weight, norm_bias, norm_mean, norm_var, dout;  // w1, weight empty: no such gate
  bool batch;
  double eps = 1e-3;
};
struct CbamOut {
  Values out, dx, d_w1, d_b1, d_w2, d_b2, d_weight, d_norm_weight, d_norm_bias;
  double terms = 0;  // largest sum of the sizes of the terms of a parameter's gradient
};

inline double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

inline CbamOut cbam(const CbamIn& in) {
  const idx pixels = in.h * in.w, plane = in.n * pixels, half = in.k / 2, k = in.k;
  const Global pooled = global_pool(in.n, pixels, in.c, in.x, zeros(in.n * in.c), zeros(in.n * in.c));
  const bool channel = !in.w1.empty(), spatial = !in.weight.empty();
  Values gate(at(in.n * in.c), 1), hidden = zeros(2 * in.n * in.hidden), u = in.x;
  for (idx n = 0; channel && n < in.n; ++n) {
    for (idx v = 0; v < 2; ++v)
      for (idx j = 0; j < in.hidden; ++j) {
        double& sum = hidden[at((v * in.n + n) * in.hidden + j)];
        sum = in.b1[at(j)];
        for (idx c = 0; c < in.c; ++c) sum += in.w1[at(j * in.c + c)] * (v ? pooled.max : pooled.avg)[at(n * in.c + c)];
      }
    for (idx c = 0; c < in.c; ++c) {
      double z = 2 * in.b2[at(c)];
      for (idx v = 0; v < 2; ++v)
        for (idx j = 0; j < in.hidden; ++j)
          z += in.w2[at(c * in.hidden + j)] * std::fmax(0, hidden[at((v * in.n + n) * in.hidden + j)]);
      gate[at(n * in.c + c)] = sigmoid(z);
    }
  }
  for (idx i = 0; i < plane * in.c; ++i) u[at(i)] *= gate[at(i / (pixels * in.c) * in.c + i % in.c)];
  Values planes[2] = {zeros(plane), zeros(plane)}, y = zeros(plane), s(at(plane), 1), t = zeros(plane), best = zeros(plane);
  for (idx p = 0; p < plane; ++p) {
    for (idx c = 0; c < in.c; ++c) {
      const double v = u[at(p * in.c + c)];
      if (v > u[at(p * in.c + static_cast<idx>(best[at(p)]))]) best[at(p)] = static_cast<double>(c);
      planes[1][at(p)] += v / static_cast<double>(in.c);
      t[at(p)] += in.dout[at(p * in.c + c)] * v;
    }
    planes[0][at(p)] = u[at(p * in.c + static_cast<idx>(best[at(p)]))];
  }
  // Calls body(plane, weight index, pixel read, pixel written) for every product of the convolution.
  const auto taps = [&](const auto& body) {
    for (idx p = 0; spatial && p < plane; ++p)
      for (idx i = 0; i < k; ++i)
        for (idx j = 0; j < k; ++j) {
          const idx row = p / in.w % in.h + i - half, column = p % in.w + j - half;
          if (row < 0 || row >= in.h || column < 0 || column >= in.w) continue;
          for (idx v = 0; v < 2; ++v) body(v, at((v * k + i) * k + j), at(p / pixels * pixels + row * in.w + column), at(p));
        }
  };
  taps([&](idx v, size_t w, size_t from, size_t to) { y[to] += in.weight[w] * planes[v][from]; });
  const Norm norm{in.norm_weight, in.norm_bias, in.norm_mean, in.norm_var, in.eps};
  const Values line = stats(norm, y, 1, in.batch);
  if (spatial) s = norm_act(norm, line, 6, y, 1);
  CbamOut r{u, in.x, zeros(in.hidden * in.c), zeros(in.hidden), zeros(in.hidden * in.c), zeros(in.c), zeros(2 * k * k), {}, {}};
  const Grads at_norm = norm_act_grads(norm, line, 6, y, t, 1, in.batch);
  if (spatial) r.d_norm_weight = at_norm.dw, r.d_norm_bias = at_norm.db;
  Values dplanes[2] = {zeros(plane), zeros(plane)}, dgate = zeros(in.n * in.c), davg = dgate, dmax = dgate;
  taps([&](idx v, size_t w, size_t from, size_t to) {
    dplanes[v][from] += in.weight[w] * at_norm.dx[to], r.d_weight[w] += at_norm.dx[to] * planes[v][from];
  });
  for (idx i = 0; i < plane * in.c; ++i) {
    const idx p = i / in.c, c = i % in.c, g = p / pixels * in.c + c;
    const double du = in.dout[at(i)] * s[at(p)] + dplanes[1][at(p)] / static_cast<double>(in.c) +
                      (c == static_cast<idx>(best[at(p)]) ? dplanes[0][at(p)] : 0);
    r.out[at(i)] = u[at(i)] * s[at(p)], r.dx[at(i)] = du * gate[at(g)], dgate[at(g)] += du * in.x[at(i)];
    r.terms += std::fabs(in.dout[at(i)]);
  }
  for (idx n = 0; channel && n < in.n; ++n)
    for (idx c = 0; c < in.c; ++c) {
      const size_t g = at(n * in.c + c);
      const double dz = dgate[g] * gate[g] * (1 - gate[g]);
      r.d_b2[at(c)] += 2 * dz;
      for (idx j = 0; j < in.hidden; ++j)
        for (idx v = 0; v < 2; ++v) {
          const double h = hidden[at((v * in.n + n) * in.hidden + j)];
          r.d_w2[at(c * in.hidden + j)] += dz * std::fmax(0, h);
          if (h <= 0) continue;
          const double dh = dz * in.w2[at(c * in.hidden + j)];
          r.d_b1[at(j)] += dh;
          for (idx e = 0; e < in.c; ++e) {
            r.d_w1[at(j * in.c + e)] += dh * (v ? pooled.max : pooled.avg)[at(n * in.c + e)];
            (v ? dmax : davg)[at(n * in.c + e)] += dh * in.w1[at(j * in.c + e)];
          }
        }
    }
  const Global back = global_pool(in.n, pixels, in.c, in.x, davg, dmax);
  for (size_t i = 0; channel && i < r.dx.size(); ++i) r.dx[i] += back.dx[i];
  return r;
}

}  // namespace naive
