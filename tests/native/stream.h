// SPDX-License-Identifier: Apache-2.0
// Tensors that are written past the caches: more than 16 MiB, aligned, whole vectors of channels. A batch of one image
// over and over gives what that image gives by itself, and that is not streamed.
#pragma once
#include "elementwise/op.h"
#include "harness.h"

namespace {

struct StreamCase {
  DepthwiseShape image;
  Values x, dw, pw, pw_bias, dout;
  naive::Norm n1, n2;
};

Values repeated(const Values& v, idx times) {
  Values all;
  for (idx i = 0; i < times; ++i) all.insert(all.end(), v.begin(), v.end());
  return all;
}

// A separable block with batch statistics, forward and backward, of `n` times the image.
template <class T>
Results<T> stream(const std::string& name, const StreamCase& v, idx n, bool direct, int threads) {
  DepthwiseShape s = v.image;
  s.n = n;
  const idx size = n * s.h * s.w * s.c;
  const In<T> x(repeated(v.x, n)), dw(v.dw), pw(v.pw), pw_bias(v.pw_bias), dout(repeated(v.dout, n));
  const NormIn<T> n1(v.n1), n2(v.n2);
  Out<T> out(size, true), y1(direct ? 0 : size, true), y2(size, true), stats1(3 * s.c), stats2(3 * s.c), dx(size, true);
  Out<T> d_dw(s.c * s.kh * s.kw), d_pw(s.c * s.c), d_pw_bias(s.c), d_w1(s.c), d_b1(s.c), d_w2(s.c), d_b2(s.c);
  SeparableParams p{};
  p.shape = s, p.out_channels = s.c, p.batch_stats = true, p.threads = threads;
  p.x = x.ptr(), p.dw_weight = dw.ptr(), p.pw_weight = pw.ptr(), p.pw_bias = pw_bias.ptr(),
  p.norm2 = n2.params(v.n2.eps);
  if (!direct) p.norm1 = n1.params(v.n1.eps), p.y1 = y1.ptr(), p.act1 = Act::hardswish;
  p.out = out.ptr(), p.y2 = y2.ptr(), p.norm1.stats = stats1.ptr(), p.norm2.stats = stats2.ptr(), p.act2 = Act::relu;
  call<T>(separable_conv2d_train_f32, separable_conv2d_train_f64, p);
  p.dout = dout.ptr(), p.dx = dx.ptr(), p.d_dw_weight = d_dw.ptr(), p.d_pw_weight = d_pw.ptr(),
  p.d_pw_bias = d_pw_bias.ptr();
  if (!direct) p.norm1.d_weight = d_w1.ptr(), p.norm1.d_bias = d_b1.ptr();
  p.norm2.d_weight = d_w2.ptr(), p.norm2.d_bias = d_b2.ptr();
  call<T>(separable_conv2d_bwd_f32, separable_conv2d_bwd_f64, p);
  return {{"out", out.take(name)}, {"y1", y1.take(name)},     {"y2", y2.take(name)},
          {"dx", dx.take(name)},   {"d_dw", d_dw.take(name)}, {"d_pw", d_pw.take(name)}};
}

template <class T>
void streamed(const std::string& isa, bool direct) {
  const DepthwiseShape image = shape(1, 64, 64, 16, 3, 3, 1, 1, 1, 1, 1, 1);
  const idx size = image.h * image.w * image.c, n = (16 << 20) / (size * static_cast<idx>(sizeof(T))) + 1;
  Random random(7);
  const StreamCase v{image,
                     random.values(size),
                     random.values(image.c * 9),
                     random.values(image.c * image.c),
                     random.values(image.c),
                     random.values(size),
                     random.norm(image.c),
                     random.norm(image.c)};
  const std::string name = isa + " separable block of " + std::to_string(n) + " images" + (direct ? ", direct" : "");
  const Results<T> alone = stream<T>(name, v, 1, direct, 1), batch = stream<T>(name, v, n, direct, 3);
  for (size_t i = 0; i < batch.size(); ++i) {
    const Values values(alone[i].second.begin(), alone[i].second.end());
    const bool summed = i >= 4;  // over the images
    Values want = summed ? values : repeated(values, n);
    if (summed)
      for (double& value : want) value *= static_cast<double>(n);
    compare<T>(name + " " + batch[i].first, batch[i].second, {want}, n * image.h * image.w);
  }
}

}  // namespace
