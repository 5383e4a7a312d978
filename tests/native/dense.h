// SPDX-License-Identifier: Apache-2.0
// Dense convolution and normalisation on the ISA in use, and convolution with max pooling after it in training.
#pragma once
#include "pool.h"

namespace {

ConvShape conv_shape(idx n, idx h, idx w, idx c, idx o, int kh, int kw, int sh, int sw, int top, int left, int bottom,
                     int right) {
  return {n, h, w, c, o, (h + top + bottom - kh) / sh + 1, (w + left + right - kw) / sw + 1, kh, kw, sh, sw, top, left};
}

// One layer out = act(norm(convolution)), with a kernel of 0 the normalisation alone.
template <class T>
class Dense {
 public:
  Dense(const std::string& isa, const ConvShape& s, int act, bool norm, bool batch)
      : s_(s), conv_(s.kh > 0), act_(act), batch_(batch), random_(static_cast<uint32_t>(s.c + s.o + act)),
        pixels_(s.n * s.oh * s.ow), x_(random_.values(s.n * s.h * s.w * s.c)),
        w_(random_.values(s.o * s.c * s.kh * s.kw)), bias_(random_.values(conv_ ? s.o : 0)),
        dout_(random_.values(pixels_ * s.o)) {
    if (norm) n_ = random_.norm(s.o);
    char text[160];
    std::snprintf(text, sizeof text, " dense n%d h%d w%d c%d o%d k%dx%d s%dx%d act %d", int(s.n), int(s.h), int(s.w),
                  int(s.c), int(s.o), s.kh, s.kw, s.sh, s.sw, act);
    name_ = isa + text + (norm ? batch ? " batch norm" : " frozen norm" : " no norm");
  }

  void run() const {
    const Values y = conv_ ? naive::conv(s_, x_, w_, bias_) : x_, stats = naive::stats(n_, y, s_.o, batch_);
    const naive::Grads after = naive::norm_act_grads(n_, stats, act_, y, dout_, s_.o, batch_);
    std::vector<Want> want{
        {naive::norm_act(n_, stats, act_, y, s_.o)}, {stats}, {after.dw, after.dw_terms}, {after.db, after.db_terms}};
    if (conv_) {
      const naive::Grads grads = naive::conv_grads(s_, after.dx, x_, w_);
      want.insert(want.end(),
                  {{follows() ? y : Values()}, {grads.dx}, {grads.dw, grads.dw_terms}, {grads.db, grads.db_terms}});
    } else {
      want.push_back({after.dx});
    }
    const idx length = pixels_ * 4 + s_.c * s_.kh * s_.kw + s_.o;
    expect<T>(name_, want, length, [&](int threads) { return conv_ ? convolution(threads) : normalisation(threads); });
    if (!batch_) expect<T>(name_ + " inference", {want[0]}, length, [&](int threads) { return inference(threads); });
  }

 private:
  bool follows() const { return !n_.weight.empty() || act_ != 0; }

  struct Inputs {
    In<T> x, w, bias, dout;
    NormIn<T> norm;
  };
  Inputs inputs() const { return {In<T>(x_), In<T>(w_), In<T>(bias_), In<T>(dout_), NormIn<T>(n_)}; }

  Conv2dParams params(const Inputs& in, int threads) const {
    Conv2dParams p{};
    p.shape = s_, p.x = in.x.ptr(), p.weight = in.w.ptr(), p.bias = in.bias.ptr(), p.norm = in.norm.params(n_.eps);
    p.act = static_cast<Act>(act_), p.batch_stats = batch_, p.dout = in.dout.ptr(), p.threads = threads;
    return p;
  }

  BatchNormParams norm_params(const Inputs& in, int threads) const {
    BatchNormParams p{};
    p.rows = pixels_, p.channels = s_.o, p.x = in.x.ptr(), p.norm = in.norm.params(n_.eps);
    p.act = static_cast<Act>(act_), p.batch_stats = batch_, p.dout = in.dout.ptr(), p.threads = threads;
    return p;
  }

  Results<T> inference(int threads) const {
    const Inputs in = inputs();
    Out<T> out(pixels_ * s_.o);
    Conv2dParams p = params(in, threads);
    BatchNormParams q = norm_params(in, threads);
    p.out = q.out = out.ptr();
    if (conv_)
      call<T>(conv2d_fwd_f32, conv2d_fwd_f64, p);
    else
      call<T>(batch_norm_fwd_f32, batch_norm_fwd_f64, q);
    return {{"out", out.take(name_)}};
  }

