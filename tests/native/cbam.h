// SPDX-License-Identifier: Apache-2.0
// The self-test of CBAM and its two gates: op.h's formulas on the tape, and the kernels against them.
#pragma once
#include "cbam/op.h"
#include "tape.h"

namespace {

// hidden 0: no channel gate; k 0: no spatial gate.
struct CbamCase {
  idx n, h, w, c, hidden;
  int k;
  bool batch;
};

struct CbamTensors {
  Vars x, w1, b1, w2, b2, weight, norm_weight, norm_bias;
};

// What the kernels write in training.
struct Attended {
  Vars out;
  Values pooled, positions, planes, channels, stats;
};

// u = x · g; keeps avg, max and g, and the pixels of max.
Vars channel_gated(const CbamCase& s, const CbamTensors& v, Attended& a) {
  const idx plane = s.h * s.w;
  Vars u = v.x;
  Values averages, maxima, gates;
  for (idx n = 0; n < s.n; ++n) {
    Vars avg, max, hidden[2];
    for (idx c = 0; c < s.c; ++c) {
      const idx first = n * plane * s.c + c, best = first_largest(v.x, first, plane, s.c);
      avg.push_back(mean(v.x, first, plane, s.c)), max.push_back(v.x[at(first + best * s.c)]);
      a.positions.push_back(static_cast<double>(best));
    }
    for (int side : {0, 1})
      for (idx j = 0; j < s.hidden; ++j) {
        Var sum = v.b1[at(j)];
        for (idx c = 0; c < s.c; ++c) sum = sum + v.w1[at(j * s.c + c)] * (side ? max : avg)[at(c)];
        hidden[side].push_back(activate(1, sum));
      }
    for (idx c = 0; c < s.c; ++c) {
      Var logit = v.b2[at(c)] + v.b2[at(c)];
      for (const Vars& side : hidden)
        for (idx j = 0; j < s.hidden; ++j) logit = logit + v.w2[at(c * s.hidden + j)] * side[at(j)];
      const Var gate = activate(6, logit);
      averages.push_back(avg[at(c)].value()), maxima.push_back(max[at(c)].value()), gates.push_back(gate.value());
      for (idx i = 0; i < plane; ++i) {
        const size_t to = at((n * plane + i) * s.c + c);
        u[to] = v.x[to] * gate;
      }
    }
  }
  for (const Values& part : {averages, maxima, gates}) a.pooled.insert(a.pooled.end(), part.begin(), part.end());
  return u;
}

// u · s; keeps the planes, the channels of the maxima and the statistics.
Vars spatially_gated(const CbamCase& s, const CbamTensors& v, const naive::Norm& norm, const Vars& u, Attended& a) {
  Vars max, avg, y, out;
  for (idx i = 0; i < s.n * s.h * s.w; ++i) {
    const idx best = first_largest(u, i * s.c, s.c, 1);
    max.push_back(u[at(i * s.c + best)]), avg.push_back(mean(u, i * s.c, s.c, 1));
    a.channels.push_back(static_cast<double>(best));
  }
  for (idx i = 0; i < s.n * s.h * s.w; ++i) {
    Var sum = note(0);
    for (idx k = 0; k < s.k * s.k; ++k) {
      const idx row = i / s.w % s.h + k / s.k - s.k / 2, column = i % s.w + k % s.k - s.k / 2;
      if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
      const size_t from = at((i / (s.h * s.w) * s.h + row) * s.w + column);
      sum = sum + v.weight[at(k)] * max[from] + v.weight[at(s.k * s.k + k)] * avg[from];
    }
    y.push_back(sum);
  }
  const Vars gate = norm_act(norm, v.norm_weight, v.norm_bias, y, 1, 6, s.batch);
  for (idx i = 0; i < static_cast<idx>(u.size()); ++i) out.push_back(u[at(i)] * gate[at(i / s.c)]);
  for (const Vars& part : {max, avg, y})
    for (Var value : part) a.planes.push_back(value.value());
  a.stats = naive::stats(norm, values_of(y), 1, s.batch);
  return out;
}

template <class T>
class Cbam {
 public:
  Cbam(const std::string& isa, const CbamCase& s)
      : s_(s), random_(static_cast<uint32_t>(s.c * 17 + s.k)), size_(s.n * s.h * s.w * s.c), x_(random_.values(size_)),
        w1_(random_.values(s.hidden * s.c)), b1_(random_.values(s.hidden)), w2_(random_.values(s.hidden * s.c)),
        b2_(random_.values(s.hidden ? s.c : 0)), weight_(random_.values(2 * s.k * s.k, 0.5)),
        dout_(random_.values(size_)) {
    if (s.k) norm_ = random_.norm(1);
    char text[160];
    std::snprintf(text, sizeof text, " cbam n%d h%d w%d c%d hidden %d k%d%s", int(s.n), int(s.h), int(s.w), int(s.c),
                  int(s.hidden), s.k, s.batch ? " batch norm" : "");
    name_ = isa + text;
  }

