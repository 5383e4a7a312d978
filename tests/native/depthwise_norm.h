// SPDX-License-Identifier: Apache-2.0
// The self-test of depthwise convolution with normalisation and activation.
#pragma once
#include "harness.h"

namespace {

template <class T>
void depthwise_norm(const std::string& isa, const DepthwiseShape& s, int act, bool batch) {
  Random random(static_cast<uint32_t>(s.c + s.kh + act));
  const idx size_x = s.n * s.h * s.w * s.c, size_w = s.c * s.kh * s.kw, size_y = pixels(s) * s.c;
  const Values x = random.values(size_x), w = random.values(size_w), bias = random.values(s.c),
               dout = random.values(size_y);
  const naive::Norm norm = random.norm(s.c);
  const Values y = naive::depthwise(s, x, w, bias), stats = naive::stats(norm, y, s.c, batch);
  const naive::Grads after = naive::norm_act_grads(norm, stats, act, y, dout, s.c, batch);
  const naive::Grads grads = naive::depthwise_grads(s, after.dx, x, w);
  const In<T> in_x(x), in_w(w), in_bias(bias), in_dout(dout);
  const NormIn<T> in_norm(norm);
  const std::string name =
      isa + " depthwise norm" + text(s) + " act " + std::to_string(act) + (batch ? " batch norm" : " frozen norm");
  const std::vector<Want> want{{naive::norm_act(norm, stats, act, y, s.c)},
                               {y},
                               {stats},
                               {grads.dx},
                               {grads.dw, grads.dw_terms},
                               {grads.db, grads.db_terms},
                               {after.dw, after.dw_terms},
                               {after.db, after.db_terms}};
  const idx length = pixels(s) * 4 + s.kh * s.kw;
  const auto params = [&](int threads) {
    DepthwiseParams p{};
    p.shape = s, p.x = in_x.ptr(), p.weight = in_w.ptr(), p.bias = in_bias.ptr(), p.norm = in_norm.params(norm.eps);
    p.act = static_cast<Act>(act), p.batch_stats = batch, p.threads = threads;
    return p;
  };
  expect<T>(name, want, length, [&](int threads) {
    Out<T> out(size_y), o_y(size_y), o_stats(3 * s.c), dx(size_x), dw(size_w), db(s.c), d_weight(s.c), d_bias(s.c);
    DepthwiseParams p = params(threads);
    p.out = out.ptr(), p.y = o_y.ptr(), p.norm.stats = o_stats.ptr();
    call<T>(depthwise_norm_train_f32, depthwise_norm_train_f64, p);
    p.out = nullptr, p.dout = in_dout.ptr(), p.dx = dx.ptr(), p.d_weight = dw.ptr(), p.d_bias = db.ptr();
    p.norm.d_weight = d_weight.ptr(), p.norm.d_bias = d_bias.ptr();
    call<T>(depthwise_norm_bwd_f32, depthwise_norm_bwd_f64, p);
    return Results<T>{{"out", out.take(name)},
                      {"y", o_y.take(name)},
                      {"stats", o_stats.take(name)},
                      {"dx", dx.take(name)},
                      {"dw", dw.take(name)},
                      {"db", db.take(name)},
                      {"norm weight", d_weight.take(name)},
                      {"norm bias", d_bias.take(name)}};
  });
  if (batch) return;
  expect<T>(name + " inference", {want[0]}, length, [&](int threads) {
    Out<T> out(size_y);
    DepthwiseParams p = params(threads);
    p.out = out.ptr();
    call<T>(depthwise_norm_fwd_f32, depthwise_norm_fwd_f64, p);
    return Results<T>{{"out", out.take(name)}};
  });
}

template <class T>
void depthwise_norms(const std::string& isa) {
  int act = 0;
  for (const DepthwiseShape& s :
       {shape(2, 9, 7, 17, 3, 3, 1, 1, 1, 1, 1, 1), shape(1, 8, 11, 3, 3, 3, 2, 2, 0, 1, 2, 0),
        shape(2, 6, 19, 8, 5, 5, 1, 1, 2, 2, 2, 2), shape(2, 5, 6, 1, 3, 5, 2, 1, 1, 4, 0, 2),
        shape(3, 8, 12, 33, 4, 4, 4, 4, 1, 1, 1, 1), shape(3, 24, 21, 16, 3, 3, 1, 1, 1, 1, 1, 1),
        shape(0, 5, 5, 4, 3, 3, 1, 1, 1, 1, 1, 1)}) {
    depthwise_norm<T>(isa, s, act % 7, false);
    if (pixels(s) > 1) depthwise_norm<T>(isa, s, (act + 3) % 7, true);
    ++act;
  }
}

}  // namespace