  Results<T> convolution(int threads) const {
    const Inputs in = inputs();
    const idx norm = static_cast<idx>(n_.weight.size()), size = pixels_ * s_.o;
    Out<T> out(size), y(follows() ? size : 0), stats(3 * norm), dx(s_.n * s_.h * s_.w * s_.c),
        d_w(s_.o * s_.c * s_.kh * s_.kw);
    Out<T> d_bias(s_.o), d_weight_n(norm), d_bias_n(norm);
    Conv2dParams p = params(in, threads);
    p.out = out.ptr(), p.y = follows() ? y.ptr() : nullptr, p.norm.stats = stats.ptr();
    call<T>(conv2d_train_f32, conv2d_train_f64, p);
    p.dx = dx.ptr(), p.d_weight = d_w.ptr(), p.d_bias = d_bias.ptr();
    if (norm) p.norm.d_weight = d_weight_n.ptr(), p.norm.d_bias = d_bias_n.ptr();
    call<T>(conv2d_bwd_f32, conv2d_bwd_f64, p);
    return {{"out", out.take(name_)},
            {"stats", stats.take(name_)},
            {"norm weight", d_weight_n.take(name_)},
            {"norm bias", d_bias_n.take(name_)},
            {"y", y.take(name_)},
            {"dx", dx.take(name_)},
            {"weight", d_w.take(name_)},
            {"bias", d_bias.take(name_)}};
  }

  Results<T> normalisation(int threads) const {
    const Inputs in = inputs();
    Out<T> out(pixels_ * s_.o), stats(3 * s_.o), dx(pixels_ * s_.o), d_weight(s_.o), d_bias(s_.o);
    BatchNormParams p = norm_params(in, threads);
    p.out = out.ptr(), p.norm.stats = stats.ptr();
    call<T>(batch_norm_train_f32, batch_norm_train_f64, p);
    p.out = dx.ptr(), p.norm.d_weight = d_weight.ptr(), p.norm.d_bias = d_bias.ptr();
    call<T>(batch_norm_bwd_f32, batch_norm_bwd_f64, p);
    return {{"out", out.take(name_)},
            {"stats", stats.take(name_)},
            {"weight", d_weight.take(name_)},
            {"bias", d_bias.take(name_)},
            {"dx", dx.take(name_)}};
  }