  void run() {
    tape.clear();
    const CbamTensors v{variables(x_),  variables(w1_),     variables(b1_),          variables(w2_),
                        variables(b2_), variables(weight_), variables(norm_.weight), variables(norm_.bias)};
    Attended a;
    a.out = s_.hidden ? channel_gated(s_, v, a) : v.x;
    if (s_.k) a.out = spatially_gated(s_, v, norm_, a.out, a);
    const Gradients grads(a.out, dout_);
    const std::vector<Want> want{
        {values_of(a.out)}, {a.pooled},         {a.positions},           {a.planes},           {a.channels},
        {a.stats},          grads.of(v.x),      grads.of(v.w1),          grads.of(v.b1),       grads.of(v.w2),
        grads.of(v.b2),     grads.of(v.weight), grads.of(v.norm_weight), grads.of(v.norm_bias)};
    const idx length = s_.n * s_.h * s_.w * 4 + s_.c * 4 + 2 * s_.k * s_.k;
    expect<T>(name_, want, length, [&](int threads) { return train(threads); });
    if (!s_.batch) expect<T>(name_ + " inference", {want[0]}, length, [&](int threads) { return inference(threads); });
  }

 private:
  struct Inputs {
    In<T> x, w1, b1, w2, b2, weight, dout;
    NormIn<T> norm;
  };
  Inputs inputs() const {
    return {In<T>(x_), In<T>(w1_), In<T>(b1_), In<T>(w2_), In<T>(b2_), In<T>(weight_), In<T>(dout_), NormIn<T>(norm_)};
  }
  CbamParams params(const Inputs& in, int threads) const {
    CbamParams p{};
    p.n = s_.n, p.h = s_.h, p.w = s_.w, p.c = s_.c, p.hidden = s_.hidden, p.k = s_.k ? s_.k : 1, p.threads = threads;
    p.x = in.x.ptr(), p.w1 = in.w1.ptr(), p.b1 = in.b1.ptr(), p.w2 = in.w2.ptr(), p.b2 = in.b2.ptr(),
    p.weight = in.weight.ptr();
    p.norm_weight = in.norm.weight.ptr(), p.norm_bias = in.norm.bias.ptr(), p.norm_mean = in.norm.mean.ptr();
    p.norm_var = in.norm.var.ptr(), p.eps = norm_.eps, p.batch_stats = s_.batch;
    return p;
  }
  // The kernel of the gates that there are.
  void kernel(void (*both32)(const CbamParams&), void (*both64)(const CbamParams&),
              void (*channel32)(const CbamParams&), void (*channel64)(const CbamParams&),
              void (*spatial32)(const CbamParams&), void (*spatial64)(const CbamParams&), const CbamParams& p) const {
    if (!s_.k)
      call<T>(channel32, channel64, p);
    else if (!s_.hidden)
      call<T>(spatial32, spatial64, p);
    else
      call<T>(both32, both64, p);
  }

