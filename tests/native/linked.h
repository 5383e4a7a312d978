// SPDX-License-Identifier: Apache-2.0
// The self-test of normalisations that one op leaves to the next: a separable block between two others, the convolution
// before it, and the gate after it.
#pragma once
#include "harness.h"

namespace {

// A normalisation before an op, its statistics given, and its gradients from that of its result.
struct Link {
  naive::Norm norm;
  Values stats, y;
  int act;
  idx channels;

  Link(Random& random, idx rows, idx c, int activation)
      : norm(random.norm(c)), y(random.values(rows * c)), act(activation), channels(c) {
    const In<float> exact(naive::stats(norm, y, c, false));
    stats.assign(exact.data.begin(), exact.data.end());
  }
  Values z() const { return naive::norm_act(norm, stats, act, y, channels); }
  // Of y, weight, bias, statistics.
  std::vector<Want> grads(const Values& dz) const {
    const naive::Grads g = naive::norm_act_grads(norm, stats, act, y, dz, channels, false);
    Values d_stats = naive::zeros(3 * channels);
    double terms = 0;
    for (idx c = 0; c < channels; ++c) {
      const double w = norm.weight[at(c)], invstd = stats[at(channels + c)];
      d_stats[at(c)] = -w * invstd * g.db[at(c)], d_stats[at(channels + c)] = w * g.dw[at(c)] / invstd;
      terms = std::fmax(terms, std::fabs(w) * std::fmax(invstd * g.db_terms, g.dw_terms / invstd));
    }
    return {{g.dx}, {g.dw, g.dw_terms}, {g.db, g.db_terms}, {d_stats, terms}};
  }
};

// dy, and what y gets through its statistics.
Values through_stats(const Values& dy, const Values& d_stats, const Values& y, const Values& stats, idx channels) {
  Values g = dy;
  const double rows = static_cast<double>(y.size()) / static_cast<double>(channels);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t c = i % at(channels), n = at(channels);
    const double centred = y[i] - stats[c], invstd = stats[n + c];
    g[i] += d_stats[c] / rows - d_stats[n + c] * std::pow(invstd, 3) * centred / rows +
            2 * d_stats[2 * n + c] * centred / (rows - 1);
  }
  return g;
}

template <class T>
struct LinkIn {
  NormIn<T> norm;
  In<T> stats;
  Out<T> d_weight, d_bias, d_stats;

  explicit LinkIn(const Link& link)
      : norm(link.norm), stats(link.stats), d_weight(link.channels), d_bias(link.channels), d_stats(3 * link.channels) {
  }
  LinkedInputParams params(int act) {
    return {norm.weight.ptr(), norm.bias.ptr(), stats.ptr(),  static_cast<Act>(act),
            d_weight.ptr(),    d_bias.ptr(),    d_stats.ptr()};
  }
  void take(Results<T>& results, const std::string& name) const {
    results.emplace_back("l_weight", d_weight.take(name));
    results.emplace_back("l_bias", d_bias.take(name));
    results.emplace_back("l_stats", d_stats.take(name));
  }
};