  ConvShape s_;
  bool conv_;
  int act_;
  bool batch_;
  Random random_;
  idx pixels_;
  Values x_, w_, bias_, dout_;
  naive::Norm n_;
  std::string name_;
};

// Pointwise, grouped and general windows, pads beyond the image, gaps between windows, bands of one image, Winograd's
// tiles.
const ConvShape kConvShapes[] = {
    conv_shape(2, 9, 8, 1, 8, 3, 3, 1, 1, 1, 1, 1, 1),   conv_shape(1, 8, 9, 3, 5, 3, 3, 2, 2, 0, 0, 1, 1),
    conv_shape(3, 4, 5, 17, 33, 1, 1, 1, 1, 0, 0, 0, 0), conv_shape(2, 7, 6, 2, 3, 5, 3, 2, 1, 4, 0, 1, 2),
    conv_shape(1, 9, 16, 2, 1, 7, 7, 1, 1, 3, 3, 3, 3),  conv_shape(2, 6, 12, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1),
    conv_shape(2, 5, 6, 4, 19, 2, 2, 3, 4, 0, 1, 0, 2),  conv_shape(1, 2, 3, 5, 2, 4, 6, 1, 2, 5, 7, 4, 6),
    conv_shape(2, 19, 26, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1), conv_shape(1, 5, 25, 16, 3, 3, 3, 1, 1, 0, 2, 2, 0),
    conv_shape(1, 9, 50, 3, 17, 3, 3, 2, 2, 0, 0, 1, 1), conv_shape(1, 29, 11, 16, 9, 3, 3, 1, 1, 1, 1, 1, 1),
    conv_shape(0, 5, 5, 4, 6, 3, 3, 1, 1, 1, 1, 1, 1),   conv_shape(2, 9, 10, 17, 33, 3, 3, 1, 1, 1, 1, 1, 1),
    conv_shape(3, 7, 8, 16, 40, 3, 3, 1, 1, 2, 0, 1, 2), conv_shape(1, 45, 20, 16, 18, 3, 3, 1, 1, 0, 1, 2, 1),
};

// out = maxpool(act(norm(convolution))) with windows `w` over the convolution's output, forward and backward.
template <class T>
void pooled_dense(const std::string& isa, const ConvShape& s, const DepthwiseShape& w, int act, bool batch) {
  Random random(static_cast<uint32_t>(s.o + w.kh + act));
  const idx size_x = s.n * s.h * s.w * s.c, size_w = s.o * s.c * s.kh * s.kw, size_y = s.n * s.oh * s.ow * s.o;
  const idx size = pixels(w) * s.o;
  const Values x = random.values(size_x), weight = random.values(size_w), bias = random.values(s.o),
               dout = random.values(size);
  const naive::Norm norm = random.norm(s.o);
  const Values y = naive::conv(s, x, weight, bias), stats = naive::stats(norm, y, s.o, batch);
  const MaxPooled pooled = max_pooled(w, naive::norm_act(norm, stats, act, y, s.o));
  Values best, dz = naive::zeros(size_y);
  for (size_t i = 0; i < dout.size(); ++i) best.push_back(y[pooled.from[i]]), dz[pooled.from[i]] += dout[i];
  const naive::Grads after = naive::norm_act_grads(norm, stats, act, y, dz, s.o, batch);
  const naive::Grads grads = naive::conv_grads(s, after.dx, x, weight);
  const In<T> in_x(x), in_w(weight), in_bias(bias), in_dout(dout);
  const NormIn<T> in_norm(norm);
  const std::string name = isa + " dense c" + std::to_string(s.c) + " k" + std::to_string(s.kh) + " act " +
                           std::to_string(act) + (batch ? " batch norm" : " frozen norm") + ", pooled" + text(w);
  const std::vector<Want> want{{pooled.y},
                               {y},
                               {best, naive::largest(y)},
                               {pooled.places},
                               {stats},
                               {after.dw, after.dw_terms},
                               {after.db, after.db_terms},
                               {grads.dx},
                               {grads.dw, grads.dw_terms},
                               {grads.db, grads.db_terms}};
  expect<T>(name, want, s.n * s.oh * s.ow * 4 + s.c * s.kh * s.kw + s.o, [&](int threads) {
    Out<T> out(size), o_y(size_y), o_best(size), o_stats(3 * s.o), d_nw(s.o), d_nb(s.o), dx(size_x), dw(size_w),
        db(s.o);
    Out<uint8_t> places(size);
    Conv2dParams p{};
    p.shape = s, p.x = in_x.ptr(), p.weight = in_w.ptr(), p.bias = in_bias.ptr(), p.norm = in_norm.params(norm.eps);
    p.act = static_cast<Act>(act), p.batch_stats = batch, p.threads = threads, p.out = out.ptr(), p.y = o_y.ptr();
    p.pool = {w.oh, w.ow, w.kh, w.kw, w.sh, w.sw, w.top, w.left};
    p.best = o_best.ptr(), p.positions = places.ptr(), p.norm.stats = o_stats.ptr();
    call<T>(conv2d_train_f32, conv2d_train_f64, p);
    p.out = nullptr, p.dout = in_dout.ptr(), p.dx = dx.ptr(), p.d_weight = dw.ptr(), p.d_bias = db.ptr();
    p.norm.d_weight = d_nw.ptr(), p.norm.d_bias = d_nb.ptr();
    call<T>(conv2d_bwd_f32, conv2d_bwd_f64, p);
    return Results<T>{{"out", out.take(name)},        {"y", o_y.take(name)},
                      {"best", o_best.take(name)},    {"places", numbers<T>(places.take(name))},
                      {"stats", o_stats.take(name)},  {"norm weight", d_nw.take(name)},
                      {"norm bias", d_nb.take(name)}, {"dx", dx.take(name)},
                      {"weight", dw.take(name)},      {"bias", db.take(name)}};
  });
}

// Windows of `kernel`, `stride` and `pad` over the output of `s`.
template <class T>
void pooled_dense(const std::string& isa, const ConvShape& s, int kernel, int stride, int pad, int act) {
  const DepthwiseShape w = shape(s.n, s.oh, s.ow, s.o, kernel, kernel, stride, stride, pad, pad, pad, pad);
  pooled_dense<T>(isa, s, w, act, false);
  if (s.n > 0) pooled_dense<T>(isa, s, w, (act + 2) % 7, true);
}

template <class T>
void dense(const std::string& isa) {
  int act = 0;
  for (const ConvShape& s : kConvShapes) {
    Dense<T>(isa, s, act % 7, false, false).run();
    Dense<T>(isa, s, (act + 2) % 7, true, false).run();
    Dense<T>(isa, s, (act + 5) % 7, true, true).run();
    ++act;
  }
  for (idx channels : {1, 2, 5, 8, 17, 33})
    for (bool batch : {false, true})
      Dense<T>(isa, {2, 9, 8, channels, channels, 9, 8, 0, 0, 1, 1, 0, 0}, act++ % 7, true, batch).run();
  pooled_dense<T>(isa, conv_shape(2, 9, 8, 1, 8, 3, 3, 1, 1, 1, 1, 1, 1), 2, 2, 0, 1);
  pooled_dense<T>(isa, conv_shape(2, 13, 10, 3, 17, 5, 5, 2, 2, 2, 2, 2, 2), 3, 2, 1, 3);
  pooled_dense<T>(isa, conv_shape(3, 6, 7, 9, 4, 1, 1, 1, 1, 0, 0, 0, 0), 2, 2, 0, 5);
  pooled_dense<T>(isa, conv_shape(1, 8, 9, 5, 33, 3, 3, 1, 1, 1, 1, 1, 1), 3, 1, 1, 2);
  pooled_dense<T>(isa, conv_shape(1, 90, 24, 2, 16, 3, 3, 1, 1, 1, 1, 1, 1), 3, 2, 1, 0);
  pooled_dense<T>(isa, conv_shape(0, 5, 5, 4, 6, 3, 3, 1, 1, 1, 1, 1, 1), 2, 2, 0, 1);
  pooled_dense<T>(isa, conv_shape(2, 13, 11, 16, 20, 3, 3, 1, 1, 1, 1, 1, 1), 2, 2, 0, 3);
}

}  // namespace
