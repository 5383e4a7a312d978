// SPDX-License-Identifier: Apache-2.0
// The self-test of attention: op.h's formulas as plain loops, and the kernels against them.
#pragma once
#include "attention/op.h"
#include "harness.h"

namespace {

struct DotShape {
  idx batch, queries, keys, depth, width;
};

struct DotGrads {
  Values out, dq, dk, dv;
  double dscale = 0, terms = 0;  // terms: largest sum of the sizes behind dscale
};

DotGrads naive_dot(const DotShape& s, const Values& q, const Values& k, const Values& v, const Values& dout,
                   double factor, double scale) {
  DotGrads g{naive::zeros(s.batch * s.queries * s.width), naive::zeros(s.batch * s.queries * s.depth),
             naive::zeros(s.batch * s.keys * s.depth), naive::zeros(s.batch * s.keys * s.width)};
  for (idx b = 0; b < s.batch; ++b)
    for (idx i = 0; i < s.queries; ++i) {
      const idx qi = (b * s.queries + i) * s.depth, oi = (b * s.queries + i) * s.width;
      Values raw = naive::zeros(s.keys), p = raw, dp = raw;
      double sum = 0, mean = 0;
      for (idx j = 0; j < s.keys; ++j) {
        for (idx d = 0; d < s.depth; ++d) raw[at(j)] += q[at(qi + d)] * k[at((b * s.keys + j) * s.depth + d)];
        sum += p[at(j)] = std::exp(factor * scale * raw[at(j)]);
      }
      for (idx j = 0; j < s.keys; ++j) {
        p[at(j)] /= sum;
        for (idx e = 0; e < s.width; ++e) {
          const size_t vj = at((b * s.keys + j) * s.width + e), o = at(oi + e);
          g.out[o] += p[at(j)] * v[vj], g.dv[vj] += p[at(j)] * dout[o], dp[at(j)] += dout[o] * v[vj];
        }
        mean += p[at(j)] * dp[at(j)];
      }
      for (idx j = 0; j < s.keys; ++j) {
        const double ds = p[at(j)] * (dp[at(j)] - mean);
        g.dscale += factor * ds * raw[at(j)], g.terms += std::fabs(factor * ds * raw[at(j)]);
        for (idx d = 0; d < s.depth; ++d) {
          const size_t kj = at((b * s.keys + j) * s.depth + d), qd = at(qi + d);
          g.dq[qd] += factor * scale * ds * k[kj], g.dk[kj] += factor * scale * ds * q[qd];
        }
      }
    }
  return g;
}

template <class T>
void dot_product(const std::string& isa, const DotShape& s) {
  Random random(static_cast<uint32_t>(s.queries + s.keys + s.depth));
  const Values q = random.values(s.batch * s.queries * s.depth), k = random.values(s.batch * s.keys * s.depth),
               v = random.values(s.batch * s.keys * s.width), dout = random.values(s.batch * s.queries * s.width);
  const double factor = 0.25, scale = 0.75;
  const DotGrads g = naive_dot(s, q, k, v, dout, factor, scale);
  const In<T> in_q(q), in_k(k), in_v(v), in_dout(dout), in_scale(Values{scale});
  const std::string name = isa + " dot-product attention " + std::to_string(s.batch) + "x" + std::to_string(s.queries) +
                           "x" + std::to_string(s.keys) + " " + std::to_string(s.depth) + " " + std::to_string(s.width);
  const std::vector<Want> want{{g.out}, {g.dq, 8}, {g.dk, 8}, {g.dv}, {{g.dscale}, g.terms + 1}};
  expect<T>(name, want, 4 * (s.queries + s.keys + s.depth + s.width), [&](int threads) {
    Out<T> out(s.batch * s.queries * s.width), stats(2 * s.batch * s.queries), dq(s.batch * s.queries * s.depth),
        dk(s.batch * s.keys * s.depth), dv(s.batch * s.keys * s.width), dscale(1);
    DotProductParams p{};
    p.batch = s.batch, p.queries = s.queries, p.keys = s.keys, p.depth = s.depth, p.width = s.width,
    p.threads = threads;
    p.q = in_q.ptr(), p.k = in_k.ptr(), p.v = in_v.ptr(), p.scale = in_scale.ptr(), p.factor = factor;
    p.out = out.ptr(), p.stats = stats.ptr();
    call<T>(dot_product_attention_fwd_f32, dot_product_attention_fwd_f64, p);
    p.dout = in_dout.ptr(), p.dq = dq.ptr(), p.dk = dk.ptr(), p.dv = dv.ptr(), p.dscale = dscale.ptr();
    call<T>(dot_product_attention_bwd_f32, dot_product_attention_bwd_f64, p);
    stats.take(name);
    return Results<T>{{"out", out.take(name)},
                      {"dq", dq.take(name)},
                      {"dk", dk.take(name)},
                      {"dv", dv.take(name)},
                      {"dscale", dscale.take(name)}};
  });
}

template <class T>
void additive(const std::string& isa, idx batch, idx tokens, idx dim, idx hidden) {
  Random random(static_cast<uint32_t>(tokens + dim + hidden));
  const idx rows = batch * tokens;
  const Values x = random.values(rows * dim), h = random.values(rows * dim), v = random.values(hidden),
               weight = random.values(hidden * 2 * dim, 0.3), bias = random.values(hidden),
               dout = random.values(batch * dim);
  Values u = naive::zeros(rows * hidden), a = naive::zeros(rows), out = naive::zeros(batch * dim),
         dx = naive::zeros(rows * dim), dh = dx, dw = naive::zeros(hidden * 2 * dim), db = naive::zeros(hidden),
         dv = db;
  for (idx b = 0; b < batch; ++b) {
    double sum = 0, mean = 0;
    for (idx t = b * tokens; t < (b + 1) * tokens; ++t) {
      double e = 0.5;
      for (idx i = 0; i < hidden; ++i) {
        double z = bias[at(i)];
        for (idx d = 0; d < dim; ++d)
          z +=
              weight[at(i * 2 * dim + d)] * x[at(t * dim + d)] + weight[at((i * 2 + 1) * dim + d)] * h[at(t * dim + d)];
        e += v[at(i)] * (u[at(t * hidden + i)] = std::tanh(z));
      }
      sum += a[at(t)] = std::exp(e);
    }
    Values reach = naive::zeros(rows);
    for (idx t = b * tokens; t < (b + 1) * tokens; ++t) {
      a[at(t)] /= sum;
      for (idx d = 0; d < dim; ++d) {
        out[at(b * dim + d)] += a[at(t)] * x[at(t * dim + d)];
        reach[at(t)] += dout[at(b * dim + d)] * x[at(t * dim + d)],
            dx[at(t * dim + d)] = a[at(t)] * dout[at(b * dim + d)];
      }
      mean += a[at(t)] * reach[at(t)];
    }
    for (idx t = b * tokens; t < (b + 1) * tokens; ++t)
      for (idx i = 0; i < hidden; ++i) {
        const double unit = u[at(t * hidden + i)], de = a[at(t)] * (reach[at(t)] - mean),
                     dz = de * v[at(i)] * (1 - unit * unit);
        db[at(i)] += dz, dv[at(i)] += de * unit;
        for (idx d = 0; d < dim; ++d) {
          const size_t wx = at(i * 2 * dim + d), wh = at((i * 2 + 1) * dim + d), xd = at(t * dim + d);
          dx[xd] += dz * weight[wx], dh[xd] += dz * weight[wh], dw[wx] += dz * x[xd], dw[wh] += dz * h[xd];
        }
      }
  }
  const In<T> in_x(x), in_h(h), in_w(weight), in_bias(bias), in_v(v), in_vb(Values{0.5}), in_dout(dout);
  const std::string name = isa + " additive attention " + std::to_string(batch) + "x" + std::to_string(tokens) + " " +
                           std::to_string(dim) + " " + std::to_string(hidden);
  const double terms = 16 * static_cast<double>(dim);
  const std::vector<Want> want{{out},       {u},         {a},         {dx, terms}, {dh, terms},
                               {dw, terms}, {db, terms}, {dv, terms}, {{0}, terms}};
  expect<T>(name, want, 4 * (rows + dim + hidden), [&](int threads) {
    Out<T> o_out(batch * dim), o_u(rows * hidden), o_a(rows), o_dx(rows * dim), o_dh(rows * dim),
        o_dw(hidden * 2 * dim), o_db(hidden), o_dv(hidden), o_dvb(1);
    AdditiveParams p{};
    p.batch = batch, p.tokens = tokens, p.dim = dim, p.hidden = hidden, p.threads = threads;
    p.x = in_x.ptr(), p.h = in_h.ptr(), p.weight = in_w.ptr(), p.bias = in_bias.ptr(), p.v = in_v.ptr(),
    p.v_bias = in_vb.ptr();
    p.out = o_out.ptr(), p.u = o_u.ptr(), p.weights = o_a.ptr();
    call<T>(additive_attention_fwd_f32, additive_attention_fwd_f64, p);
    p.dout = in_dout.ptr(), p.dx = o_dx.ptr(), p.dh = o_dh.ptr(), p.d_weight = o_dw.ptr(), p.d_bias = o_db.ptr();
    p.d_v = o_dv.ptr(), p.d_v_bias = o_dvb.ptr();
    call<T>(additive_attention_bwd_f32, additive_attention_bwd_f64, p);
    return Results<T>{{"out", o_out.take(name)},   {"u", o_u.take(name)},    {"weights", o_a.take(name)},
                      {"dx", o_dx.take(name)},     {"dh", o_dh.take(name)},  {"d_weight", o_dw.take(name)},
                      {"d_bias", o_db.take(name)}, {"d_v", o_dv.take(name)}, {"d_v_bias", o_dvb.take(name)}};
  });
}

template <class T>
void attention(const std::string& isa) {
  for (const DotShape& s : {DotShape{3, 4, 4, 32, 32}, DotShape{2, 36, 36, 17, 33}, DotShape{1, 1, 5, 3, 1},
                            DotShape{2, 9, 1, 1, 7}, DotShape{1, 99, 259, 5, 6}, DotShape{0, 4, 4, 8, 8}})
    dot_product<T>(isa, s);
  const idx sizes[][4] = {{2, 36, 16, 33}, {3, 5, 7, 3}, {1, 1, 1, 1}, {5, 70, 9, 16}};
  for (const auto& v : sizes) additive<T>(isa, v[0], v[1], v[2], v[3]);
}

}  // namespace