template <class T>
void linked_separable(const std::string& isa, const DepthwiseShape& s, idx out, int act, bool between) {
  Random random(static_cast<uint32_t>(s.c + out));
  const Link link(random, s.n * s.h * s.w, s.c, act);
  const Values dw = random.values(s.c * s.kh * s.kw), pw = random.values(out * s.c),
               dy = random.values(pixels(s) * out);
  const Values d_stats = random.values(3 * out);
  naive::Norm n1, n2 = random.norm(out);
  if (between) n1 = random.norm(s.c);
  const Values z = link.z(), y1 = naive::depthwise(s, z, dw, {}), stats1 = naive::stats(n1, y1, s.c, true);
  const Values a1 = naive::norm_act(n1, stats1, between ? act : 0, y1, s.c),
               y2 = naive::pointwise(pixels(s), s.c, out, a1, pw, {});
  const Values stats2 = naive::stats(n2, y2, out, true);
  const naive::Grads by_pw =
      naive::pointwise_grads(pixels(s), s.c, out, through_stats(dy, d_stats, y2, stats2, out), a1, pw);
  const naive::Grads at1 = naive::norm_act_grads(n1, stats1, between ? act : 0, y1, by_pw.dx, s.c, true);
  const naive::Grads by_dw = naive::depthwise_grads(s, at1.dx, z, dw);
  std::vector<Want> want{{y2}, {stats2}, {by_dw.dw, by_dw.dw_terms}, {by_pw.dw, by_pw.dw_terms}};
  for (const Want& w : link.grads(by_dw.dx)) want.push_back(w);
  const std::string name = isa + " linked separable" + text(s) + " out " + std::to_string(out) + " act " +
                           std::to_string(act) + (between ? " norm between" : "");
  const In<T> in_x(link.y), in_dw(dw), in_pw(pw), in_dy(dy), in_d_stats(d_stats);
  const NormIn<T> in1(n1);
  expect<T>(name, want, 4 * pixels(s) * (between ? 4 : 1) + s.c + out, [&](int threads) {
    LinkIn<T> before(link);
    Out<T> y(pixels(s) * out), kept(pixels(s) * s.c), o_stats1(between ? 3 * s.c : 0), o_stats2(3 * out);
    Out<T> dx(s.n * s.h * s.w * s.c), d_dw(s.c * s.kh * s.kw), d_pw(out * s.c), d_w1(s.c), d_b1(s.c);
    SeparableParams p{};
    p.shape = s, p.out_channels = out, p.batch_stats = true, p.threads = threads, p.x = in_x.ptr(),
    p.dw_weight = in_dw.ptr(), p.pw_weight = in_pw.ptr();
    if (between)
      p.norm1 = in1.params(n1.eps), p.norm1.stats = o_stats1.ptr(), p.act1 = static_cast<Act>(act), p.y1 = kept.ptr();
    p.norm2.eps = n2.eps, p.norm2.stats = o_stats2.ptr(), p.out = y.ptr();
    p.linked_input = before.params(act), p.linked_output.on = true;
    call<T>(separable_conv2d_train_f32, separable_conv2d_train_f64, p);
    p.y2 = y.ptr(), p.linked_output.d_stats = in_d_stats.ptr(), p.dout = in_dy.ptr();
    p.dx = dx.ptr(), p.d_dw_weight = d_dw.ptr(), p.d_pw_weight = d_pw.ptr();
    if (between) p.norm1.d_weight = d_w1.ptr(), p.norm1.d_bias = d_b1.ptr();
    call<T>(separable_conv2d_bwd_f32, separable_conv2d_bwd_f64, p);
    Results<T> results{{"y", y.take(name)},
                       {"stats", o_stats2.take(name)},
                       {"d_dw", d_dw.take(name)},
                       {"d_pw", d_pw.take(name)},
                       {"dx", dx.take(name)}};
    before.take(results, name);
    return results;
  });
}

template <class T>
void linked_conv(const std::string& isa, const ConvShape& s) {
  Random random(static_cast<uint32_t>(s.c + 7 * s.o));
  const idx count = s.n * s.oh * s.ow;
  const Values x = random.values(s.n * s.h * s.w * s.c), w = random.values(s.o * s.c * s.kh * s.kw);
  const Values dy = random.values(count * s.o), d_stats = random.values(3 * s.o);
  const naive::Norm norm = random.norm(s.o);
  const Values y = naive::conv(s, x, w, {}), stats = naive::stats(norm, y, s.o, true);
  const naive::Grads grads = naive::conv_grads(s, through_stats(dy, d_stats, y, stats, s.o), x, w);
  const std::string name = isa + " linked convolution c" + std::to_string(s.c) + " o" + std::to_string(s.o);
  const In<T> in_x(x), in_w(w), in_dy(dy), in_d_stats(d_stats);
  expect<T>(name, {{y}, {stats}, {grads.dx}, {grads.dw, grads.dw_terms}}, 4 * count + s.c * s.kh * s.kw,
            [&](int threads) {
              Out<T> o_y(count * s.o), o_stats(3 * s.o), dx(s.n * s.h * s.w * s.c), dw(s.o * s.c * s.kh * s.kw);
              Conv2dParams p{};
              p.shape = s, p.x = in_x.ptr(), p.weight = in_w.ptr(), p.norm.eps = norm.eps, p.norm.stats = o_stats.ptr();
              p.batch_stats = true, p.out = o_y.ptr(), p.threads = threads, p.linked_output.on = true;
              call<T>(conv2d_train_f32, conv2d_train_f64, p);
              p.y = o_y.ptr(), p.dout = in_dy.ptr(), p.dx = dx.ptr(), p.d_weight = dw.ptr(),
              p.linked_output.d_stats = in_d_stats.ptr();
              call<T>(conv2d_bwd_f32, conv2d_bwd_f64, p);
              return Results<T>{
                  {"y", o_y.take(name)}, {"stats", o_stats.take(name)}, {"dx", dx.take(name)}, {"dw", dw.take(name)}};
            });
}

