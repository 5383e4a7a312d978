// SPDX-License-Identifier: Apache-2.0
// The self-test of coordinate attention and its pooling: op.h's formulas on the tape, and the kernels against them.
#pragma once
#include "coordinate/op.h"
#include "tape.h"

namespace {

struct CoordinateCase {
  idx n, h, w, c, middle;
  int kind, act;
  bool batch;
};

// Means, maxima and the maxima's places of the rows, then of the columns of all images, [positions][c].
struct Lines {
  Vars mean, max;
  Values places;
};

Lines lines_of(const Vars& x, idx n, idx h, idx w, idx c) {
  Lines lines;
  for (bool columns : {false, true}) {
    const idx each = columns ? w : h, count = columns ? h : w, step = columns ? w * c : c;
    for (idx i = 0; i < n * each * c; ++i) {
      const idx line = i / c % each, first = i / c / each * h * w * c + line * (columns ? c : w * c) + i % c;
      const idx best = first_largest(x, first, count, step);
      lines.mean.push_back(mean(x, first, count, step)), lines.max.push_back(x[at(first + best * step)]);
      lines.places.push_back(static_cast<double>(best));
    }
  }
  return lines;
}

template <class T>
void line_pool(const std::string& isa, idx n, idx h, idx w, idx c) {
  Random random(static_cast<uint32_t>(h * 7 + c));
  const idx size = n * h * w * c, rows = n * h * c, cols = n * w * c;
  const Values x = random.values(size), d_mean = random.values(rows + cols), d_max = random.values(rows + cols);
  tape.clear();
  const Vars vx = variables(x);
  const Lines lines = lines_of(vx, n, h, w, c);
  Vars out = lines.mean;
  Values dout = d_mean;
  out.insert(out.end(), lines.max.begin(), lines.max.end()), dout.insert(dout.end(), d_max.begin(), d_max.end());
  const Gradients grads(out, dout);
  const In<T> in_x(x), in_mean(d_mean), in_max(d_max);
  const std::string name = isa + " line pooling n" + std::to_string(n) + " h" + std::to_string(h) + " w" +
                           std::to_string(w) + " c" + std::to_string(c);
  expect<T>(name, {{values_of(lines.mean), 2}, {values_of(lines.max)}, grads.of(vx)}, h + w, [&](int threads) {
    Out<T> means(rows + cols), maxima(rows + cols), dx(size);
    LinePoolParams p{};
    p.n = n, p.h = h, p.w = w, p.c = c, p.x = in_x.ptr(), p.threads = threads;
    p.row_mean = means.ptr(), p.col_mean = means.ptr() + rows, p.row_max = maxima.ptr(),
    p.col_max = maxima.ptr() + rows;
    call<T>(cpsca_pool_fwd_f32, cpsca_pool_fwd_f64, p);
    p.d_row_mean = in_mean.ptr(), p.d_row_max = in_max.ptr(), p.dx = dx.ptr();
    p.d_col_mean = rows ? in_mean.ptr() + rows : nullptr, p.d_col_max = rows ? in_max.ptr() + rows : nullptr;
    call<T>(cpsca_pool_bwd_f32, cpsca_pool_bwd_f64, p);
    return Results<T>{{"means", means.take(name)}, {"maxima", maxima.take(name)}, {"dx", dx.take(name)}};
  });
}

struct CoordinateTensors {
  Vars x, weight, bias, norm_weight, norm_bias, h_weight, h_bias, w_weight, w_bias;
};

// What the kernels write in training.
struct Coordinated {
  Vars out;
  Values pooled, at, y, gates, stats;
};

Coordinated coordinated(const CoordinateCase& s, const CoordinateTensors& v, const naive::Norm& norm) {
  const idx rows = s.n * s.h, positions = rows + s.n * s.w;
  const Lines lines = lines_of(v.x, s.n, s.h, s.w, s.c);
  Vars pooled, y, gates;
  for (size_t i = 0; i < lines.mean.size(); ++i)
    pooled.push_back(s.kind == 0 ? lines.mean[i] : s.kind == 1 ? lines.max[i] : lines.mean[i] + lines.max[i]);
  for (idx p = 0; p < positions; ++p)
    for (idx m = 0; m < s.middle; ++m) {
      Var sum = v.bias[at(m)] * (s.kind == 2 ? 2 : 1);
      for (idx c = 0; c < s.c; ++c) sum = sum + v.weight[at(m * s.c + c)] * pooled[at(p * s.c + c)];
      y.push_back(sum);
    }
  const Vars z = norm_act(norm, v.norm_weight, v.norm_bias, y, s.middle, s.act, s.batch);
  for (idx p = 0; p < positions; ++p)
    for (idx c = 0; c < s.c; ++c) {
      Var sum = (p < rows ? v.h_bias : v.w_bias)[at(c)];
      for (idx m = 0; m < s.middle; ++m)
        sum = sum + (p < rows ? v.h_weight : v.w_weight)[at(c * s.middle + m)] * z[at(p * s.middle + m)];
      gates.push_back(activate(6, sum));
    }
  Coordinated r{{},           values_of(pooled), s.kind ? lines.places : Values(),
                values_of(y), values_of(gates),  naive::stats(norm, values_of(y), s.middle, s.batch)};
  for (idx i = 0; i < static_cast<idx>(v.x.size()); ++i) {
    const idx c = i % s.c, column = i / s.c % s.w, row = i / s.c / s.w, image = row / s.h;
    r.out.push_back(v.x[at(i)] * gates[at(row * s.c + c)] * gates[at((rows + image * s.w + column) * s.c + c)]);
  }
  return r;
}

template <class T>
void coordinate(const std::string& isa, const CoordinateCase& s) {
  const idx size = s.n * s.h * s.w * s.c, positions = s.n * (s.h + s.w), weights = s.middle * s.c;
  Random random(static_cast<uint32_t>(s.c * 13 + s.middle));
  const Values x = random.values(size), weight = random.values(weights, 0.5), bias = random.values(s.middle),
               h_weight = random.values(weights), h_bias = random.values(s.c), w_weight = random.values(weights),
               w_bias = random.values(s.c), dout = random.values(size);
  const naive::Norm norm = random.norm(s.middle);
  tape.clear();
  const CoordinateTensors v{variables(x),           variables(weight),    variables(bias),
                            variables(norm.weight), variables(norm.bias), variables(h_weight),
                            variables(h_bias),      variables(w_weight),  variables(w_bias)};
  const Coordinated r = coordinated(s, v, norm);
  const Gradients grads(r.out, dout);
  char text[160];
  std::snprintf(text, sizeof text, " coordinate attention n%d h%d w%d c%d middle %d kind %d act %d", int(s.n), int(s.h),
                int(s.w), int(s.c), int(s.middle), s.kind, s.act);
  const std::string name = isa + text + (s.batch ? " batch norm" : " frozen norm");
  const In<T> in_x(x), in_weight(weight), in_bias(bias), in_hw(h_weight), in_hb(h_bias), in_ww(w_weight), in_wb(w_bias),
      in_dout(dout);
  const NormIn<T> in_norm(norm);
  const auto params = [&](int threads) {
    CoordinateParams p{};
    p.n = s.n, p.h = s.h, p.w = s.w, p.c = s.c, p.middle = s.middle, p.kind = static_cast<Pooling>(s.kind);
    p.act = static_cast<Act>(s.act), p.batch_stats = s.batch, p.threads = threads, p.norm = in_norm.params(norm.eps);
    p.x = in_x.ptr(), p.weight = in_weight.ptr(), p.bias = in_bias.ptr();
    p.h_weight = in_hw.ptr(), p.h_bias = in_hb.ptr(), p.w_weight = in_ww.ptr(), p.w_bias = in_wb.ptr();
    return p;
  };
  const std::vector<Want> want{{values_of(r.out)},
                               {r.pooled, 2},
                               {r.at},
                               {r.y, 4},
                               {r.gates},
                               {r.stats},
                               grads.of(v.x),
                               grads.of(v.weight),
                               grads.of(v.bias),
                               grads.of(v.norm_weight),
                               grads.of(v.norm_bias),
                               grads.of(v.h_weight),
                               grads.of(v.h_bias),
                               grads.of(v.w_weight),
                               grads.of(v.w_bias)};
  const idx length = 4 * (positions + s.h * s.w + s.c + s.middle);
  expect<T>(name, want, length, [&](int threads) {
    Out<T> out(size), pooled(positions * s.c), places(static_cast<idx>(r.at.size())), y(positions * s.middle),
        gates(positions * s.c);
    Out<T> stats(3 * s.middle), dx(size), d_weight(weights), d_bias(s.middle), d_nw(s.middle), d_nb(s.middle);
    Out<T> d_hw(weights), d_hb(s.c), d_ww(weights), d_wb(s.c);
    CoordinateParams p = params(threads);
    p.out = out.ptr(), p.pooled = pooled.ptr(), p.at = s.kind ? places.ptr() : nullptr, p.y = y.ptr(),
    p.gates = gates.ptr();
    p.norm.stats = stats.ptr();
    call<T>(coordinate_attention_train_f32, coordinate_attention_train_f64, p);
    p.out = nullptr, p.dout = in_dout.ptr(), p.dx = dx.ptr(), p.d_weight = d_weight.ptr(), p.d_bias = d_bias.ptr();
    p.norm.d_weight = d_nw.ptr(), p.norm.d_bias = d_nb.ptr(), p.d_h_weight = d_hw.ptr(), p.d_h_bias = d_hb.ptr();
    p.d_w_weight = d_ww.ptr(), p.d_w_bias = d_wb.ptr();
    call<T>(coordinate_attention_bwd_f32, coordinate_attention_bwd_f64, p);
    return Results<T>{{"out", out.take(name)},        {"pooled", pooled.take(name)},
                      {"places", places.take(name)},  {"y", y.take(name)},
                      {"gates", gates.take(name)},    {"stats", stats.take(name)},
                      {"dx", dx.take(name)},          {"d_weight", d_weight.take(name)},
                      {"d_bias", d_bias.take(name)},  {"norm weight", d_nw.take(name)},
                      {"norm bias", d_nb.take(name)}, {"d_h_weight", d_hw.take(name)},
                      {"d_h_bias", d_hb.take(name)},  {"d_w_weight", d_ww.take(name)},
                      {"d_w_bias", d_wb.take(name)}};
  });
  if (s.batch) return;
  expect<T>(name + " inference", {want[0]}, length, [&](int threads) {
    Out<T> out(size);
    CoordinateParams p = params(threads);
    p.out = out.ptr();
    call<T>(coordinate_attention_fwd_f32, coordinate_attention_fwd_f64, p);
    return Results<T>{{"out", out.take(name)}};
  });
}

// One image and several, positions of more than one block, more channels than a task takes.
template <class T>
void coordinates(const std::string& isa) {
  const idx sizes[][4] = {{1, 1, 1, 1}, {2, 5, 7, 17}, {5, 9, 4, 8}, {1, 3, 6, 70}, {4, 2, 3, 260}, {0, 4, 4, 8}};
  for (const auto& v : sizes) line_pool<T>(isa, v[0], v[1], v[2], v[3]);
  for (const CoordinateCase& s :
       {CoordinateCase{2, 5, 7, 17, 3, 0, 3, false}, CoordinateCase{2, 6, 5, 8, 8, 1, 1, true},
        CoordinateCase{5, 4, 3, 9, 4, 2, 3, false}, CoordinateCase{1, 8, 6, 33, 5, 2, 5, true},
        CoordinateCase{1, 70, 3, 4, 9, 0, 2, true}, CoordinateCase{2, 2, 3, 70, 17, 1, 6, false},
        CoordinateCase{4, 2, 2, 260, 2, 2, 0, false}, CoordinateCase{1, 1, 1, 1, 1, 2, 3, false},
        CoordinateCase{0, 4, 4, 8, 2, 2, 3, false}})
    coordinate<T>(isa, s);
}

}  // namespace
