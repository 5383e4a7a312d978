// SPDX-License-Identifier: Apache-2.0
// The self-test of the losses: op.h's formulas as plain loops, and the kernels against them.
#pragma once
#include "loss/op.h"
#include "harness.h"

namespace {

std::vector<idx> labels_of(idx count, idx classes) {
  std::vector<idx> labels;
  for (idx n = 0; n < count; ++n) labels.push_back((n * 7 + n / 3) % classes);
  return labels;
}

double distance(const Values& x, idx dim, idx a, idx b) {
  double sum = 0;
  for (idx d = 0; d < dim; ++d)
    sum += (x[at(a * dim + d)] - x[at(b * dim + d)]) * (x[at(a * dim + d)] - x[at(b * dim + d)]);
  return std::sqrt(sum);
}

template <class T>
void center(const std::string& isa, idx count, idx dim, idx classes) {
  Random random(static_cast<uint32_t>(count + dim));
  const Values x = random.values(count * dim), c = random.values(classes * dim);
  const std::vector<idx> labels = labels_of(count, classes);
  Values loss(1), dx = naive::zeros(count * dim), dc = naive::zeros(classes * dim);
  for (idx n = 0; n < count; ++n)
    for (idx d = 0; d < dim; ++d) {
      const double diff = x[at(n * dim + d)] - c[at(labels[at(n)] * dim + d)];
      loss[0] += diff * diff / 2, dx[at(n * dim + d)] = 1.5 * diff, dc[at(labels[at(n)] * dim + d)] -= 1.5 * diff;
    }
  const In<T> in_x(x), in_c(c), dloss(Values{1.5});
  const std::string name = isa + " centre loss " + std::to_string(count) + "x" + std::to_string(dim);
  expect<T>(name, {{loss}, {dx}, {dc, 4.0 * static_cast<double>(count)}}, count * dim + 1, [&](int threads) {
    Out<T> o_loss(1), o_dx(count * dim), o_dc(classes * dim);
    CenterParams p{};
    p.count = count, p.dim = dim, p.classes = classes, p.features = in_x.ptr(), p.labels = labels.data(),
    p.threads = threads;
    p.centers = in_c.ptr(), p.loss = o_loss.ptr();
    call<T>(center_loss_fwd_f32, center_loss_fwd_f64, p);
    p.dloss = dloss.ptr(), p.d_features = o_dx.ptr(), p.d_centers = o_dc.ptr();
    call<T>(center_loss_bwd_f32, center_loss_bwd_f64, p);
    return Results<T>{{"loss", o_loss.take(name)}, {"dx", o_dx.take(name)}, {"dc", o_dc.take(name)}};
  });
}

template <class T>
void triplet(const std::string& isa, idx count, idx dim, idx classes) {
  Random random(static_cast<uint32_t>(count * 3 + dim));
  const Values x = random.values(count * dim);
  const std::vector<idx> labels = labels_of(count, classes);
  const double margin = 0.5;
  Values loss(1), slopes = naive::zeros(2 * count), dx = naive::zeros(count * dim);
  std::vector<idx> pairs(at(2 * count), -1);
  double valid = 0;
  for (idx a = 0; a < count; ++a) {
    idx far = -1, near = -1;
    for (idx j = 0; j < count; ++j) {
      const bool same = labels[at(a)] == labels[at(j)];
      if (same && j != a && (far < 0 || distance(x, dim, a, j) > distance(x, dim, a, far))) far = j;
      if (!same && (near < 0 || distance(x, dim, a, j) < distance(x, dim, a, near))) near = j;
    }
    if (far >= 0 && near >= 0) pairs[at(2 * a)] = far, pairs[at(2 * a + 1)] = near, ++valid;
  }
  for (idx a = 0; a < count; ++a) {
    if (pairs[at(2 * a)] < 0) continue;
    const double far = distance(x, dim, a, pairs[at(2 * a)]), near = distance(x, dim, a, pairs[at(2 * a + 1)]);
    if (margin + far - near <= 0) continue;
    loss[0] += (margin + far - near) / valid, slopes[at(2 * a)] = 1 / (valid * far),
                                                            slopes[at(2 * a + 1)] = 1 / (valid * near);
    for (idx side = 0; side < 2; ++side)
      for (idx d = 0; d < dim; ++d) {
        const idx other = pairs[at(2 * a + side)];
        const double grad = (side ? -1 : 1) * slopes[at(2 * a + side)] * (x[at(a * dim + d)] - x[at(other * dim + d)]);
        dx[at(a * dim + d)] += grad, dx[at(other * dim + d)] -= grad;
      }
  }
  const In<T> in_x(x), dloss(Values{1});
  const std::string name = isa + " triplet loss " + std::to_string(count) + "x" + std::to_string(dim);
  expect<T>(name, {{loss, 10}, {slopes}, {dx, 4}}, count + dim, [&](int threads) {
    Out<T> o_loss(1), o_slopes(2 * count), o_dx(count * dim);
    std::vector<idx> o_pairs(at(2 * count), -7);
    TripletParams p{};
    p.count = count, p.dim = dim, p.features = in_x.ptr(), p.labels = labels.data(), p.margin = margin,
    p.threads = threads;
    p.loss = o_loss.ptr(), p.pairs = o_pairs.data(), p.slopes = o_slopes.ptr();
    call<T>(triplet_loss_fwd_f32, triplet_loss_fwd_f64, p);
    check(o_pairs == pairs, name + ": hardest samples");
    p.dloss = dloss.ptr(), p.d_features = o_dx.ptr();
    call<T>(triplet_loss_bwd_f32, triplet_loss_bwd_f64, p);
    return Results<T>{{"loss", o_loss.take(name)}, {"slopes", o_slopes.take(name)}, {"dx", o_dx.take(name)}};
  });
}

template <class T>
void cross_entropy(const std::string& isa, idx count, idx classes, double smoothing) {
  Random random(static_cast<uint32_t>(count + classes));
  const Values logits = random.values(count * classes, 2);
  Values weight = random.values(classes), loss(1), grad = naive::zeros(count * classes);
  for (double& w : weight) w = static_cast<float>(w * w + 0.5);
  const std::vector<idx> labels = labels_of(count, classes);
  double total = 0;
  for (idx label : labels) total += weight[at(label)];
  for (idx n = 0; n < count; ++n) {
    double sum = 0, factors = 0;
    for (idx k = 0; k < classes; ++k) sum += std::exp(logits[at(n * classes + k)]);
    for (idx k = 0; k < classes; ++k) {
      const double target = (labels[at(n)] == k) * (1 - smoothing) + smoothing / static_cast<double>(classes);
      const double factor = weight[at(k)] * target / total;
      loss[0] -= factor * (logits[at(n * classes + k)] - std::log(sum));
      grad[at(n * classes + k)] -= factor, factors += factor;
    }
    for (idx k = 0; k < classes; ++k)
      grad[at(n * classes + k)] += factors * std::exp(logits[at(n * classes + k)]) / sum;
  }
  const In<T> in_logits(logits), in_weight(weight);
  const std::string name = isa + " cross-entropy " + std::to_string(count) + "x" + std::to_string(classes);
  expect<T>(name, {{loss, 4}, {grad, 1}}, count + classes, [&](int threads) {
    Out<T> o_loss(1), o_grad(count * classes);
    CrossEntropyParams p{};
    p.count = count, p.classes = classes, p.logits = in_logits.ptr(), p.labels = labels.data(),
    p.weight = in_weight.ptr();
    p.smoothing = smoothing, p.loss = o_loss.ptr(), p.d_logits = o_grad.ptr(), p.threads = threads;
    call<T>(cross_entropy_fwd_f32, cross_entropy_fwd_f64, p);
    return Results<T>{{"loss", o_loss.take(name)}, {"grad", o_grad.take(name)}};
  });
}

template <class T>
void losses(const std::string& isa) {
  const idx sizes[][3] = {{1, 1, 1}, {5, 3, 2}, {13, 17, 4}, {40, 33, 7}, {64, 640, 7}};
  for (const auto& v : sizes) {
    center<T>(isa, v[0], v[1], v[2]);
    triplet<T>(isa, v[0], v[1], v[2]);
    for (double smoothing : {0.0, 0.25}) cross_entropy<T>(isa, v[0], v[1], smoothing);
  }
}

}  // namespace