// CSA after a normalisation against the same gate, which has tests of its own, of what the normalisation gives.
template <class T>
void linked_gate(const std::string& isa, idx n, idx h, idx w, idx c, int act, bool pool) {
  Random random(static_cast<uint32_t>(c + h));
  const Link link(random, n * h * w, c, act);
  const idx size = n * h * w * c, out_size = pool ? n * (h / 2) * (w / 2) * c : size;
  const Values w1 = random.values(3), sw = random.values(2), sb = random.values(1), dout = random.values(out_size);
  const auto run = [&](auto type, const Values& x, LinkedInputParams before, int threads, const std::string& name) {
    using S = decltype(type);
    const In<S> in_x(x), in_w1(w1), in_sw(sw), in_sb(sb), in_dout(dout);
    Out<S> out(out_size), means(n * c), places(n * 3 * h * w), dx(size), d_w1(3), d_sw(2), d_sb(1);
    GateParams p{};
    p.n = n, p.h = h, p.w = w, p.c = c, p.hidden = 3, p.gate_act = Act::sigmoid, p.pool = pool, p.threads = threads;
    p.x = in_x.ptr(), p.w1 = in_w1.ptr(), p.sw = in_sw.ptr(), p.sb = in_sb.ptr(), p.linked_input = before;
    p.out = out.ptr(), p.means = means.ptr(), p.pixels = places.ptr();
    call<S>(gate_train_f32, gate_train_f64, p);
    p.dout = in_dout.ptr(), p.dx = dx.ptr(), p.d_w1 = d_w1.ptr(), p.d_sw = d_sw.ptr(), p.d_sb = d_sb.ptr();
    call<S>(gate_bwd_f32, gate_bwd_f64, p);
    return Results<S>{{"out", out.take(name)},
                      {"d_w1", d_w1.take(name)},
                      {"d_sw", d_sw.take(name)},
                      {"d_sb", d_sb.take(name)},
                      {"dx", dx.take(name)}};
  };
  const std::string name = isa + " linked gate c" + std::to_string(c) + (pool ? " pooled" : "");
  const Results<double> alone = run(0., link.z(), {}, 1, name);
  std::vector<Want> want;
  for (size_t i = 0; i < 4; ++i) want.push_back({alone[i].second, 4});
  for (const Want& g : link.grads(alone[4].second)) want.push_back(g);
  expect<T>(name, want, 8 * n * h * w * c, [&](int threads) {
    LinkIn<T> before(link);
    Results<T> results = run(T(0), link.y, before.params(act), threads, name);
    before.take(results, name);
    return results;
  });
}

template <class T>
void linked(const std::string& isa) {
  int act = 1;
  for (bool between : {false, true}) {
    for (const DepthwiseShape& s :
         {shape(2, 9, 7, 17, 3, 3, 1, 1, 1, 1, 1, 1), shape(9, 8, 11, 33, 3, 3, 2, 2, 0, 1, 2, 0),
          shape(8, 12, 9, 16, 5, 5, 1, 1, 2, 2, 2, 2), shape(3, 9, 12, 20, 4, 4, 4, 4, 1, 1, 1, 1),
          shape(2, 6, 5, 260, 3, 3, 1, 1, 1, 1, 1, 1), shape(8, 7, 9, 4, 2, 2, 2, 2, 0, 0, 0, 0)})
      linked_separable<T>(isa, s, s.c == 16 ? 24 : 13, ++act % 7, between);
  }
  linked_conv<T>(isa, {2, 9, 8, 1, 16, 9, 8, 3, 3, 1, 1, 1, 1});
  linked_conv<T>(isa, {3, 9, 10, 5, 19, 5, 5, 3, 3, 2, 2, 1, 1});
  linked_conv<T>(isa, {2, 7, 6, 12, 20, 7, 6, 1, 1, 1, 1, 0, 0});
  linked_gate<T>(isa, 2, 5, 6, 18, 5, false);
  linked_gate<T>(isa, 5, 7, 6, 33, 6, true);
}

}  // namespace
