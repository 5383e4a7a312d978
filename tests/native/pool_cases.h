// SPDX-License-Identifier: Apache-2.0
// The self-test's cases of the families pool and cbam; included by selftest.cpp, whose helpers they use.
#pragma once
#include "naive_pool.h"

namespace {

template <class T>
void max_pool(const std::string& isa, MaxPoolParams s) {
  Random random(static_cast<uint32_t>(s.c + s.kh));
  const idx size_x = s.n * s.h * s.w * s.c, size_y = s.n * s.oh * s.ow * s.c;
  const Values x = random.values(size_x), dy = random.values(size_y);
  const naive::Pooled want = naive::max_pool(s, x, dy);
  const In<T> in_x(x), in_dy(dy);
  const std::string name = isa + " max_pool c" + std::to_string(s.c) + " k" + std::to_string(s.kh);
  expect<T>(name, {{want.y}, {want.y}, {want.dx}}, s.kh * s.kw, [&](int threads) {
    Out<T> y(size_y), inference(size_y), dx(size_x);
    const bool bytes = s.kh * s.kw <= 256;
    std::vector<int32_t> positions(at(size_y));
    std::vector<uint8_t> small(at(size_y));
    s.x = in_x.ptr(), s.y = inference.ptr(), s.threads = threads;
    call<T>(max_pool2d_fwd_f32, max_pool2d_fwd_f64, s);
    s.positions = bytes ? static_cast<void*>(small.data()) : positions.data(), s.y = y.ptr();
    call<T>(max_pool2d_train_f32, max_pool2d_train_f64, s);
    s.dy = in_dy.ptr(), s.dx = dx.ptr();
    call<T>(max_pool2d_bwd_f32, max_pool2d_bwd_f64, s);
    return Results<T>{{"inference", inference.take(name)}, {"y", y.take(name)}, {"dx", dx.take(name)}};
  });
}

template <class T>
void global_pool(const std::string& isa, idx n, idx pixels, idx c) {
  Random random(static_cast<uint32_t>(c + pixels));
  const Values x = random.values(n * pixels * c), davg = random.values(n * c), dmax = random.values(n * c);
  const naive::Global both = naive::global_pool(n, pixels, c, x, davg, dmax);
  const naive::Global mean = naive::global_pool(n, pixels, c, x, davg, naive::zeros(n * c));
  const naive::Global most = naive::global_pool(n, pixels, c, x, naive::zeros(n * c), dmax);
  const In<T> in_x(x), in_davg(davg), in_dmax(dmax);
  const std::string name = isa + " global_pool " + std::to_string(pixels) + "x" + std::to_string(c);
  expect<T>(name, {{both.avg}, {both.max}, {both.avg}, {both.max}, {both.dx}, {mean.dx}, {most.dx}}, pixels, [&](int threads) {
    Out<T> avg(n * c), max(n * c), avg1(n * c), max1(n * c), dx(n * pixels * c), dx_avg(n * pixels * c), dx_max(n * pixels * c);
    std::vector<int32_t> positions(at(n * c));
    GlobalPoolParams p{n, pixels, c, in_x.ptr(), avg.ptr(), max.ptr(), positions.data(), nullptr, nullptr, nullptr, threads};
    call<T>(global_avg_max_pool_fwd_f32, global_avg_max_pool_fwd_f64, p);
    p.davg = in_davg.ptr(), p.dmax = in_dmax.ptr(), p.dx = dx.ptr();
    call<T>(global_avg_max_pool_bwd_f32, global_avg_max_pool_bwd_f64, p);
    p.dmax = nullptr, p.dx = dx_avg.ptr(), p.avg = avg1.ptr(), p.max = nullptr;
    call<T>(global_avg_pool_fwd_f32, global_avg_pool_fwd_f64, p);
    call<T>(global_avg_pool_bwd_f32, global_avg_pool_bwd_f64, p);
    p.davg = nullptr, p.dmax = in_dmax.ptr(), p.dx = dx_max.ptr(), p.avg = nullptr, p.max = max1.ptr();
    call<T>(global_max_pool_fwd_f32, global_max_pool_fwd_f64, p);
    call<T>(global_max_pool_bwd_f32, global_max_pool_bwd_f64, p);
    return Results<T>{{"avg", avg.take(name)}, {"max", max.take(name)}, {"avg alone", avg1.take(name)}, {"max alone", max1.take(name)},
                      {"dx", dx.take(name)}, {"dx of avg", dx_avg.take(name)}, {"dx of max", dx_max.take(name)}};
  });
}

using CbamKernel = void (*)(const CbamParams&);

// kernels: fwd, train, bwd of float32, then of float64.
template <class T>
void gate(const std::string& isa, naive::CbamIn in, const CbamKernel (&kernels)[6]) {
  const naive::CbamOut want = naive::cbam(in);
  const In<T> x(in.x), w1(in.w1), b1(in.b1), w2(in.w2), b2(in.b2), weight(in.weight), dout(in.dout), norm_weight(in.norm_weight),
      norm_bias(in.norm_bias), norm_mean(in.norm_mean), norm_var(in.norm_var);
  const idx size = in.n * in.h * in.w * in.c, plane = in.n * in.h * in.w, mlp = w1.ptr() ? 1 : 0, conv = weight.ptr() ? 1 : 0;
  const std::string name = isa + " gate c" + std::to_string(in.c) + (mlp ? " channel" : "") + (conv ? " spatial" : "") +
                           (in.batch ? " batch" : " frozen");
  std::vector<Want> expected{{want.out}, {want.out}, {want.dx}};
  if (in.batch) expected.erase(expected.begin());
  if (mlp)
    for (const Values& v : {want.d_w1, want.d_b1, want.d_w2, want.d_b2}) expected.push_back({v, want.terms});
  if (conv)
    for (const Values& v : {want.d_weight, want.d_norm_weight, want.d_norm_bias}) expected.push_back({v, want.terms});
  expect<T>(name, expected, 64 * plane, [&](int threads) {
    Out<T> inference(size), out(size), dx(size), d_w1(mlp * in.hidden * in.c), d_b1(mlp * in.hidden), d_w2(mlp * in.hidden * in.c),
        d_b2(mlp * in.c), d_weight(conv * 2 * in.k * in.k), d_nw(conv), d_nb(conv);
    std::vector<T> pooled(at(3 * in.n * in.c)), planes(at(3 * plane)), line(3);
    std::vector<int32_t> positions(at(in.n * in.c)), channels(at(plane));
    CbamParams p{};
    p.n = in.n, p.h = in.h, p.w = in.w, p.c = in.c, p.hidden = in.hidden, p.k = static_cast<int>(in.k), p.threads = threads;
    p.x = x.ptr(), p.w1 = w1.ptr(), p.b1 = b1.ptr(), p.w2 = w2.ptr(), p.b2 = b2.ptr(), p.weight = weight.ptr(), p.eps = in.eps;
    p.norm_weight = norm_weight.ptr(), p.norm_bias = norm_bias.ptr(), p.norm_mean = norm_mean.ptr(), p.norm_var = norm_var.ptr();
    p.out = inference.ptr();
    if (!in.batch) call<T>(kernels[0], kernels[3], p);
    p.batch_stats = in.batch, p.out = out.ptr(), p.pooled = pooled.data(), p.positions = positions.data();
    p.planes = planes.data(), p.channels = channels.data(), p.stats = line.data();
    call<T>(kernels[1], kernels[4], p);
    p.dout = dout.ptr(), p.dx = dx.ptr();
    if (mlp) p.d_w1 = d_w1.ptr(), p.d_b1 = d_b1.ptr(), p.d_w2 = d_w2.ptr(), p.d_b2 = d_b2.ptr();
    if (conv) p.d_weight = d_weight.ptr(), p.d_norm_weight = d_nw.ptr(), p.d_norm_bias = d_nb.ptr();
    call<T>(kernels[2], kernels[5], p);
    Results<T> results;
    if (!in.batch) results.push_back({"inference", inference.take(name)});
    results.push_back({"out", out.take(name)}), results.push_back({"dx", dx.take(name)});
    if (mlp) {
      results.push_back({"d_w1", d_w1.take(name)}), results.push_back({"d_b1", d_b1.take(name)});
      results.push_back({"d_w2", d_w2.take(name)}), results.push_back({"d_b2", d_b2.take(name)});
    }
    if (conv) {
      results.push_back({"d_weight", d_weight.take(name)}), results.push_back({"d_norm_weight", d_nw.take(name)});
      results.push_back({"d_norm_bias", d_nb.take(name)});
    }
    return results;
  });
}

template <class T>
void cbam(const std::string& isa, idx n, idx h, idx w, idx c, idx hidden, idx k, bool batch) {
  Random random(static_cast<uint32_t>(c + k));
  const naive::Norm norm = random.norm(1);
  const naive::CbamIn all{n, h, w, c, hidden, k, random.values(n * h * w * c), random.values(hidden * c, 0.25), random.values(hidden),
                          random.values(c * hidden), random.values(c), random.values(2 * k * k, 0.25), norm.weight, norm.bias,
                          norm.mean, norm.var, random.values(n * h * w * c), batch};
  gate<T>(isa, all, {cbam_fwd_f32, cbam_train_f32, cbam_bwd_f32, cbam_fwd_f64, cbam_train_f64, cbam_bwd_f64});
  naive::CbamIn spatial = all, channel = all;
  spatial.w1 = spatial.b1 = spatial.w2 = spatial.b2 = {};
  gate<T>(isa, spatial, {spatial_gate_fwd_f32, spatial_gate_train_f32, spatial_gate_bwd_f32, spatial_gate_fwd_f64,
                         spatial_gate_train_f64, spatial_gate_bwd_f64});
  if (batch) return;
  channel.weight = channel.norm_weight = channel.norm_bias = channel.norm_mean = channel.norm_var = {};
  gate<T>(isa, channel, {channel_gate_fwd_f32, channel_gate_train_f32, channel_gate_bwd_f32, channel_gate_fwd_f64,
                         channel_gate_train_f64, channel_gate_bwd_f64});
}

template <class T>
void pool_and_cbam(const std::string& isa) {
  const auto window = [](idx n, idx h, idx w, idx c, int k, int step, int top, int left, int bottom, int right) {
    MaxPoolParams p{};
    p.n = n, p.h = h, p.w = w, p.c = c, p.kh = p.kw = k, p.sh = p.sw = step, p.top = top, p.left = left;
    p.oh = (h + top + bottom - k) / step + 1, p.ow = (w + left + right - k) / step + 1;
    return p;
  };
  for (const MaxPoolParams& p : {window(2, 9, 7, 17, 3, 2, 1, 1, 1, 1), window(3, 8, 12, 33, 2, 2, 0, 0, 0, 0), window(1, 7, 8, 5, 3, 2, 0, 1, 1, 0),
                                 window(1, 6, 5, 8, 4, 1, 2, 1, 0, 2), window(1, 20, 19, 3, 17, 3, 8, 8, 8, 8), window(0, 4, 4, 4, 2, 2, 0, 0, 0, 0)})
    max_pool<T>(isa, p);
  const idx images[][3] = {{3, 9, 7}, {2, 64, 8}, {1, 25, 480}, {5, 1, 3}, {2, 700, 17}, {0, 4, 4}};
  for (const auto& v : images) global_pool<T>(isa, v[0], v[1], v[2]);
  for (const bool batch : {false, true}) {
    cbam<T>(isa, 3, 5, 7, 8, 1, 7, batch), cbam<T>(isa, 2, 9, 20, 3, 2, 5, batch), cbam<T>(isa, 33, 3, 3, 37, 4, 7, batch);
    cbam<T>(isa, 2, 6, 17, 16, 5, 3, batch);
  }
}

}  // namespace