  Results<T> inference(int threads) const {
    const Inputs in = inputs();
    Out<T> out(size_);
    CbamParams p = params(in, threads);
    p.out = out.ptr();
    kernel(cbam_fwd_f32, cbam_fwd_f64, channel_gate_fwd_f32, channel_gate_fwd_f64, spatial_gate_fwd_f32,
           spatial_gate_fwd_f64, p);
    return {{"out", out.take(name_)}};
  }

  Results<T> train(int threads) const {
    const Inputs in = inputs();
    const idx images = s_.hidden ? s_.n * s_.c : 0, plane = s_.k ? s_.n * s_.h * s_.w : 0, one = s_.k ? 1 : 0;
    const idx hidden = s_.hidden * s_.c, outputs = s_.hidden ? s_.c : 0;
    Out<T> out(size_), pooled(3 * images), planes(3 * plane), stats(3 * one), dx(size_);
    Out<T> d_w1(hidden), d_b1(s_.hidden), d_w2(hidden), d_b2(outputs), d_weight(2 * s_.k * s_.k), d_norm_weight(one),
        d_norm_bias(one);
    Out<int32_t> positions(images), channels(plane);
    CbamParams p = params(in, threads);
    p.out = out.ptr();
    if (s_.hidden) p.pooled = pooled.ptr(), p.positions = positions.ptr();
    if (s_.k) p.planes = planes.ptr(), p.channels = channels.ptr(), p.stats = stats.ptr();
    kernel(cbam_train_f32, cbam_train_f64, channel_gate_train_f32, channel_gate_train_f64, spatial_gate_train_f32,
           spatial_gate_train_f64, p);
    p.out = nullptr, p.dout = in.dout.ptr(), p.dx = dx.ptr();
    if (s_.hidden) p.d_w1 = d_w1.ptr(), p.d_b1 = d_b1.ptr(), p.d_w2 = d_w2.ptr(), p.d_b2 = d_b2.ptr();
    if (s_.k) p.d_weight = d_weight.ptr(), p.d_norm_weight = d_norm_weight.ptr(), p.d_norm_bias = d_norm_bias.ptr();
    kernel(cbam_bwd_f32, cbam_bwd_f64, channel_gate_bwd_f32, channel_gate_bwd_f64, spatial_gate_bwd_f32,
           spatial_gate_bwd_f64, p);
    return {{"out", out.take(name_)},
            {"pooled", pooled.take(name_)},
            {"positions", numbers<T>(positions.take(name_))},
            {"planes", planes.take(name_)},
            {"channels", numbers<T>(channels.take(name_))},
            {"stats", stats.take(name_)},
            {"dx", dx.take(name_)},
            {"d_w1", d_w1.take(name_)},
            {"d_b1", d_b1.take(name_)},
            {"d_w2", d_w2.take(name_)},
            {"d_b2", d_b2.take(name_)},
            {"d_weight", d_weight.take(name_)},
            {"norm weight", d_norm_weight.take(name_)},
            {"norm bias", d_norm_bias.take(name_)}};
  }

  CbamCase s_;
  Random random_;
  idx size_;
  Values x_, w1_, b1_, w2_, b2_, weight_, dout_;
  naive::Norm norm_;
  std::string name_;
};

template <class T>
void cbams(const std::string& isa) {
  for (const CbamCase& s :
       {CbamCase{2, 5, 6, 17, 3, 7, false}, CbamCase{3, 4, 5, 8, 2, 7, true}, CbamCase{1, 9, 8, 3, 1, 3, true},
        CbamCase{2, 7, 4, 16, 4, 0, false}, CbamCase{5, 3, 3, 33, 9, 0, false}, CbamCase{2, 6, 7, 5, 0, 7, false},
        CbamCase{3, 5, 9, 16, 0, 5, true}, CbamCase{1, 1, 2, 1, 1, 7, false}, CbamCase{33, 2, 3, 4, 2, 3, true},
        CbamCase{0, 4, 4, 8, 2, 7, false}})
    Cbam<T>(isa, s).run();
}

}  // namespace
