// SPDX-License-Identifier: Apache-2.0
// The self-test of gates on channels and on pixels: op.h's formulas on the tape, and the kernels against them.
#pragma once
#include "gate/op.h"
#include "tape.h"

namespace {

enum class Channel { none, mlp, taps };
enum class Pixel { none, pooled, linear };

struct GateCase {
  idx n, h, w, c, hidden;
  Channel channel;
  Pixel pixel;
  bool pool;
  int act, gate_act;
  bool nan = false;  // every 29th value is
};

struct GateTensors {
  Vars x, w1, b1, w2, b2, sw, sb;
};

// What the kernels write in training.
struct Gated {
  Vars out;
  Values means, pixels;
};

// Logits of the channel gate of one image from its means.
Vars channel_logits(const GateCase& s, const GateTensors& v, const Vars& means) {
  Vars logits, hidden;
  for (idx j = 0; j < s.hidden && s.channel == Channel::mlp; ++j) {
    Var sum = v.b1[at(j)];
    for (idx c = 0; c < s.c; ++c) sum = sum + v.w1[at(j * s.c + c)] * means[at(c)];
    hidden.push_back(activate(s.act, sum));
  }
  for (idx c = 0; c < s.c; ++c) {
    Var sum = s.channel == Channel::mlp ? v.b2[at(c)] : note(0);
    for (idx j = 0; j < s.hidden; ++j) {
      if (s.channel == Channel::mlp) sum = sum + v.w2[at(c * s.hidden + j)] * hidden[at(j)];
      const idx from = c + j - s.hidden / 2;
      if (s.channel == Channel::taps && from >= 0 && from < s.c) sum = sum + v.w1[at(j)] * means[at(from)];
    }
    logits.push_back(sum);
  }
  return logits;
}

// Logit of a pixel's gate, and the values of it that training keeps.
Var pixel_logit(const GateCase& s, const GateTensors& v, idx first, Values& kept) {
  Var logit = v.sb[0];
  if (s.pixel == Pixel::linear) {
    for (idx c = 0; c < s.c; ++c) logit = logit + v.sw[at(c)] * v.x[at(first + c)];
    kept = {logit.value()};
    return logit;
  }
  const idx best = first_largest(v.x, first, s.c, 1);
  const Var max = v.x[at(first + best)], average = mean(v.x, first, s.c, 1);
  kept = {max.value(), average.value(), static_cast<double>(best)};
  return logit + v.sw[0] * max + v.sw[1] * average;
}

Gated gated(const GateCase& s, const GateTensors& v) {
  const idx plane = s.h * s.w;
  Gated g;
  for (idx n = 0; n < s.n; ++n) {
    const idx image = n * plane * s.c;
    Vars means, channel, pixel, product;
    if (s.channel != Channel::none) {
      for (idx c = 0; c < s.c; ++c) means.push_back(mean(v.x, image + c, plane, s.c));
      for (Var logit : channel_logits(s, v, means)) channel.push_back(activate(s.gate_act, logit));
      for (Var m : means) g.means.push_back(m.value());
    }
    std::vector<Values> planes(s.pixel == Pixel::pooled ? 3 : s.pixel == Pixel::linear);
    for (idx i = 0; i < plane && s.pixel != Pixel::none; ++i) {
      Values kept;
      pixel.push_back(activate(6, pixel_logit(s, v, image + i * s.c, kept)));
      for (size_t k = 0; k < planes.size(); ++k) planes[k].push_back(kept[k]);
    }
    for (const Values& values : planes) g.pixels.insert(g.pixels.end(), values.begin(), values.end());
    for (idx i = 0; i < plane * s.c; ++i) {
      const size_t c = at(i % s.c), p = at(i / s.c);
      product.push_back(v.x[at(image + i)] * (channel.empty() ? pixel[p]
                                              : pixel.empty() ? channel[c]
                                                              : channel[c] + pixel[p]));
    }
    if (!s.pool) g.out.insert(g.out.end(), product.begin(), product.end());
    for (idx k = 0; k < s.h / 2 * (s.w / 2) * s.c && s.pool; ++k) {
      const idx c = k % s.c, j = k / s.c % (s.w / 2), i = k / s.c / (s.w / 2);
      Vars window;
      for (idx at_row : {2 * i, 2 * i + 1})
        for (idx column : {2 * j, 2 * j + 1}) window.push_back(product[at((at_row * s.w + column) * s.c + c)]);
      g.out.push_back(window[at(first_largest(window, 0, 4, 1))]);
    }
  }
  return g;
}

template <class T>
void gate(const std::string& isa, const GateCase& s) {
  const bool mlp = s.channel == Channel::mlp, linear = s.pixel == Pixel::linear;
  const idx size = s.n * s.h * s.w * s.c, size1 = mlp ? s.hidden * s.c : s.channel == Channel::taps ? s.hidden : 0;
  const idx out_size = s.pool ? s.n * (s.h / 2) * (s.w / 2) * s.c : size, size_sw = linear                     ? s.c
                                                                                    : s.pixel == Pixel::pooled ? 2
                                                                                                               : 0;
  Random random(static_cast<uint32_t>(s.c * 31 + s.w + s.act));
  Values x = random.values(size);
  for (idx i = 3; i < size && s.nan; i += 29) x[at(i)] = NAN;
  const Values w1 = random.values(size1), b1 = random.values(mlp ? s.hidden : 0), w2 = random.values(mlp ? size1 : 0),
               b2 = random.values(mlp ? s.c : 0), sw = random.values(size_sw), sb = random.values(size_sw ? 1 : 0),
               dout = random.values(out_size);
  tape.clear();
  const GateTensors v{variables(x),  variables(w1), variables(b1), variables(w2),
                      variables(b2), variables(sw), variables(sb)};
  const Gated want_gated = gated(s, v);
  const Gradients grads(want_gated.out, dout);
  char text[160];
  std::snprintf(text, sizeof text, " gate n%d h%d w%d c%d hidden %d channel %d pixel %d%s acts %d %d", int(s.n),
                int(s.h), int(s.w), int(s.c), int(s.hidden), int(s.channel), int(s.pixel), s.pool ? " pool" : "", s.act,
                s.gate_act);
  const std::string name = isa + text;
  const In<T> in_x(x), in_w1(w1), in_b1(b1), in_w2(w2), in_b2(b2), in_sw(sw), in_sb(sb), in_dout(dout);
  const std::vector<Want> want{{values_of(want_gated.out)},
                               {values_of(want_gated.out)},
                               {want_gated.means, 2},
                               {want_gated.pixels, 2},
                               grads.of(v.x),
                               grads.of(v.w1),
                               grads.of(v.b1),
                               grads.of(v.w2),
                               grads.of(v.b2),
                               grads.of(v.sw),
                               grads.of(v.sb)};
  const idx length = s.n * s.h * s.w * 4 + (s.c + s.hidden) * 4;
  expect<T>(name, want, length, [&](int threads) {
    const auto count = [](const auto& values) { return static_cast<idx>(values.size()); };
    Out<T> out(out_size), trained(out_size), means(count(want_gated.means)), kept(count(want_gated.pixels)), dx(size);
    Out<T> d_w1(count(w1)), d_b1(count(b1)), d_w2(count(w2)), d_b2(count(b2)), d_sw(count(sw)), d_sb(count(sb));
    GateParams p{};
    p.n = s.n, p.h = s.h, p.w = s.w, p.c = s.c, p.hidden = s.hidden, p.act = static_cast<Act>(s.act);
    p.gate_act = static_cast<Act>(s.gate_act), p.linear = linear, p.pool = s.pool, p.threads = threads;
    p.x = in_x.ptr(), p.w1 = in_w1.ptr(), p.b1 = in_b1.ptr(), p.w2 = in_w2.ptr(), p.b2 = in_b2.ptr(),
    p.sw = in_sw.ptr();
    p.sb = in_sb.ptr(), p.out = out.ptr();
    call<T>(gate_fwd_f32, gate_fwd_f64, p);
    p.out = trained.ptr(), p.means = means.ptr(), p.pixels = kept.ptr();
    call<T>(gate_train_f32, gate_train_f64, p);
    p.out = nullptr, p.dout = in_dout.ptr(), p.dx = dx.ptr();
    if (!w1.empty()) p.d_w1 = d_w1.ptr();
    if (mlp) p.d_b1 = d_b1.ptr(), p.d_w2 = d_w2.ptr(), p.d_b2 = d_b2.ptr();
    if (!sw.empty()) p.d_sw = d_sw.ptr(), p.d_sb = d_sb.ptr();
    call<T>(gate_bwd_f32, gate_bwd_f64, p);
    return Results<T>{{"out", out.take(name)},     {"out of training", trained.take(name)},
                      {"means", means.take(name)}, {"pixels", kept.take(name)},
                      {"dx", dx.take(name)},       {"d_w1", d_w1.take(name)},
                      {"d_b1", d_b1.take(name)},   {"d_w2", d_w2.take(name)},
                      {"d_b2", d_b2.take(name)},   {"d_sw", d_sw.take(name)},
                      {"d_sb", d_sb.take(name)}};
  });
}

template <class T>
void gates(const std::string& isa) {
  const Channel mlp = Channel::mlp, taps = Channel::taps, none = Channel::none;
  const Pixel pooled = Pixel::pooled, linear = Pixel::linear;
  const GateCase cases[] = {
      {2, 5, 7, 17, 5, mlp, Pixel::none, false, 1, 4},   {1, 4, 4, 8, 3, taps, Pixel::none, false, 0, 6},
      {3, 5, 5, 9, 4, mlp, pooled, false, 1, 6},         {2, 7, 9, 3, 5, taps, pooled, true, 0, 6},
      {5, 3, 6, 16, 0, none, pooled, false, 0, 0},       {2, 6, 5, 5, 0, none, pooled, true, 0, 0},
      {1, 9, 4, 33, 16, mlp, linear, false, 5, 6},       {2, 4, 6, 4, 9, mlp, linear, true, 3, 5},
      {1, 1, 1, 1, 1, mlp, pooled, false, 2, 6},         {1, 31, 33, 8, 2, mlp, pooled, true, 1, 6},
      {2, 3, 7, 17, 0, none, pooled, false, 0, 0, true}, {0, 4, 4, 8, 2, mlp, pooled, false, 1, 6},
  };
  for (const GateCase& s : cases) gate<T>(isa, s);
}

}  // namespace
