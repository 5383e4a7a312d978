// SPDX-License-Identifier: Apache-2.0
// The self-test of the inverted bottleneck.
#pragma once
#include "bottleneck/op.h"
#include "harness.h"

namespace {

// `out` 0: no projection. The residual where the output has x's shape.
template <class T>
class Bottleneck {
 public:
  Bottleneck(const std::string& isa, const DepthwiseShape& s, idx in, idx out, int act, bool batch)
      : s_(s), in_(in), out_(out), act_(act), batch_(batch), residual_(out == in && s.oh == s.h && s.ow == s.w),
        random_(static_cast<uint32_t>(s.c + in + 5 * out + act)), x_(random_.values(s.n * s.h * s.w * in)),
        expand_(random_.values(s.c * in)), dw_(random_.values(s.c * s.kh * s.kw)), project_(random_.values(out * s.c)),
        dout_(random_.values(pixels(s) * result_channels())), n1_(random_.norm(s.c)), n2_(random_.norm(s.c)),
        n3_(out ? random_.norm(out) : naive::Norm{}) {
    name_ = isa + " bottleneck" + text(s) + " in " + std::to_string(in) + " out " + std::to_string(out) + " act " +
            std::to_string(act) + (batch ? " batch norm" : " frozen norm");
  }

  void run() const {
    const idx all = s_.n * s_.h * s_.w, count = pixels(s_), hidden = s_.c;
    const Values z = naive::pointwise(all, in_, hidden, x_, expand_, {});
    const Values stats1 = naive::stats(n1_, z, hidden, batch_), a1 = naive::norm_act(n1_, stats1, act_, z, hidden);
    const Values y1 = naive::depthwise(s_, a1, dw_, {}), stats2 = naive::stats(n2_, y1, hidden, batch_);
    const Values a2 = naive::norm_act(n2_, stats2, act_, y1, hidden);
    Values y2, stats3, result = a2, da2 = dout_;
    naive::Grads third, projection;
    if (out_) {
      y2 = naive::pointwise(count, hidden, out_, a2, project_, {}), stats3 = naive::stats(n3_, y2, out_, batch_);
      result = naive::norm_act(n3_, stats3, 0, y2, out_);
      third = naive::norm_act_grads(n3_, stats3, 0, y2, dout_, out_, batch_);
      projection = naive::pointwise_grads(count, hidden, out_, third.dx, a2, project_), da2 = projection.dx;
    }
    const naive::Grads second = naive::norm_act_grads(n2_, stats2, act_, y1, da2, hidden, batch_);
    const naive::Grads depthwise = naive::depthwise_grads(s_, second.dx, a1, dw_);
    const naive::Grads first = naive::norm_act_grads(n1_, stats1, act_, z, depthwise.dx, hidden, batch_);
    const naive::Grads expansion = naive::pointwise_grads(all, in_, hidden, first.dx, x_, expand_);
    Values dx = expansion.dx;
    for (size_t i = 0; residual_ && i < dx.size(); ++i) result[i] += x_[i], dx[i] += dout_[i];
    const std::vector<Want> want{{result},
                                 {y1},
                                 {y2},
                                 {stats1},
                                 {stats2},
                                 {stats3},
                                 {dx},
                                 {expansion.dw, expansion.dw_terms},
                                 {first.dw, first.dw_terms},
                                 {first.db, first.db_terms},
                                 {depthwise.dw, depthwise.dw_terms},
                                 {second.dw, second.dw_terms},
                                 {second.db, second.db_terms},
                                 {projection.dw, projection.dw_terms},
                                 {third.dw, third.dw_terms},
                                 {third.db, third.db_terms}};
    const idx length = all * 4 + hidden + in_;
    expect<T>(name_, want, length, [&](int threads) { return train(threads); });
    if (!batch_) expect<T>(name_ + " inference", {want[0]}, length, [&](int threads) { return inference(threads); });
  }

 private:
  idx result_channels() const { return out_ ? out_ : s_.c; }

  struct Inputs {
    In<T> x, expand, dw, project, dout;
    NormIn<T> n1, n2, n3;
  };
  Inputs inputs() const {
    return {In<T>(x_),    In<T>(expand_), In<T>(dw_),     In<T>(project_),
            In<T>(dout_), NormIn<T>(n1_), NormIn<T>(n2_), NormIn<T>(n3_)};
  }
  BottleneckParams params(const Inputs& in, int threads) const {
    BottleneckParams p{};
    p.shape = s_, p.in_channels = in_, p.out_channels = out_, p.act = static_cast<Act>(act_), p.batch_stats = batch_,
    p.residual = residual_;
    p.x = in.x.ptr(), p.expand = in.expand.ptr(), p.dw_weight = in.dw.ptr(), p.project = in.project.ptr(),
    p.threads = threads;
    p.norm1 = in.n1.params(n1_.eps), p.norm2 = in.n2.params(n2_.eps), p.norm3 = in.n3.params(n3_.eps);
    return p;
  }

  Results<T> inference(int threads) const {
    const Inputs in = inputs();
    Out<T> result(pixels(s_) * result_channels());
    BottleneckParams p = params(in, threads);
    p.result = result.ptr();
    call<T>(inverted_bottleneck_fwd_f32, inverted_bottleneck_fwd_f64, p);
    return {{"result", result.take(name_)}};
  }

  Results<T> train(int threads) const {
    const Inputs in = inputs();
    const idx hidden = s_.c;
    Out<T> result(pixels(s_) * result_channels()), y1(pixels(s_) * hidden), y2(pixels(s_) * out_);
    Out<T> stats1(3 * hidden), stats2(3 * hidden), stats3(3 * out_), covariance(batch_ ? (hidden + 1) * in_ : 0);
    Out<T> dx(s_.n * s_.h * s_.w * in_), d_expand(hidden * in_), d_w1(hidden), d_b1(hidden),
        d_dw(hidden * s_.kh * s_.kw);
    Out<T> d_w2(hidden), d_b2(hidden), d_project(out_ * hidden), d_w3(out_), d_b3(out_);
    BottleneckParams p = params(in, threads);
    p.result = result.ptr(), p.y1 = y1.ptr(), p.y2 = y2.ptr(), p.covariance = covariance.ptr();
    p.norm1.stats = stats1.ptr(), p.norm2.stats = stats2.ptr(), p.norm3.stats = stats3.ptr();
    call<T>(inverted_bottleneck_train_f32, inverted_bottleneck_train_f64, p);
    p.dout = in.dout.ptr(), p.dx = dx.ptr(), p.d_expand = d_expand.ptr(), p.d_dw_weight = d_dw.ptr(),
    p.d_project = d_project.ptr();
    p.norm1.d_weight = d_w1.ptr(), p.norm1.d_bias = d_b1.ptr(), p.norm2.d_weight = d_w2.ptr(),
    p.norm2.d_bias = d_b2.ptr();
    p.norm3.d_weight = d_w3.ptr(), p.norm3.d_bias = d_b3.ptr();
    call<T>(inverted_bottleneck_bwd_f32, inverted_bottleneck_bwd_f64, p);
    covariance.take(name_);
    return {{"result", result.take(name_)},  {"y1", y1.take(name_)},
            {"y2", y2.take(name_)},          {"stats1", stats1.take(name_)},
            {"stats2", stats2.take(name_)},  {"stats3", stats3.take(name_)},
            {"dx", dx.take(name_)},          {"d_expand", d_expand.take(name_)},
            {"d_weight1", d_w1.take(name_)}, {"d_bias1", d_b1.take(name_)},
            {"d_dw", d_dw.take(name_)},      {"d_weight2", d_w2.take(name_)},
            {"d_bias2", d_b2.take(name_)},   {"d_project", d_project.take(name_)},
            {"d_weight3", d_w3.take(name_)}, {"d_bias3", d_b3.take(name_)}};
  }

  DepthwiseShape s_;
  idx in_, out_;
  int act_;
  bool batch_, residual_;
  Random random_;
  Values x_, expand_, dw_, project_, dout_;
  naive::Norm n1_, n2_, n3_;
  std::string name_;
};

template <class T>
void bottlenecks(const std::string& isa) {
  const struct {
    DepthwiseShape s;
    idx in, out;
  } cases[] = {
      {shape(2, 9, 7, 17, 3, 3, 1, 1, 1, 1, 1, 1), 5, 5},     {shape(1, 8, 11, 33, 3, 3, 2, 2, 0, 1, 2, 0), 3, 9},
      {shape(3, 6, 19, 48, 5, 5, 1, 1, 2, 2, 2, 2), 16, 0},   {shape(1, 7, 9, 16, 2, 2, 3, 3, 0, 0, 0, 0), 4, 6},
      {shape(2, 5, 6, 3, 3, 5, 2, 1, 1, 4, 0, 2), 1, 1},      {shape(2, 4, 3, 9, 3, 3, 1, 1, 5, 4, 6, 3), 6, 0},
      {shape(1, 40, 44, 36, 3, 3, 1, 1, 1, 1, 1, 1), 12, 12}, {shape(1, 15, 17, 140, 5, 5, 2, 2, 2, 2, 2, 2), 20, 0},
      {shape(0, 5, 5, 8, 3, 3, 1, 1, 1, 1, 1, 1), 4, 4},
  };
  int act = 0;
  for (const auto& c : cases) {
    Bottleneck<T>(isa, c.s, c.in, c.out, act % 7, false).run();
    if (pixels(c.s) > 1) Bottleneck<T>(isa, c.s, c.in, c.out, (act + 5) % 7, true).run();
    ++act;
  }
}

}  // namespace
